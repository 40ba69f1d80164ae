"""GGUF files: read as they are, into ``transformers`` models, without a copy on the disk."""

from fttt.models.gguf.model import check_gguf, read_config, read_model, read_tokenizer

__all__ = ["check_gguf", "read_config", "read_model", "read_tokenizer"]
