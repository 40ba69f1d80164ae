"""A generation may reuse the keys and values of the one before it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fttt.engine import scheduler
from fttt.engine.prompts import HeldPrompts, Prompt
from fttt.engine.request import GenerateRequest, WeightDeltaSpec
from fttt.experiment.executor import LocalExecutor
from fttt.experiment.held_sequences import HeldSequences
from fttt.experiment.plan import Plan
from fttt.experiment.runner import Cell, run_cells
from fttt.methods.base import Method, MethodSettings
from fttt.methods.best_of_n import BestOfN
from fttt.methods.fttt import FTTT, FTTTSettings
from fttt.methods.revision import Revision, RevisionSettings
from fttt.methods.self_consistency import SelfConsistency, SelfConsistencySettings
from fttt.methods.self_refine import SelfRefine, SelfRefineSettings
from fttt.progress import Quiet
from fttt.testing import FakeEngine, FakeKept, play, tiny_model, tiny_tokenizer
from fttt.types import Trial

REVISION = Revision(RevisionSettings(feedback="Wrong."))
SELF_REFINE = SelfRefine(SelfRefineSettings(critique_tokens=9))


def reused(engine: FakeEngine) -> list[int | None]:
    """Which kept sequence each generation was handed, by number; all are given back."""
    assert all(kept.closed for kept in engine.kept)
    numbers: dict[object, int] = {id(kept): n for n, kept in enumerate(engine.kept)}
    return [numbers.get(id(request.reuse)) for request in engine.generations]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (REVISION, [None, 0, 1, 2]),
        (SELF_REFINE, [None, 0, 1, 2, 3, 4, 5]),
        (BestOfN(MethodSettings()), [None] * 4),  # what they share is the prompt alone
        (SelfConsistency(SelfConsistencySettings()), [None] * 4),  # all at once
        # an attempt is its adapter's (and kept for the train step), a critique the base model's
        (FTTT(FTTTSettings(reflection=True)), [None, None, None, 1, None, 3, None]),
    ],
)
def test_a_generation_is_handed_the_base_models_last_one(
    method: Method, expected: list[int | None]
) -> None:
    engine = play(method, lambda *_: "1", trials=4).engine
    assert reused(engine) == expected
    awaited = [request.awaited for request in engine.generations]
    assert awaited == [request.adapter is not None for request in engine.generations]


@pytest.mark.parametrize("method", ["revision", "self-refine", "best-of-n"])
def test_the_run_is_the_same_as_without(
    method: str, plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens, verdicts and usage, whose prompt tokens are those of the whole prompt."""
    made = plan(method, sampling={"max_new_tokens": 12}, model="smollm2-135m")

    def facts(folder: str) -> list[Trial]:
        executor = LocalExecutor(tiny_model(max_context=4096))
        (run,) = run_cells([Cell(made, tmp_path / folder)], executor, Quiet())
        trials = sorted(run.trials, key=lambda t: (t.question_id, t.trial))
        return [replace(t, usage=replace(t.usage, seconds=0.0)) for t in trials]

    taken: list[int] = []
    held, begin = scheduler._held_tokens, HeldPrompts.begin

    def begun(prompts: HeldPrompts, prompt: Prompt, tokens: int) -> int | None:
        taken.append(len(prompt.token_ids))
        return begin(prompts, prompt, tokens)

    with monkeypatch.context() as patched:
        if method == "best-of-n":  # whose attempts have one prompt
            patched.setattr(HeldPrompts, "begin", begun)
        else:
            patched.setattr(scheduler, "_held_tokens", lambda r: taken.append(held(r)) or taken[-1])
        with_rows = facts("again")
    assert any(taken)
    monkeypatch.setattr(scheduler, "_held_tokens", lambda request: 0)
    monkeypatch.setattr(HeldPrompts, "note", lambda prompts, row, prompt: None)
    assert facts("computed") == with_rows


def test_a_step_after_an_older_sequence_is_given_its_own_tokens() -> None:
    spec = WeightDeltaSpec(("layer",), lambda _: {}, accumulate=False, key="")

    async def main() -> None:
        sequences = HeldSequences(FakeEngine(["1", "2"]), spec)
        for number in range(2):
            prompt = (3, 4 + number)
            await sequences.generate(GenerateRequest(prompt, 9, keep=True))
        one, two = ((3, 4 + n, *tiny_tokenizer()(f"{n + 1}")["input_ids"], 2) for n in (0, 1))
        assert sequences.find(one, len(one), None) is None
        last = sequences.find(two, len(two), None)
        assert isinstance(last, FakeKept)
        assert last.token_ids[:2] == (3, 5)
        sequences.close()
        assert last.closed

    asyncio.run(main())


def test_answers_that_are_begun_together_share_a_pass_over_their_prompt() -> None:
    async def main() -> None:
        engine = FakeEngine(["1", "2", "3", "4"])
        sequences = HeldSequences(engine, None)
        request = GenerateRequest((3, 4), 9, keep=True)
        for alone in (True, False, False, True):
            await sequences.generate(request, alone=alone)
        assert [asked.reuse is not None for asked in engine.generations] == [0, 0, 0, 1]
        sequences.close()

    asyncio.run(main())
