"""Loading models by name, folder or GGUF file, and formatting chats with their own template."""

from fttt.models.chat import ChatFormat
from fttt.models.loader import LoadedModel, load_model
from fttt.models.source import check_model, list_models

__all__ = ["ChatFormat", "LoadedModel", "check_model", "list_models", "load_model"]
