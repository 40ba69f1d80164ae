"""``fttt compare``, ``fttt report`` and ``fttt list runs``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fttt.store import RunWriter
from fttt.testing import call
from fttt.types import Question, Trial, Usage

QUESTIONS = [Question(f"q{n}", f"What is {n} + 1?", str(n + 1)) for n in range(12)]


def write_run(folder: Path, method: str, solved: int, model: str = "tiny") -> Path:
    """A finished run of one trial a question that solves the first questions."""
    writer = RunWriter.create(
        folder,
        config={
            "method": method, "task": "arithmetic", "model": model, "seed": 42,
            "budget": {"trials": 1, "unanswered": "count"},
        },
        environment={},
        questions=QUESTIONS,
    )  # fmt: skip
    for n, question in enumerate(QUESTIONS):
        verdict = "correct" if n < solved else "incorrect"
        writer.trial(
            Trial(
                question.id, 0, 0, "4", (4,), "stop", "4", verdict, "", None,  # type: ignore[arg-type]
                Usage(5, 1, 0, 1, 1, 0.1),
            )
        )  # fmt: skip
        writer.done(question.id)
    writer.finish()
    return folder


def fttt(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and error output of a command line."""
    code = call(*arguments)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_folder_of_runs_stands_for_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / "sweep" / name, name, 3)
    (tmp_path / "sweep" / "sweep.toml").touch()
    code, printed, _ = fttt(capsys, "compare", str(tmp_path / "sweep"), "--json")
    assert code == 0
    assert [arm["method"] for arm in json.loads(printed)["arms"]] == ["a", "b"]
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "sweep/sweep.toml"):
        code, _, said = fttt(capsys, "compare", str(tmp_path / nothing))
        assert code == 2
        assert "no run folder" in said


def test_of_many_sides_only_differences_are_told_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    solved = {"a": 12, "b": 12, "c": 12, "d": 12, "e": 0}
    runs = [str(write_run(tmp_path / name, name, n)) for name, n in solved.items()]
    code, printed, _ = fttt(capsys, "compare", *runs)
    assert code == 0
    told = " ".join(printed.split())
    assert [f"{name} solved more than e" in told for name in "abcd"] == [True] * 4
    assert "No difference was shown in the other 6 pairs." in told
    assert "6 more pairs, none of which showed a difference, are in --json" in told
    assert "a − b" not in told  # noqa: RUF001
    assert all(len(line) <= 80 for line in printed.splitlines())
    _, printed, _ = fttt(capsys, "compare", *runs, "--baseline", "a")
    assert "b − a" in printed  # noqa: RUF001
    assert "other" not in printed.partition("What does not")[0]


def test_the_text_says_what_follows_and_what_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    runs = [write_run(tmp_path / "a", "fttt", 9), write_run(tmp_path / "b", "best-of-n", 1)]
    code, printed, _ = fttt(capsys, "compare", *map(str, runs))
    assert code == 0
    assert "arithmetic with tiny, 12 questions" in printed
    assert "fttt solved more than best-of-n at 1 trial: 75.0 % against 8.3 %" in printed
    assert "What does not" in printed
    assert "46.8 to 91.1 %" in printed  # Wilson, 9 of 12


def test_json_is_all_that_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / "a", "fttt", 9), write_run(tmp_path / "b", "best-of-n", 1)]
    code, printed, _ = fttt(capsys, "compare", *map(str, runs), "--json")
    data = json.loads(printed)
    assert code == 0
    assert [arm["label"] for arm in data["arms"]] == ["fttt", "best-of-n"]
    assert data["pairs"][0]["p"] == pytest.approx(2 / 2**8)


def test_other_models_are_refused_unless_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path / "a", "fttt", 9), write_run(tmp_path / "b", "fttt", 1, "large")]
    code, printed, said = fttt(capsys, "compare", *map(str, runs))
    assert (code, printed) == (2, "")
    assert "model is tiny in 'a' and large in 'b'" in said
    code, printed, _ = fttt(capsys, "compare", *map(str, runs), "--allow", "model")
    assert code == 0
    assert "The sides differ by more than the method" in printed


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("missing", "no run folder"),
        ("foreign", "is no run folder"),
        ("torn", "line 2 of trials.jsonl is no trial"),
    ],
)
@pytest.mark.parametrize("command", ["compare", "report"])
def test_a_folder_that_is_no_whole_run_is_one_clear_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, spoil: str, message: str
) -> None:
    good, bad = write_run(tmp_path / "a", "fttt", 9), tmp_path / "b"
    if spoil == "foreign":
        bad.mkdir()
        (bad / "notes.txt").write_text("mine")
    if spoil == "torn":
        trials = write_run(bad, "best-of-n", 1) / "trials.jsonl"
        lines = trials.read_text().splitlines()
        lines[1] = '{"question_id": "q1"}'
        trials.write_text("\n".join(lines) + "\n")
    code, printed, said = fttt(capsys, command, str(good), str(bad))
    assert (code, printed) == (2, "")
    assert message in said
    assert said.count("\n") == 1


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


def test_the_runs_of_a_folder_are_listed_and_how_to_resume_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_run(tmp_path / "runs" / "whole", "fttt", 5)
    torn = write_run(tmp_path / "runs" / "sweep" / "torn", "best-of-n", 3)
    (torn / "summary.json").unlink()
    journal = torn / "events.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-4]))
    (tmp_path / "runs" / "other").mkdir()
    (tmp_path / "runs" / "other" / "config.toml").write_text("nothing = 1")  # no run folder
    code, out, _ = fttt(capsys, "list", "runs", str(tmp_path / "runs"))
    assert code == 0
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert rows[str(whole)][1:] == ["fttt", "arithmetic", "tiny", "12/12", "5", "just", "now"]
    assert rows[str(torn)][4:6] == ["8/12", "3"]
    assert [line for line in out.splitlines() if "--resume" in line] == [
        f"resume: fttt run --resume {torn}"
    ]
    code, out, _ = fttt(capsys, "list", "runs", str(tmp_path / "runs"), "--json")
    assert [(run["done"], run["solved"], run["finished"]) for run in json.loads(out)] == [
        (8, 3, False),
        (12, 5, True),
    ]
    code, _, errors = fttt(capsys, "list", "runs", str(tmp_path / "nowhere"))
    assert code == 2
    assert "There is no run in" in errors
    code, _, errors = fttt(capsys, "list", "tasks", "runs")
    assert (code, "Only runs are listed by folder" in errors) == (2, True)


def test_an_export_says_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(write_run(tmp_path / "run", "greedy", 3))
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)  # as where it is not installed
    for words, says in (
        ([run], "give --inspect"),
        (["--inspect", str(tmp_path)], "is no run folder"),
        (["--inspect", run], "install it with `pip install 'fttt[inspect]'`"),
    ):
        assert call("export", *words) == 2
        assert says in capsys.readouterr().err


def test_a_broken_run_is_refused_before_its_table_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", "fttt", 3)
    trials = run / "trials.jsonl"
    trials.write_text(trials.read_text().replace('"correct"', '"nonsense"', 1))
    code, printed, said = fttt(capsys, "show", str(run))
    assert (code, printed) == (2, "")
    assert "the verdict 'nonsense' is none of correct, incorrect, unanswered" in said
