"""Fine-tuned checkpoints on a GPU (captured steps, fused norms) against the same on the CPU."""

import asyncio
from typing import Any

import pytest
import torch

from fttt.engine import BatchedEngine, GenerateRequest, Lesson, LoRASpec, Target, TrainRequest
from fttt.finetune.load import load_finetuned
from fttt.finetune.metadata import METHODS, Method
from fttt.models import LoadedModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
SPEC = LoRASpec(lr=1e-2)


def trials(loaded: LoadedModel) -> list[list[Any]]:
    """Tokens, log-probabilities and losses of some questions, with an update between."""
    turn = loaded.chat.turn_ids("Your answer is incorrect.", answer=False)
    targets = (Target(turn, (1 / len(turn),) * len(turn)),)

    async def question(engine: BatchedEngine, n: int) -> list[Any]:
        slot = await engine.open_adapter(SPEC, seed=n)
        seen: list[Any] = []
        prompt = loaded.chat.prompt_ids(f"Question {n}" * (n % 4 + 1))
        for _ in range(2):
            answer = await engine.generate(
                GenerateRequest(prompt, 20 + n, adapter=slot, keep=True, logprobs=True)
            )
            assert answer.kept is not None
            assert answer.logprobs is not None
            trained = await engine.train(TrainRequest(slot, (Lesson(answer.kept, targets),)))
            seen += [answer.token_ids, sum(answer.logprobs), trained.loss]
        slot.close()
        return seen

    async def main() -> list[list[Any]]:
        engine = BatchedEngine(loaded, max_length=256, batch_size=3, concurrency=3, adapter=SPEC)
        try:
            return list(await asyncio.gather(*(question(engine, n) for n in range(6))))
        finally:
            await engine.close()

    return asyncio.run(main())


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("method", METHODS)
def test_the_gpu_writes_and_learns_as_the_cpu_does(
    make_checkpoint: Any, method: Method, family: str
) -> None:
    folder = make_checkpoint(method, family).folder
    here = trials(load_finetuned(folder, dtype="float32", device="cpu"))
    there = trials(load_finetuned(folder, dtype="float32", device="cuda"))
    for own, expected in zip(there, here, strict=True):
        assert own[0::3] == expected[0::3]
        assert own[1::3] == pytest.approx(expected[1::3], rel=1e-3, abs=1e-3)
        assert own[2::3] == pytest.approx(expected[2::3], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("method", ["lora", "ia3", "ln-tuning"])
def test_in_bfloat16_the_gpu_scores_its_tokens_as_the_exact_model_does(
    make_checkpoint: Any, method: Method, family: str
) -> None:
    folder = make_checkpoint(method, family).folder
    loaded = load_finetuned(folder, dtype="bfloat16", device="cuda")
    prompts = [loaded.chat.prompt_ids("What is 2 + 2?" * n) for n in (1, 2, 3)]

    async def main() -> list[Any]:
        engine = BatchedEngine(loaded, max_length=128, batch_size=2, concurrency=3)
        requests = [GenerateRequest(p, 24, logprobs=True) for p in prompts]
        try:
            return list(await asyncio.gather(*map(engine.generate, requests)))
        finally:
            await engine.close()

    exact = load_finetuned(folder, dtype="float32", device="cpu").model
    for prompt, answer in zip(prompts, asyncio.run(main()), strict=True):
        ids = torch.tensor([prompt + answer.token_ids])
        expected_TV = exact(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected_T = expected_TV.gather(1, ids[0, len(prompt) :, None])[:, 0]
        assert answer.logprobs == pytest.approx(expected_T.tolist(), abs=0.3)
