from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from fttt.errors import UsageError
from fttt.report.compare import compare
from fttt.report.text import caveats, conclusions
from fttt.store import Run

MakeRun = Callable[..., Run]


def solved(pattern: str, trials: int = 4) -> dict[str, str]:
    """Question ids to verdicts: a digit is the trial that solved it, ``-`` is never."""
    return {
        f"q{n}": "i" * trials if mark == "-" else "i" * (int(mark) - 1) + "c"
        for n, mark in enumerate(pattern)
    }


def test_pairs_are_counted_at_equal_trials(make_run: MakeRun) -> None:
    first = make_run("a", solved("1111----22"), method="fttt")
    second = make_run("b", solved("11----33--"))
    comparison, _ = compare([first, second])
    at_trials, _ = comparison.pairs
    assert (at_trials.axis, at_trials.budget, at_trials.questions) == ("trials", 4, 10)
    assert (at_trials.first_accuracy, at_trials.second_accuracy) == (0.6, 0.4)
    assert (at_trials.only_first, at_trials.only_second) == (4, 2)
    assert at_trials.difference.value == pytest.approx(0.2)
    assert at_trials.p == pytest.approx(2 * (1 + 6 + 15) / 64)  # McNemar: 4 against 2
    assert not at_trials.shown


def test_greedy_decoding_that_chose_the_hard_questions_is_no_side(make_run: MakeRun) -> None:
    greedy = make_run("g", solved("11---", trials=1), method="greedy", trials=1)
    hard = {i: row for i, row in solved("--12-").items() if i not in ("q0", "q1")}
    sides = [make_run("a", hard), make_run("b", hard, method="fttt")]
    comparison, _ = compare([greedy, *sides])
    assert [side.method for side in comparison.sides] == ["best-of-n", "fttt"]
    assert comparison.questions == 3
    assert "Greedy decoding (g) solved 2 of 5 questions" in comparison.notes[0]
    every = make_run("c", solved("1112-"))
    with pytest.raises(UsageError, match="not on the same questions"):
        compare([greedy, *sides, every])
    assert len(compare([greedy, every])[0].sides) == 2  # both were asked all


def test_equal_trials_are_the_fewest_that_both_sides_were_granted(make_run: MakeRun) -> None:
    few = make_run("a", solved("2-", trials=2), method="fttt", trials=2)
    many = make_run("b", solved("42"), trials=4)
    comparison, _ = compare([few, many])
    assert comparison.pairs[0].budget == 2
    assert comparison.pairs[0].second_accuracy == 0.5  # the fourth trial does not count


def test_equal_tokens_are_what_nearly_every_question_was_given(make_run: MakeRun) -> None:
    cheap = make_run("a", solved("1" + "-" * 39), tokens=10)  # 40 tokens are all it may spend
    dear = make_run("b", solved("4" + "3" * 19 + "-" * 20), method="fttt", tokens=15)
    pair = next(p for p in compare([cheap, dear])[0].pairs if p.axis == "tokens")
    assert pair.budget == 40
    assert pair.second_accuracy == 0  # its third trial ends at 45 tokens
    assert pair.ran_out == (0, 0)


def test_up_to_one_question_in_twenty_may_have_run_out_before(make_run: MakeRun) -> None:
    verdicts = solved("-" * 20)
    verdicts["q0"] = "i"  # gave up early
    short = make_run("a", verdicts)
    whole = make_run("b", solved("-" * 20), method="fttt")
    comparison, _ = compare([short, whole])
    tokens = comparison.pairs[1]
    assert tokens.budget == 40
    assert tokens.ran_out == (0.05, 0)
    assert any("up to 5.0 %" in sentence for sentence in caveats(comparison))


def test_a_run_without_a_budget_of_trials_is_compared_at_the_trials_it_made(
    make_run: MakeRun,
) -> None:
    by_tokens = make_run("a", solved("13---", trials=3), method="fttt", trials=None)
    by_trials = make_run("b", solved("14---"))
    comparison, _ = compare([by_tokens, by_trials])
    assert comparison.sides[0].budget is None
    assert comparison.pairs[0].budget == 3
    assert comparison.pairs[0].second_accuracy == 0.2


def test_a_shown_difference_is_said_with_its_numbers(make_run: MakeRun) -> None:
    better = make_run("a", solved("1" * 10 + "-" * 10), method="fttt")
    worse = make_run("b", solved("-" * 20))
    comparison, _ = compare([worse, better])
    (sentence,) = conclusions(comparison)
    assert sentence.startswith(
        "fttt solved more than best-of-n at 4 trials: 50.0 % against 0.0 % of the same 20 questions"
    )
    assert "difference +50.0 points" in sentence  # whichever run was named first
    assert "p = 0.002" in sentence
    assert "The same holds at 40 generated tokens" in sentence


def test_no_difference_is_said_with_what_could_not_have_been_seen(make_run: MakeRun) -> None:
    runs = [
        make_run("a", solved("1-" * 10), method="fttt"),
        make_run("b", solved("-1" * 5 + "1-" * 5)),
    ]
    comparison, _ = compare(runs)
    (sentence,) = conclusions(comparison)
    assert sentence.startswith("No difference was shown: at 4 trials, fttt solved 50.0 %")
    detectable = comparison.pairs[0].detectable
    assert detectable is not None
    assert (
        f"a difference smaller than {100 * detectable:.1f} points would not have been seen with "
        "20 questions" in sentence
    )


def test_too_few_questions_are_said_to_show_nothing(make_run: MakeRun) -> None:
    comparison, _ = compare(
        [make_run("a", solved("11"), method="fttt"), make_run("b", solved("--"))]
    )
    (sentence,) = conclusions(comparison)
    assert "no difference, however large, could have been shown with 2 questions" in sentence


def test_a_difference_at_tokens_alone_is_not_hidden(make_run: MakeRun) -> None:
    quick = make_run("a", solved("4" * 20), method="fttt", tokens=5)
    slow = make_run("b", solved("4" * 20), tokens=[10, 10, 10, 70])
    (sentence,) = conclusions(compare([quick, slow])[0])
    assert sentence.startswith("fttt solved more than best-of-n at 20 generated tokens")
    assert "At equal trials this is otherwise. No difference was shown" in sentence


def test_several_pairs_are_corrected_together(make_run: MakeRun) -> None:
    runs = [
        make_run("a", solved("1" * 8 + "-" * 12), method="fttt"),
        make_run("b", solved("-" * 20)),
        make_run("c", solved("1" * 6 + "-" * 14), method="revision"),
    ]
    comparison, _ = compare(runs)
    at_trials = [pair for pair in comparison.pairs if pair.axis == "trials"]
    assert [pair.p for pair in at_trials] == pytest.approx([2 / 2**8, 0.5, 2 / 2**6])
    assert [pair.p_holm for pair in at_trials] == pytest.approx([6 / 2**8, 0.5, 4 / 2**6])
    assert [pair.shown for pair in at_trials] == [True, False, False]
    alone, _ = compare(runs[:2])
    assert at_trials[0].detectable > alone.pairs[0].detectable  # with more tests more is needed


def test_a_baseline_spares_tests(make_run: MakeRun) -> None:
    runs = [make_run(m, solved("1-"), method=m) for m in ("fttt", "revision", "best-of-n")]
    comparison, _ = compare(runs, baseline="best-of-n")
    assert [(p.first, p.second) for p in comparison.pairs if p.axis == "trials"] == [
        ("fttt", "best-of-n"),
        ("revision", "best-of-n"),
    ]
    with pytest.raises(UsageError, match=r"no side 'beam'.*'fttt', 'revision', 'best-of-n'"):
        compare(runs, baseline="beam")


def test_seeds_are_pooled_within_each_question(make_run: MakeRun) -> None:
    first = [
        make_run(f"f{s}", solved(p), method="fttt", seed=s) for s, p in ((1, "11-"), (2, "1--"))
    ]
    second = [make_run("b1", solved("--1"), seed=1)]
    comparison, _ = compare([*first, *second])
    pair = comparison.pairs[0]
    assert pair.difference.value == pytest.approx((1 + 0.5 - 1) / 3)
    assert (pair.only_first, pair.only_second) == (1.5, 1)
    assert comparison.sides[0].seeds == (1, 2)
    assert comparison.sides[0].accuracy_by_seed == pytest.approx((2 / 3, 1 / 3))


def test_a_side_is_described_in_full(make_run: MakeRun) -> None:
    run = make_run("a", {"x": "uc", "y": "iiii"}, method="fttt")
    other = make_run("b", {"x": "c", "y": "iiii"})
    side = compare([run, other])[0].sides[0]
    assert side.accuracy.value == 0.5
    assert {k: e.value for k, e in side.accuracy_at.items()} == {1: 0.0, 2: 0.5, 4: 0.5}
    assert side.trials_mean == 3
    assert side.unanswered == pytest.approx(1 / 6)
    assert side.tokens == {"prompt": 60, "generated": 30, "trained": 15}
    assert side.seconds == 1.5


def test_everything_goes_to_json(make_run: MakeRun) -> None:
    comparison, _ = compare(
        [make_run("a", solved("1-"), method="fttt"), make_run("b", solved("-1"))]
    )
    data = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert data["questions"] == 2
    assert data["pairs"][0]["difference"].keys() == {"value", "low", "high"}
    assert data["pairs"][0]["shown"] is False
    assert data["arms"][0]["accuracy_at"]["1"]["value"] == 0.5


def test_one_side_or_one_run_twice_is_refused(make_run: MakeRun) -> None:
    run = make_run("a", solved("1-"))
    with pytest.raises(UsageError, match="named twice"):
        compare([run, run])
    with pytest.raises(UsageError, match="only one side"):
        compare([run, make_run("b", solved("1-"), seed=85)])
