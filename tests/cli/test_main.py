"""The command line as a process: exit codes, one sentence an error, quick answers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fttt.cli import main
from fttt.cli.flags import say_how_to_resume
from fttt.errors import RunError
from fttt.progress import note
from fttt.testing import call


def inside(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """The same without a new process."""
    code = call(*words)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_a_wrong_flag_is_answered_fast_and_in_one_sentence() -> None:
    """Within a second, where torch alone takes several to import."""
    script = (
        "import sys\n"
        "from fttt.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "finally:\n"
        "    print(*{'torch', 'transformers', 'scipy', 'datasets'} & set(sys.modules), end='')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "run", "fttt", "--trails", "3"],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("fttt: No such option: --trails")
    assert "--trials" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["rum"], "No such command 'rum'"),
        (["run"], "No method was given"),
        (["run", "ftt"], "did you mean 'fttt'?"),
        (["run", "fttt", "more"], "unexpected extra argument"),
        (["run", "fttt", "--trials", "0"], "--trials cannot be 0"),
        (["run", "fttt", "--trials", "many"], "Invalid value for '--trials': 'many' "),
        (["run", "fttt", "--unanswered", "x"], "--unanswered cannot be 'x'"),
        (["run", "fttt", "--set", "rank"], "--set 'rank' is not of the form key=value"),
        (["run", "fttt", "--set", "rnk=3"], "did you mean 'rank'?"),
        (["run", "fttt", "--task", "gsm9k"], "did you mean 'gsm8k'?"),
        (["run", "fttt", "--model", "smollm"], "No model 'smollm'"),
        (["run", "fttt", "--recipe", "none.toml"], "Cannot read the file 'none.toml'"),
        (["run", "fttt", "--resume", "none"], "There is no run folder 'none'"),
        (["run", "fttt", "--resume", "a", "--out", "b"], "leave --out away"),
        (["run", "greedy", "--task", "jsonl"], "needs a verifier"),
        (["regrade", "none"], "There is no run folder 'none'"),
        (["sweep", "none.toml"], "Cannot read the file 'none.toml'"),
        (["list", "nothing"], ": 'nothing' is not one of 'methods'"),
    ],
)
def test_usage_errors_exit_with_2(
    words: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = inside(capsys, *words)
    assert code == 2
    assert out == ""
    assert part in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err


def test_debug_shows_the_traceback_wherever_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = inside(capsys, "run", "ftt", "--debug")
    assert code == 2
    assert "Traceback" in err


def test_quiet_shows_errors_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def noting(*_: object, **__: object) -> None:
        note("by the way")
        raise RunError("There is no room.")

    monkeypatch.setattr("fttt.cli.runs.run_flags", noting)
    assert inside(capsys, "run", "fttt")[2] == "by the way\nfttt: There is no room.\n"
    assert inside(capsys, "run", "fttt", "--quiet")[2] == "fttt: There is no room.\n"


def test_a_defect_is_one_line_unless_debugged(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("defect")

    monkeypatch.setattr("fttt.cli.runs.resolve", broken)
    code, _, err = inside(capsys, "run", "fttt")
    assert code == 1
    assert err == "fttt: Failed unexpectedly: ValueError: defect (--debug shows where).\n"
    with pytest.raises(ValueError, match="defect"):
        main(["run", "fttt", "--debug"])


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = inside(capsys, "--help")
    assert code == 0
    for command in ("demo", "run", "check", "verify", "regrade", "compare", "report", "list"):
        assert command in out
    assert inside(capsys, "--version")[1] == "0.1.0\n"
    assert "Usage" in inside(capsys)[1]
    shown = inside(capsys, "run", "--help")[1]
    assert "nucleus" in shown  # from the field's description
    assert "fttt run --resume outputs/" in shown  # an example


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("fttt r", "run\nregrade\nreport"),
        ("fttt run self", "self-consistency\nself-refine\nself-distill"),
        ("fttt run fttt --task gs", "gsm8k"),
        ("fttt run fttt --unanswered ", "count\nretry"),
    ],
)
def test_a_shell_completes_commands_and_values(
    words: str, found: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_FTTT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    assert sorted(inside(capsys)[1].split()) == sorted(found.split())


def test_lists_name_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, names in {
        "methods": ["greedy", "best-of-n", "self-consistency", "self-refine", "fttt", "lr="],
        "tasks": ["arithmetic", "gsm8k", "math500", "humaneval", "mbpp", "jsonl"],
        "models": ["smollm2-135m", "FILE.gguf"],
    }.items():
        code, out, _ = inside(capsys, "list", kind)
        assert code == 0
        for name in names:
            assert name in out
        listed = json.loads(inside(capsys, "list", kind, "--json")[1])
        assert [row["text"] for row in listed if row["name"] == names[0]]


def test_an_interrupt_is_said_in_one_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fttt.store.Run.open", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["run", "--resume", "somewhere"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "fttt: Stopped.\n"


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (RunError("There is no room."), 1, "There is no room."),
        (KeyboardInterrupt(), 130, "Stopped."),
    ],
)
def test_the_reason_stands_before_how_to_resume(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    reason: str,
) -> None:
    (tmp_path / "config.toml").touch()

    def failing(*_: object, **__: object) -> None:
        with say_how_to_resume("`fttt more`", tmp_path):
            raise error

    monkeypatch.setattr("fttt.cli.runs.run_flags", failing)
    assert inside(capsys, "run", "fttt") == (
        code,
        "",
        f"fttt: {reason}\nfttt: Resume with `fttt more`.\n",
    )


def test_a_termination_is_said_as_an_interrupt_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def terminated(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("fttt.cli.runs.run_flags", terminated)
    assert inside(capsys, "run", "fttt") == (130, "", "fttt: Stopped.\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_termination_says_how_to_resume() -> None:
    script = (
        "import asyncio, signal\n"
        "from fttt.experiment.runner import _stop_signals\n"
        "async def main():\n"
        "    with _stop_signals(lambda: None, '`fttt more`'):\n"
        "        for _ in range(2):\n"
        "            signal.raise_signal(signal.SIGTERM)\n"
        "            await asyncio.sleep(0.1)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 130
    assert done.stderr == (
        "fttt: Stopped at once; what had ended is on disk.\nfttt: Resume with `fttt more`.\n"
    )


def test_defaults_that_are_words_are_shown_in_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["optune", "train", "--help"])
    shown = capsys.readouterr().out
    assert "[none]" in shown
    assert "[q_proj,v_proj]" in shown


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (("run",), ("[0.6]", "[0.95]", "[2048]", "[42]", "[count]")),
        (("finetune", "train"), ("[0.03]", "[20]", "--gradient-checkpointing ")),
    ],
)
def test_help_shows_what_a_flag_is_when_it_is_not_given(
    command: tuple[str, ...],
    shown: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = inside(capsys, *command, "--help")
    for text in shown:
        assert text in out
