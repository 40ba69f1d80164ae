"""A GGUF file: its metadata, its table of tensors, and each tensor dequantised.

The container is a header, key-value metadata, a table of tensors and their aligned data (GGUF 2 and
3, little-endian). Files that were split (``-00001-of-00003.gguf``) are read together.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray
from torch import Tensor

from fttt.errors import UsageError

__all__ = ["GGUFFile", "TensorEntry", "open_gguf", "read_tensor", "tensor_pieces"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_NUMBERS = "BbHhIif?"  # by the number of their type in the file
_WIDE = {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32
_PIECE = 2**20
"""Weights that one thread dequantises at a time."""
_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """The place and form of a tensor's data."""

    name: str
    shape: tuple[int, ...]
    """Rows first, as torch has it."""
    kind: GGMLQuantizationType
    file: Path
    offset: int
    """Position of the first byte in the file."""
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """A GGUF file's metadata and table of tensors."""

    path: Path
    metadata: Mapping[str, Any]
    """Numbers, texts, and arrays of them: lists of ``str``, NumPy arrays of numbers."""
    tensors: Mapping[str, TensorEntry]

    @property
    def architecture(self) -> str:
        """The family's name, as ``general.architecture`` gives it."""
        return str(self.metadata["general.architecture"])

    def refuse(self, what: str, then: str) -> NoReturn:
        """Raise the error about this file: what is wrong, and what to do.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"The GGUF file {str(self.path)!r} {what}; {then}.")


def open_gguf(path: str | Path) -> GGUFFile:
    """Read the metadata of a file, and of its other parts if it was split.

    Raises:
        UsageError: it is not a GGUF file, is cut short, or has tensors of an unknown kind.
    """
    path = Path(path)
    try:
        state = path.stat()
        return _open(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise UsageError(f"Cannot read the GGUF file {str(path)!r}: {error.strerror}.") from error


@lru_cache(maxsize=2)  # a vocabulary takes tenths of a second to read
def _open(path: Path, size: int, modified: int) -> GGUFFile:
    file = _read(path)
    parts = int(file.metadata.get("split.count", 1))
    if parts > 1:
        file = _joined(file, parts)
    if "general.architecture" not in file.metadata:
        file.refuse("names no architecture", "convert the model again with a current converter")
    _check_kinds(file)
    return file


def _joined(first: GGUFFile, parts: int) -> GGUFFile:
    """All parts of a split file together; the metadata are those of its first part."""
    named = _SPLIT.fullmatch(first.path.name)
    if named is None or int(named[3]) != parts or int(named[2]) != 1:
        first.refuse(
            f"is a part of {parts}, and not the first by its name",
            f"name the file that ends with -00001-of-{parts:05}.gguf",
        )
    tensors = dict(first.tensors)
    for number in range(2, parts + 1):
        part = first.path.with_name(f"{named[1]}-{number:05}-of-{parts:05}.gguf")
        if not part.is_file():
            first.refuse(f"lacks its part {part.name!r}", "put all parts into one folder")
        tensors |= _read(part).tensors
    return GGUFFile(first.path, first.metadata, tensors)


def _check_kinds(file: GGUFFile) -> None:
    """Refuse kinds that cannot be dequantised; one block of each kind is tried."""
    for kind in {tensor.kind for tensor in file.tensors.values()}:
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            file.refuse(
                f"holds tensors of the kind {kind.name}, which is not supported",
                "use the model in another quantisation, such as Q4_K_M or Q8_0",
            )


def _read(path: Path) -> GGUFFile:
    """One file.

    Raises:
        UsageError: it is not a GGUF file, or not whole.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        if size < 24 or handle.read(4) != _MAGIC:
            raise UsageError(
                f"The file {str(path)!r} ({size:,} bytes) is not a GGUF file: it does not begin "
                "with 'GGUF'; check that it was copied whole."
            )
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                file = _HeaderReader(path, data).file()
            except (struct.error, IndexError, ValueError, OverflowError) as error:
                raise UsageError(
                    f"The GGUF file {str(path)!r} ({size:,} bytes) ends or is damaged within its "
                    "metadata; check that it was copied whole."
                ) from error
    end = max((tensor.offset + tensor.size for tensor in file.tensors.values()), default=0)
    if end > size:
        raise UsageError(
            f"The GGUF file {str(path)!r} is cut short: it has {size:,} bytes instead of {end:,}; "
            "copy or download it again."
        )
    return file


class _HeaderReader:
    """Reads the values of a file's header one after the other."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at = path, data, 4

    def file(self) -> GGUFFile:
        version = self._number("I")
        if version not in _VERSIONS:
            raise UsageError(
                f"The GGUF file {str(self._path)!r} is of version {version}; only versions 2 and "
                "3, little-endian, can be read: convert the model again."
            )
        tensors, pairs = self._number("Q"), self._number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._text()
            metadata[key] = self._value(self._number("I"))
        table = [self._tensor() for _ in range(tensors)]
        alignment = int(metadata.get("general.alignment", _ALIGNMENT))
        start = -(-self._at // alignment) * alignment
        return GGUFFile(self._path, metadata, {t.name: t for t in self._entries(table, start)})

    def _entries(
        self, table: list[tuple[str, tuple[int, ...], int, int]], start: int
    ) -> Iterator[TensorEntry]:
        for name, shape, number, offset in table:
            try:
                kind = GGMLQuantizationType(number)
                block, block_bytes = GGML_QUANT_SIZES[kind]
            except (ValueError, KeyError):
                raise UsageError(
                    f"The GGUF file {str(self._path)!r} holds the tensor {name!r} of the unknown "
                    f"kind {number}; use the model in another quantisation, such as Q4_K_M."
                ) from None
            size = prod(shape) // block * block_bytes
            yield TensorEntry(name, shape, kind, self._path, start + offset, size)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._text()
        shape = tuple(self._number("Q") for _ in range(self._number("I")))
        return name, shape[::-1], self._number("I"), self._number("Q")

    def _number(self, letter: str) -> Any:
        layout = "<" + letter
        (value,) = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return value

    def _text(self) -> str:
        length = self._number("Q")
        end = self._at + length
        if end > len(self._data):
            raise IndexError
        text = self._data[self._at : end].decode("utf-8", errors="replace")
        self._at = end
        return text

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._number(_letter(kind))
        kind, count = self._number("I"), self._number("Q")
        if kind in (_STRING, _ARRAY):
            return [self._value(kind) for _ in range(count)]
        return self._numbers(_letter(kind), count)

    def _numbers(self, letter: str, count: int) -> NDArray[Any]:
        numbers = np.frombuffer(self._data, "<" + letter, count, self._at).copy()
        self._at += numbers.nbytes
        return numbers


def _letter(kind: int) -> str:
    """The code by which ``struct`` and NumPy know a type of the file.

    Raises:
        ValueError: there is no such type.
    """
    letter = _WIDE.get(kind) or _NUMBERS[kind : kind + 1]
    if not letter:
        raise ValueError(kind)
    return letter


def read_tensor(file: GGUFFile, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """One tensor, dequantised."""
    out = torch.empty(file.tensors[name].shape, dtype=dtype)
    for piece in tensor_pieces(file.tensors[name], out):
        piece()
    return out


def tensor_pieces(entry: TensorEntry, out: Tensor) -> Iterator[Callable[[], object]]:
    """Functions that each fill a few rows of ``out`` with a tensor's weights."""
    data = np.memmap(entry.file, np.uint8, "r", entry.offset, (entry.size,))
    columns = entry.shape[-1] if entry.shape else 1
    rows_RC = out.view(-1, columns)
    bytes_RB = data.reshape(rows_RC.shape[0], -1)
    step = max(1, _PIECE // columns)

    def fill(first: int) -> None:
        part = np.ascontiguousarray(bytes_RB[first : first + step])
        weights = np.require(dequantize(part, entry.kind), requirements="W")
        rows_RC[first : first + step] = torch.from_numpy(weights)

    for first in range(0, rows_RC.shape[0], step):
        yield lambda first=first: fill(first)  # type: ignore[misc]
