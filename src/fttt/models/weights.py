"""What is told of a file of weights without loading it: whether it is whole, and which it is."""

from __future__ import annotations

import json
import struct
from pathlib import Path

__all__ = ["find_fault", "size_and_ends"]

_END = 2**20


def find_fault(file: Path) -> str | None:
    """What is wrong with a safetensors file, or ``None`` where it is as long as its header says."""
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(min(length, size)))
        ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror})"
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        return f"{file.name} is no whole safetensors file ({size} bytes)"
    whole = 8 + length + max(ends, default=0)
    return None if size == whole else f"{file.name} has {size} bytes instead of {whole}"


def size_and_ends(file: Path) -> tuple[int, bytes, bytes]:
    """The bytes that a file has, its first mebibyte and its last, which tell it from others."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        first = handle.read(_END)
        handle.seek(max(0, size - _END))
        return size, first, handle.read()
