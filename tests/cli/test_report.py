from __future__ import annotations

from pathlib import Path

import pytest

from fttt.store import RunWriter
from fttt.testing import call
from fttt.types import Question, Trial, Usage


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two small finished runs of two methods."""
    questions = [Question("q0", "What is 2 + 2?", "4"), Question("q1", "What is 3 + 2?", "5")]
    folders = []
    for method in ("best-of-n", "fttt"):
        config = {"method": method, "task": "arithmetic", "model": "tiny", "seed": 42}
        writer = RunWriter.create(
            tmp_path / method,
            config={**config, "budget": {"trials": 1}},
            environment={},
            questions=questions,
        )
        for question in questions:
            usage = Usage(5, 1, 0, 1, 1, 0.1)
            writer.trial(
                Trial(question.id, 0, 0, "4", (4,), "stop", "4", "correct", "", None, usage)
            )
            writer.done(question.id)
        writer.finish()
        folders.append(str(tmp_path / method))
    return folders


def test_a_page_and_its_plots_are_written(
    tmp_path: Path, runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    page, plots = tmp_path / "new" / "report.html", tmp_path / "plots"
    assert call("report", *runs, "--out", str(page), "--plots", str(plots), "--format", "svg") == 0
    assert page.read_text().startswith("<!doctype html>")
    names = {"accuracy-trials", "accuracy-tokens", "accuracy-seconds", "tokens", "generated"}
    assert {path.stem for path in plots.iterdir()} == names
    assert f"Wrote {page}" in capsys.readouterr().out
    assert "fttt" in (plots / "accuracy-trials.svg").read_text()


def test_plots_are_png_unless_asked_otherwise(tmp_path: Path, runs: list[str]) -> None:
    arguments = ("--out", str(tmp_path / "r.html"), "--plots", str(tmp_path / "plots"))
    assert call("report", *runs, *arguments) == 0
    for path in (tmp_path / "plots").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_one_run_makes_a_page_too(tmp_path: Path, runs: list[str]) -> None:
    assert call("report", runs[0], "--out", str(tmp_path / "r.html")) == 0
    assert "Paired comparisons" not in (tmp_path / "r.html").read_text()


def test_a_place_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("report", *runs, "--out", str(tmp_path)) == 2
    assert "is a folder; name an HTML file" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert call("report", *runs, "--out", str(tmp_path / "file" / "r.html")) == 1
    assert "Cannot write" in capsys.readouterr().err


def test_an_unknown_format_is_refused(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("report", *runs, "--format", "gif") == 2
    assert "png" in capsys.readouterr().err
