"""The journal's facts, and what they say of one question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fttt.types import Completion, Trial, Usage, Verdict

__all__ = [
    "GenerationEvent",
    "History",
    "histories",
    "trial_from_json",
    "trial_to_json",
]

_USAGE = (
    "prompt_tokens",
    "generated_tokens",
    "trained_tokens",
    "generations",
    "verifier_calls",
    "seconds",
)


@dataclass(frozen=True, slots=True)
class GenerationEvent:
    """One generation as it ended, whether it was a trial's or not."""

    question_id: str
    trial: int | None
    """The trial whose answer it is; ``None`` for what is no answer (a critique, say)."""
    completion: Completion


@dataclass(slots=True)
class History:
    """What the journal holds of one question."""

    generations: dict[int, GenerationEvent] = field(default_factory=dict)
    """By generation number."""
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    """By the number of the generation that was judged."""
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
    """The journal's line for a generation."""
    completion = event.completion
    record: dict[str, Any] = {
        "event": "generation",
        "question_id": event.question_id,
        "trial": event.trial,
        "generation": completion.generation,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.usage.prompt_tokens,
        "seconds": round(completion.usage.seconds, 6),
    }
    if completion.logprobs is not None:
        record["logprobs"] = completion.logprobs
    return record


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
        "score": verdict.score,
        "tests_passed": verdict.tests_passed,
        "tests_total": verdict.tests_total,
        "seconds": round(verdict.seconds, 6),
    }


def histories(lines: Iterable[Mapping[str, Any]]) -> dict[str, History]:
    """Gather the journal's lines by question.

    Raises:
        KeyError, TypeError: a line lacks a field or holds a wrong one.
    """
    found: dict[str, History] = {}
    for line in lines:
        history = found.setdefault(line["question_id"], History())
        kind = line["event"]
        if kind == "generation":
            event = _generation(line)
            history.generations[event.completion.generation] = event
        elif kind == "verdict":
            history.verdicts[line["generation"]] = _verdict(line)
        elif kind == "done":
            history.done = True
    return found


def _verdict(line: Mapping[str, Any]) -> Verdict:
    """Version 0.1 wrote neither feedback nor a score."""
    return Verdict(
        outcome=line["outcome"],
        extracted=line["extracted"],
        detail=line["detail"],
        seconds=line["seconds"],
        feedback=line.get("feedback", ""),
        score=line.get("score"),
        tests_passed=line.get("tests_passed"),
        tests_total=line.get("tests_total"),
    )


def _generation(line: Mapping[str, Any]) -> GenerationEvent:
    token_ids = tuple(line["token_ids"])
    logprobs = line.get("logprobs")
    return GenerationEvent(
        line["question_id"],
        line["trial"],
        Completion(
            text=line["text"],
            token_ids=token_ids,
            finish_reason=line["finish_reason"],
            generation=line["generation"],
            usage=Usage(
                prompt_tokens=line["prompt_tokens"],
                generated_tokens=len(token_ids),
                generations=1,
                seconds=line["seconds"],
            ),
            logprobs=None if logprobs is None else tuple(logprobs),
        ),
    )


def trial_to_json(trial: Trial) -> dict[str, Any]:
    """The line of ``trials.jsonl`` for a trial."""
    return {
        "question_id": trial.question_id,
        "trial": trial.trial,
        "generation": trial.generation,
        "completion": trial.completion,
        "token_ids": trial.token_ids,
        "finish_reason": trial.finish_reason,
        "extracted": trial.extracted,
        "verdict": trial.verdict,
        "score": trial.score,
        "tests_passed": trial.tests_passed,
        "tests_total": trial.tests_total,
        "detail": trial.detail,
        "loss": trial.loss,
        "usage": {**asdict(trial.usage), "seconds": round(trial.usage.seconds, 6)},
    }


def trial_from_json(line: Mapping[str, Any]) -> Trial:
    """Read a line of ``trials.jsonl``.

    Raises:
        KeyError, TypeError: the line lacks a field or holds a wrong one.
    """
    usage = line["usage"]
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
        usage=Usage(**{key: usage[key] for key in _USAGE if key in usage}),
        score=line.get("score"),
        tests_passed=line.get("tests_passed"),
        tests_total=line.get("tests_total"),
    )
