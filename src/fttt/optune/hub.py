"""Checkpoints on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from fttt.errors import RunError, UsageError
from fttt.hub import from_hub
from fttt.optune.info import INFO, NETWORK, OpTuneInfo, find_checkpoint, read_info

__all__ = ["fetch", "is_hub_name", "pull", "push"]

SHARED = (INFO, NETWORK)
"""What is shared of a checkpoint; the optimizer's state is not."""
CARD = "README.md"
_HUB_NAME = re.compile(r"[\w.-]*\w/[\w.-]+")


def is_hub_name(source: str | Path) -> bool:
    """Whether ``source`` reads as ``owner/name`` and is no place here: there is no folder owner."""
    text = str(source)
    return bool(_HUB_NAME.fullmatch(text)) and not Path(text).parent.is_dir()


def fetch(source: str | Path) -> Path:
    """The folder of one checkpoint: of a folder here, or downloaded as ``owner/name``.

    Raises:
        UsageError: there is none.
        RunError: the hub could not be reached, or has no such repository.
    """
    return find_checkpoint(pull(str(source)) if is_hub_name(source) else source)


def pull(name: str, revision: str | None = None) -> Path:
    """Download a checkpoint into the hub's cache and return its folder.

    Raises:
        RunError: the hub could not be reached, or has no such repository.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        with from_hub(name):
            return Path(snapshot_download(name, revision=revision, allow_patterns=[*SHARED]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise RunError(
            f"There is no folder {name!r}, and no OpTune checkpoint could be downloaded by that "
            f"name: {_line(error)}; check the path, or the name and the "
            "connection to the hub."
        ) from error


def push(source: str | Path, name: str, *, private: bool = False) -> str:
    """Upload a checkpoint with a short model card as ``owner/name``; return its address.

    Raises:
        UsageError: ``source`` holds no whole checkpoint.
        RunError: the hub refused it or could not be reached.
    """
    import httpx
    from huggingface_hub import HfApi

    folder, info = find_checkpoint(source), read_info(source)
    if not _HUB_NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name of the hub; give one of the form owner/name.")
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        with TemporaryDirectory() as scratch:
            for file in SHARED:
                (Path(scratch) / file).write_bytes((folder / file).read_bytes())
            (Path(scratch) / CARD).write_text(_card(info, name), encoding="utf-8")
            commit = api.upload_folder(
                repo_id=name, folder_path=scratch, commit_message=f"OpTune, step {info.step}"
            )
    except (httpx.HTTPError, OSError) as error:  # what the hub says is one of the first too
        raise RunError(
            f"The checkpoint {str(folder)!r} could not be uploaded to {name!r}: "
            f"{_line(error)}; check the name, the connection and the token of "
            "`hf auth login`."
        ) from error
    return str(commit.commit_url)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _card(info: OpTuneInfo, name: str) -> str:
    layers = "\n".join(f"- `{layer.name}` ({layer.shape})" for layer in info.layers)
    return (
        f"---\nlibrary_name: fttt\ntags: [optune, test-time-training]\n---\n\n"
        f"An OpTune network ({info.parameters:,} parameters) for `{info.model}`, trained on "
        f"`{info.task}` for {info.step:,} steps. It predicts a change of these weights from one "
        f"failed attempt:\n\n{layers}\n\n"
        f"```sh\nfttt run optune --model {info.model} --task {info.task} --checkpoint {name}\n```\n"
    )
