"""``fttt list``, ``compare``, ``report``, ``view``, ``export``, ``push`` and ``pull``.

What can be run, what came of it, and where that is shown and kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fttt.cli.flags import AsJSON, RunFolders, print_json
from fttt.cli.runs import print_runs
from fttt.errors import UsageError
from fttt.files import cannot_write
from fttt.progress import note
from fttt.store import open_runs

_WORDS = ("run", "method", "task", "model")

__all__ = [
    "compare_command",
    "export_command",
    "list_command",
    "pull_command",
    "push_command",
    "report_command",
    "show_command",
    "view_command",
]


class ListKind(StrEnum):
    """What can be listed."""

    METHODS = "methods"
    TASKS = "tasks"
    MODELS = "models"
    RUNS = "runs"


def list_command(
    kind: Annotated[ListKind, typer.Argument(help="What to list.", show_default=False)],
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="runs: the folder they lie in (outputs).")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """List the methods with their settings, the tasks, the models, or the runs of a folder."""
    if kind is ListKind.RUNS:
        _show_listed_runs(folder or Path("outputs"), as_json)
        return
    if folder is not None:
        raise UsageError(f"Only runs are listed by folder; leave {str(folder)!r} away.")
    rows = {
        ListKind.METHODS: _methods,
        ListKind.TASKS: _tasks,
        ListKind.MODELS: _models,
    }[kind]()
    if as_json:
        print_json([{"name": name.strip(), "text": text} for name, text in rows])
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, text in rows:
        table.add_row(name, text)
    Console().print(table)


def _show_listed_runs(folder: Path, as_json: bool) -> None:
    """One line a run, the latest first, and below it how an unfinished one is resumed."""
    from fttt.report.text import ago
    from fttt.store import find_runs

    found = find_runs(folder)
    if not found:
        raise UsageError(
            f"There is no run in {str(folder)!r}; name a folder of runs, or make one by `fttt run`."
        )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("run", "method", "task", "model", "questions", "solved", "written"):
        table.add_column(name, justify="left" if name in _WORDS else "right", overflow="fold")
    facts = []
    for followed in found:
        run, reached = followed.run, followed.reached
        row = [str(run.path), run.method, run.task, run.model]
        facts.append(
            {
                **dict(zip(_WORDS, row, strict=True)),
                "seed": run.seed,
                "questions": reached.questions,
                "done": reached.done,
                "solved": reached.solved,
                "finished": followed.state == "finished",
                "written": datetime.fromtimestamp(followed.written, UTC).isoformat(
                    timespec="seconds"
                ),
            }
        )
        row += [f"{reached.done}/{reached.questions}", str(reached.solved), ago(followed.written)]
        table.add_row(*map(Text, row))
    if as_json:
        print_json(facts)
        return
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a file has no edge to wrap at
    console.print(table)
    for followed in found:
        if followed.state != "finished":
            say = f"resume: fttt run --resume {followed.path}"
            console.print(say, soft_wrap=True, highlight=False, markup=False)


def show_command(runs: RunFolders, as_json: AsJSON = False) -> None:
    """Print the table of runs again, finished or not, and what casts doubt on their figures."""
    print_runs(open_runs(runs), as_json=as_json)


def _methods() -> list[tuple[str, str]]:
    from fttt.methods import METHODS

    rows = []
    for method in METHODS.values():
        rows.append((method.name, method.summary))
        for name, field in method.Settings.model_fields.items():
            default = field.get_default(call_default_factory=True)
            text = ",".join(default) if isinstance(default, tuple) else str(default)
            text = "required" if field.is_required() else text
            rows.append((f"  --set {name}=", f"{field.description} ({text})"))
    return [*rows, ("module:Class", "a method of your own (see fttt.Method)")]


def _tasks() -> list[tuple[str, str]]:
    from fttt.tasks import TASKS, task_options

    rows = []
    for name, task in TASKS.items():
        first = " ".join((task.__doc__ or "").strip().partition("\n\n")[0].split())
        said = [first, f"Splits: {', '.join(task.splits)}."]
        if options := task_options(task):
            said.append(f"Options (--task-option KEY=VALUE): {', '.join(options)}.")
        rows.append((name, " ".join(said)))
    return [*rows, ("module:Class", "a task of your own (see fttt.Task)")]


def _models() -> list[tuple[str, str]]:
    from fttt.models import list_models

    return [
        *list_models(),
        ("OWNER/NAME", "a causal language model of the Hugging Face hub (safetensors)"),
        ("FOLDER", "a folder with config.json and safetensors weights"),
        ("FILE.gguf", "a GGUF file, read as it is (docs/models.md names the families)"),
        ("openai:NAME", "a model on a server, with --endpoint URL (docs/endpoints.md)"),
        *_left_over(),
    ]


def _left_over() -> list[tuple[str, str]]:
    """What version 0.1 kept of GGUF files."""
    from fttt.models import cache_folder

    folder = cache_folder("models")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if not size:
        return []
    text = f"{size / 1e9:.1f} GB of converted GGUF files, which nothing reads any more: delete it"
    return [(str(folder), text)]


FirstTrials = Annotated[
    int | None,
    typer.Option(
        "--trials", min=1, metavar="K", help="Look at the first K trials of each question only."
    ),
]


Baseline = Annotated[
    str | None,
    typer.Option(
        "--baseline", metavar="METHOD", help="Compare every other side with this one only."
    ),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="SETTING",
        help="Compare although this differs (model, temperature, unanswered ...); repeatable.",
    ),
]


def compare_command(
    runs: RunFolders,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON instead of tables.")
    ] = False,
    intersection: Annotated[
        bool,
        typer.Option("--intersection", help="Compare on the questions that all runs finished."),
    ] = False,
    trials: FirstTrials = None,
    baseline: Baseline = None,
    allow: Allow = None,
) -> None:
    """Compare runs on the same questions, paired, at equal trials and at equal tokens."""
    with _extra("fttt compare"):
        from fttt.report.compare import compare
        from fttt.report.outcomes import truncate
        from fttt.report.text import render
    comparison, _ = compare(
        truncate(open_runs(runs), trials),
        intersection=intersection,
        allow=allow or (),
        baseline=baseline,
    )
    if as_json:
        print_json(comparison.to_json())
    else:
        Console().print(render(comparison))


class PlotFormat(StrEnum):
    """What a plot can be written as."""

    PNG = "png"
    SVG = "svg"


def report_command(
    runs: RunFolders,
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path(
        "report.html"
    ),
    plots: Annotated[
        Path | None, typer.Option("--plots", help="Also write each plot into this folder.")
    ] = None,
    plot_format: Annotated[
        PlotFormat, typer.Option("--format", help="What to write the plots as.")
    ] = PlotFormat.PNG,
    intersection: Annotated[
        bool,
        typer.Option("--intersection", help="Use the questions that all runs finished."),
    ] = False,
    trials: FirstTrials = None,
    baseline: Baseline = None,
    allow: Allow = None,
) -> None:
    """Write runs as one self-contained HTML file: table, curves, tokens and every trial."""
    with _extra("fttt report"):
        from fttt.report.outcomes import truncate
        from fttt.report.page import build_page, gather, save_plots
    if out.is_dir():
        raise UsageError(f"--out {str(out)!r} is a folder; name an HTML file.")
    sections = gather(truncate(open_runs(runs), trials), intersection, baseline, allow or ())
    page = build_page(sections)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
        typer.echo(f"Wrote {out} ({len(page) / 1e6:.1f} MB).")
        if plots is not None:
            for path in save_plots(sections, plots, plot_format.value):
                typer.echo(f"Wrote {path}.")
    except OSError as error:
        place = Path(error.filename or out)
        raise cannot_write(place, error, "name another place with --out or --plots") from error


def view_command(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Folder of runs, at any depth, or one run.")
    ] = Path("outputs"),
    port: Annotated[
        int,
        typer.Option("--port", min=0, max=65535, help="Port of 127.0.0.1; 0 takes a free one."),
    ] = 0,
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Do not open the page in a browser.")
    ] = False,
) -> None:
    """Show the runs of a folder on a local page, while they run and after."""
    with _extra("fttt view", "view"):
        for package in ("jinja2", "matplotlib", "scipy", "statsmodels"):  # imported by the page
            if find_spec(package) is None:
                raise ModuleNotFoundError(name=package)
        from fttt.viewer import Watcher, serve_view
    serve_view(Watcher(folder), port=port, say=typer.echo, open_page=not no_open)


def export_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)],
    inspect: Annotated[
        bool, typer.Option("--inspect", help="As a log of Inspect (inspect_ai).")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The file to write, .eval or .json (the run's name and .eval, in this folder).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a run for another program: a sample a question, its trials as epochs."""
    from fttt.report.inspect_log import write_inspect_log
    from fttt.store import Run

    if not inspect:
        raise UsageError("Nothing says what to write the run for; give --inspect.")
    opened = Run.open(run)
    out = out or Path(f"{run.resolve().name}.eval")
    with _extra("fttt export --inspect", "inspect"):
        samples = write_inspect_log(opened, out)
    typer.echo(f"Wrote {out} ({samples:,} trials); `inspect view --log-dir {out.parent}` shows it.")


Repository = Annotated[
    str,
    typer.Argument(
        metavar="OWNER/NAME", help="A dataset repository of the hub.", show_default=False
    ),
]


def push_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)],
    repository: Repository,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public (else private).")
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license",
            help="The hub's name of the licence in the card, such as apache-2.0 (left to you).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Publish a finished run on the Hugging Face hub, with a card; secrets are never sent."""
    from fttt.report.hub import push_run
    from fttt.store import Run

    pushed = push_run(Run.open(run), repository, public=public, licence=licence)
    shown = "private" if pushed.private else "public"
    typer.echo(
        f"Pushed {pushed.files} files ({pushed.bytes / 1e6:.1f} MB) to {pushed.url} ({shown}), "
        "gold answers among them; home folders are written as ~."
    )


def pull_command(
    repository: Repository,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The new run folder (outputs/NAME).", show_default=False),
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Download a run that was pushed, check it, and print its table."""
    from fttt.report.hub import code_named, pull_run

    run = pull_run(repository, out or Path("outputs") / repository.rpartition("/")[2])
    if named := code_named(run):
        note(
            f"note: its settings name code or commands ({', '.join(named)}), which `fttt regrade` "
            "and `fttt run --resume` would run; read them first"
        )
    print_runs([run], as_json=as_json)


@contextmanager
def _extra(command: str, extra: str = "report") -> Iterator[None]:
    """Name the extra that a missing package belongs to."""
    os.environ["MPLBACKEND"] = "agg"  # what a notebook sets may not be installed here
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(
            f"`{command}` needs the package {error.name!r}, which is not installed; "
            f"install it with `pip install 'fttt[{extra}]'`."
        ) from error
