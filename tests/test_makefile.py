"""``make``: what a newcomer sees first."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[1] / "Makefile"
PYTHON = """#!/bin/sh
if [ "$2" = venv ]; then
  mkdir -p $3/bin
  printf '#!/bin/sh\\necho "$@" >> pip.log\\n' > $3/bin/pip
  printf '#!/bin/sh\\necho "fttt $@"\\n' > $3/bin/fttt
  cp $3/bin/fttt $3/bin/pytest
  chmod +x $3/bin/pip $3/bin/fttt $3/bin/pytest
fi
"""
"""A Python whose environments hold a pip and an fttt that only say what they are asked for."""


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_demo_begins_with_one_line_about_the_installation(tmp_path: Path) -> None:
    shutil.copy(MAKEFILE, tmp_path)
    (tmp_path / "pyproject.toml").touch()
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    words = ["make", "demo", f"PYTHON={python}"]
    # Of the make that runs these tests nothing is left, which would speak of its folders.
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    first, again = (
        subprocess.run(words, cwd=tmp_path, env=plain, capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    line = r"Installing fttt and its packages into .venv ... \d+ s\nfttt demo\n"
    assert re.fullmatch(line, first.stdout)
    assert again.stdout == "fttt demo\n"  # what is installed is not installed again
    assert first.stderr == again.stderr == ""
    asked = (tmp_path / "pip.log").read_text()
    for part in ("dev.txt", "model.txt", "gym.txt", "--editable"):
        assert asked.count(part) == 1


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("end", "asked"),
    [
        ("lowest", "--requirement requirements/lowest.txt"),
        ("newest", "--upgrade --upgrade-strategy eager --editable .[all,gym] torch==2.13.0"),
    ],
)
def test_the_ends_of_the_ranges_are_tested_in_an_environment_of_their_own(
    tmp_path: Path, end: str, asked: str
) -> None:
    shutil.copy(MAKEFILE, tmp_path)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    (tmp_path / "requirements").mkdir()
    for name in ("run.txt", "dev.txt", "model.txt"):
        (tmp_path / "requirements" / name).write_text("# versions\n-r other.txt\ntorch==2.13.0\n")
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    words = ["make", f"test-{end}", f"PYTHON={python}"]
    done = subprocess.run(
        words, cwd=tmp_path, env=plain, capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.endswith("\nfttt --numprocesses auto --dist loadfile\n")
    said = "install --quiet --disable-pip-version-check"
    tools = f".venv-{end}/tools.txt"
    assert (tmp_path / "pip.log").read_text().splitlines() == [
        f"{said} {asked}",
        f"{said} --no-deps --requirement {tools} --editable .",
    ]
    assert (tmp_path / tools).read_text() == "torch==2.13.0\n" * 2
