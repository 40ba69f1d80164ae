"""Runs on the Hugging Face hub: a run folder as a dataset repository, and back."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fttt.errors import FTTTError, RunError, UsageError, first_line
from fttt.files import begin_folder, cannot_write, check_unused, from_hub, hub_http_error
from fttt.report.publication import CARD, check_secrets, published_card, published_files
from fttt.store import RUN_FILES, Run

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Pushed", "code_named", "pull_run", "push_run"]

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_OF_THE_HUB = (".gitattributes", CARD)
"""Files of a repository that are no run's, and stand beside one."""

_NEEDED = ("accuracy", "ci95", "questions", "seconds", "solved", "trials_total", "usage")
"""Figures of a summary that version 0.1 had too, and every table shows."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What :func:`push_run` has published."""

    url: str
    files: int
    bytes: int
    private: bool


def push_run(run: Run, repo: str, *, public: bool = False, licence: str | None = None) -> Pushed:
    """Publish a finished run as a dataset repository of the hub, with a card.

    Args:
        run: the run.
        repo: ``owner/name``; made where there is none, else its run is replaced by a new commit.
        public: whether a new repository is public. One that is there stays as it is.
        licence: the hub's name of a licence; without one the card's field is left to the owner.

    Raises:
        UsageError: the run is unfinished or holds a secret, the repository holds something else,
            or the hub does not take the token.
        RunError: the hub cannot be reached, or refuses.
    """
    _check_name(repo)
    if not run.finished:
        raise UsageError(
            f"The run {str(run.path)!r} is unfinished, and only finished ones are pushed; finish "
            f"it by `fttt run --resume {run.path}`."
        )
    if run.loss is not None:
        raise UsageError(f"{run.loss}.")
    from huggingface_hub import CommitOperationAdd, get_token

    token = get_token()
    check_secrets(run, [] if token is None else [token])
    if token is None:
        raise UsageError(
            "No token of the hub was found; log in by `hf auth login`, or set HF_TOKEN to a token "
            "that may write."
        )
    with tempfile.TemporaryDirectory(prefix="fttt-push-") as folder, _hub(repo) as hub:
        try:
            files = published_files(run, Path(folder))
        except OSError as error:
            raise cannot_write(Path(folder), error, "make room there, or set TMPDIR") from error
        private, kept = _ready_repository(hub, repo, public)
        card = published_card(run, repo, licence, kept).encode("utf-8", "replace")
        hub.create_commit(
            repo,
            [
                CommitOperationAdd(CARD, card),
                *(CommitOperationAdd(path.name, path) for path in files),
            ],
            commit_message=f"{run.method} on {run.task}, seed {run.seed}",
            repo_type="dataset",
        )
        size = len(card) + sum(path.stat().st_size for path in files)
    return Pushed(f"{hub.endpoint}/datasets/{repo}", len(files) + 1, size, private)


def pull_run(repo: str, out: Path) -> Run:
    """Download a run that was pushed, and check it before it takes its place.

    Only the files of a run folder are taken, by their exact names, and they are read as every run
    is; nothing of them is executed.

    Args:
        repo: ``owner/name``.
        out: a folder that does not exist, or is empty.

    Raises:
        UsageError: there is no such repository, it holds no run, or a broken one.
        RunError: the hub cannot be reached, or the folder cannot be written.
    """
    _check_name(repo)
    check_unused(out, "fttt run --resume")
    made = [parent for parent in (out, *out.parents) if not parent.exists()]
    begin_folder(out, "fttt run --resume")
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".fttt-pull-") as folder:
            _download(repo, Path(folder))
            _check(Path(folder), repo)
            for name in reversed(RUN_FILES):  # config.toml last: with it the folder is a run's
                if (Path(folder) / name).exists():
                    (Path(folder) / name).replace(out / name)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        for place in made:
            if any(place.iterdir()):
                break
            place.rmdir()
    return Run.open(out)


def code_named(run: Run) -> list[str]:
    """What the settings of a run name that is executed where it is judged again or resumed."""
    options = run.config.get("data", {}).get("options", {})
    named = [str(value) for value in (run.method, run.task) if ":" in str(value)]
    found = re.compile(r"\b(?:command|python):[^,)]*")
    return [*named, *found.findall(str(options.get("verifier", "")))]


def _check_name(repo: str) -> None:
    if not _NAME.fullmatch(repo) or ".." in repo or "--" in repo or repo.endswith(".git"):
        raise UsageError(
            f"The repository cannot be {repo!r}; write owner/name, in letters, digits, '-', '_' "
            "and '.'."
        )


def _ready_repository(hub: HfApi, repo: str, public: bool) -> tuple[bool, dict[str, Any]]:
    """Whether the repository is private, made where it is missing, and its card's metadata."""
    from huggingface_hub import metadata_load
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = hub.dataset_info(repo)
    except RepositoryNotFoundError:
        hub.create_repo(repo, private=not public, repo_type="dataset")
        return not public, {}
    names = [file.rfilename for file in info.siblings or []]
    foreign = sorted(set(names) - {*RUN_FILES, *_OF_THE_HUB})
    if foreign:
        raise UsageError(
            f"The dataset {repo!r} holds other files than a run's ({', '.join(foreign[:3])}"
            f"{', ...' if len(foreign) > 3 else ''}); name a new one."
        )
    if CARD not in names:
        return bool(info.private), {}
    with tempfile.TemporaryDirectory() as folder:
        card = hub.hf_hub_download(repo, CARD, repo_type="dataset", local_dir=folder)
        return bool(info.private), metadata_load(card) or {}


def _download(repo: str, folder: Path) -> None:
    """Fetch the files of a run, all of the same commit."""
    with _hub(repo) as hub:
        info = hub.dataset_info(repo)
        names = {file.rfilename for file in info.siblings or []}
        if missing := sorted({"config.toml", "questions.jsonl", "trials.jsonl"} - names):
            raise UsageError(
                f"The dataset {repo!r} holds no run: it has no {missing[0]}; name one that "
                "`fttt push` made."
            )
        for name in RUN_FILES:
            if name in names:
                hub.hf_hub_download(
                    repo, name, repo_type="dataset", revision=info.sha, local_dir=folder
                )


def _check(folder: Path, repo: str) -> None:
    """Read every file of a downloaded run as it will be read later."""
    for name in RUN_FILES:
        path = folder / name
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise UsageError(f"{name} of the dataset {repo!r} is no regular file; not pulled.")
    try:
        run = Run.open(folder)
        summary, found = run.summary, run.summarize()
        assert run.histories is not None  # which reads the journal
        wrong = [
            name
            for name, value in found.items()
            if not (_alike(summary[name], value) if name in summary else name not in _NEEDED)
        ]
        loss = run.loss
    except FTTTError as error:
        told = str(error).replace(str(folder), repo)
        raise UsageError(
            f"The dataset {repo!r} was not pulled: {told[:1].lower()}{told[1:]}"
        ) from error
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        raise UsageError(
            f"The dataset {repo!r} holds files of a run's names and other content; not pulled."
        ) from None
    if wrong or loss is not None:
        raise UsageError(
            f"The dataset {repo!r} was not pulled: its summary.json does not agree with its trials"
            + (f" ({wrong[0]})." if wrong else ".")
        )


def _alike(told: Any, found: Any) -> bool:
    """Whether a figure has the form that it has in a run of ours."""
    if isinstance(found, Mapping):
        return isinstance(told, Mapping) and all(
            key in told and _alike(told[key], value) for key, value in found.items()
        )
    if isinstance(found, list):
        return isinstance(told, list) and len(told) == len(found) and all(map(_alike, told, found))
    numbers = (int, float)
    return isinstance(told, numbers if isinstance(found, numbers) else type(found))


@contextmanager
def _hub(repo: str) -> Iterator[HfApi]:
    """The hub's client, whose errors are told in a sentence."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        with from_hub(repo):
            yield HfApi(endpoint=constants.ENDPOINT)
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise RunError(_unreachable(constants.ENDPOINT)) from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"The hub has no dataset {repo!r}, or it is private and the token may not read it; "
            "check the name, or log in by `hf auth login`."
        ) from error
    except HfHubHTTPError as error:
        if _status(error) in (401, 403):
            raise UsageError(_refused(repo, _status(error))) from error
        raise RunError(
            f"The hub refused what was asked of {repo!r}: {first_line(error)}."
        ) from error
    except (hub_http_error(), ConnectionError, TimeoutError) as error:
        raise RunError(_unreachable(constants.ENDPOINT)) from error


def _status(error: Any) -> int:
    return int(getattr(error.response, "status_code", 0))


def _refused(repo: str, status: int) -> str:
    if status == 401:
        return "The hub does not take the token; log in anew by `hf auth login`, or set HF_TOKEN."
    return (
        f"The token may not write to {repo!r}; take one that may write, or name a repository of "
        "your own."
    )


def _unreachable(endpoint: str) -> str:
    return (
        f"The hub at {endpoint} cannot be reached; try again when this machine is online and "
        "HF_HUB_OFFLINE is not set."
    )
