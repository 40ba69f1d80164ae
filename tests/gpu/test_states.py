"""Layers that carry a state on a GPU, whose decode steps are captured, against the CPU."""

import asyncio
from typing import Any

import pytest
import torch

from fttt.engine import (
    BatchedEngine,
    BeamRequest,
    GenerateRequest,
    Lesson,
    LoRASpec,
    Target,
    TrainRequest,
)
from fttt.engine.selfcheck import find_difference
from fttt.models import LoadedModel
from fttt.testing import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
FAMILIES = (
    "qwen3_5", "qwen3_next", "lfm2", "falcon_h1", "granite_hybrid", "jamba", "mamba", "mamba2",
    "minimax", "recurrent_gemma",
)  # fmt: skip
SPEC = LoRASpec(lr=1e-2, targets=("q_proj", "v_proj"))


def on_gpu(loaded: LoadedModel) -> LoadedModel:
    loaded.model.to("cuda")
    fields = {name: getattr(loaded, name) for name in loaded.__dataclass_fields__}
    return LoadedModel(**{**fields, "device": "cuda"})


def run(loaded: LoadedModel, work: Any, **more: Any) -> Any:
    async def main() -> Any:
        engine = BatchedEngine(loaded, **{"max_length": 200, "concurrency": 8, **more})
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(main())


def agree(got: list[Any], expected: list[Any]) -> None:
    """Rounding may turn one draw at a boundary."""
    same = [a == b for a, b in zip(got, expected, strict=True)]
    assert sum(same) >= len(same) - 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_check_passes(family: str) -> None:
    assert find_difference(tiny_model(family, seed=3).model.to("cuda", torch.bfloat16)) is None


@pytest.mark.parametrize("family", ["qwen3_5", "lfm2", "jamba", "mamba2"])
def test_samples_equal_those_of_the_cpu(family: str) -> None:
    """With lanes that end within the steps of one look, by a stop token or by their limit."""

    async def work(engine: BatchedEngine) -> Any:
        chat = tiny_model(family).chat
        asked = [
            GenerateRequest(
                chat.prompt_ids(f"Question {n}" * (n % 4 + 1)), 14 + n, 0.8, 0.9, 77 * n,
                tuple(range(2, 12 + n)),
            )
            for n in range(11)
        ]  # fmt: skip
        return [a.token_ids for a in await asyncio.gather(*map(engine.generate, asked))]

    expected = run(tiny_model(family), work, batch_size=4)
    agree(run(on_gpu(tiny_model(family)), work, batch_size=4), expected)


@pytest.mark.parametrize("family", ["qwen3_5", "lfm2"])
def test_a_kept_state_is_that_at_the_end_of_its_sequence(family: str) -> None:
    """However many tokens more were drawn before the host looked."""

    async def talk(engine: BatchedEngine, n: int, *, keep: bool) -> list[tuple[int, ...]]:
        prompt, held, said = tuple(range(20, 26 + n)), None, []
        for turn in range(4):
            answer = await engine.generate(
                GenerateRequest(
                    prompt, 5 + (n + turn) % 4, 0.8, 0.9, 31 * n + turn, (2, 40, 41, 42),
                    keep=keep, reuse=held,
                )
            )  # fmt: skip
            said.append(answer.token_ids)
            prompt, held = (*prompt, *answer.token_ids, 7, 8, 9), answer.kept
        if held is not None:
            held.close()
        return said

    def all_of(*, keep: bool) -> Any:
        async def work(engine: BatchedEngine) -> Any:
            return await asyncio.gather(*(talk(engine, n, keep=keep) for n in range(5)))

        return run(on_gpu(tiny_model(family)), work)

    kept, anew = all_of(keep=True), all_of(keep=False)
    agree([turn for one in kept for turn in one], [turn for one in anew for turn in one])


@pytest.mark.parametrize("family", ["qwen3_5", "granite_hybrid", "jamba"])
def test_steps_equal_those_of_the_cpu(family: str) -> None:
    async def question(engine: BatchedEngine, n: int) -> list[float]:
        chat = tiny_model(family).chat
        slot = await engine.open_adapter(SPEC, seed=n)
        said = chat.turn_ids("Your answer is incorrect.", answer=False)
        losses = []
        for trial in range(3):
            prompt = chat.prompt_ids(f"Question {n}")
            answer = await engine.generate(
                GenerateRequest(prompt, 9 + n, noise_key=trial, adapter=slot, keep=True)
            )
            own = answer.token_ids
            targets = (
                Target(said, (1 / len(said),) * len(said)),
                Target(own, (-0.1 / len(own),) * len(own), len(prompt)),
            )
            assert answer.kept is not None
            losses += (
                await engine.train(TrainRequest(slot, (Lesson(answer.kept, targets),)))
            ).losses
        slot.close()
        return losses

    async def work(engine: BatchedEngine) -> Any:
        return await asyncio.gather(*(question(engine, n) for n in range(5)))

    expected = run(tiny_model(family), work, adapter=SPEC)
    got = run(on_gpu(tiny_model(family)), work, adapter=SPEC)
    for one, other in zip(got, expected, strict=True):
        assert one[:2] == pytest.approx(other[:2], rel=1e-3, abs=1e-3)
        assert one == pytest.approx(other, rel=0.05, abs=0.05)


@pytest.mark.parametrize("family", ["qwen3_5", "lfm2"])
def test_adapters_within_such_layers_equal_those_of_the_cpu(family: str) -> None:
    names = {"qwen3_5": ("in_proj_qkv", "out_proj"), "lfm2": ("in_proj", "out_proj")}[family]
    spec = LoRASpec(lr=1e-2, targets=names)

    async def work(engine: BatchedEngine) -> Any:
        chat = tiny_model(family).chat
        slots = [await engine.open_adapter(spec, seed=n) for n in range(3)]
        said = chat.turn_ids("No.", answer=False)
        found = []
        for n, slot in enumerate(slots):
            prompt = chat.prompt_ids(f"Question {n}")
            target = Target(said, (1 / len(said),) * len(said))
            await engine.train(TrainRequest(slot, (Lesson(prompt, (target,)),)))
            answer = await engine.generate(GenerateRequest(prompt, 12, adapter=slot))
            found.append(answer.token_ids)
        return found

    expected = run(tiny_model(family), work, adapter=spec)
    agree(run(on_gpu(tiny_model(family)), work, adapter=spec), expected)


@pytest.mark.parametrize("family", ["qwen3_5"])
def test_beams_equal_those_of_the_cpu(family: str) -> None:
    async def work(engine: BatchedEngine) -> Any:
        chat = tiny_model(family).chat
        prompts = [chat.prompt_ids(f"Question {n}" * (n + 1)) for n in range(3)]
        asked = [BeamRequest(p, 3, 10, tuple(range(60, 90))) for p in prompts]
        found = await asyncio.gather(*map(engine.beam, asked))
        return [beam.token_ids for beams in found for beam in beams]

    expected = run(tiny_model(family), work, beams=3)
    got = run(on_gpu(tiny_model(family)), work, beams=3)
    same = [a == b for a, b in zip(got, expected, strict=True)]
    assert sum(same) >= len(same) - 2
