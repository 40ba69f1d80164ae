"""The command line: parse, build a config, call. Commands of one noun share a file."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from fttt.cli.checks import check_command, verify_command
from fttt.cli.flags import examples
from fttt.cli.reports import (
    compare_command,
    export_command,
    list_command,
    pull_command,
    push_command,
    report_command,
    show_command,
    view_command,
)
from fttt.cli.runs import demo_command, regrade_command, run_command, sweep_command
from fttt.cli.services import bench_app, judge_app
from fttt.cli.trainings import finetune_app, optune_app
from fttt.errors import FTTTError, StoppedError, UsageError
from fttt.progress import silenced

__all__ = ["app", "main"]

app = typer.Typer(
    name="fttt",
    help="Solve hard problems by trying, being told what was wrong, and learning from it.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(
    "demo",
    epilog=examples(
        "fttt demo",
        "fttt demo --out demo",
    ),
)(demo_command)
app.command(
    "run",
    epilog=examples(
        "fttt run fttt --task gsm8k --limit 50 --trials 16",
        "fttt run best-of-n --task jsonl --data-dir questions.jsonl --verifier number",
        "fttt run unlearn --set lr=3e-4 --set targets=q_proj,v_proj --dry-run",
        "fttt run --resume outputs/fttt-gsm8k-...",
    ),
)(run_command)
app.command(
    "sweep",
    epilog=examples(
        "fttt sweep grid.toml --dry-run",
        "fttt sweep grid.toml --out outputs/grid",
    ),
)(sweep_command)
app.command(
    "check",
    epilog=examples(
        "fttt check gsm8k",
        "fttt check jsonl --data-dir questions.jsonl --verifier math",
    ),
)(check_command)
app.command(
    "verify",
    epilog=examples(
        'echo \'{"gold": "4", "completion": "The answer is 4"}\' | fttt verify number',
    ),
)(verify_command)
app.command(
    "regrade",
    epilog=examples(
        "fttt regrade outputs/best-of-n-gsm8k-...",
    ),
)(regrade_command)
app.command(
    "compare",
    epilog=examples(
        "fttt compare outputs/best-of-n-... outputs/fttt-...",
        "fttt compare outputs/grid --baseline best-of-n --json",
    ),
)(compare_command)
app.command(
    "report",
    epilog=examples(
        "fttt report outputs/grid --out report.html",
        "fttt report outputs/grid --baseline best-of-n --plots figures --format svg",
    ),
)(report_command)
app.command(
    "view",
    epilog=examples(
        "fttt view",
        "fttt view outputs/grid --port 8000 --no-open",
    ),
)(view_command)
app.command(
    "export",
    epilog=examples(
        "fttt export --inspect outputs/fttt-gsm8k-... --out logs/fttt.eval",
    ),
)(export_command)
app.command(
    "push",
    epilog=examples(
        "fttt push outputs/fttt-gsm8k-... owner/fttt-gsm8k",
        "fttt push outputs/fttt-gsm8k-... owner/fttt-gsm8k --public --license apache-2.0",
    ),
)(push_command)
app.command(
    "pull",
    epilog=examples(
        "fttt pull owner/fttt-gsm8k",
        "fttt pull owner/fttt-gsm8k --out outputs/theirs",
    ),
)(pull_command)
app.command(
    "list",
    epilog=examples(
        "fttt list methods",
        "fttt list runs outputs --json",
    ),
)(list_command)
app.command(
    "show",
    epilog=examples(
        "fttt show outputs/fttt-gsm8k-...",
        "fttt show outputs/grid --json",
    ),
)(show_command)
app.add_typer(finetune_app, name="finetune")
app.add_typer(judge_app, name="judge")
app.add_typer(bench_app, name="bench")
app.add_typer(optune_app, name="optune")


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; allowed anywhere.")
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", help="Show neither progress nor notes; allowed anywhere."),
    ] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from fttt import __version__

        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and exit: 0 done, 2 a usage error, 1 a failed run."""
    words = [*(sys.argv[1:] if arguments is None else arguments)]
    debug, quiet = "--debug" in words, "--quiet" in words
    words = [word for word in words if word not in ("--debug", "--quiet")]
    with _terminated_as_interrupted(), silenced() if quiet else nullcontext():
        code = _run(words, debug)
    sys.exit(code)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does: cleanly, and with a sentence."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(words: list[str], debug: bool) -> int:
    try:
        code = int(app(words, standalone_mode=False, prog_name="fttt") or 0)
        if code == StoppedError.exit_code:  # the parser has caught the interrupt
            _say("Stopped.")
        return code
    except (KeyboardInterrupt, typer.Abort):
        _say("Stopped.")
        return StoppedError.exit_code
    except FTTTError as error:
        if debug:
            traceback.print_exc()
        _say(str(error), error)
        return error.exit_code
    except Exception as error:
        if hasattr(error, "format_message"):  # the parser's errors, whose class typer moves about
            return _parse_error(error)
        if debug:
            raise
        _say(f"Failed unexpectedly: {type(error).__name__}: {error} (--debug shows where).")
        return 1


def _parse_error(error: Any) -> int:
    message = " ".join(error.format_message().split()).rstrip(".")
    if isinstance(error.__cause__, ValidationError):  # whose words do not name the value
        given = repr(error.__cause__.errors()[0]["input"])
        message = message.replace(": Value error, ", ": ").replace(": Input ", f": {given} ")
        message = message.partition(", unable to parse ")[0]
    context = getattr(error, "ctx", None)
    where = f"; see `{context.command_path} --help`" if context else ""
    if message:  # a bare group has printed its help instead
        _say(f"{message}{where}.")
    return UsageError.exit_code


def _say(message: str, error: BaseException | None = None) -> None:
    """Print a sentence, and below it what was noted on the error: how to resume."""
    for line in (message, *getattr(error, "__notes__", ())):
        typer.echo(f"fttt: {line}", err=True)
