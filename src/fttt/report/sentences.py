"""What follows from a comparison and what does not, in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence

from fttt.report.compare import Comparison, PairResult
from fttt.report.statistics import POWER, Estimate
from fttt.report.wording import count, p_value, percent, points

__all__ = ["budget_label", "caveats", "conclusion", "conclusions", "first_pairs"]

_FEW, _AT_LEAST = 6, 4


def budget_name(pair: PairResult) -> str:
    """``32 trials``, or ``4,096 generated tokens a question``."""
    if pair.axis == "trials":
        return "1 trial" if pair.budget == 1 else f"{count(pair.budget)} trials"
    return f"{count(pair.budget)} generated tokens a question"


def budget_label(pair: PairResult) -> str:
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
    """One item a pair; pairs that showed a difference come first."""
    return [conclusion(at_trials, at_tokens) for at_trials, at_tokens in _by_pair(comparison)]


def first_pairs(comparison: Comparison) -> list[tuple[str, str]]:
    """The pairs that a reader in a hurry is shown: all of a few, else those with a difference.

    They are the first of :func:`conclusions`, and at least four.
    """
    ordered = _by_pair(comparison)
    shown = sum(any(pair.shown for pair in both) for both in ordered)
    told = len(ordered) if len(ordered) <= _FEW else max(shown, _AT_LEAST)
    return [(both[0].first, both[0].second) for both in ordered[:told]]


def _by_pair(comparison: Comparison) -> list[list[PairResult]]:
    """The tests of each pair of sides; those that showed a difference come first."""
    by_pair: dict[tuple[str, str], list[PairResult]] = {}
    for pair in comparison.pairs:
        by_pair.setdefault((pair.first, pair.second), []).append(pair)
    return sorted(by_pair.values(), key=lambda both: [not pair.shown for pair in both])


def _leads(pair: PairResult) -> bool:
    """Whether the first side is ahead."""
    return pair.difference.value > 0


def _basis(pair: PairResult) -> str:
    difference = pair.difference
    if pair.shown and not _leads(pair):  # the sentence names the better side first
        difference = Estimate(-difference.value, -difference.high, -difference.low)
    low, high = points(difference.low), points(difference.high)
    corrected = "" if pair.p_holm == pair.p else " after Holm's correction"
    return (
        f"difference {points(difference.value)} points, 95 % interval {low} to {high}, "
        f"{p_value(pair.p_holm)}{corrected}"
    )


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


def caveats(comparison: Comparison) -> list[str]:
    """What does not follow, whatever the numbers are."""
    said = [
        f"This speaks of questions like these {count(comparison.questions)} of "
        f"{comparison.task}, of {comparison.model} and of these settings; it says nothing of "
        "other tasks or models. That no difference was shown does not mean that there is none.",
    ]
    if any(arm.decided_by == "first" and arm.budget != 1 for arm in comparison.arms):
        said.append(
            "A method that stops at its first verified trial uses the verifier as an oracle: for "
            "independent samples its accuracy is pass@N, not that of an answer chosen unaided."
        )
    said.extend(_ran_out(comparison.pairs))
    return said


def _blind(pair: PairResult) -> str:
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
