"""GGUF files, read directly into ``transformers`` models, without a converted copy on disk."""
