"""The journal of a run: each fact on disk before the next step, and the history of a question."""

from __future__ import annotations

import re
import sys
from array import array
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from fttt.store.line_file import encode
from fttt.types import OUTCOMES, Completion, Scores, Trial, Usage, Verdict

__all__ = [
    "DivergenceEvent",
    "EncodedAnswer",
    "GenerationEvent",
    "History",
    "Journal",
    "MemoryJournal",
    "ScoreEvent",
    "histories",
    "trial_from_json",
    "trial_line",
]


@dataclass(frozen=True, slots=True)
class GenerationEvent:
    """One generation as it ended, whether it was a trial's or not."""

    question_id: str
    trial: int | None
    """The trial whose answer it is; ``None`` for a critique and other text that is no answer."""
    completion: Completion


@dataclass(frozen=True, slots=True)
class ScoreEvent:
    """Scores that a method asked for."""

    question_id: str
    number: int
    """Its place among all scorings of its question, from 0."""
    scores: Scores


@dataclass(frozen=True, slots=True)
class DivergenceEvent:
    """How far from the base model a step left the trained tokens' predictions."""

    question_id: str
    number: int
    """Its place among all measurements of its question, from 0."""
    divergence: float
    usage: Usage


@dataclass(slots=True)
class History:
    """What the journal holds of one question."""

    generations: dict[int, GenerationEvent] = field(default_factory=dict)
    """By generation number."""
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    """By the number of the generation that was judged."""
    scores: dict[int, Scores] = field(default_factory=dict)
    """By the number of the scoring."""
    divergences: dict[int, DivergenceEvent] = field(default_factory=dict)
    """By the number of the measurement."""
    done: bool = False
    """The method has returned, and every trial is on disk."""

    @property
    def judged(self) -> set[int]:
        """Numbers of the trials that have a verdict."""
        return {
            event.trial
            for number, event in self.generations.items()
            if event.trial is not None and number in self.verdicts
        }


def generation_to_json(event: GenerationEvent) -> dict[str, Any]:
    """The journal's line for a generation; an answer's content stands in its trial's line."""
    completion = event.completion
    record: dict[str, Any] = {
        "event": "generation",
        "question_id": event.question_id,
        "trial": event.trial,
        "generation": completion.generation,
        **({} if event.trial is not None else _content(completion)),
        "prompt_tokens": completion.usage.prompt_tokens,
        "seconds": round(completion.usage.seconds, 6),
    }
    if completion.usage.generated_tokens != len(completion.token_ids):  # a server's count
        record["generated_tokens"] = completion.usage.generated_tokens
    if completion.logprobs is not None:
        record["logprobs"] = completion.logprobs
    return record


@dataclass(frozen=True, slots=True)
class EncodedAnswer:
    """An answer and its content as JSON, which ``pending.jsonl`` and its trial's line share."""

    completion: Completion
    content: str
    """From the text's value to the last field's, without braces."""

    @classmethod
    def of(cls, completion: Completion) -> EncodedAnswer:
        """Encode an answer."""
        fields = _content(completion)
        ids, reason = fields.pop("token_ids"), fields.pop("finish_reason")
        words = encode(fields)[len('{"text":') : -len("}")]
        numbers = ("%d," * len(ids))[:-1] % ids  # most of a line, so not left to the encoder
        line = f'{words},"token_ids":[{numbers}],"finish_reason":{encode(reason)}'
        return cls(completion, line)

    def is_of(self, trial: Trial) -> bool:
        """Whether a trial has this very content."""
        answer = self.completion
        return (
            trial.completion is answer.text
            and trial.token_ids is answer.token_ids
            and trial.finish_reason == answer.finish_reason
            and trial.thought == answer.thought
            and trial.thought_tokens == answer.thought_tokens
        )


def answer_line(question_id: str, answer: EncodedAnswer) -> str:
    """The line of ``pending.jsonl`` for an answer whose trial has not ended."""
    return (
        f'{{"question_id":{encode(question_id)},"generation":{answer.completion.generation},'
        f'"text":{answer.content}}}'
    )


def _content(completion: Completion) -> dict[str, Any]:
    return {
        "text": completion.text,
        **_thought(completion),
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
    }


def _thought(written: Completion | Trial) -> dict[str, Any]:
    """A thought's fields, where there is one or its markers are."""
    if written.thought is None and not written.thought_tokens:
        return {}
    return {"thought": written.thought, "thought_tokens": written.thought_tokens}


def answer_contents(
    trials: Iterable[Trial], pending: Iterable[Mapping[str, Any]]
) -> dict[tuple[str, int], Mapping[str, Any]]:
    """Text, token ids and finish reason of each answer, by question and generation.

    Raises:
        KeyError, TypeError: a line of ``pending.jsonl`` lacks a field or holds a wrong one.
    """
    contents = {(line["question_id"], line["generation"]): line for line in pending}
    for trial in trials:
        contents[trial.question_id, trial.generation] = {
            "text": trial.completion,
            **_thought(trial),
            "token_ids": trial.token_ids,
            "finish_reason": trial.finish_reason,
        }
    return contents


def verdict_to_json(question_id: str, generation: int, verdict: Verdict) -> dict[str, Any]:
    """The journal's line for a verdict."""
    return {
        "event": "verdict",
        "question_id": question_id,
        "generation": generation,
        "outcome": verdict.outcome,
        "extracted": verdict.extracted,
        "detail": verdict.detail,
        "feedback": verdict.feedback,
        "failed": verdict.failed,
        "score": verdict.score,
        "tests_passed": verdict.tests_passed,
        "tests_total": verdict.tests_total,
        **({"tokens": verdict.tokens} if verdict.tokens else {}),
        "seconds": round(verdict.seconds, 6),
    }


def score_to_json(event: ScoreEvent) -> dict[str, Any]:
    """The journal's line for scores; log-probabilities are float32, in base 64."""
    scores = event.scores
    record: dict[str, Any] = {
        "event": "score",
        "question_id": event.question_id,
        "score": event.number,
        "token_ids": scores.token_ids,
        "logprobs": _packed("f", [scores.logprobs]),
        "seconds": round(scores.usage.seconds, 6),
    }
    if scores.top_ids:
        record["top_k"] = len(scores.top_ids[0])
        record["top_ids"] = _packed("i", scores.top_ids)
        record["top_logprobs"] = _packed("f", scores.top_logprobs)
    return record


def divergence_to_json(event: DivergenceEvent) -> dict[str, Any]:
    """The journal's line for a divergence."""
    return {
        "event": "divergence",
        "question_id": event.question_id,
        "number": event.number,
        "divergence": event.divergence,
        "scored_tokens": event.usage.scored_tokens,
        "seconds": round(event.usage.seconds, 6),
    }


def _packed(kind: str, rows: Sequence[Sequence[float]]) -> str:
    """Numbers as little-endian bytes of 4 each."""
    numbers = array(kind, [number for row in rows for number in row])
    if sys.byteorder == "big":
        numbers.byteswap()
    return b64encode(numbers.tobytes()).decode("ascii")


def _unpacked(kind: str, text: str, width: int) -> tuple[tuple[Any, ...], ...]:
    numbers = array(kind, b64decode(text))
    if sys.byteorder == "big":
        numbers.byteswap()
    return tuple(tuple(numbers[n : n + width]) for n in range(0, len(numbers), width))


def _scores(line: Mapping[str, Any]) -> Scores:
    token_ids, width = tuple(line["token_ids"]), line.get("top_k", 0)
    return Scores(
        token_ids=token_ids,
        logprobs=_unpacked("f", line["logprobs"], len(token_ids))[0],
        top_ids=_unpacked("i", line["top_ids"], width) if width else (),
        top_logprobs=_unpacked("f", line["top_logprobs"], width) if width else (),
        usage=Usage(scored_tokens=len(token_ids), seconds=line["seconds"]),
    )


def histories(
    lines: Iterable[Mapping[str, Any]], contents: Mapping[tuple[str, int], Mapping[str, Any]]
) -> dict[str, History]:
    """Gather the journal's lines by question.

    An answer whose content is lost, as by a power cut, was never made: its question is not done.

    Args:
        lines: the journal. Until 2026-11-28 its lines held the answers' contents.
        contents: the answers' contents, see :func:`answer_contents`.

    Raises:
        KeyError, TypeError: a line lacks a field or holds a wrong one.
    """
    found: dict[str, History] = {}
    lost: set[tuple[str, int]] = set()
    for line in lines:
        history = found.setdefault(line["question_id"], History())
        kind = line["event"]
        if kind == "generation":
            place = line["question_id"], line["generation"]
            content = line if "text" in line else contents.get(place)
            if content is None:
                lost.add(place)
            else:
                history.generations[line["generation"]] = _generation(line, content)
        elif kind == "verdict":
            if (line["question_id"], line["generation"]) not in lost:
                history.verdicts[line["generation"]] = _verdict(line)
        elif kind == "score":
            history.scores[line["score"]] = _scores(line)
        elif kind == "divergence":
            history.divergences[line["number"]] = _divergence(line)
        elif kind == "done":
            history.done = True
    for question_id, _ in lost:
        found[question_id].done = False
    return found


def _divergence(line: Mapping[str, Any]) -> DivergenceEvent:
    usage = Usage(scored_tokens=line["scored_tokens"], seconds=line["seconds"])
    return DivergenceEvent(line["question_id"], line["number"], line["divergence"], usage)


def _verdict(line: Mapping[str, Any]) -> Verdict:
    """Version 0.1 wrote neither feedback nor a score, nor whether the verifier failed."""
    return Verdict(
        outcome=line["outcome"],
        extracted=line["extracted"],
        detail=line["detail"],
        seconds=line["seconds"],
        feedback=line.get("feedback", ""),
        score=line.get("score"),
        tests_passed=line.get("tests_passed"),
        tests_total=line.get("tests_total"),
        failed=_failed(line),
        tokens=line.get("tokens", 0),
    )


_FAILED = re.compile(
    "the (verifier|command|regular expression .*) "
    "(raised|took longer|used more than|died|returned|could not be run)"
    "|the judge could not judge it",
    re.DOTALL,
)
"""How a verdict's detail begins where the verifier failed, in lines without ``failed``."""


def _failed(line: Mapping[str, Any]) -> bool:
    """Whether the verifier itself failed; only the words say so in lines until 2026-11-28."""
    return bool(line["failed"] if "failed" in line else _FAILED.match(line["detail"]))


def _generation(line: Mapping[str, Any], content: Mapping[str, Any]) -> GenerationEvent:
    token_ids = tuple(content["token_ids"])
    logprobs = line.get("logprobs")
    return GenerationEvent(
        line["question_id"],
        line["trial"],
        Completion(
            text=content["text"],
            token_ids=token_ids,
            finish_reason=content["finish_reason"],
            generation=line["generation"],
            usage=Usage(
                prompt_tokens=line["prompt_tokens"],
                generated_tokens=line.get("generated_tokens", len(token_ids)),
                generations=1,
                seconds=line["seconds"],
            ),
            logprobs=None if logprobs is None else tuple(logprobs),
            thought=content.get("thought"),
            thought_tokens=content.get("thought_tokens", 0),
        ),
    )


def trial_line(trial: Trial, answer: EncodedAnswer | None = None) -> str:
    """The line of ``trials.jsonl`` for a trial.

    Args:
        answer: its answer, where that is encoded already.
    """
    if answer is None or not answer.is_of(trial):
        answer = EncodedAnswer.of(
            Completion(
                trial.completion,
                trial.token_ids,
                trial.finish_reason,
                trial.generation,
                thought=trial.thought,
                thought_tokens=trial.thought_tokens,
            )
        )
    measured: dict[str, Any] = (
        {} if trial.divergence is None else {"divergence": trial.divergence, "reset": trial.reset}
    )
    outcome = {
        "extracted": trial.extracted,
        "verdict": trial.verdict,
        "score": trial.score,
        "tests_passed": trial.tests_passed,
        "tests_total": trial.tests_total,
        "detail": trial.detail,
        "failed": trial.failed,
        "loss": trial.loss,
        **measured,
        "usage": _usage(trial.usage),
    }
    return (
        f'{{"question_id":{encode(trial.question_id)},"trial":{trial.trial},'
        f'"generation":{trial.generation},"completion":{answer.content},{encode(outcome)[1:]}'
    )


def as_read(trial: Trial) -> Trial:
    """A trial as it is read from its line: with seconds to the microsecond."""
    usage = trial.usage.rounded()
    return trial if usage is trial.usage else replace(trial, usage=usage)


def _usage(usage: Usage) -> dict[str, float]:
    usage = usage.rounded()
    return {name: getattr(usage, name) for name in Usage.__dataclass_fields__}


def trial_from_json(line: Mapping[str, Any]) -> Trial:
    """Read a line of ``trials.jsonl``.

    Raises:
        KeyError, TypeError, ValueError: the line lacks a field or holds a wrong one.
    """
    usage = line["usage"]
    if line["verdict"] not in OUTCOMES:
        raise ValueError(f"the verdict {line['verdict']!r} is none of {', '.join(OUTCOMES)}")
    return Trial(
        question_id=line["question_id"],
        trial=int(line["trial"]),
        generation=int(line["generation"]),
        completion=line["completion"],
        token_ids=tuple(line["token_ids"]),
        finish_reason=line["finish_reason"],
        extracted=line["extracted"],
        verdict=line["verdict"],
        detail=line["detail"],
        loss=line["loss"],
        usage=Usage(**{key: usage[key] for key in Usage.__dataclass_fields__ if key in usage}),
        score=line.get("score"),
        tests_passed=line.get("tests_passed"),
        tests_total=line.get("tests_total"),
        divergence=line.get("divergence"),
        reset=line.get("reset", False),
        failed=_failed(line),
        thought=line.get("thought"),
        thought_tokens=line.get("thought_tokens", 0),
    )


class Journal(Protocol):
    """Where a run's facts go, in their order, each before the next step begins."""

    def history(self, question_id: str) -> History:
        """The facts of a question from an earlier process; empty where there was none."""

    def written(self, question_id: str) -> frozenset[int]:
        """Numbers of the trials of a question that an earlier process wrote."""

    def generation(self, event: GenerationEvent) -> None:
        """Keep a generation that has just ended."""

    def score(self, event: ScoreEvent) -> None:
        """Keep scores that have just been computed."""

    def divergence(self, event: DivergenceEvent) -> None:
        """Keep a divergence that has just been measured."""

    def verdict(self, question_id: str, generation: int, verdict: Verdict) -> None:
        """Keep a verdict."""

    def trial(self, trial: Trial) -> None:
        """Keep a trial that has just ended."""

    def done(self, question_id: str) -> None:
        """Keep that a question's method has returned."""

    async def kept(self, question_id: str) -> None:
        """Wait until the facts of a question outlive this process; no step is asked for before.

        A trial's line need not: it is made again from the others.
        """


class MemoryJournal:
    """A journal without a folder, for a question asked from Python."""

    def __init__(self) -> None:
        self.trials: list[Trial] = []

    def history(self, question_id: str) -> History:
        return History()

    def written(self, question_id: str) -> frozenset[int]:
        return frozenset()

    def generation(self, event: GenerationEvent) -> None:
        pass

    def score(self, event: ScoreEvent) -> None:
        pass

    def divergence(self, event: DivergenceEvent) -> None:
        pass

    def verdict(self, question_id: str, generation: int, verdict: Verdict) -> None:
        pass

    def trial(self, trial: Trial) -> None:
        self.trials.append(trial)

    def done(self, question_id: str) -> None:
        pass

    async def kept(self, question_id: str) -> None:
        pass
