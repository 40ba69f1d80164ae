"""Loading models by name, folder or GGUF file, and formatting chats with their own template."""

from fttt.models.chat import ChatFormat
from fttt.models.loader import (
    LoadedModel,
    Prefix,
    context_of,
    load_config,
    load_model,
    pick_device,
    pick_dtype,
    read_chat,
    without_bars,
)
from fttt.models.locate import cache_folder, check_model, find_model, list_models
from fttt.models.messages import MessageFormat
from fttt.models.quantized import held_bytes, is_plain, quantized_layers
from fttt.models.served import ReadyModel, ServedModel

__all__ = [
    "ChatFormat",
    "LoadedModel",
    "MessageFormat",
    "Prefix",
    "ReadyModel",
    "ServedModel",
    "cache_folder",
    "check_model",
    "context_of",
    "find_model",
    "held_bytes",
    "is_plain",
    "list_models",
    "load_config",
    "load_model",
    "pick_device",
    "pick_dtype",
    "quantized_layers",
    "read_chat",
    "without_bars",
]
