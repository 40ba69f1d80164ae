from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fttt.report.plots import (
    DARK,
    LIGHT,
    curve_figure,
    curves,
    inline_svg,
    outcome_figure,
    save,
    spending,
    token_figure,
)
from fttt.report.sides import Side, form_sides
from fttt.store import Run

MakeRun = Callable[..., Run]


def test_a_line_of_an_unfinished_run_is_whole_as_far_as_its_questions_came(
    make_run: MakeRun,
) -> None:
    run = make_run("a", {"x": "ii", "y": "iiii", "z": "c"}, finish=False)
    (curve,) = curves([Side("a", (run,), ("x", "y", "z"))], "trials")
    assert curve.budgets.tolist() == [1, 2, 3, 4]
    assert curve.whole_until == 2
    (finished,) = curves([Side("a", (run,), ("y", "z"))], "trials")
    assert finished.whole_until == 4


def test_a_curve_is_the_share_solved_within_each_budget(make_run: MakeRun) -> None:
    (curve,) = curves(form_sides([make_run("a", {"x": "iic", "y": "c", "z": "iiii"})]), "trials")
    assert curve.budgets.tolist() == [1, 2, 3, 4]
    assert curve.mean == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert np.all((curve.low < curve.mean) & (curve.mean < curve.high))


@pytest.mark.parametrize("axis", ["tokens", "seconds"])
def test_a_curve_runs_from_the_first_trials_cost_to_the_largest(
    make_run: MakeRun, axis: str
) -> None:
    run = make_run("a", {"x": "iic", "y": "c", "z": "iiii"})
    (curve,) = curves(form_sides([run]), axis)  # type: ignore[arg-type]
    assert curve.budgets[0] == pytest.approx({"tokens": 10, "seconds": 0.5}[axis])
    assert curve.budgets[-1] == {"tokens": 40, "seconds": 2.0}[axis]
    assert curve.mean[-1] == pytest.approx(2 / 3)
    assert curve.whole_until == {"tokens": 40, "seconds": 2.0}[axis]


def test_spending_tells_what_came_of_the_tokens(make_run: MakeRun) -> None:
    (spent,) = spending(form_sides([make_run("a", {"x": "iuc", "y": "iiii"})]))
    assert (spent.correct, spent.wrong, spent.blank, spent.other) == (5, 25, 5, 0)
    assert (spent.generated, spent.prompt, spent.trained) == (35, 70, 17.5)


def test_critiques_are_told_from_attempts(make_run: MakeRun) -> None:
    run = make_run("a", {"x": "ic"}, critique="Look again.")
    (spent,) = spending(form_sides([run]))
    assert (spent.correct, spent.wrong, spent.other, spent.generated) == (10, 10, 3, 23)


def test_the_pages_figure_keeps_its_text_and_takes_the_pages_colours(make_run: MakeRun) -> None:
    runs = [make_run("a", {"x": "ic"}, method="a & $b$"), make_run("b", {"x": "c"})]
    svg = inline_svg(curve_figure(curves(form_sides(runs), "trials"), "trials"), "One title")
    assert svg.startswith("<svg ")
    assert 'aria-label="One title"' in svg
    assert "a &amp; $b$" in svg
    assert "var(--c0)" in svg
    assert "var(--c1)" in svg
    assert not [colour for colour in LIGHT.values() if colour in svg]
    assert not re.search(r'<svg[^>]*\swidth="', svg)


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_same_trials_give_the_same_bytes(make_run: MakeRun, tmp_path: Path, kind: str) -> None:
    spent = spending(form_sides([make_run("a", {"x": "ic", "y": "u"})]))
    for name, draw in (("kinds", token_figure), ("came", outcome_figure)):
        first, again = tmp_path / f"{name}-1.{kind}", tmp_path / f"{name}-2.{kind}"
        save(draw(spent), first)
        save(draw(spent), again)
        assert first.read_bytes() == again.read_bytes()
        assert first.read_bytes().startswith(b"\x89PNG" if kind == "png" else b"<?xml")


def test_colours_are_named_alike_and_distinct_on_both_grounds() -> None:
    assert LIGHT.keys() == DARK.keys()
    for palette in (LIGHT, DARK):
        assert len(set(palette.values())) == len(palette)
        for name in ("ink", "soft", *(f"c{n}" for n in range(8))):
            assert _contrast(palette[name], palette["ground"]) >= 3, name
        assert _contrast(palette["soft"], palette["ground"]) >= 4.5


def _contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_long_names_of_sides_push_no_legend_out_of_the_figure(make_run: MakeRun) -> None:
    method = "optune (checkpoint a-folder-with-a-long-name)"
    run = make_run("a", {"x": "iuc", "y": "uiii"}, method=method, critique="Look again.")
    figure = outcome_figure(spending(form_sides([run])))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert len(legend.get_texts()) == 4
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
