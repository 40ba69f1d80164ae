"""Small run folders, written through the store as a real run writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fttt.store import GenerationEvent, Run, RunWriter
from fttt.types import Completion, Outcome, Question, Trial, Usage, Verdict

MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A function that writes a finished run from verdicts: ``c``, ``i`` or ``u`` a trial."""
    return _maker(tmp_path)


@pytest.fixture(scope="module")
def make_run_once(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """The same, for runs that a whole module shares."""
    return _maker(tmp_path_factory.mktemp("runs"))


def _maker(folder: Path) -> MakeRun:
    def make(
        name: str,
        verdicts: Mapping[str, str],
        *,
        method: str = "best-of-n",
        seed: int = 42,
        trials: int | None = 4,
        tokens: int | Sequence[int] = 10,
        completion: str = "The final answer is 4",
        extracted: Sequence[str | None] | None = None,
        decided_by: str = "first",
        prompt: str = "What is 2 + 2?",
        critique: str | None = None,
        feedback: str | None = None,
        ablate: str | None = None,
        scores: Mapping[str, Sequence[float]] | None = None,
        finish: bool = True,
        content: str | None = None,
        **settings: Any,
    ) -> Run:
        config: dict[str, Any] = {
            "method": method,
            "task": settings.pop("task", "arithmetic"),
            "model": settings.pop("model", "tiny"),
            "seed": seed,
            **({} if (named := settings.pop("named", None)) is None else {"name": named}),
            "data": settings.pop("data", {}),
            "settings": settings.pop("settings", {}),
            "budget": {"unanswered": settings.pop("unanswered", "count")}
            | ({"token_budget": 40} if trials is None else {"trials": trials}),
            "sampling": {"temperature": 0.6, "top_p": 0.95, **settings},
            **({} if ablate is None else {"ablate": ablate}),
        }
        writer = RunWriter.create(
            folder / name,
            config=config,
            environment={
                "decided_by": decided_by,
                **({} if content is None else {"model_content": content}),
            },
            questions=[Question(i, f"{prompt} ({i})", "4") for i in verdicts],
        )
        for question_id, letters in verdicts.items():
            for n, letter in enumerate(letters):
                trial = _trial(
                    question_id,
                    n,
                    letter,
                    tokens if isinstance(tokens, int) else tokens[n],
                    completion,
                    "4" if extracted is None else extracted[n],
                )
                if scores is not None:
                    trial = replace(trial, score=scores[question_id][n])
                if feedback is not None:
                    answer = Completion(completion, trial.token_ids, "stop", trial.generation)
                    writer.generation(GenerationEvent(question_id, n, answer))
                    said = Verdict(trial.verdict, trial.extracted, trial.detail, 0.1, feedback)
                    writer.verdict(question_id, trial.generation, said)
                if critique is not None:
                    trial = replace(trial, generation=2 * n)
                if critique is not None and letter != "c":
                    written = Completion(critique, (1, 2, 3), "stop", 2 * n + 1)
                    writer.generation(GenerationEvent(question_id, None, written))
                    usage = trial.usage + Usage(generated_tokens=3, generations=1)
                    trial = replace(trial, usage=usage)
                writer.trial(trial)
            if finish or "c" in letters or len(letters) == trials:
                writer.done(question_id)
        if finish:
            return writer.finish()
        writer.close()
        return Run.open(folder / name)

    return make


def _trial(
    question_id: str, n: int, letter: str, tokens: int, completion: str, extracted: str | None
) -> Trial:
    verdicts: dict[str, Outcome] = {"c": "correct", "i": "incorrect", "u": "unanswered"}
    return Trial(
        question_id=question_id,
        trial=n,
        generation=n,
        completion=completion,
        token_ids=tuple(range(tokens)),
        finish_reason="stop",
        extracted=None if letter == "u" else extracted,
        verdict=verdicts[letter],
        detail="" if letter == "c" else "the answer is another",
        loss=None if letter == "c" else 2.0 / (n + 1),
        usage=Usage(20, tokens, 5, 1, 1, 0.5),
    )
