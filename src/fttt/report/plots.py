"""The plots, drawn with matplotlib: the same figure for the page and for a paper.

Matplotlib rather than a charting library of the browser: the page stays small and works offline
and printed, and ``--plots`` writes the very figure that was looked at. For the page the SVG keeps
its text as text, and its colours become CSS variables, so that it follows the page's theme.

The sides' colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart,
darkened where they would be faint on white. Lines also differ in their markers, so that nothing
hangs on colour alone. Plots are drawn in the light colours; in the page each of these becomes a CSS
variable of the same name.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from fttt.report.outcomes import AXES, Axis, trials_by_question
from fttt.report.scores import best_scores, score_intervals
from fttt.report.sides import Side
from fttt.report.statistics import mean_intervals
from fttt.store import Run
from fttt.types import Trial

__all__ = [
    "DARK",
    "LIGHT",
    "SIDE_COLOURS",
    "Curve",
    "Spending",
    "budget_figures",
    "css_variables",
    "curve_figure",
    "curves",
    "inline_svg",
    "legend_mark",
    "outcome_figure",
    "save",
    "spending",
    "token_figure",
]

LIGHT = {
    "ink": "#1b2026",
    "soft": "#5a6572",
    "line": "#d9dee4",
    "ground": "#ffffff",
    "raised": "#f5f7f9",
    "accent": "#0b62a8",
    "c0": "#0072b2",
    "c1": "#d55e00",
    "c2": "#008f68",
    "c3": "#b5508f",
    "c4": "#a87400",
    "c5": "#3a97cf",
    "c6": "#5b4aa0",
    "c7": "#4d4f53",
    "correct": "#0076b8",
    "wrong": "#e08a3c",
    "blank": "#a9b1ba",
    "other": "#7d68b8",
}
DARK = {
    "ink": "#e8ebef",
    "soft": "#9aa5b1",
    "line": "#333b45",
    "ground": "#14181d",
    "raised": "#1c2229",
    "accent": "#6cb6f5",
    "c0": "#56a9e8",
    "c1": "#ff8a4a",
    "c2": "#2fcaa0",
    "c3": "#e693c4",
    "c4": "#e8b84a",
    "c5": "#9fd8fb",
    "c6": "#a997f0",
    "c7": "#c9ccd1",
    "correct": "#4fb0ef",
    "wrong": "#d98e4a",
    "blank": "#69737f",
    "other": "#a08cdc",
}
SIDE_COLOURS = tuple(f"c{n}" for n in range(8))


def css_variables(palette: dict[str, str]) -> str:
    """``--ink: #1b2026; ...`` for a style sheet."""
    return " ".join(f"--{name}: {colour};" for name, colour in palette.items())


GRID_POINTS = 160

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Accuracy of one side against one budget; the arrays share one axis."""

    label: str
    budgets: Floats
    mean: Floats
    low: Floats
    high: Floats
    whole_until: float
    """Past this budget more than 5 % of the questions had run out of trials, unsolved."""

    def in_percent(self) -> Curve:
        """The same, 100 times as high."""
        return replace(self, mean=100 * self.mean, low=100 * self.low, high=100 * self.high)


@dataclass(frozen=True, slots=True)
class Spending:
    """Mean tokens a question of one side."""

    label: str
    prompt: float
    generated: float
    trained: float
    correct: float
    """Generated in attempts that were correct; the next three make up the rest."""
    wrong: float
    blank: float
    other: float
    """Generated outside judged attempts: critiques, spare beams."""


Measure = Literal["solved", "score"]
"""What a curve shows: the share of questions solved, or their mean best score."""


def _measures(sides: Sequence[Side]) -> tuple[Measure, ...]:
    """What there is to draw of sides: scores where all have them, and questions solved.

    These are left away where there are scores and nobody has solved a question.
    """
    outcomes = [one for side in sides for one in side.outcomes]
    if not all(one.scored for one in outcomes):
        return ("solved",)
    return ("solved", "score") if any(one.right.any() for one in outcomes) else ("score",)


def curves(sides: Sequence[Side], axis: Axis, measure: Measure = "solved") -> list[Curve]:
    """One curve a side, from its first trial's cost to the largest that it spent."""
    return [_curve(side, axis, measure) for side in sides]


def _curve(side: Side, axis: Axis, measure: Measure) -> Curve:
    costs = np.concatenate([o.costs[axis].ravel() for o in side.outcomes])
    finite = costs[np.isfinite(costs)]
    if finite.size == 0:
        finite = np.ones(1)
    if axis == "trials":
        top = max(1, int(side.budget or finite.max()))
        budgets = np.arange(1, top + 1, dtype=np.float64)
    else:
        lowest, highest = max(float(finite.min()), 1e-3), max(float(finite.max()), 2e-3)
        budgets = np.geomspace(lowest, highest, GRID_POINTS)
        budgets[-1] = highest  # the power's rounding must not lose the last trial
    if measure == "score":
        mean, low, high = score_intervals(best_scores(side, axis, budgets))
    else:
        mean, low, high = mean_intervals(side.values(axis, budgets), len(side.runs))
    granted = axis == "trials" and side.budget and not side.unfinished
    whole_until = float(budgets[-1]) if granted else side.observed(axis)
    return Curve(side.label, budgets, mean, low, high, whole_until)


def spending(sides: Sequence[Side]) -> list[Spending]:
    """Where each side's tokens went."""
    return [_spending(side) for side in sides]


def _spending(side: Side) -> Spending:
    generated = {"correct": 0, "incorrect": 0, "unanswered": 0}
    prompt = trained = other = 0
    for run in side.runs:
        trials = trials_by_question(run)
        for question_id in side.ids:
            for trial in trials[question_id]:
                attempt = min(_tokens(run, trial), trial.usage.generated_tokens)
                generated[trial.verdict] += attempt
                other += trial.usage.generated_tokens - attempt
                prompt += trial.usage.prompt_tokens
                trained += trial.usage.trained_tokens
    visits = len(side.ids) * len(side.runs)
    return Spending(
        side.label,
        prompt=prompt / visits,
        generated=(sum(generated.values()) + other) / visits,
        trained=trained / visits,
        correct=generated["correct"] / visits,
        wrong=generated["incorrect"] / visits,
        blank=generated["unanswered"] / visits,
        other=other / visits,
    )


def _tokens(run: Run, trial: Trial) -> int:
    """Tokens of a trial's own answer; a server that gives no ids has counted them."""
    if trial.token_ids:
        return len(trial.token_ids)
    event = run.histories[trial.question_id].generations.get(trial.generation)
    return 0 if event is None else event.completion.usage.generated_tokens


MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
AXIS_NAMES: dict[Axis, str] = {
    "trials": "Trials a question",
    "tokens": "Generated tokens a question",
    "seconds": "Wall seconds a question",
}
STYLE: Any = {  # the stubs spell out every key of rcParams
    "font.size": 9,
    "axes.edgecolor": LIGHT["soft"],
    "axes.labelcolor": LIGHT["soft"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.7,
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["soft"],
    "ytick.color": LIGHT["soft"],
    "legend.frameon": False,
    "text.parse_math": False,  # a label is what it says: "$" is no formula
    "svg.fonttype": "none",
    "svg.hashsalt": "fttt",  # the same figure gives the same bytes
}


def curve_figure(
    curves: Sequence[Curve], axis: Axis, legend: bool = True, measure: Measure = "solved"
) -> Figure:
    """Accuracy, or the best score, against a budget, one line a side, with its 95 % band.

    A line is dotted past the budget that nearly every question was really given.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.9, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for n, curve in enumerate(curves):
            shown = curve if measure == "score" else curve.in_percent()
            _draw(axes, shown, n, axis, band=0.14 if len(curves) <= 4 else 0.07)
        axes.grid(axis="y")
        axes.set_xscale("log", base=2 if axis == "trials" else 10)
        axes.xaxis.set_major_locator(FixedLocator(_ticks(curves, axis)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.set_xlabel(AXIS_NAMES[axis])
        if measure == "score":
            axes.set_ylabel("Best score so far")
        else:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
            axes.set_ylim(bottom=0, top=min(100.0, max(axes.get_ylim()[1], 1.0)))
            axes.set_ylabel("Questions solved")
        if legend:
            axes.legend(loc="best", fontsize=8)
    return figure


def budget_figures(sides: Sequence[Side], legend: bool = True) -> dict[Measure, list[Figure]]:
    """What there is to draw of sides against each budget: a figure an axis, of each measure."""
    return {
        measure: [
            curve_figure(curves(sides, axis, measure), axis, legend, measure) for axis in AXES
        ]
        for measure in _measures(sides)
    }


def token_figure(spendings: Sequence[Spending], narrow: bool = False) -> Figure:
    """Tokens a question by kind: prompt, generated, trained; ``narrow`` is for a phone."""
    kinds = {"generated": "c5", "trained": "other", "prompt": "blank"}
    return _bars(spendings, kinds, {kind: kind for kind in kinds}, "Tokens a question", narrow)


def outcome_figure(spendings: Sequence[Spending], narrow: bool = False) -> Figure:
    """Generated tokens a question by the verdict on them; ``narrow`` is for a phone."""
    colours = {"correct": "correct", "wrong": "wrong", "blank": "blank", "other": "other"}
    names = {
        "correct": "correct attempts",
        "wrong": "wrong attempts",
        "blank": "unanswered attempts",
        "other": "not judged",
    }
    return _bars(spendings, colours, names, "Generated tokens a question", narrow)


def inline_svg(figure: Figure, title: str) -> str:
    """The figure as an SVG element for the page: no fixed size, theme colours, a title."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    # Marks and clip paths are numbered by their content: figures on one page must not share them.
    tag = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'\bid="', f'id="{tag}-', svg)
    svg = svg.replace("url(#", f"url(#{tag}-").replace('xlink:href="#', f'xlink:href="#{tag}-')
    for name, colour in LIGHT.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG (200 dots an inch) or SVG, by the path's ending; no date goes in."""
    with mpl.rc_context(STYLE):
        dateless = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=200, metadata=dateless)


def _draw(axes: Axes, curve: Curve, place: int, axis: Axis, band: float) -> None:
    colour = LIGHT[SIDE_COLOURS[place % len(SIDE_COLOURS)]]
    marker = MARKERS[place % len(MARKERS)]
    whole = curve.budgets <= curve.whole_until
    if len(curve.budgets) == 1:
        low, high = curve.mean - curve.low, curve.high - curve.mean
        axes.errorbar(
            curve.budgets,
            curve.mean,
            yerr=[low.tolist(), high.tolist()],
            color=colour,
            marker=marker,
            markersize=5,
            capsize=3,
            linewidth=1.2,
            label=curve.label,
        )
        return
    step = None if axis == "trials" else "post"
    axes.fill_between(
        curve.budgets,
        curve.low,
        curve.high,
        color=colour,
        alpha=band,
        linewidth=0,
        step="post" if step else None,
    )
    style = "default" if axis == "trials" else "steps-post"
    marks = _marks(curve, axis)
    axes.plot(curve.budgets, curve.mean, ":", color=colour, linewidth=1.3, drawstyle=style)
    axes.plot(
        curve.budgets[whole],
        curve.mean[whole],
        color=colour,
        linewidth=1.8,
        drawstyle=style,
        marker=marker,
        markersize=4.5,
        markevery=[m for m in marks if m < int(whole.sum())],
        label=curve.label,
    )


def _marks(curve: Curve, axis: Axis) -> list[int]:
    """Where a line carries its marker: powers of two, or a few places along it."""
    if axis == "trials":
        return [n for n, budget in enumerate(curve.budgets) if _is_power_of_two(int(budget))]
    return list(range(len(curve.budgets) // 8, len(curve.budgets), len(curve.budgets) // 4))


def _bars(
    spendings: Sequence[Spending],
    colours: dict[str, str],
    names: dict[str, str],
    title: str,
    narrow: bool,
) -> Figure:
    """Bars with their sides' names beside them, or, on a narrow figure, above them."""
    size = (3.7, 1.2 + 0.46 * len(spendings)) if narrow else (6.0, 0.9 + 0.32 * len(spendings))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        labels = [spending.label for spending in spendings]
        places = range(len(labels))
        left = [0.0] * len(labels)
        for field, colour in colours.items():
            widths = [float(getattr(spending, field)) for spending in spendings]
            if not any(widths):
                continue
            height = 0.4 if narrow else 0.62
            axes.barh(
                places, widths, left=left, height=height, color=LIGHT[colour], label=names[field]
            )
            left = [a + b for a, b in zip(left, widths, strict=True)]
        longest = max([*left, 1.0])
        for place, total in zip(places, left, strict=True):
            axes.text(total + longest * 0.01, place, f"{total:,.0f}", va="center", fontsize=8)
        axes.set_xlim(0, longest * (1.18 if narrow else 1.12))
        axes.set_yticks(places, [""] * len(labels) if narrow else labels)
        for place, label in zip(places, labels if narrow else (), strict=False):
            axes.text(0, place - 0.3, label, va="bottom", fontsize=8, clip_on=True)
        axes.set_ylim(-0.75 if narrow else -0.5, len(labels) - 0.5)
        axes.tick_params(axis="y", length=0, labelcolor=LIGHT["ink"])
        axes.invert_yaxis()
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(title)
        figure.legend(  # as wide as the figure: long names of sides leave the axes little room
            loc="outside upper left" if narrow else "outside upper right", ncols=2 if narrow else 4,
            fontsize=8, borderaxespad=0.2,
            handlelength=1, handleheight=1, columnspacing=1.4,
        )  # fmt: skip
    return figure


def _ticks(curves: Sequence[Curve], axis: Axis) -> list[float]:
    """Round numbers over the curves' range: powers of two, or 1 and 3 times powers of ten."""
    low = min(float(curve.budgets[0]) for curve in curves)
    high = max(float(curve.budgets[-1]) for curve in curves)
    if axis == "trials":
        powers = [float(1 << n) for n in range(int(high).bit_length())]
        return powers if powers[-1] == high else [*powers, high]
    places = [m * 10.0**e for e in range(-3, 9) for m in (1, 3)]
    inside = [tick for tick in places if low <= tick <= high]
    return inside if len(inside) > 1 else [low, high]


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _short(value: float) -> str:
    """``300``, ``1k``, ``30k``, ``2M``: as few characters as a tick has room for."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def legend_mark(place: int) -> str:
    """A short piece of a side's line with its marker, as SVG for the page's legend."""
    colour = f"var(--{SIDE_COLOURS[place % len(SIDE_COLOURS)]})"
    marker = MarkerStyle(MARKERS[place % len(MARKERS)])
    path = marker.get_path().transformed(marker.get_transform())
    outline = np.asarray(path.to_polygons()[0], dtype=np.float64)
    corners = " ".join(f"{12 + 6 * x:.1f},{6 - 6 * y:.1f}" for x, y in outline)
    return (
        f'<svg viewBox="0 0 24 12" aria-hidden="true"><path d="M0 6H24" stroke="{colour}" '
        f'stroke-width="1.8"/><polygon points="{corners}" fill="{colour}"/></svg>'
    )
