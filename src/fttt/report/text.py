"""Runs and comparisons as text: how numbers are written, what follows, and the terminal's tables.

Every command that makes runs ends with ``show_runs``, so nothing that needs the ``report`` extra is
imported before there is a comparison to tell.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fttt.store import Run
from fttt.types import Trial

if TYPE_CHECKING:
    from fttt.report.compare import Comparison, PairResult, SideResult
    from fttt.report.scores import ScoreComparison, ScorePair
    from fttt.report.statistics import Estimate

__all__ = [
    "ago",
    "bounds",
    "budget_label",
    "caveats",
    "conclusion",
    "conclusions",
    "count",
    "decimal",
    "doubts",
    "first_pairs",
    "interval",
    "p_value",
    "percent",
    "points",
    "quantity",
    "render",
    "run_facts",
    "seconds",
    "show_folders",
    "show_runs",
    "shown_pairs",
]

MINUS = "\N{MINUS SIGN}"


def percent(fraction: float) -> str:
    """``12.5 %`` from 0.125."""
    return f"{100 * fraction:.1f} %"


def interval(estimate: Estimate) -> str:
    """``10.1 to 14.8 %``, the bounds of an interval."""
    return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f} %"


def points(fraction: float, sign: bool = True) -> str:
    """``+1.5`` or ``−0.4``: percentage points, with a true minus sign."""
    text = f"{100 * fraction:+.1f}" if sign else f"{100 * fraction:.1f}"
    if float(text) == 0:
        return "0.0"
    return text.replace("-", MINUS)


def decimal(number: float, sign: bool = False) -> str:
    """``0.417``, ``+1.2``, ``−12``: a score in three digits or so, with a true minus sign."""
    digits = 3 if abs(number) < 1 else 2 if abs(number) < 10 else 1
    text = f"{number:+.{digits}f}" if sign else f"{number:.{digits}f}"
    return ("0" if float(text) == 0 else text).replace("-", MINUS)


def p_value(p: float) -> str:
    """``p = 0.034``, or ``p < 0.001``."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def count(number: float) -> str:
    """``1,319``: a whole number with separators."""
    return f"{round(number):,}"


def quantity(number: float) -> str:
    """``4.2``, ``3``, ``5,400``: one decimal below ten, where it is not a whole number."""
    if abs(number) < 10 and number != round(number):
        return f"{number:.1f}"
    return count(number)


def ago(moment: float) -> str:
    """``just now``, ``5 min ago``, ``3 h ago``, ``2 days ago``, of a time since the epoch."""
    age = max(0.0, time.time() - moment)
    for size, unit in ((86400, "day"), (3600, "h"), (60, "min")):
        if age >= size:
            number = int(age // size)
            return f"{number} {unit}{'s' if unit == 'day' and number > 1 else ''} ago"
    return "just now"


def seconds(number: float) -> str:
    """``0.42 s``, ``12 s``, ``4 min 05 s``, ``2 h 10 min``."""
    if number < 10:
        return f"{number:.2f} s" if number < 1 else f"{number:.1f} s"
    whole = round(number)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


_FEW, _AT_LEAST = 6, 4


def budget_name(pair: PairResult | ScorePair) -> str:
    """``32 trials``, or ``4,096 generated tokens a question``."""
    if pair.axis == "trials":
        return "1 trial" if pair.budget == 1 else f"{count(pair.budget)} trials"
    return f"{count(pair.budget)} generated tokens a question"


def budget_label(pair: PairResult | ScorePair) -> str:
    """``32 trials`` or ``4,096 tokens``, for the column of a table."""
    return budget_name(pair).replace(" generated", "").removesuffix(" a question")


def conclusion(at_trials: PairResult, at_tokens: PairResult) -> str:
    """What one pair says at equal trials and at equal tokens, with the numbers it rests on."""
    if at_tokens.shown and not at_trials.shown:
        return f"{_sentence(at_tokens)} At equal trials this is otherwise. {_sentence(at_trials)}"
    first = _sentence(at_trials)
    if not at_trials.shown and not at_tokens.shown:
        return f"{first} Nor was one at {budget_name(at_tokens)} ({_basis(at_tokens)})."
    if at_trials.shown == at_tokens.shown and _leads(at_trials) == _leads(at_tokens):
        return f"{first} The same holds at {budget_name(at_tokens)} ({_basis(at_tokens)})."
    return f"{first} At equal tokens this is otherwise. {_sentence(at_tokens)}"


def conclusions(comparison: Comparison) -> list[str]:
    """One item a pair; pairs that showed a difference come first.

    Where answers have scores these are told as well, and alone where nobody solved a question.
    """
    return [_told(both, _scored(comparison, both)) for both in _by_pair(comparison)]


def shown_pairs(comparison: Comparison) -> int:
    """How many pairs showed a difference at either budget, in questions solved or in scores."""
    return sum(_shows(comparison, both) for both in _by_pair(comparison))


def _told(both: Sequence[PairResult], scored: Sequence[ScorePair]) -> str:
    """What is said of one pair."""
    words = [conclusion(*both)] if _solves(both) or not scored else []
    return " ".join([*words, *map(_score_sentence, scored)])


def _scored(comparison: Comparison, both: Sequence[PairResult]) -> list[ScorePair]:
    """The tests of a pair's best scores, if there are scores."""
    sides = both[0].first, both[0].second
    pairs = comparison.scores.pairs if comparison.scores is not None else ()
    return [pair for pair in pairs if (pair.first, pair.second) == sides]


def _solves(pairs: Sequence[PairResult]) -> bool:
    """Whether a question was solved by anyone."""
    return any(pair.first_accuracy or pair.second_accuracy for pair in pairs)


def _shows(comparison: Comparison, both: Sequence[PairResult]) -> bool:
    return any(p.shown for p in both) or any(p.shown for p in _scored(comparison, both))


def first_pairs(comparison: Comparison) -> list[tuple[str, str]]:
    """The pairs that a reader in a hurry is shown: all of a few, else those with a difference.

    They are the first of :func:`conclusions`, and at least four.
    """
    ordered = _by_pair(comparison)
    told = len(ordered) if len(ordered) <= _FEW else max(shown_pairs(comparison), _AT_LEAST)
    return [(both[0].first, both[0].second) for both in ordered[:told]]


def _by_pair(comparison: Comparison) -> list[list[PairResult]]:
    """The tests of each pair of sides; those that showed a difference come first."""
    by_pair: dict[tuple[str, str], list[PairResult]] = {}
    for pair in comparison.pairs:
        by_pair.setdefault((pair.first, pair.second), []).append(pair)
    return sorted(
        by_pair.values(),
        key=lambda both: (not _shows(comparison, both), [not pair.shown for pair in both]),
    )


def _leads(pair: PairResult) -> bool:
    """Whether the first side is ahead."""
    return pair.difference.value > 0


def _basis(pair: PairResult) -> str:
    # the sentence names the better side first
    turned = pair.shown and not _leads(pair)
    difference = _turned(pair.difference) if turned else pair.difference
    low, high = points(difference.low), points(difference.high)
    return (
        f"difference {points(difference.value)} points, 95 % interval {low} to {high}, "
        f"{_corrected(pair)}"
    )


def _turned(difference: Estimate) -> Estimate:
    """Second minus first."""
    low, high = -difference.high, -difference.low
    return replace(difference, value=-difference.value, low=low, high=high)


def _corrected(pair: PairResult | ScorePair) -> str:
    """The p value, and whether other tests were counted in."""
    after = "" if pair.p_holm == pair.p else " after Holm's correction"
    return f"{p_value(pair.p_holm)}{after}"


def _sentence(pair: PairResult) -> str:
    if pair.shown:
        better, worse = (pair.first, pair.second)
        more, less = (pair.first_accuracy, pair.second_accuracy)
        if not _leads(pair):
            better, worse, more, less = worse, better, less, more
        return (
            f"{better} solved more than {worse} at {budget_name(pair)}: {percent(more)} against "
            f"{percent(less)} of the same {count(pair.questions)} questions ({_basis(pair)})."
        )
    return (
        f"No difference was shown: at {budget_name(pair)}, {pair.first} solved "
        f"{percent(pair.first_accuracy)} and {pair.second} {percent(pair.second_accuracy)} of the "
        f"same questions ({_basis(pair)}); {_blind(pair)}."
    )


def _score_sentence(pair: ScorePair) -> str:
    difference, ahead, behind = pair.difference, pair.first, pair.second
    if difference.value < 0:
        difference, ahead, behind = _turned(difference), behind, ahead
    by = f"by {decimal(difference.value)} a question"
    low, high = decimal(difference.low), decimal(difference.high)
    basis = f"95 % interval {low} to {high}, {_corrected(pair)}"
    at = budget_name(pair)
    if pair.shown:
        return f"{ahead} reached better scores than {behind} at {at}: {by} ({basis})."
    return f"No difference of the best scores was shown at {at}: {ahead} was ahead {by} ({basis})."


def caveats(comparison: Comparison) -> list[str]:
    """What does not follow, whatever the numbers are."""
    said = [
        f"This speaks of questions like these {count(comparison.questions)} of "
        f"{comparison.task}, of {comparison.model} and of these settings; it says nothing of "
        "other tasks or models. That no difference was shown does not mean that there is none.",
    ]
    if any(side.decided_by == "first" and side.budget != 1 for side in comparison.sides):
        said.append(
            "A method that stops at its first verified trial uses the verifier as an oracle: for "
            "independent samples its accuracy is pass@N, not that of an answer chosen unaided."
        )
    said.extend(_ran_out(comparison.pairs))
    return said


def _blind(pair: PairResult) -> str:
    from fttt.report.statistics import POWER  # late: it needs scipy, which a table of runs does not

    questions = f"{count(pair.questions)} question{'s' if pair.questions != 1 else ''}"
    if pair.detectable is None:
        return f"no difference, however large, could have been shown with {questions}"
    return (
        f"a difference smaller than {points(pair.detectable, sign=False)} points would not have "
        f"been seen with {questions} (power {percent(POWER).replace('.0', '')})"
    )


def _ran_out(pairs: Sequence[PairResult]) -> list[str]:
    """Whether questions had no trials left before the token budget was reached."""
    most = max((share for p in pairs if p.axis == "tokens" for share in p.ran_out), default=0.0)
    if most == 0:
        return []
    return [
        f"At equal tokens, up to {percent(most)} of a side's questions had spent all their trials "
        "before that budget; they count as unsolved."
    ]


def render(comparison: Comparison) -> RenderableType:
    """Tables and the sentences that say what follows.

    Of many sides, only the pairs that showed a difference have a line of their own. Where nobody
    solved a question and answers have scores, these are compared alone.
    """
    title = f"{comparison.task} with {comparison.model}, {count(comparison.questions)} questions"
    parts: list[RenderableType] = [Text(title, style="bold")]
    parts.extend(Text(note, style="yellow") for note in comparison.notes)
    parts.append(_sides(comparison.sides))
    brief, follows = first_pairs(comparison), conclusions(comparison)
    left = len(follows) - len(brief)
    if comparison.scores is None or _solves(comparison.pairs):
        parts.append(_pairs([p for p in comparison.pairs if (p.first, p.second) in brief], left))
    if comparison.scores is not None:
        parts += [Text("\nBest scores", style="bold"), *_scores(comparison.scores, brief)]
    parts.append(Text("\nWhat follows", style="bold"))
    parts.extend(_item(sentence) for sentence in follows[: len(brief)])
    if left:
        parts.append(_item(f"No difference was shown in the other {left} pairs."))
    parts.append(Text("\nWhat does not", style="bold"))
    parts.extend(_item(sentence) for sentence in caveats(comparison))
    return Group(*parts)


def _scores(scores: ScoreComparison, brief: Sequence[tuple[str, str]]) -> list[RenderableType]:
    """The best scores of the sides, and their differences."""
    sides = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    sides.add_column("Method", overflow="fold")
    for name in ("Best score", "95 % interval", "Area", "95 % interval"):
        sides.add_column(name, justify="right", no_wrap=True)
    for side in scores.sides:
        row = [decimal(side.best.value), bounds(side.best)]
        row += [decimal(side.area.value), bounds(side.area)]
        sides.add_row(Text(side.label), *row)
    sides.caption = (
        f"Best score of a question within {count(scores.trials)} trials, and the area under the "
        "best so far (its mean over the trials); means over questions."
    )
    sides.caption_justify = "left"
    pairs = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    pairs.add_column("Best score, first − second", overflow="fold")  # noqa: RUF001
    pairs.add_column("At equal", no_wrap=True)
    for name in ("Difference", "95 % interval", "p"):
        pairs.add_column(name, justify="right", no_wrap=True)
    pairs.add_column("Shown", no_wrap=True)
    for pair in scores.pairs:
        if (pair.first, pair.second) in brief:
            pairs.add_row(
                Text(f"{pair.first} − {pair.second}"),  # noqa: RUF001
                budget_label(pair),
                Text(decimal(pair.difference.value, sign=True), style="bold"),
                bounds(pair.difference, sign=True),
                p_value(pair.p_holm).removeprefix("p ").removeprefix("= "),
                Text("yes", style="bold green") if pair.shown else Text("no", style="dim"),
            )
    return [sides, pairs]


def bounds(estimate: Estimate, sign: bool = False) -> str:
    """``0.21 to 0.34``; ``none`` where the questions do not differ."""
    if estimate.low == estimate.high:
        return "none"
    return f"{decimal(estimate.low, sign)} to {decimal(estimate.high, sign)}"


def _item(sentence: str) -> Table:
    """A sentence behind a bullet, its further lines indented."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row(Text("•"), Text(sentence))
    return grid


def _sides(sides: tuple[SideResult, ...]) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("Method", overflow="fold")
    table.add_column("Seeds", justify="right")  # may be many
    for name in ("Trials", "Solved", "95 % interval", "Generated", "Trained", "Blank"):
        table.add_column(name, justify="right", no_wrap=True)
    for side in sides:
        table.add_row(
            Text(side.label),
            ", ".join(map(str, side.seeds)),
            f"{quantity(side.trials_mean)}" + (f" of {side.budget}" if side.budget else ""),
            Text(percent(side.accuracy.value), style="bold"),
            interval(side.accuracy),
            count(side.tokens["generated"]),
            count(side.tokens["trained"]),
            percent(side.unanswered),
        )
    table.caption = "Trials and tokens: mean a question. Blank: trials without an answer."
    table.caption_justify = "left"
    return table


def _pairs(pairs: Sequence[PairResult], left: int) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("First − second", overflow="fold")  # noqa: RUF001
    table.add_column("At equal", no_wrap=True)
    for name in ("Points", "95 % interval", "Won : lost", "p", "Visible"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Shown", no_wrap=True)
    table.caption = (
        "Won : lost: questions that only the first, only the second solved. Visible: the smallest "
        "difference that would have been shown, with 80 % power."
    )
    if left:
        table.caption += (
            f" {left} more pairs, none of which showed a difference, are in --json; with "
            "--baseline METHOD every side is held against that one only."
        )
    table.caption_justify = "left"
    for pair in pairs:
        visible = "none" if pair.detectable is None else points(pair.detectable, sign=False)
        table.add_row(
            Text(f"{pair.first} − {pair.second}"),  # noqa: RUF001
            budget_label(pair),
            Text(points(pair.difference.value), style="bold"),
            f"{points(pair.difference.low)} to {points(pair.difference.high)}",
            f"{quantity(pair.only_first)} : {quantity(pair.only_second)}",
            p_value(pair.p_holm).removeprefix("p ").removeprefix("= "),
            visible,
            Text("yes", style="bold green") if pair.shown else Text("no", style="dim"),
        )
    return table


_CUT = 0.1
"""Share of trials cut at their length limit above which a note says so."""
_REPEATS = 4
"""Answers like the one before from which on a server seems not to sample."""


def show_runs(runs: Sequence[Run], console: Console | None = None) -> None:
    """Print one table of finished runs, and their folders.

    Several runs are named by their folders. They may have shared the engine's batch, so their
    seconds overlap and no speed is made of them. What casts doubt on a run's figures stands
    under its folder.
    """
    for run in runs:
        doubts(run)  # a broken run is refused before anything of it is shown
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
        for warning in doubts(run):
            console.print(f"  note: {warning}", soft_wrap=True, highlight=False, markup=False)


def run_facts(run: Run) -> dict[str, Any]:
    """The same of one run as plain data: its folder, its summary, and what casts doubt on it."""
    return {"folder": str(run.path), **run.summary, "notes": doubts(run)}


def doubts(run: Run) -> list[str]:
    """Facts that cast doubt on the figures: cut trials, failed verifiers, unused settings."""
    said = []
    trials = run.trials
    if not run.finished:
        said.append(
            f"unfinished: {len(run.owed)} of {len(run.questions)} questions still owe trials; "
            f"resume it by `fttt run --resume {run.path}`"
        )
    if run.loss is not None:
        said.append(run.loss)
    failed = [trial.detail for trial in trials if trial.failed]
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
        if "endpoint" in run.environment and _repeats(run):
            said.append(
                "the server gave every question the same answer each time, so it may not sample at "
                "all (docs/endpoints.md)"
            )
    if run.decided_by == "vote" and not any(trial.extracted for trial in trials):
        said.append("no trial had an answer to vote on")
    return said


def _repeats(run: Run) -> bool:
    """Whether no question has two different answers, though they were drawn several times."""
    texts = [[t.completion for t in record.trials] for record in run.records if record.trials]
    repeated = sum(len(answers) - 1 for answers in texts)
    return repeated >= _REPEATS and all(len(set(answers)) == 1 for answers in texts)


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
