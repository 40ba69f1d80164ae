"""What of a run folder is published: its files without secrets or home folders, and a card."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fttt.errors import UsageError
from fttt.report.text import doubts
from fttt.store import RUN_FILES, Run

__all__ = ["CARD", "check_secrets", "published_card", "published_files"]

CARD = "README.md"
"""The card's name, by which the hub shows it."""
_ABOUT = ("config.toml", "environment.json", "run.log", "summary.json")
"""Files that say how the run was made: what looks like a secret or a home folder counts."""

_SECRETS = {
    "a token of the Hugging Face hub": r"\bhf_[A-Za-z0-9]{20,}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a token of GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})",
    "an access key of AWS": r"\bAKIA[0-9A-Z]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an authorization": r"(?i)\b(?:bearer|basic)\s+[\w.~+/-]{16,}",
    "a password in a URL": r"://[^/\s:@\"']+:[^/\s@\"']+@",
    "a key or password": r"(?i)\b\w*(?:api[_-]?key|access[_-]?token|secret|passwo?r?d)"
    r"[\"']?\s*[=:]\s*[\"']?[^\s\"']{6,}",
}
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in _SECRETS.items()}
_SECRET_NAME = re.compile(r"(?i)key|token|secret|passw|credential")
_OTHER_HOME = re.compile(r"(?<![\w.~/-])(?:/home|/Users)/[^/\s\"'\\:;,)]+")
_SPOKEN = ("detail", "feedback")
"""Keys of trials and verdicts whose text may quote a traceback of this machine."""


def check_secrets(run: Run, known: Iterable[str] = ()) -> None:
    """Refuse to publish a run one of whose files holds a secret.

    In the files that say how the run was made everything that looks like one counts; in questions
    and answers, where a model may have made one up, only those that this process knows.

    Args:
        run: the run.
        known: secrets beside those that the environment's variables hold.

    Raises:
        UsageError: a file holds one; the sentence says where, and does not repeat it.
    """
    values = {value for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    values |= set(known)
    # a short value (a number, "true") is no secret, and would be found everywhere
    spelt = {word for value in values if len(value) >= 8 for word in (value, _escaped(value))}
    for path in _present(run):
        for number, line in enumerate(_text_lines(path), start=1):
            kind = "a secret of this environment" if any(s in line for s in spelt) else None
            if kind is None and path.name in _ABOUT:
                kind = next((k for k, pattern in _PATTERNS.items() if pattern.search(line)), None)
            if kind is not None:
                raise UsageError(
                    f"Line {number} of {str(path)!r} holds {kind}, which would be published; "
                    "remove it from a copy of the run folder, and push that."
                )


def published_files(run: Run, folder: Path) -> list[Path]:
    """Write the run's files to ``folder`` as they are published; home folders become ``~``.

    Questions and completions are left as they are.

    Args:
        run: the run.
        folder: an empty folder.
    """
    written = []
    for path in _present(run):
        change = _without_homes if path.name in _ABOUT else _spoken_without_home
        if path.name == "questions.jsonl":
            change = _same
        copy = folder / path.name
        with copy.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.writelines(map(change, _text_lines(path)))
        written.append(copy)
    return written


def published_card(run: Run, repo: str, licence: str | None = None, kept: Any = None) -> str:
    """The card of a run in Markdown, with the hub's metadata at its head.

    Args:
        run: a finished run.
        repo: ``owner/name``.
        licence: the hub's name of a licence, such as ``apache-2.0``; without one the field is
            left to the owner.
        kept: metadata of the card that is there already, whose own fields stay.
    """
    from huggingface_hub import DatasetCardData

    facts: dict[str, Any] = {
        **(kept or {}),
        **({} if licence is None else {"license": licence}),
        "tags": sorted({"fttt", *((kept or {}).get("tags") or [])}),
        "configs": [
            {"config_name": name, "data_files": f"{name}.jsonl", **default}
            for name, default in (("trials", {"default": True}), ("questions", {}))
        ],
    }
    head = DatasetCardData(**facts).to_yaml()
    return f"---\n{head}\n---\n{_body(run, repo, facts.get('license'))}"


def _body(run: Run, repo: str, licence: Any) -> str:
    summary, environment = run.summary, run.environment
    low, high = (100 * bound for bound in summary["ci95"])
    model = _without_homes(run.model)
    figures = {
        "solved": f"{summary['solved']} of {summary['questions']}",
        "accuracy": f"{100 * summary['accuracy']:.1f} % (95 %: {low:.1f} to {high:.1f})",
        "trials": f"{summary['trials_total']:,}",
        "generated tokens": f"{summary['usage']['generated_tokens']:,}",
        "trained tokens": f"{summary['usage']['trained_tokens']:,}",
        "seconds": f"{summary['seconds']:,.1f}",
    }
    if "score" in summary:
        figures["mean best score"] = f"{summary['score']:.3f}"
    after = {f"{n} trials" if n != "1" else "1 trial": f"{100 * share:.1f} %"
             for n, share in summary.get("accuracy_at", {}).items()}  # fmt: skip
    versions = dict(environment.get("versions", {}))
    for name in ("device_name", "dtype", "git"):
        if environment.get(name) is not None:
            versions[name.replace("_name", "")] = str(environment[name])
    settings = "".join(map(_without_homes, _text_lines(run.path / "config.toml")))
    notes = [f"- {_without_homes(note)}" for note in doubts(run)]
    parts = [
        f"# `{run.method}` on `{run.task}`, `{model}`",
        f"A run of `fttt`: {len(run.questions):,} questions, seed {run.seed}. Every trial is in "
        "`trials.jsonl`, with its tokens, verdict and usage.",
        _table(("", "value"), figures),
        *([] if not after else ["## Accuracy after", _table(("budget", "solved"), after)]),
        *([] if not notes else ["## Notes", "\n".join(notes)]),
        "## Get it",
        f"```\nfttt pull {repo}\nfttt show outputs/{repo.partition('/')[2]}\n```",
        "## Settings",
        _fenced(settings, "toml"),
        "## Versions",
        _table(("", "version"), versions),
        "## Licence",
        f"`{licence}`, as the owner of this repository states."
        if licence
        else "Not stated yet: the owner of this repository fills in `license:` at the head of this "
        "card.",
        "`questions.jsonl` holds questions and gold answers of the task, under the terms of their "
        "source.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: tuple[str, str], rows: dict[str, str]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |"]
    for name, value in rows.items():
        told = str(value).replace("|", "\\|")
        lines.append(f"| {name} | {told} |")
    return "\n".join(lines)


def _fenced(text: str, language: str) -> str:
    """A block of code, whose fence is longer than any in the text."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def _present(run: Run) -> list[Path]:
    """The run's own files. A link is none: it could name any file of this machine."""
    paths = [run.path / name for name in RUN_FILES]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def _text_lines(path: Path) -> Iterator[str]:
    """Lines with their ends; bytes that are no UTF-8 survive."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        yield from file


def _same(line: str) -> str:
    return line


def _without_homes(text: str) -> str:
    """The text with ``~`` for every home folder."""
    return _OTHER_HOME.sub("~", _own_home().sub("~", text))


def _spoken_without_home(line: str) -> str:
    """A line of the journal, with ``~`` for this home folder in what a verifier said."""
    home = _own_home()
    if not home.search(line):
        return line
    try:
        record = json.loads(line)
    except ValueError:
        return line  # a torn last line
    found = {key: record[key] for key in _SPOKEN if isinstance(record.get(key), str)}
    changed = {key: home.sub("~", text) for key, text in found.items()}
    if changed == found:
        return line
    return json.dumps({**record, **changed}, ensure_ascii=False, separators=(",", ":")) + "\n"


def _own_home() -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.~/-]){re.escape(str(Path.home()))}(?![\w.-])")


def _escaped(value: str) -> str:
    """A value as a JSON text holds it."""
    return json.dumps(value, ensure_ascii=False)[1:-1]
