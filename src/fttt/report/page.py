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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from fttt.errors import UsageError
from fttt.files import model_label
from fttt.report.compare import Comparison, SideResult, compare, describe, named
from fttt.report.outcomes import AXES, Outcomes, trials_by_question
from fttt.report.plots import (
    DARK,
    LIGHT,
    SIDE_COLOURS,
    Spending,
    budget_figures,
    css_variables,
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
    shown_pairs,
)
from fttt.store import History, QuestionTexts, Run
from fttt.types import FEEDBACK, JSON, Question, Trial, filled_in

__all__ = [
    "LETTERS",
    "ReportSection",
    "asset",
    "beside",
    "build_page",
    "gather",
    "legend",
    "pack",
    "question_texts",
    "render",
    "save_plots",
    "settings_text",
    "shown_model",
    "unpack",
]


_LONGEST_GOLD = 20_000
"""Characters of a problem object that a page holds; those of LiveCodeBench have some megabytes."""


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
        return " · ".join(filter(None, (self.task, shown_model(self.model), self.part)))


def shown_model(model: str) -> str:
    """A model as a title names it: its hub name, or the last part of a path."""
    is_path = model.count("/") != 1 or model[0] in "/.~" or model.endswith(".gguf")
    return model_label(model) if is_path else model


def gather(
    runs: Sequence[Run],
    intersection: bool = False,
    baseline: str | None = None,
    allow: Sequence[str] = (),
) -> list[ReportSection]:
    """Sort runs by task and model, and compare the sides of each where that is allowed.

    Greedy runs that have chosen the hard questions of the others have a section of their own.

    Args:
        runs: finished ones.
        intersection: use the questions that all runs finished.
        baseline: the side that every other one is held against; where a section has none of that
            name, all of its sides are held against one another.
        allow: settings in which compared runs may differ.

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
            sections.append(
                _section(task, model, choosing, (), intersection, None, "all questions")
            )
        part = "hard questions" if choosing else ""
        section = _section(task, model, others, allow, intersection, baseline, part)
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
    script = asset("trials.js") + asset("report.js")
    archive = pack([side for section in sections for side in section.sides])
    return render(
        "report.html.j2",
        title=_title(sections),
        sections=[_view(section, n) for n, section in enumerate(sections)],
        archive=archive,
        style=Markup(asset("report.css")),  # our own file
        script=Markup(script),  # our own file
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=version("fttt"),
    )


def render(template: str, **values: Any) -> str:
    """A page of one of our templates; what is put into it is escaped."""
    environment = Environment(
        loader=PackageLoader("fttt.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    written = (bounds, budget_label, count, decimal, interval, p_value, percent, points, quantity)
    environment.globals.update({function.__name__: function for function in (*written, seconds)})
    return environment.get_template(template).render(**values)


def asset(name: str) -> str:
    """A style sheet or script that pages share; colours of both themes are filled in."""
    folder = resources.files("fttt.report") / "templates"
    text = (folder / name).read_text(encoding="utf-8")
    if not name.endswith(".css"):
        return text
    light, dark = css_variables(LIGHT), css_variables(DARK)
    return text.replace("/* light */", light).replace("/* dark */", dark)


def save_plots(sections: Sequence[ReportSection], folder: Path, kind: str) -> list[Path]:
    """Write each plot of each section as a file of its own, with its legend."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for n, section in enumerate(sections):
        prefix = f"{n + 1}-" if len(sections) > 1 else ""
        figures = {
            f"{'accuracy' if measure == 'solved' else measure}-{axis}": figure
            for measure, drawn in budget_figures(section.sides).items()
            for axis, figure in zip(AXES, drawn, strict=True)
        }
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
    allow: Sequence[str],
    intersection: bool,
    baseline: str | None,
    part: str,
) -> ReportSection:
    sides = form_sides(runs)
    if len(sides) == 1:
        return ReportSection(task, model, sides, _results(sides), None, (), part)
    known = baseline if baseline is not None and named(sides, baseline) else None
    try:
        comparison, sides = compare(runs, intersection=intersection, allow=allow, baseline=known)
    except UsageError as error:
        said = (f"Not compared. {error}",)
        return ReportSection(task, model, sides, _results(sides), None, said, part)
    results = list(comparison.sides)
    return ReportSection(task, model, sides, results, comparison, comparison.notes, part)


def _results(sides: Sequence[Side]) -> list[SideResult]:
    return [describe(side) for side in sides]


_TITLES = {"solved": "Accuracy", "score": "Best score"}


def _view(section: ReportSection, number: int) -> dict[str, Any]:
    """What the template shows of a section."""
    spendings = spending(section.sides)
    tag = f"section {number}"
    drawn = {
        measure: [
            Markup(inline_svg(figure, f"{_TITLES[measure]} against {axis}, {tag}"))
            for axis, figure in zip(AXES, figures, strict=True)
        ]
        for measure, figures in budget_figures(section.sides, legend=False).items()
    }
    ks = sorted({k for result in section.results for k in result.accuracy_at})
    return {
        "title": section.title,
        "notes": section.notes,
        "results": section.results,
        "comparison": section.comparison,
        "follows": conclusions(section.comparison) if section.comparison else [],
        "shown": shown_pairs(section.comparison) if section.comparison else 0,
        "brief": len(first_pairs(section.comparison)) if section.comparison else 0,
        "caveats": caveats(section.comparison) if section.comparison else [],
        "ks": ks,
        "legend": legend([side.label for side in section.sides]),
        "curves": drawn.get("solved", []),
        "scores": section.comparison.scores if section.comparison else None,
        "score_curves": drawn.get("score", []),
        "tokens": [
            _both_widths(outcome_figure, spendings, f"Generated tokens by outcome, {tag}"),
            _both_widths(token_figure, spendings, f"Tokens by kind, {tag}"),
        ],
        "runs": [(run, settings_text(run)) for side in section.sides for run in side.runs],
    }


def _both_widths(
    draw: Callable[[Sequence[Spending], bool], Figure], spendings: Sequence[Spending], title: str
) -> Markup:
    """A figure for wide screens and one for a phone, of which the style sheet shows one."""
    wide = inline_svg(draw(spendings, False), title)
    narrow = inline_svg(draw(spendings, True), f"{title}, narrow")
    return Markup(wide + narrow.replace("<svg ", '<svg class="narrow" ', 1))


def legend(labels: Sequence[str]) -> list[dict[str, str]]:
    """Name, colour and mark of each side, by its place."""
    return [
        {
            "label": label,
            "colour": SIDE_COLOURS[n % len(SIDE_COLOURS)],
            "mark": Markup(legend_mark(n)),  # drawn by us from the place alone
        }
        for n, label in enumerate(labels)
    ]


def _title(sections: Sequence[ReportSection]) -> str:
    """``gsm8k, mbpp · smollm2-135m``."""
    tasks = dict.fromkeys(section.task for section in sections)
    models = dict.fromkeys(shown_model(section.model) for section in sections)
    return f"{', '.join(tasks)} · {', '.join(models)}"


def settings_text(run: Run) -> str:
    """The settings of a run for people."""
    return json.dumps(run.config, indent=2, ensure_ascii=False, default=str)


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
        "label": f"{side.label}, seed {run.seed}",
        "task": run.task,
        "ids": list(outcomes.ids),
        "verdicts": ["".join(LETTERS[t.verdict] for t in trials[i]) for i in outcomes.ids],
        # The trials that a question took, or 0 where it was not solved.
        "solved": [
            int(n) if solved else 0 for n, solved in zip(needed, outcomes.solved, strict=True)
        ],
        "tokens": [int(n) for n in outcomes.spent["tokens"]],
        "scores": _scores(trials[i] for i in outcomes.ids),
        "places": places,
        "beside": beside(run),
    }


def _scores(trials: Iterable[Sequence[Trial]]) -> list[list[float | None]] | None:
    """The score of each trial by question; ``None`` where no trial has one."""
    found = [[trial.score for trial in made] for made in trials]
    return found if any(score is not None for row in found for score in row) else None


def beside(run: Run) -> str:
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
    histories = _histories(run)
    for question in run.questions:
        history = histories.get(question.id) or History()
        written = _texts(question, trials[question.id], history)
        waiting.append(question_texts(run, written))
        size += len(question.prompt)
        size += sum(len(t.completion) + len(t.thought or "") for t in written.trials)
        size += sum(len(text) for _, text in written.critiques)
        yield len(chunks), len(waiting) - 1
        if size >= CHUNK_CHARACTERS:
            chunks.append(_packed(waiting))
            waiting, size = [], 0
    if waiting:
        chunks.append(_packed(waiting))


def _histories(run: Run) -> Mapping[str, History]:
    """The journal by question; empty where the trials and the settings tell all that was said.

    It is read where the trials spent more tokens than their completions hold, or where what was
    told depends on the verdict.
    """
    whole = all(t.usage.generated_tokens == len(t.token_ids) for t in run.trials)
    return {} if whole and FEEDBACK not in (_told_after(run) or "") else run.histories


def _texts(question: Question, trials: tuple[Trial, ...], history: History) -> QuestionTexts:
    critiques = tuple(
        (number, event.completion.text)
        for number, event in sorted(history.generations.items())
        if event.trial is None
    )
    feedback = {number: verdict.feedback for number, verdict in history.verdicts.items()}
    return QuestionTexts(question, trials, critiques, feedback)


def question_texts(run: Run, written: QuestionTexts) -> list[JSON]:
    """A question as the page's script reads it: its prompt, its gold answer and its trials."""
    question, trials = written.question, written.trials
    ends = [trial.generation for trial in trials[1:]] + [math.inf]
    rows: list[JSON] = []
    for trial, end in zip(trials, ends[: len(trials)], strict=True):
        after = [text for number, text in written.critiques if trial.generation < number < end]
        followed = trial is not trials[-1] or trial.loss is not None
        said = _told_after(run) if followed and trial.verdict != "correct" else None
        told = said and filled_in(said, written.feedback.get(trial.generation, ""))
        rows.append(_row(trial, after, told))
    return [question.prompt, _gold(question.gold), rows]


def _told_after(run: Run) -> str | None:
    """What the run's method says after a wrong attempt, where its settings tell.

    An ablation may have told another attempt's feedback.
    """
    settings = run.config.get("settings", {})
    said = settings.get("feedback") or settings.get("critique_request")
    if not isinstance(said, str) or (FEEDBACK in said and run.config.get("ablate")):
        return None
    return said


def _row(trial: Trial, critiques: Sequence[str], told: str | None) -> list[JSON]:
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
        trial.thought,
        told,
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
    """The gold answer as text; a judge's problem object as JSON, of which a part may be shown."""
    if gold is None or isinstance(gold, str):
        return gold
    text = json.dumps(gold, ensure_ascii=False, indent=2)
    return text if len(text) <= _LONGEST_GOLD else f"{text[:_LONGEST_GOLD]}\n..."


def _packed(value: JSON | dict[str, Any]) -> str:
    # ASCII JSON keeps lone surrogates, which a model may write, as escapes.
    raw = json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
    return base64.b64encode(gzip.compress(raw, compresslevel=6, mtime=0)).decode("ascii")
