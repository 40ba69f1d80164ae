"""The wheel: what a user gets who has no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "fttt"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built apart, since setuptools writes beside what it packs."""
    if find_spec("setuptools") is None:
        pytest.skip("building a wheel needs setuptools, which make setup installs")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    (source / "src").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", "src/fttt"):
        (source / name).symlink_to(ROOT / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    words = [sys.executable, "-c", build, str(folder)]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [built] = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == files


@pytest.mark.slow
def test_the_judge_runs_from_an_unpacked_wheel(wheel: Path, tmp_path: Path) -> None:
    """Without the checkout, and by files that are read as texts and never imported."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import sys, fttt; from fttt.cli import main; print(fttt.__file__); "
        "sys.argv = ['fttt', 'verify', 'code']; main()"
    )
    problem = (
        '{"gold": {"prompt": "def f():\\n", "test": "def check(f):\\n    assert f() == 1\\n", '
        '"entry_point": "f"}, "completion": "def f():\\n    return 1\\n"}\n'
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        input=problem,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    place, verdict = done.stdout.splitlines()
    assert place.startswith(str(tmp_path))  # what ran is the wheel's
    assert '"verdict": "correct"' in verdict
