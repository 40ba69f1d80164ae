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
if [ "$1" = -m ]; then
  mkdir -p .venv/bin
  printf '#!/bin/sh\\necho "$@" >> pip.log\\n' > .venv/bin/pip
  printf '#!/bin/sh\\necho "fttt $@"\\n' > .venv/bin/fttt
  chmod +x .venv/bin/pip .venv/bin/fttt
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
