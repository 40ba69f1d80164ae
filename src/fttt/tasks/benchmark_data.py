"""Rows of a benchmark: JSON, CSV and parquet files of a folder, or a data set of the hub."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from fttt.errors import UsageError
from fttt.files import from_hub
from fttt.tasks.task import TaskOptions

__all__ = [
    "Row",
    "check_split",
    "find_local",
    "hub_file",
    "local_data",
    "local_note",
    "read_file",
    "read_hub",
    "read_jsonl",
    "read_local",
]

Row = dict[str, Any]

LOCAL = Path("datasets")
"""Where the paper's public code keeps its data."""


def local_data(task: object, split: str) -> Path | None:
    """``./datasets``, where it holds the split of a task in the layout of the paper's code."""
    places = getattr(task, "published_places", None)
    if places is None or not any(any(LOCAL.glob(place)) for place in places(split)):
        return None
    return LOCAL


def local_note(task: str) -> str:
    """The message that data in ``./datasets`` are used."""
    return f"Reading {task} from {str(LOCAL)!r}, which is here; --data-dir names another place."


def check_split(task: str, split: str, splits: Sequence[str]) -> None:
    """Raise :class:`fttt.errors.UsageError` for a split that the task does not have."""
    if split not in splits:
        raise UsageError(
            f"The task {task!r} has no split {split!r}; choose from {', '.join(splits)}."
        )


class PublishedTask(Protocol):
    """A task whose files the paper's public code has."""

    @property
    def name(self) -> str:
        """The task's name."""

    def published_places(self, split: str) -> list[str]:
        """Where that code has the split, as patterns below its data folder."""


def read_local(
    task: PublishedTask, options: TaskOptions, other_places: Sequence[str], fields: Sequence[str]
) -> list[tuple[str, Row]]:
    """Rows of a split below ``options.data_dir``, each with a description of its place.

    Args:
        task: the task that the rows belong to.
        options: the folder and the split.
        other_places: patterns of files beside the task's published places.
        fields: the fields that each row must have.

    Raises:
        UsageError: no file is in any of the places, one of its parts is missing, or it cannot be
            read (:func:`read_jsonl`).
    """
    assert options.data_dir is not None
    places = [*task.published_places(options.split), *other_places]
    found = find_local(task.name, options.data_dir, places)
    return [row for path in _parts(task.name, found) for row in read_file(path, fields)]


def read_file(path: Path, fields: Sequence[str]) -> list[tuple[str, Row]]:
    """Rows of one file, each with a description of its place.

    Raises:
        UsageError: it cannot be read (:func:`read_jsonl`).
    """
    reader = {".parquet": _parquet, ".csv": _csv, ".json": _json}.get(path.suffix)
    if reader is not None:
        return [(f"Row {n} of {str(path)!r}", row) for n, row in enumerate(reader(path, fields))]
    return [(f"Line {n} of {str(path)!r}", row) for n, row in read_jsonl(path, fields)]


_PART = re.compile(r"(.*)-\d{5}-of-(\d{5})(?!\d).*")
"""The name of one of the parts that the hub splits a file into."""


def _parts(task: str, path: Path) -> list[Path]:
    """All parts of a file of which one was found; the first alone would be a part of the data."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    named = f"{match[1]}-*-of-{match[2]}*{path.suffix}"
    parts = [other for other in sorted(path.parent.glob(named)) if _PART.fullmatch(other.name)]
    if len(parts) != int(match[2]):
        raise UsageError(
            f"The data of {task!r} in {str(path.parent)!r} has {int(match[2])} parts, of which "
            f"{len(parts)} are there; put all of them there, each once."
        )
    return parts


def find_local(task: str, data_dir: Path, places: Sequence[str]) -> Path:
    """The first of ``places`` (patterns below ``data_dir``) that holds a file.

    Raises:
        UsageError: none does.
    """
    for place in places:
        for path in sorted(data_dir.glob(place)):
            if path.is_file():
                return path
    raise UsageError(
        f"The data of {task!r} is not in {str(data_dir)!r}: neither of "
        f"{', '.join(places)} is there; point --data-dir at the folder that holds it."
    )


def read_jsonl(path: Path, fields: Sequence[str] = ()) -> Iterator[tuple[int, Row]]:
    """Rows of a JSON lines file with their line numbers, from 1; empty lines are skipped.

    Raises:
        UsageError: the file cannot be read or holds no row, or a line is no JSON object or lacks
            one of ``fields``; names the line.
    """
    count = 0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    count += 1
                    yield number, _row(path, number, line, fields)
    except OSError as error:
        raise UsageError(f"The file {str(path)!r} cannot be read: {error.strerror}.") from None
    if count == 0:
        raise UsageError(
            f"The file {str(path)!r} holds no question; it needs a JSON object a line."
        )


def _row(path: Path, number: int, line: bytes, fields: Sequence[str]) -> Row:
    where = f"Line {number} of {str(path)!r}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is no JSON: {error}; correct or remove it.") from None
    if not isinstance(row, dict):
        raise UsageError(f"{where} is no JSON object; write it as {{…}} with named fields.")
    missing = [field for field in fields if field not in row]
    if missing:
        raise UsageError(f"{where} has no field {missing[0]!r}; it needs {', '.join(fields)}.")
    return row


def _parquet(path: Path, fields: Sequence[str]) -> list[Row]:
    """Rows of a parquet file."""
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]
    except ImportError:
        raise UsageError(
            f"Reading {str(path)!r} needs pyarrow; install it with pip install 'fttt[hub]'."
        ) from None
    try:
        rows: list[Row] = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise UsageError(f"The file {str(path)!r} is no parquet file: {error}.") from None
    return _checked(rows, str(path), fields)


def _csv(path: Path, fields: Sequence[str]) -> list[Row]:
    """Rows of a CSV file, whose first line names its fields."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows: list[Row] = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"The file {str(path)!r} is no CSV file: {error}.") from None
    return _checked(rows, str(path), fields)


def _json(path: Path, fields: Sequence[str]) -> list[Row]:
    """Rows of a JSON file: a list of objects, or an object that has them in ``examples``."""
    try:
        held = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"The file {str(path)!r} is no JSON file: {error}.") from None
    rows = held.get("examples") if isinstance(held, dict) else held
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"The file {str(path)!r} holds no list of JSON objects.")
    return _checked(rows, str(path), fields)


def read_hub(
    name: str, config: str | None, split: str, fields: Sequence[str]
) -> list[tuple[str, Row]]:
    """Rows of a data set of the Hugging Face hub, or of its local cache, with their places.

    Raises:
        UsageError: ``datasets`` is missing, neither the hub nor a cached copy can be reached, or
            the data set is gated and there is no token that may read it.
    """
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError:
        raise UsageError(
            f"Loading {name!r} from the hub needs the datasets package; install it with "
            "pip install 'fttt[hub]', or give a local copy with --data-dir."
        ) from None
    try:
        with from_hub(name):
            rows = [dict(row) for row in datasets.load_dataset(name, config, split=split)]
    except Exception as error:  # datasets raises whatever its transport, cache or parser raises
        raise _unreachable(name, error) from None
    return [(f"Row {n} of {name}", row) for n, row in enumerate(_checked(rows, name, fields))]


def hub_file(name: str, file: str) -> Path:
    """A file of a data set of the hub, downloaded or from the local cache.

    For data sets that come with a loading script, which ``datasets`` no longer runs.

    Raises:
        UsageError: as :func:`read_hub`.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise UsageError(
            f"Loading {name!r} from the hub needs huggingface_hub; install it with "
            "pip install 'fttt[hub]', or give a local copy with --data-dir."
        ) from None
    try:
        with from_hub(name):
            return Path(huggingface_hub.hf_hub_download(name, file, repo_type="dataset"))
    except Exception as error:  # it raises whatever its transport and cache raise
        raise _unreachable(name, error) from None


def _unreachable(name: str, error: Exception) -> UsageError:
    reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
    if "gated" in f"{type(error).__name__} {error}".lower():
        return UsageError(
            f"The data set {name!r} is gated and cannot be read without a token: accept its "
            f"conditions at https://huggingface.co/datasets/{name} and set HF_TOKEN, or give a "
            "local copy with --data-dir."
        )
    return UsageError(
        f"The data set {name!r} could not be loaded from the hub ({reason}); check the "
        "connection, or give a local copy with --data-dir."
    )


def _checked(rows: list[Row], source: str, fields: Sequence[str]) -> list[Row]:
    if not rows:
        raise UsageError(f"{source!r} holds no question.")
    missing = [field for field in fields if field not in rows[0]]
    if missing:
        raise UsageError(f"{source!r} has no field {missing[0]!r}; it needs {', '.join(fields)}.")
    return rows
