"""GGUF files: read as they are, into ``transformers`` models, without a copy on the disk."""
