"""The report: one HTML file that holds everything it shows and asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fttt.errors import UsageError
from fttt.report import wording
from fttt.report.archive import pack
from fttt.report.arms import Arm, check_distinct, check_finished, form_arms
from fttt.report.compare import ArmResult, Comparison, compare, describe
from fttt.report.curves import curves, spending
from fttt.report.outcomes import AXES
from fttt.report.palette import ARM_COLOURS, DARK, LIGHT, css_variables
from fttt.report.plots import (
    curve_figure,
    inline_svg,
    legend_mark,
    outcome_figure,
    save,
    token_figure,
)
from fttt.report.sentences import budget_label, caveats, conclusions, first_pairs
from fttt.store import Run

__all__ = ["Section", "build_page", "gather", "save_plots"]


@dataclass(frozen=True)
class Section:
    """All runs on one task with one model."""

    task: str
    model: str
    arms: list[Arm]
    results: list[ArmResult]
    comparison: Comparison | None
    """``None`` where there is one side, or where the sides must not be compared."""
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.task} · {self.model}"


def gather(runs: Sequence[Run], intersection: bool = False) -> list[Section]:
    """Sort runs by task and model, and compare the sides of each where that is allowed.

    Raises:
        UsageError: a run is named twice, or is unfinished and no intersection was asked for.
    """
    check_distinct(runs)
    if not intersection:
        check_finished(runs)
    places: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        places[run.task, run.model].append(run)
    return [_section(task, model, group, intersection) for (task, model), group in places.items()]


def build_page(sections: Sequence[Section]) -> str:
    """The whole page as text."""
    environment = Environment(
        loader=PackageLoader("fttt.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        percent=wording.percent,
        interval=wording.interval,
        points=wording.points,
        p_value=wording.p_value,
        count=wording.count,
        quantity=wording.quantity,
        seconds=wording.seconds,
        budget_label=budget_label,
    )
    script = _asset("report.js")
    archive = pack([arm for section in sections for arm in section.arms])
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


def save_plots(sections: Sequence[Section], folder: Path, kind: str) -> list[Path]:
    """Write each plot of each section as a file of its own, with its legend."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for n, section in enumerate(sections):
        prefix = f"{n + 1}-" if len(sections) > 1 else ""
        figures = {
            f"accuracy-{axis}": curve_figure(curves(section.arms, axis), axis) for axis in AXES
        }
        figures["tokens"] = token_figure(spending(section.arms))
        figures["generated"] = outcome_figure(spending(section.arms))
        for name, figure in figures.items():
            path = folder / f"{prefix}{name}.{kind}"
            save(figure, path)
            written.append(path)
    return written


def _section(task: str, model: str, runs: list[Run], intersection: bool) -> Section:
    arms = form_arms(runs)
    if len(arms) == 1:
        return Section(task, model, arms, _results(arms), None, ())
    try:
        comparison, arms = compare(runs, intersection=intersection)
    except UsageError as error:
        return Section(task, model, arms, _results(arms), None, (f"Not compared. {error}",))
    return Section(task, model, arms, list(comparison.arms), comparison, comparison.notes)


def _results(arms: Sequence[Arm]) -> list[ArmResult]:
    return [describe(arm) for arm in arms]


def _view(section: Section, number: int) -> dict[str, Any]:
    """What the template shows of a section."""
    spendings = spending(section.arms)
    figures = {axis: curve_figure(curves(section.arms, axis), axis, legend=False) for axis in AXES}
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
                "label": arm.label,
                "colour": ARM_COLOURS[n % len(ARM_COLOURS)],
                "mark": Markup(legend_mark(n)),  # drawn by us from the place alone
            }
            for n, arm in enumerate(section.arms)
        ],
        "curves": [
            Markup(inline_svg(figure, f"Accuracy against {axis}, {tag}"))
            for axis, figure in figures.items()
        ],
        "spending": Markup(inline_svg(token_figure(spendings), f"Tokens by kind, {tag}")),
        "generated": Markup(
            inline_svg(outcome_figure(spendings), f"Generated tokens by outcome, {tag}")
        ),
        "runs": [(run, _settings(run)) for arm in section.arms for run in arm.runs],
    }


def _pairs_shown(comparison: Comparison) -> int:
    """How many pairs showed a difference at either budget; their sentences come first."""
    return len({(pair.first, pair.second) for pair in comparison.pairs if pair.shown})


def _title(sections: Sequence[Section]) -> str:
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
