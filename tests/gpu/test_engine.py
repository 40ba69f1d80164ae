"""The CUDA path of the engine against the CPU path, which is tested against references."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
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
from fttt.engine.adapters import draws, lora
from fttt.engine.adapters.lora import LoRABank
from fttt.engine.decoder import CUDADecoder, Lane
from fttt.engine.memory_plan import MemoryPlan, plan_memory
from fttt.engine.prompts import HeldPrompts
from fttt.engine.request import ThoughtBudget
from fttt.models import LoadedModel
from fttt.testing import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
SPEC = LoRASpec(lr=1e-2)


def on_gpu(loaded: LoadedModel, device: str = "cuda") -> LoadedModel:
    loaded.model.to(device)
    fields = {name: getattr(loaded, name) for name in loaded.__dataclass_fields__}
    return LoadedModel(**{**fields, "device": device})


def trials(loaded: LoadedModel, batch_size: int, temperature: float) -> list[Any]:
    """Tokens and losses of some questions' trials with updates between."""
    target = loaded.chat.turn_ids("Your answer is incorrect.", answer=False)
    targets = (Target(target, (1 / len(target),) * len(target)),)

    async def question(engine: BatchedEngine, n: int) -> list[Any]:
        slot = await engine.open_adapter(SPEC, seed=n)
        seen: list[Any] = []
        for t in range(4):
            adapter = slot if n % 3 else None  # some rows run the base model
            answer = await engine.generate(
                GenerateRequest(
                    loaded.chat.prompt_ids(f"Question {n}" * (n % 4 + 1)), 20 + n % 9, temperature,
                    0.9, 77 * n + t, (2,), adapter, keep=adapter is not None, logprobs=True,
                )
            )  # fmt: skip
            seen.append(answer.token_ids)
            assert answer.logprobs is not None
            assert len(answer.logprobs) == len(answer.token_ids)
            seen.append(sum(answer.logprobs))
            if answer.kept is not None:
                trained = await engine.train(TrainRequest(slot, (Lesson(answer.kept, targets),)))
                seen.append(trained.loss)
        slot.close()
        return seen

    async def main() -> list[Any]:
        engine = BatchedEngine(
            loaded, max_length=200, batch_size=batch_size, concurrency=12, adapter=SPEC
        )
        answers = await asyncio.gather(*(question(engine, n) for n in range(20)))
        await engine.close()
        return [x for answer in answers for x in answer]

    return asyncio.run(main())


@pytest.mark.parametrize(
    "family",
    [
        *("llama", "mistral", "qwen", "qwen3", "gemma", "gemma2", "gemma3"),
        *("gpt_oss", "gemma3n_text", "gemma4_text", "llama4_text", "stablelm"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_and_losses_equal_those_of_the_cpu(family: str, temperature: float) -> None:
    expected = trials(tiny_model(family), 8, temperature)
    got = trials(on_gpu(tiny_model(family)), 8, temperature)
    again = trials(on_gpu(tiny_model(family)), 3, temperature)
    for other in (got, again):
        same = [a == b for a, b in zip(expected, other, strict=True) if isinstance(a, tuple)]
        assert sum(same) >= len(same) - 1  # rounding may turn one draw at a boundary
        if all(same):
            numbers = [a for a in expected if not isinstance(a, tuple)]
            others = [a for a in other if not isinstance(a, tuple)]
            assert others == pytest.approx(numbers, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("page", [16, 64])
def test_pages_that_run_out_change_no_tokens(
    family: str, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where captured steps read tables of small pages, and sequences are paused and resumed."""

    def plan(*args: Any, **settings: Any) -> MemoryPlan:
        made = plan_memory(*args, **settings)
        return replace(made, page=page, pages=-(-made.capacity // page) + 1)

    def answers(loaded: LoadedModel) -> tuple[list[Any], int]:
        async def main() -> tuple[list[Any], int]:
            engine = BatchedEngine(loaded, max_length=300, batch_size=6, concurrency=6)
            asked = [GenerateRequest((5, 6, 7, n % 3), 260, 0.0, noise_key=n) for n in range(9)]
            found = await asyncio.gather(*map(engine.generate, asked))
            assert engine._cache.free_pages == engine.plan.pages
            await engine.close()
            return [answer.token_ids for answer in found], engine.pauses

        return asyncio.run(main())

    expected, _ = answers(on_gpu(tiny_model(family)))
    monkeypatch.setattr("fttt.engine.engine.plan_memory", plan)
    found, pauses = answers(on_gpu(tiny_model(family)))
    assert pauses > 0
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 8  # rounding may turn one


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_long_answers_and_prompts_are_those_of_the_model(family: str) -> None:
    """Among short ones: 12,000 new tokens, and some behind a prompt of 20,000; then a step each."""
    loaded = on_gpu(tiny_model(family, max_context=32768))
    target = tuple(range(20, 60))
    targets = (Target(target, (1 / len(target),) * len(target)),)
    prompts = [tuple((7 * k + n) % 250 + 3 for k in range(20)) for n in range(6)]
    prompts.append(tuple((11 * k + k // 97) % 250 + 3 for k in range(20_000)))
    lengths = [40, 60, 80, 40, 60, 12_000, 300]

    async def trial(engine: BatchedEngine, n: int) -> tuple[Any, float]:
        slot = await engine.open_adapter(SPEC, seed=n)
        answer = await engine.generate(
            GenerateRequest(
                prompts[n], lengths[n], 0.8, 0.95, n, (), slot, keep=True, logprobs=True
            )
        )
        assert answer.kept is not None
        trained = await engine.train(TrainRequest(slot, (Lesson(answer.kept, targets),)))
        slot.close()
        return answer, trained.loss

    async def main() -> list[tuple[Any, float]]:
        engine = BatchedEngine(loaded, max_length=20_400, batch_size=8, concurrency=8, adapter=SPEC)
        found = await asyncio.gather(*(trial(engine, n) for n in range(len(prompts))))
        await engine.close()
        return found

    for n, (answer, loss) in enumerate(asyncio.run(main())):
        assert len(answer.token_ids) == lengths[n]
        ids = torch.tensor([(*prompts[n], *answer.token_ids, *target)], device="cuda")
        with torch.no_grad():
            logits = loaded.model(ids, use_cache=False).logits[0, len(prompts[n]) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, ids[0, len(prompts[n]) :, None])[:, 0]
        got = torch.tensor(answer.logprobs, device="cuda")
        torch.testing.assert_close(got, expected[: lengths[n]], rtol=1e-3, atol=1e-3)
        assert loss == pytest.approx(-expected[lengths[n] :].mean().item(), rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_attempts_behind_a_held_prompt_equal_those_of_the_cpu(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which compute each prompt; here they join captured steps that have begun."""
    prompts = [tuple(range(5, 5 + tokens)) for tokens in (1, 63, 64, 65, 66, 150)]

    async def attempts(engine: BatchedEngine, n: int) -> list[tuple[int, ...]]:
        asked = [
            GenerateRequest(prompts[n], 1 + 7 * t % 40, 0.8, 0.9, 77 * n + t, (2,))
            for t in range(12)
        ]
        said = [await engine.generate(request) for request in asked[:8]]
        said += await asyncio.gather(*map(engine.generate, asked[8:]))
        return [one.token_ids for one in said]

    def answers(loaded: LoadedModel) -> tuple[list[Any], int]:
        begun: list[Lane] = []
        launch = CUDADecoder.launch

        def noted(decoder: CUDADecoder, lanes: Sequence[Lane]) -> bool:
            begun.extend(lane for lane in lanes if decoder.begun and not lane.tokens)
            return launch(decoder, lanes)

        async def main() -> list[Any]:
            engine = BatchedEngine(loaded, max_length=200, batch_size=16, concurrency=16)
            found = await asyncio.gather(*(attempts(engine, n) for n in range(len(prompts))))
            assert engine._cache.free_pages == engine.plan.pages
            await engine.close()
            return [x for own in found for x in own]

        with monkeypatch.context() as patched:
            patched.setattr(CUDADecoder, "launch", noted)
            return asyncio.run(main()), len({*begun})

    found, joined = answers(on_gpu(tiny_model(family)))
    assert joined > 20
    monkeypatch.setattr(HeldPrompts, "note", lambda prompts, row, prompt: None)
    expected, _ = answers(tiny_model(family))
    same = [a == b for a, b in zip(found, expected, strict=True)]
    assert sum(same) >= len(same) - 1  # rounding may turn one draw at a boundary


def searched(loaded: LoadedModel) -> list[Any]:
    """Beams of some questions that were asked for while others are written."""

    async def main() -> list[Any]:
        engine = BatchedEngine(loaded, max_length=200, batch_size=12, concurrency=12, beams=4)
        written = [
            asyncio.create_task(engine.generate(GenerateRequest((5, 6, n), 40 + 20 * n)))
            for n in range(4)
        ]
        await written[0]
        beams = await asyncio.gather(
            *(
                engine.beam(BeamRequest((5, 7, *range(9, 12 + n)), 4, 12 + 9 * n % 25, (2, 60)))
                for n in range(8)
            )
        )
        answers = await asyncio.gather(*written)
        await engine.close()
        return [[b.token_ids for b in found] for found in beams] + [a.token_ids for a in answers]

    return asyncio.run(main())


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_beams_equal_those_of_the_cpu(family: str) -> None:
    assert searched(on_gpu(tiny_model(family))) == searched(tiny_model(family))


def conversations(loaded: LoadedModel) -> list[Any]:
    """Conversations that go on from kept rows, some begun anew between."""

    async def talk(engine: BatchedEngine, n: int) -> list[tuple[int, ...]]:
        prompt, held, said = tuple(range(20, 30 + 3 * n)), None, []
        for turn in range(4):
            answer = await engine.generate(
                GenerateRequest(
                    prompt, 9 + (n + turn) % 7, stop_ids=(2,), keep=n % 3 > 0, reuse=held
                )
            )
            said.append(answer.token_ids)
            prompt, held = prompt + answer.token_ids + (7, 8, 9), answer.kept
        if held is not None:
            held.close()
        return said

    async def main() -> list[Any]:
        engine = BatchedEngine(loaded, max_length=200, batch_size=6, concurrency=9)
        said = await asyncio.gather(*(talk(engine, n) for n in range(9)))
        await engine.close()
        return list(said)

    return asyncio.run(main())


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_conversations_equal_those_of_the_cpu(family: str) -> None:
    assert conversations(on_gpu(tiny_model(family))) == conversations(tiny_model(family))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("run", [lambda loaded: trials(loaded, 8, 0.8), searched, conversations])
def test_any_gpu_gives_what_the_first_one_does(run: Callable[[LoadedModel], list[Any]]) -> None:
    first = run(on_gpu(tiny_model("llama"), "cuda:0"))
    second = run(on_gpu(tiny_model("llama"), "cuda:1"))
    for one, other in zip(second, first, strict=True):  # sums of a batch that met otherwise differ
        assert one == (pytest.approx(other, abs=1e-3) if isinstance(other, float) else other)
    assert torch.cuda.current_device() == 0


def test_adapters_that_are_drawn_in_threads_are_those_that_are_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While graphs are captured, and where few rows of pinned memory go round."""
    at_once = trials(on_gpu(tiny_model("llama")), 8, 0.7)
    monkeypatch.setattr(lora, "DRAWN_AT_ONCE", 0)
    monkeypatch.setattr(draws, "_MOST_ROWS", 2)
    in_threads = trials(on_gpu(tiny_model("llama")), 8, 0.7)
    for one, other in zip(in_threads, at_once, strict=True):
        assert one == (pytest.approx(other, abs=1e-3) if isinstance(other, float) else other)

    async def main() -> None:
        model: Any = on_gpu(tiny_model("llama")).model
        bank = LoRABank(model, SPEC, 40, model.device)
        slots = await asyncio.gather(*(bank.open(seed) for seed in range(40)))
        fresh_SP = bank.weights_SP[[slot.index for slot in slots]].clone()
        for seed, slot in enumerate(slots):
            bank.fill(slot.index, seed)  # at once
        assert torch.equal(bank.weights_SP[[slot.index for slot in slots]], fresh_SP)
        assert bank.draws is not None
        assert bank.draws._made == 2
        bank.detach()

    asyncio.run(main())


def test_penalties_and_top_k_in_captured_steps_are_those_of_the_cpu() -> None:
    """Rows that ask for them beside rows that do not."""

    def answers(loaded: LoadedModel) -> list[tuple[int, ...]]:
        async def main() -> list[tuple[int, ...]]:
            engine = BatchedEngine(loaded, max_length=200, batch_size=8, concurrency=8)
            requests = [
                GenerateRequest(
                    loaded.chat.prompt_ids(f"Question {n}"),
                    24,
                    0.8 * (n % 2),
                    0.9,
                    noise_key=n,
                    repetition_penalty=(1.0, 1.5, 1.3)[n % 3],
                    top_k=5 * (n % 4 == 1),
                    min_p=0.2 * (n % 4 == 3),
                )
                for n in range(12)
            ]
            found = await asyncio.gather(*map(engine.generate, requests))
            await engine.close()
            return [x.token_ids for x in found]

        return asyncio.run(main())

    assert answers(on_gpu(tiny_model("llama"))) == answers(tiny_model("llama"))


def test_a_thought_is_closed_between_two_looks_at_the_tokens() -> None:
    """The draws before the closing, and all of them beside others, are those without a budget."""
    loaded = on_gpu(tiny_model("qwen3", template="deepseek-r1"))
    ids = loaded.chat.thought_ids()
    budgets = [None, 1, 2, 3, 4, 5, 6, 7, 30]

    def asked(tokens: int | None, n: int) -> GenerateRequest:
        thought = None if tokens is None else ThoughtBudget(tokens, *ids)
        prompt = loaded.chat.prompt_ids(f"Question {n}")
        return GenerateRequest(prompt, 40, 1.0, 0.9, 77 * n, thought=thought)

    async def main(requests: list[GenerateRequest]) -> list[tuple[int, ...]]:
        engine = BatchedEngine(loaded, max_length=128, concurrency=16)
        try:
            found = await asyncio.gather(*map(engine.generate, requests))
        finally:
            await engine.close()
        return [one.token_ids for one in found]

    requests = [asked(tokens, n) for n, tokens in enumerate(budgets)]
    together = asyncio.run(main(requests))
    free = asyncio.run(main([asked(None, n) for n in range(len(budgets))]))
    for n, tokens in enumerate(budgets):
        if tokens is None:
            assert together[n] == free[n]
            continue
        assert together[n][:tokens] == free[n][:tokens]
        assert together[n][tokens : tokens + len(ids[-1])] == ids[-1]
        assert len(together[n]) == 40
    assert asyncio.run(main(requests[4:5])) == together[4:5]
