"""Best scores: what a side reached within a budget, the area under it, and paired tests."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import numpy as np
import pytest
from rich.console import Console

from fttt.report.compare import compare
from fttt.report.page import build_page, gather
from fttt.report.scores import best_scores
from fttt.report.sides import form_sides
from fttt.report.text import conclusions, render, shown_pairs
from fttt.store import Run

MakeRun = Callable[..., Run]


def run(make_run: MakeRun, name: str, scores: dict[str, list[float]], **more: object) -> Run:
    verdicts = {q: "".join("c" if s >= 1 else "i" for s in row) for q, row in scores.items()}
    return make_run(name, verdicts, scores=scores, **more)


def test_the_best_score_never_falls_and_counts_what_a_budget_paid_for(make_run: MakeRun) -> None:
    scores = {"a": [0.2, 0.1, 0.5, 0.4], "b": [-3.0, -1.0, -2.0, -0.5]}
    (side,) = form_sides([run(make_run, "r", scores)])
    assert best_scores(side, "trials", [1, 2, 3, 4]).tolist() == [
        [0.2, 0.2, 0.5, 0.5], [-3.0, -1.0, -1.0, -0.5],
    ]  # fmt: skip
    by_tokens = best_scores(side, "tokens", [1, 10, 25, 30])  # ten tokens a trial
    assert by_tokens.tolist() == [[0.2, 0.2, 0.2, 0.5], [-3.0, -3.0, -1.0, -1.0]]


def test_seeds_are_averaged_by_question(make_run: MakeRun) -> None:
    one = run(make_run, "one", {"a": [0.0, 0.0], "b": [0.4, 0.2]}, trials=2, seed=1)
    two = run(make_run, "two", {"a": [0.0, 1.0], "b": [0.2, 0.6]}, trials=2, seed=2)
    (side,) = form_sides([one, two])
    assert best_scores(side, "trials", [2]).ravel().tolist() == [0.5, 0.5]


def test_a_difference_is_held_against_all_sign_flips(make_run: MakeRun) -> None:
    rng = np.random.default_rng(3)
    names = [f"q{n}" for n in range(8)]
    low = {q: [float(x)] * 2 for q, x in zip(names, rng.uniform(0.1, 0.4, 8), strict=True)}
    high = {q: [low[q][0] + d] * 2 for q, d in zip(names, rng.uniform(-0.05, 0.3, 8), strict=True)}
    worse = run(make_run, "w", low, trials=2)
    better = run(make_run, "b", high, trials=2, method="fttt")
    comparison, _ = compare([better, worse])
    assert comparison.scores is not None
    at_trials, at_tokens = comparison.scores.pairs
    differences = np.array([high[q][0] - low[q][0] for q in names])
    signs = np.array(list(itertools.product((1, -1), repeat=8)))
    means = signs @ differences / 8
    wanted = np.mean(np.abs(means) >= abs(differences.mean()) - 1e-12)
    assert at_trials.difference.value == pytest.approx(differences.mean())
    assert at_trials.p == pytest.approx(wanted)
    assert at_trials.p_holm == at_trials.p  # of one pair
    assert at_trials.difference.low < differences.mean() < at_trials.difference.high
    assert (at_trials.axis, at_tokens.axis, at_tokens.budget) == ("trials", "tokens", 20)


def test_the_area_tells_who_was_sooner(make_run: MakeRun) -> None:
    soon = {f"q{n}": [0.8, 0.8, 0.8, 0.8] for n in range(4)}
    late = {f"q{n}": [0.0, 0.0, 0.0, 0.8] for n in range(4)}
    runs = [run(make_run, "soon", soon), run(make_run, "late", late, method="fttt")]
    comparison, _ = compare(runs)
    assert comparison.scores is not None
    by_label = {side.label: side for side in comparison.scores.sides}
    assert by_label["best-of-n"].best == by_label["fttt"].best
    assert by_label["best-of-n"].area.value == pytest.approx(0.8)
    assert by_label["fttt"].area.value == pytest.approx(0.2)
    assert comparison.scores.pairs[0].p == 1.0
    console = Console(width=120, record=True)
    console.print(render(comparison))
    assert "0.800 none" in " ".join(console.export_text().split())  # no width, no interval


def test_scores_are_in_the_terminal_the_json_and_the_page(make_run: MakeRun) -> None:
    scores = {f"q{n}": [0.25, 0.5 + n / 100] for n in range(4)}
    runs = [
        run(make_run, "a", scores, trials=2),
        run(make_run, "b", scores, trials=2, method="fttt"),
    ]
    comparison, _ = compare(runs)
    console = Console(width=120, record=True)
    console.print(render(comparison))
    text = console.export_text()
    assert "Best score of a question within 2 trials" in text
    assert "0.515" in text
    assert json.loads(json.dumps(comparison.to_json()))["scores"]["trials"] == 2
    page = build_page(gather(runs))
    assert "Best score against the budget" in page
    assert page.count("Best score so far") == 3  # a figure each for trials, tokens and seconds


def test_runs_without_scores_have_none(make_run: MakeRun) -> None:
    runs = [make_run("a", {"q": "ii"}), make_run("b", {"q": "ic"}, method="fttt")]
    comparison, _ = compare(runs)
    assert comparison.scores is None
    assert "Best score" not in build_page(gather(runs))


def test_scores_are_told_in_words_alone_where_nobody_solved_a_question(make_run: MakeRun) -> None:
    rising = {f"q{n}": [0.1, 0.5 + n / 100, 0.2, 0.3] for n in range(8)}
    flat = {f"q{n}": [0.1, 0.2, 0.1, 0.1] for n in range(8)}
    still = run(make_run, "a", flat)
    comparison, _ = compare([still, run(make_run, "b", rising, method="fttt")])
    (sentence,) = conclusions(comparison)
    assert sentence.startswith("fttt reached better scores than best-of-n at 4 trials: by 0.335 a")
    assert "solved" not in sentence
    assert sentence.count("reached better scores") == 2  # at equal tokens, too
    console = Console(width=100)
    with console.capture() as text:
        console.print(render(comparison))
    assert "Won : lost" not in text.get()
    assert "Best score, first" in text.get()
    assert shown_pairs(comparison) == 1

    solving = rising | {"q7": [0.1, 1.0, 0.2, 0.3]}
    comparison, _ = compare([run(make_run, "c", solving, method="fttt"), still])
    (sentence,) = conclusions(comparison)
    assert sentence.startswith("No difference was shown: at 4 trials, fttt solved 12.5 %")
    assert "fttt reached better scores than best-of-n at 4 trials: by 0.3" in sentence

    comparison, _ = compare([still, run(make_run, "d", flat, method="fttt")])
    assert "No difference of the best scores was shown at 4 trials" in conclusions(comparison)[0]
    assert shown_pairs(comparison) == 0


def test_a_page_draws_scores_alone_where_nobody_solved_a_question(make_run: MakeRun) -> None:
    rows = {f"q{n}": [0.1, 0.4, 0.2] for n in range(4)}
    unsolved = run(make_run, "a", rows), run(make_run, "b", rows, method="fttt")
    page = build_page(gather(unsolved))
    assert "Accuracy against the budget" not in page
    assert page.count("Best score so far") == 3
    assert page.count('class="legend"') == 1
    solved = run(make_run, "c", rows | {"q3": [0.1, 1.0, 1.0]}, method="optune")
    assert "Accuracy against the budget" in build_page(gather([*unsolved, solved]))
