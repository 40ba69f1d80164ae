"""The table of finished runs that a command prints at its end; it needs no extra package."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from fttt.store import Run
from fttt.types import Trial

__all__ = ["show_folders", "show_runs"]

_CUT = 0.1
"""Share of trials cut at their length limit above which a note says so."""
_FAILED = re.compile(
    "the (verifier|command|regular expression .*) "
    "(raised|took longer|used more than|died|returned|could not be run)"
    "|the judge could not judge it",
    re.DOTALL,
)
"""How a verdict's detail begins where the verifier and not the answer failed."""


def show_runs(runs: Sequence[Run], console: Console | None = None) -> None:
    """Print one table of finished runs, and their folders.

    Several runs are named by their folders. They may have shared the engine's batch, so their
    seconds overlap and no speed is made of them. What casts doubt on a run's figures stands
    under its folder.
    """
    console = console or Console()
    if not console.is_terminal:
        console.width = 160  # a file has no edge to wrap at
    alone = len(runs) == 1
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("method" if alone else "run", overflow="fold")
    names = ["solved", "accuracy", "95 %", "trials", "tokens", "seconds"]
    scored = any("score" in run.summary for run in runs)
    if scored:
        names.append("best score")
    for name in [*names, "tokens/s"] if alone else names:
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        figures = _figures(run)
        if scored:
            best = run.summary.get("score")
            figures.append("" if best is None else f"{best:.3f}")
        if alone:
            tokens, seconds = run.summary["usage"]["generated_tokens"], run.summary["seconds"]
            figures.append(f"{tokens / seconds:,.0f}" if seconds else "")
        table.add_row(run.method if alone else run.path.name, *figures)
    console.print(table)
    show_folders(runs, console)


def show_folders(runs: Sequence[Run], console: Console) -> None:
    """Print where runs are, and under each what casts doubt on its figures."""
    for run in runs:
        console.print(str(run.path), soft_wrap=True, highlight=False)
        for warning in _warnings(run):
            console.print(f"  note: {warning}", soft_wrap=True, highlight=False, markup=False)


def _warnings(run: Run) -> list[str]:
    """Facts that cast doubt on the figures: cut trials, failed verifiers, unused settings."""
    said = []
    trials = run.trials
    failed = [trial.detail for trial in trials if _FAILED.match(trial.detail)]
    if failed:
        said.append(
            f"the verifier itself failed in {len(failed):,} of {len(trials):,} trials, which count "
            f"as incorrect (the first: {failed[0][:200]})"
        )
    cut = sum(trial.finish_reason == "length" for trial in trials)
    if cut > _CUT * len(trials):
        longest = run.config["sampling"]["max_new_tokens"]
        said.append(f"--max-new-tokens {longest} cut off {cut:,} of {len(trials):,} trials")
    measured = [trial for trial in trials if trial.divergence is not None]
    if measured:
        far = [trial.divergence or 0.0 for trial in measured]
        said.append(
            f"divergence from the base model a step: mean {sum(far) / len(far):.3f}, at most "
            f"{max(far):.3f} nats; {_resets(measured)}"
        )
    sampling = run.config.get("sampling", {})
    if sampling.get("temperature", 0) != 0:
        theirs = run.environment.get("model_sampling", {})
        other = [
            f"{name} {value:g}" for name, value in theirs.items() if _differs(sampling, name, value)
        ]
        if other:
            said.append(f"the model's own settings, which are not applied: {', '.join(other)}")
    if run.decided_by == "vote" and not any(trial.extracted for trial in trials):
        said.append("no trial had an answer to vote on")
    return said


def _resets(measured: Sequence[Trial]) -> str:
    resets = [trial for trial in measured if trial.reset]
    if not resets:
        return "no adapter was reset"
    questions = len({trial.question_id for trial in resets})
    return (
        f"past the bound, adapters were reset {len(resets):,} times, of {questions:,} questions; "
        "a lower lr keeps what was learned"
    )


def _differs(sampling: Mapping[str, Any], name: str, value: float) -> bool:
    """Whether the model's own setting differs from the run's; an unset one is neutral."""
    neutral = {"repetition_penalty": 1, "top_k": 0, "min_p": 0}
    return bool(sampling.get(name, neutral.get(name)) != value)


def _figures(run: Run) -> list[str]:
    summary = run.summary
    low, high = summary["ci95"]
    return [
        f"{summary['solved']}/{summary['questions']}",
        f"{100 * summary['accuracy']:.1f} %",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{summary['trials_total']:,}",
        f"{summary['usage']['generated_tokens']:,}",
        f"{summary['seconds']:,.1f}",
    ]
