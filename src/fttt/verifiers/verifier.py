"""What a verifier is, and which verifier a ``--verifier`` option names."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from fttt.errors import UsageError
from fttt.registry import find_own, unknown_name
from fttt.types import Outcome, Question, Verdict

__all__ = [
    "CHOICES",
    "Combination",
    "Rule",
    "Verifier",
    "cautions",
    "check_choice",
    "check_rule",
    "choose_verifier",
    "extract_answer",
    "feedback_on",
    "judge_facts",
    "needs_gold",
    "read_combination",
    "reads_answers",
    "single_choices",
    "split_choice",
    "split_mark",
    "timed_verdict",
    "verify_completion",
    "with_server",
]

_SHOWN = 200
"""Characters of an answer that feedback quotes."""


@runtime_checkable
class Verifier(Protocol):
    """Judges a model's completions.

    A verifier bounds its own time and never raises because of a completion: a check that raised or
    hung is an ``incorrect`` verdict that is ``failed`` and whose ``detail`` says why. So is one
    against a gold answer that cannot be read. An *answer* that cannot be read or computed is the
    model's own fault: ``incorrect``, and not ``failed``. The verifier raises
    :class:`fttt.errors.RunError` only where judging itself is impossible (the judge is down).

    ``verify`` and ``extract`` may also take a keyword ``cut: bool = False``: whether a completion
    ended at its length limit, so that half a number does not count as an answer.
    """

    async def verify(self, question: Question, completion: str) -> Verdict:
        """Judge ``completion`` (text without special tokens) as an answer to ``question``."""

    def extract(self, question: Question, completion: str) -> str | None:
        """The normalised answer to ``question`` in ``completion``, for votes; ``None`` without."""

    async def close(self) -> None:
        """Stop workers and close connections. Calling it twice is harmless."""


async def verify_completion(
    verifier: Verifier,
    question: Question,
    completion: str,
    *,
    cut: bool,
    thought: str | None = None,
) -> Verdict:
    """The verdict of ``verifier``; ``cut`` is passed to a verifier that takes it.

    Nothing is asked about a ``thought`` that no answer follows: there is none.
    """
    if _only_thought(completion, thought):
        detail = "the thought was cut off by the length limit" if cut else "no answer follows"
        said = feedback_on("unanswered", None)
        return Verdict("unanswered", None, f"{detail}, and a thought is no answer", feedback=said)
    return await verifier.verify(question, completion, **_cut_argument(verifier.verify, cut))


def extract_answer(
    verifier: Verifier,
    question: Question,
    completion: str,
    *,
    cut: bool,
    thought: str | None = None,
) -> str | None:
    """The answer that ``verifier`` extracts; ``cut`` is passed to a verifier that takes it."""
    if _only_thought(completion, thought):
        return None
    return verifier.extract(question, completion, **_cut_argument(verifier.extract, cut))


def _only_thought(completion: str, thought: str | None) -> bool:
    return thought is not None and not completion.strip()


def _cut_argument(method: Callable[..., Any], cut: bool) -> dict[str, Any]:
    if not cut:
        return {}
    return {"cut": True} if _takes_cut(getattr(method, "__func__", method)) else {}


@lru_cache(maxsize=64)
def _takes_cut(function: Callable[..., Any]) -> bool:
    """Whether a function takes the argument; its signature is read once, not for each answer."""
    parameters = signature(function).parameters.values()
    return any(one.name == "cut" or one.kind is one.VAR_KEYWORD for one in parameters)


def timed_verdict(
    start: float,
    outcome: Outcome,
    extracted: str | None,
    detail: str = "",
    *,
    failed: bool = False,
) -> Verdict:
    """A verdict with the seconds since ``start``, and feedback from the extracted answer alone."""
    seconds = time.perf_counter() - start
    said = feedback_on(outcome, extracted)
    return Verdict(outcome, extracted, detail, seconds, said, failed=failed)


def check_rule(rule: str, known: Sequence[str], kind: str) -> None:
    """Raise :class:`fttt.errors.UsageError` for a rule of comparison that does not exist."""
    if rule not in known:
        raise UsageError(f"There is no rule {rule!r} for {kind}; choose from {', '.join(known)}.")


def feedback_on(outcome: Outcome, extracted: str | None) -> str:
    """Feedback for the model, made from the outcome and its own answer alone."""
    if outcome == "unanswered":
        return "No answer was found in your response."
    answer = "" if extracted is None else f" {extracted[:_SHOWN]}"
    return f"Your answer{answer} is {outcome}."


CHOICES = {
    "number": "the gold number by value",
    "number-strict": 'the same, in the text behind "The final answer is" only',
    "math": "mathematical equivalence with the gold answer",
    "math-strict": "the string rule of the MATH benchmark",
    "choice": "the letter of the gold option",
    "code": "the unit tests, or inputs and outputs, of a judge's problem object",
    "regex": "the gold answer is a regular expression; regex:PATTERN is one for all questions",
    "command": "command:LINE, a shell command that exits with 0 for a right answer",
    "python": "python:MODULE:FUNCTION, a function check(completion) or check(completion, question)",
    "reward": "reward:MODEL, the score of a sequence classifier; with reward:MODEL@SCORE an answer "
    "is correct from that score on",
    "llm": "llm:NAME@URL, a judging model on a server that says yes or no; with llm:NAME@URL@SCORE "
    "its score from 0 to 1",
}
"""The kinds of verifier, and the criterion of each."""

_WITH_VALUE = {"regex": False, "command": True, "python": True, "reward": True, "llm": True}
"""Kinds that take a value after a colon, and whether they need it."""
_ANY_SCORE = frozenset({"reward", "python"})
"""Kinds whose scores may be any number; those of others are from 0 to 1."""
_MODELS = {"reward": "a reward model", "llm": "a judging model"}
"""Kinds that ask a model."""


def split_choice(choice: str) -> tuple[str, str | None]:
    """The kind and the value of a ``--verifier`` choice.

    Raises:
        UsageError: the kind does not exist, or has a value too many or too few.
    """
    kind, colon, value = choice.partition(":")
    if kind not in CHOICES:
        raise unknown_name("verifier", kind, CHOICES, own="several are all(A, B) or any(A, B)")
    if kind not in _WITH_VALUE and colon:
        raise UsageError(f"The verifier {kind!r} takes no value; write {kind!r}, not {choice!r}.")
    if _WITH_VALUE.get(kind) and not value.strip():
        raise UsageError(f"The verifier {choice!r} is incomplete; write {CHOICES[kind]}.")
    return kind, value or None


Rule = Literal["all", "any", "weighted"]
_COMBINED = re.compile(rf"\s*({'|'.join(get_args(Rule))})\((.*)\)\s*(?:@\s*([^()@]*))?", re.DOTALL)
_FORMS = "write all(A, B), any(A, B), weighted(2*A, 1*B) or weighted(2*A, 1*B)@SCORE"


@dataclass(frozen=True, slots=True)
class Combination:
    """A verifier that is made of others."""

    rule: Rule
    members: tuple[str, ...]
    """Choices, which may be combinations too."""
    weights: tuple[float, ...]
    mark: float | None
    """The score from which on an answer is correct, of a weighted mean."""


def read_combination(choice: str) -> Combination | None:
    """What a choice of the form ``all(A, B)`` is made of; ``None`` for a single verifier.

    Members are separated by commas; one with commas, quotes or lone brackets of its own stands in
    quotes.

    Raises:
        UsageError: it is incomplete, or a weight or a score is no number.
    """
    name = choice.partition("(")[0].strip()
    if name not in get_args(Rule):
        return None
    found = _COMBINED.fullmatch(choice)
    members = [] if found is None else list(_members(found[2], choice))
    if found is None or not all(members):
        raise UsageError(f"The verifier {choice!r} is incomplete; {_FORMS}.")
    rule: Rule = found[1]  # type: ignore[assignment]
    if rule != "weighted":
        if found[3] is not None:
            raise UsageError(
                f"The verifier {choice!r} has a score, as only weighted has; {_FORMS}."
            )
        if rule == "all":
            _refuse_endless(members)
        return Combination(rule, tuple(members), (1.0,) * len(members), None)
    pairs = [member.partition("*") for member in members]
    weights = tuple(_number(weight, choice) for weight, _, _ in pairs)
    if any(not sign or weight <= 0 for (_, sign, _), weight in zip(pairs, weights, strict=True)):
        raise UsageError(
            f"The verifier {choice!r} has a member without a positive weight; {_FORMS}."
        )
    mark = None if found[3] is None else _number(found[3], choice)
    members = [_unquoted(own) for _, _, own in pairs]
    if mark is not None and not 0 < mark <= 1:
        _refuse_pointless(choice, mark, members)
    return Combination(rule, tuple(members), weights, mark)


def _refuse_pointless(choice: str, mark: float, members: Sequence[str]) -> None:
    """Refuse a mark that every answer reaches, or none, where all scores are from 0 to 1."""
    kinds = {one.partition(":")[0] for member in members for one in single_choices(member)}
    if kinds.isdisjoint(_ANY_SCORE):
        reached = "every answer reaches" if mark <= 0 else "no answer reaches"
        raise UsageError(
            f"The verifier {choice!r} has the score {mark:g}, which {reached}, since its members "
            "give 0 to 1; give one above 0 and at most 1."
        )


def _refuse_endless(members: Sequence[str]) -> None:
    """Refuse a reward model that finds nothing correct where all have to."""
    for kind, _, value in (member.partition(":") for member in members):
        if kind == "reward" and split_mark(value)[1] is None:
            raise UsageError(
                f"The verifier 'reward:{value}' finds nothing correct without a score, so that all "
                f"of them never do; write reward:{value}@SCORE."
            )


def _members(text: str, choice: str) -> Iterator[str]:
    """The parts between commas that stand in no brackets and no quotes."""
    depth, quote, begun = 0, "", 0
    for place, sign in enumerate(text):
        if quote or sign in "\"'":
            quote = "" if sign == quote else quote or sign
        elif sign in "()":
            depth += 1 if sign == "(" else -1
        elif sign == "," and depth == 0:
            yield _unquoted(text[begun:place])
            begun = place + 1
        if depth < 0:
            break
    if depth or quote:
        raise UsageError(
            f"The verifier {choice!r} has a bracket or a quote that is not closed; put a member "
            "with commas or lone brackets of its own in quotes."
        )
    yield _unquoted(text[begun:])


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _number(text: str, choice: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise UsageError(f"The verifier {choice!r} has {text.strip()!r} for a number; {_FORMS}.")
    return found


def single_choices(choice: str) -> tuple[str, ...]:
    """The single verifiers that a choice names, one or a combination's.

    Raises:
        UsageError: one does not exist.
    """
    combined = read_combination(choice)
    if combined is None:
        split_choice(choice)
        return (choice,)
    return tuple(single for member in combined.members for single in single_choices(member))


def with_server(choice: str, url: str) -> str:
    """A choice whose judging models without a server of their own are those at ``url``.

    Raises:
        UsageError: one of its verifiers does not exist.
    """
    for single in dict.fromkeys(single_choices(choice)):
        kind, value = split_choice(single)
        name, mark = split_mark(value or "")
        if kind == "llm" and "@http" not in name:
            there = f"llm:{name}@{url}" + ("" if mark is None else single[len(f"llm:{name}") :])
            own = rf"(?<![\w:/.@-]){re.escape(single)}(?=\s*(?:[,)\"']|\Z))"
            choice = there.join(re.split(own, choice))
    return choice


def split_mark(value: str) -> tuple[str, float | None]:
    """A reward model's name and the score from which on an answer is correct, if one is given."""
    name, sign, mark = value.rpartition("@")
    try:
        return (name, float(mark)) if sign else (value, None)
    except ValueError:
        return value, None


def check_choice(choice: str) -> None:
    """Refuse a choice that names what does not exist, a model included.

    Raises:
        UsageError: it does.
    """
    for kind, value in map(split_choice, single_choices(choice)):
        if kind == "reward":
            from fttt.verifiers.reward import check_reward_model

            name, mark = split_mark(value or "")
            if mark is not None and not math.isfinite(mark):
                raise UsageError(
                    f"The verifier {f'reward:{value}'!r} has no finite score after @; write "
                    f"reward:{name}@SCORE."
                )
            check_reward_model(name)
        elif kind == "llm":
            from fttt.verifiers.llm_judge import JudgeChoice

            JudgeChoice.read(value or "").check()


def judge_facts(choice: str, prompt: str | None = None) -> list[dict[str, Any]]:
    """Name, server and prompt of each judging model that a choice names."""
    found = [value for kind, value in map(split_choice, single_choices(choice)) if kind == "llm"]
    if not found:
        return []
    from fttt.verifiers.llm_judge import JudgeChoice

    return [JudgeChoice.read(value or "").facts(prompt) for value in found]


def cautions(choice: str) -> tuple[str, ...]:
    """What is to be said of a verifier that does not know what is right."""
    kinds = {split_choice(single)[0] for single in single_choices(choice)}
    models = [_MODELS[kind] for kind in _MODELS if kind in kinds]
    if not models:
        return ()
    return (
        f"{' and '.join(models).capitalize()} is no oracle: its verdicts may be wrong, a method "
        "that learns from them may learn its faults, and figures are not comparable with those of "
        "a verifier that knows the gold answer.",
    )


def needs_gold(choice: str) -> bool:
    """Whether the verifier compares with a gold answer."""
    compared = ("number", "number-strict", "math", "math-strict", "choice", "code")
    singles = map(split_choice, single_choices(choice))
    return any(kind in compared or (kind, value) == ("regex", None) for kind, value in singles)


def reads_answers(choice: str) -> bool:
    """Whether the verifier extracts answers, which a vote needs."""
    singles = map(split_choice, single_choices(choice))
    return any(kind not in ("regex", "command", "python", *_MODELS) for kind, _ in singles)


def choose_verifier(
    choice: str,
    *,
    time_limit: float | None = None,
    judge_url: str | None = None,
    judge_prompt: str | None = None,
) -> Verifier:
    """Make the verifier that a ``--verifier`` option names.

    Args:
        choice: a kind of :data:`CHOICES`, with its value after a colon, or a combination of
            several (see :func:`read_combination`).
        time_limit: seconds for one verdict; by default the verifier's own. It has no effect on
            numbers and choices, and the judge of ``code`` has its own.
        judge_url: the address of the judge for ``code``; by default ``OJ_API``, else an embedded
            judge.
        judge_prompt: the prompt of a judging model, in place of its own.

    Raises:
        UsageError: there is no such verifier, module, function or program.
    """
    combined = read_combination(choice)
    if combined is not None:
        from fttt.verifiers.combined import CombinedVerifier

        members = [
            choose_verifier(
                member, time_limit=time_limit, judge_url=judge_url, judge_prompt=judge_prompt
            )
            for member in combined.members
        ]
        return CombinedVerifier(
            combined.rule, members, combined.weights, combined.mark, names=combined.members
        )
    kind, value = split_choice(choice)
    if kind == "reward":
        from fttt.verifiers.reward import RewardVerifier

        name, mark = split_mark(value or "")
        return RewardVerifier(name, mark=mark)
    limit: dict[str, Any] = {} if time_limit is None else {"time_limit": time_limit}
    if kind in ("number", "number-strict"):
        from fttt.verifiers.number import NumberVerifier

        return NumberVerifier(rule="strict" if kind == "number-strict" else "value")
    if kind == "choice":
        from fttt.verifiers.choice import ChoiceVerifier

        return ChoiceVerifier()
    if kind == "regex":
        from fttt.verifiers.regex import RegexVerifier

        return RegexVerifier(value, **limit)
    if kind == "command":
        from fttt.verifiers.command import CommandVerifier

        return CommandVerifier(value or "", **limit)
    if kind == "python":
        from fttt.verifiers.function import FunctionVerifier

        return FunctionVerifier(_function(value or ""), name=value, **limit)
    if kind == "llm":
        from fttt.verifiers.llm_judge import JudgeChoice, LLMVerifier

        judge = JudgeChoice.read(value or "")
        return LLMVerifier(judge.name, judge.url, mark=judge.mark, prompt=judge_prompt, **limit)
    if kind == "code":
        from fttt.verifiers.code import CodeVerifier

        return CodeVerifier(judge_url)
    from fttt.verifiers.math import MathVerifier

    return MathVerifier(rule="strict" if kind == "math-strict" else "equivalence", **limit)


def _function(path: str) -> Callable[..., Any]:
    """The function that ``MODULE:FUNCTION`` names, the working directory searched too."""
    if not all(path.rpartition(":")):
        raise UsageError(f"The verifier 'python:{path}' is incomplete; write {CHOICES['python']}.")
    found = find_own(path, "verifier function")
    if not callable(found):
        raise UsageError(
            f"{path!r} is no verifier function but {found!r}; write {CHOICES['python']}."
        )
    function: Callable[..., Any] = found
    return function
