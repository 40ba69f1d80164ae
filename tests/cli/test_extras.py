"""The extras: a command without its packages ends in a sentence, and other commands do not mind."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUN = "run greedy --model smollm2-135m --task"
NEEDED = [
    ("hub", "datasets pyarrow", f"{RUN} gsm8k"),
    ("math", "mpmath", "verify math"),
    ("judge", "httpx", "verify code"),
    ("judge", "tenacity", f"{RUN} jsonl --data-dir asked.jsonl --verifier code"),
    ("judge", "fastapi", "judge serve --port 0"),
    ("judge", "prometheus_client", "judge serve --port 0"),
    ("report", "scipy", "compare one two"),
    ("report", "jinja2", "report one"),
    ("view", "uvicorn", "view ."),
    (
        "endpoint",
        "openai",
        "run greedy --model openai:m --endpoint http://[::1]:9 --task sorting",
    ),
    ("gym", "reasoning_gym", f"{RUN} gym/word_sorting"),
    ("scale", "ray", f"{RUN} sorting --device cpu --replicas 2"),
    ("train", "peft", "finetune train lora --model smollm2-135m --task gsm8k --out tuned"),
]
"""An extra, packages of it that are missing, and a command that needs them."""

MISSING = """
import sys
from importlib.machinery import PathFinder

found = PathFinder.find_spec
names = set(sys.argv[1].split())


def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in names else found(name, path, target)


PathFinder.find_spec = staticmethod(find_spec)
from fttt.cli import main

main(sys.argv[2:])
"""
"""Runs a command in a process for which some packages are not installed."""


def without(packages: str, command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", MISSING, packages, *command.split()],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        input="",
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("extra", "packages", "command"), NEEDED)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    extra: str, packages: str, command: str, tmp_path: Path
) -> None:
    line = '{"question": "f", "answer": {"prompt": "", "test": "", "entry_point": "f"}}\n'
    (tmp_path / "asked.jsonl").write_text(line, encoding="utf-8")
    done = without(packages, command, tmp_path)
    *notes, said = done.stderr.splitlines()
    assert f"pip install 'fttt[{extra}]'" in said
    assert (done.returncode, done.stdout) == (2, "")
    assert not any("Traceback" in note for note in notes)
    assert [path.name for path in tmp_path.iterdir()] == ["asked.jsonl"]  # nothing was begun


@pytest.mark.slow
def test_what_needs_no_extra_works_without_any(tmp_path: Path) -> None:
    packages = (
        "datasets pyarrow mpmath fastapi uvicorn tenacity prometheus_client scipy statsmodels "
        "matplotlib openai reasoning_gym ray accelerate peft tensorboard"
    )
    for command in ("list methods", "verify number", f"{RUN} sorting --dry-run"):
        done = without(packages, command, tmp_path)
        assert done.returncode == 0, done.stderr


def test_all_holds_every_extra_but_the_compiled_and_the_largest() -> None:
    extras = PROJECT["optional-dependencies"]
    [everything] = extras["all"]
    held = everything.removeprefix("fttt[").removesuffix("]").split(",")
    assert sorted(held) == sorted(set(extras) - {"all", "gym", "inspect"})
