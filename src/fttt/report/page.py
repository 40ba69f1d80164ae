"""The report: one HTML file that holds everything it shows and asks the network for nothing.

A page that held 50,000 completions as text would take seconds to open. So an index (one letter a
trial) is read at once, and the texts lie in compressed chunks, each opened when a question in it is
looked at. The chunks are gzip in base64, so whatever a model wrote, no byte of it can end the
element that holds it or be taken for markup.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fttt.errors import UsageError
from fttt.report.compare import Comparison, SideResult, compare, describe, named
from fttt.report.outcomes import AXES, Outcomes, trials_by_question
from fttt.report.plots import (
    DARK,
    LIGHT,
    SIDE_COLOURS,
    css_variables,
    curve_figure,
    curves,
    inline_svg,
    legend_mark,
    outcome_figure,
    save,
    spending,
    token_figure,
)
from fttt.report.sides import (
    Side,
    check_distinct,
    check_finished,
    form_sides,
    model_names,
    set_aside,
)
from fttt.report.text import (
    bounds,
    budget_label,
    caveats,
    conclusions,
    count,
    decimal,
    first_pairs,
    interval,
    p_value,
    percent,
    points,
    quantity,
    seconds,
)
from fttt.store import Run
from fttt.types import JSON, Trial

__all__ = ["ReportSection", "build_page", "gather", "pack", "save_plots", "unpack"]


@dataclass(frozen=True)
class ReportSection:
    """All runs on one task with one model."""

    task: str
    model: str
    sides: list[Side]
    results: list[SideResult]
    comparison: Comparison | None
    """``None`` where there is one side, or where the sides must not be compared."""
    notes: tuple[str, ...]
    part: str = ""
    """Which of the task's questions, where another section has others."""

    @property
    def title(self) -> str:
        return " · ".join(filter(None, (self.task, self.model, self.part)))


def gather(
    runs: Sequence[Run], intersection: bool = False, baseline: str | None = None
) -> list[ReportSection]:
    """Sort runs by task and model, and compare the sides of each where that is allowed.

    Greedy runs that have chosen the hard questions of the others have a section of their own.

    Args:
        runs: finished ones.
        intersection: use the questions that all runs finished.
        baseline: the side that every other one is held against; where a section has none of that
            name, all of its sides are held against one another.

    Raises:
        UsageError: a run is named twice, or is unfinished and no intersection was asked for; or no
            section has the baseline.
    """
    check_distinct(runs)
    if not intersection:
        check_finished(runs)
    places: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run, model in zip(runs, model_names(runs), strict=True):
        places[run.task, model].append(run)
    sections: list[ReportSection] = []
    for (task, model), group in places.items():
        choosing, others, notes = set_aside(group)
        if choosing:
            sections.append(_section(task, model, choosing, intersection, None, "all questions"))
        part = "hard questions" if choosing else ""
        section = _section(task, model, others, intersection, baseline, part)
        sections.append(replace(section, notes=(*notes, *section.notes)))
    if baseline is not None and not any(named(section.sides, baseline) for section in sections):
        labels = dict.fromkeys(side.label for section in sections for side in section.sides)
        raise UsageError(
            f"There is no side {baseline!r} to compare with; the sides are "
            f"{', '.join(map(repr, labels))}."
        )
    return sections


def build_page(sections: Sequence[ReportSection]) -> str:
    """The whole page as text."""
    environment = Environment(
        loader=PackageLoader("fttt.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    written = (bounds, budget_label, count, decimal, interval, p_value, percent, points, quantity)
    environment.globals.update({function.__name__: function for function in (*written, seconds)})
    script = _asset("report.js")
    archive = pack([side for section in sections for side in section.sides])
    return environment.get_template("report.html.j2").render(
        title=_title(sections),
        sections=[_view(section, n) for n, section in enumerate(sections)],
        archive=archive,
        style=Markup(_style()),  # our own file
        script=Markup(script),  # our own file
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=_version(),
    )


def save_plots(sections: Sequence[ReportSection], folder: Path, kind: str) -> list[Path]:
    """Write each plot of each section as a file of its own, with its legend."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for n, section in enumerate(sections):
        prefix = f"{n + 1}-" if len(sections) > 1 else ""
        figures = {
            f"accuracy-{axis}": curve_figure(curves(section.sides, axis), axis) for axis in AXES
        }
        if _scored(section):
            for axis in AXES:
                lines = curves(section.sides, axis, "score")
                figures[f"score-{axis}"] = curve_figure(lines, axis, measure="score")
        figures["tokens"] = token_figure(spending(section.sides))
        figures["generated"] = outcome_figure(spending(section.sides))
        for name, figure in figures.items():
            path = folder / f"{prefix}{name}.{kind}"
            save(figure, path)
            written.append(path)
    return written


def _section(
    task: str,
    model: str,
    runs: list[Run],
    intersection: bool,
    baseline: str | None,
    part: str,
) -> ReportSection:
    sides = form_sides(runs)
    if len(sides) == 1:
        return ReportSection(task, model, sides, _results(sides), None, (), part)
    known = baseline if baseline is not None and named(sides, baseline) else None
    try:
        comparison, sides = compare(runs, intersection=intersection, baseline=known)
    except UsageError as error:
        said = (f"Not compared. {error}",)
        return ReportSection(task, model, sides, _results(sides), None, said, part)
    results = list(comparison.sides)
    return ReportSection(task, model, sides, results, comparison, comparison.notes, part)


def _results(sides: Sequence[Side]) -> list[SideResult]:
    return [describe(side) for side in sides]


def _view(section: ReportSection, number: int) -> dict[str, Any]:
    """What the template shows of a section."""
    spendings = spending(section.sides)
    figures = {axis: curve_figure(curves(section.sides, axis), axis, legend=False) for axis in AXES}
    tag = f"section {number}"
    ks = sorted({k for result in section.results for k in result.accuracy_at})
    return {
        "title": section.title,
        "notes": section.notes,
        "results": section.results,
        "comparison": section.comparison,
        "follows": conclusions(section.comparison) if section.comparison else [],
        "shown": _pairs_shown(section.comparison) if section.comparison else 0,
        "brief": len(first_pairs(section.comparison)) if section.comparison else 0,
        "caveats": caveats(section.comparison) if section.comparison else [],
        "ks": ks,
        "legend": [
            {
                "label": side.label,
                "colour": SIDE_COLOURS[n % len(SIDE_COLOURS)],
                "mark": Markup(legend_mark(n)),  # drawn by us from the place alone
            }
            for n, side in enumerate(section.sides)
        ],
        "curves": [
            Markup(inline_svg(figure, f"Accuracy against {axis}, {tag}"))
            for axis, figure in figures.items()
        ],
        "scores": section.comparison.scores if section.comparison else None,
        "score_curves": [
            Markup(
                inline_svg(
                    curve_figure(curves(section.sides, axis, "score"), axis, False, "score"),
                    f"Best score against {axis}, {tag}",
                )
            )
            for axis in (AXES if _scored(section) else ())
        ],
        "spending": Markup(inline_svg(token_figure(spendings), f"Tokens by kind, {tag}")),
        "generated": Markup(
            inline_svg(outcome_figure(spendings), f"Generated tokens by outcome, {tag}")
        ),
        "runs": [(run, _settings(run)) for side in section.sides for run in side.runs],
    }


def _scored(section: ReportSection) -> bool:
    return all(outcomes.scored for side in section.sides for outcomes in side.outcomes)


def _pairs_shown(comparison: Comparison) -> int:
    """How many pairs showed a difference at either budget; their sentences come first."""
    return len({(pair.first, pair.second) for pair in comparison.pairs if pair.shown})


def _title(sections: Sequence[ReportSection]) -> str:
    """``gsm8k, mbpp · smollm2-135m``."""
    tasks = dict.fromkeys(section.task for section in sections)
    models = dict.fromkeys(section.model for section in sections)
    return f"{', '.join(tasks)} · {', '.join(models)}"


def _settings(run: Run) -> str:
    return json.dumps(run.config, indent=2, ensure_ascii=False, default=str)


def _style() -> str:
    return (
        _asset("report.css")
        .replace("/* light */", css_variables(LIGHT))
        .replace("/* dark */", css_variables(DARK))
    )


def _asset(name: str) -> str:
    folder = resources.files("fttt.report") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def _version() -> str:
    from importlib.metadata import version

    return version("fttt")


CHUNK_CHARACTERS = 400_000
"""Text in a chunk before it is closed: about ten milliseconds to open."""
LETTERS = {"correct": "c", "incorrect": "i", "unanswered": "u"}


@dataclass(frozen=True)
class Archive:
    """The index and the chunks, each packed for the page."""

    index: str
    chunks: tuple[str, ...]
    trials: int


def pack(sides: Sequence[Side]) -> Archive:
    """Pack the trials of every run of every side."""
    chunks: list[str] = []
    runs = []
    trials = 0
    for side in sides:
        for run in side.runs:
            entry = _run_entry(run, side, chunks)
            trials += sum(len(letters) for letters in entry["verdicts"])
            runs.append(entry)
    return Archive(_packed({"runs": runs}), tuple(chunks), trials)


def unpack(packed: str) -> Any:
    """What :func:`pack` packed, read back."""
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def _run_entry(run: Run, side: Side, chunks: list[str]) -> dict[str, Any]:
    """The index of one run; its texts are appended to ``chunks``."""
    trials = trials_by_question(run)
    outcomes = Outcomes.of(run)
    first_right = outcomes.right.argmax(axis=1)
    rows = np.arange(len(outcomes.ids))
    needed = outcomes.costs["trials"][rows, first_right]
    places = []
    for number, place in _chunked(run, trials, chunks):
        places.append([number, place])
    return {
        "name": run.path.name,
        "label": side.label,
        "task": run.task,
        "model": run.model,
        "seed": run.seed,
        "ids": list(outcomes.ids),
        "verdicts": ["".join(LETTERS[t.verdict] for t in trials[i]) for i in outcomes.ids],
        # The trials that a question took, or 0 where it was not solved.
        "solved": [
            int(n) if solved else 0 for n, solved in zip(needed, outcomes.solved, strict=True)
        ],
        "tokens": [int(n) for n in outcomes.spent["tokens"]],
        "places": places,
        "feedback": _feedback(run),
        "beside": _beside(run),
    }


def _beside(run: Run) -> str:
    """What a completion that is no answer is called."""
    if run.config.get("ablate") == "shuffle":
        return "Written in place of the attempt, or about it"
    return "Critique by the model"


def _chunked(
    run: Run, trials: dict[str, tuple[Trial, ...]], chunks: list[str]
) -> Iterator[tuple[int, int]]:
    """Pack each question's texts; yield the chunk and the place in it, for each question."""
    waiting: list[JSON] = []
    size = 0
    critiques = _critiques(run)
    for question in run.questions:
        made = trials[question.id]
        said = _after_trials(made, critiques.get(question.id, []))
        rows = [_row(trial, texts) for trial, texts in zip(made, said, strict=True)]
        waiting.append([question.prompt, _gold(question.gold), rows])
        size += len(question.prompt) + sum(len(t.completion) for t in made)
        size += sum(len(text) for texts in said for text in texts)
        yield len(chunks), len(waiting) - 1
        if size >= CHUNK_CHARACTERS:
            chunks.append(_packed(waiting))
            waiting, size = [], 0
    if waiting:
        chunks.append(_packed(waiting))


def _critiques(run: Run) -> dict[str, list[tuple[int, str]]]:
    """Number and text of each generation that was no attempt, for each question.

    The journal is read only where the trials spent more tokens than their completions hold.
    """
    if all(t.usage.generated_tokens == len(t.token_ids) for t in run.trials):
        return {}
    return {
        question_id: [
            (number, event.completion.text)
            for number, event in sorted(history.generations.items())
            if event.trial is None
        ]
        for question_id, history in run.histories.items()
    }


def _after_trials(trials: Sequence[Trial], critiques: list[tuple[int, str]]) -> list[list[str]]:
    """What was written after each trial's attempt and before the next one's."""
    ends = [trial.generation for trial in trials[1:]] + [math.inf]
    return [
        [text for number, text in critiques if trial.generation < number < end]
        for trial, end in zip(trials, ends[: len(trials)], strict=True)
    ]


def _feedback(run: Run) -> str | None:
    """What the run's method says after a wrong attempt, where its settings tell."""
    said = run.config.get("settings", {}).get("feedback")
    return said if isinstance(said, str) and "{feedback}" not in said else None


def _row(trial: Trial, critiques: list[str]) -> list[JSON]:
    """One trial; the page's script reads the fields by their place."""
    usage = trial.usage
    return [
        trial.trial + 1,
        LETTERS[trial.verdict],
        trial.finish_reason,
        trial.extracted,
        trial.detail,
        trial.loss if trial.loss is None or math.isfinite(trial.loss) else None,
        usage.prompt_tokens,
        usage.generated_tokens,
        usage.trained_tokens,
        round(usage.seconds, 3),
        trial.completion,
        critiques,
        _score(trial),
        _divergence(trial),
    ]


def _divergence(trial: Trial) -> str | None:
    """How far a step has led from the base model, where it was measured."""
    if trial.divergence is None or not math.isfinite(trial.divergence):
        return None
    return f"divergence {trial.divergence:.3g}{', adapter reset' if trial.reset else ''}"


def _score(trial: Trial) -> str | None:
    """How close a trial came, where its verifier tells."""
    if trial.tests_total is not None:
        return f"{trial.tests_passed} of {trial.tests_total} tests passed"
    return None if trial.score is None else f"score {trial.score:g}"


def _gold(gold: JSON) -> str | None:
    """The gold answer as text; a judge's problem object as JSON."""
    if gold is None or isinstance(gold, str):
        return gold
    return json.dumps(gold, ensure_ascii=False, indent=2)


def _packed(value: JSON | dict[str, Any]) -> str:
    # ASCII JSON keeps lone surrogates, which a model may write, as escapes.
    raw = json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
    return base64.b64encode(gzip.compress(raw, compresslevel=6, mtime=0)).decode("ascii")
