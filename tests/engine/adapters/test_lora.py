"""Which layers carry low-rank weights; mixtures of experts against PEFT, one question at a time."""

import asyncio
import copy
from typing import Any

import pytest
import torch

from fttt.engine import BatchedEngine, Lesson, LoRASpec, Target, TrainRequest
from fttt.engine.adapters.lora import target_layers
from fttt.engine.batch import cache_keyword
from fttt.errors import UsageError
from fttt.testing import tiny_model

CONTEXTS = ((80, 90, 100, 110, 85), (71, 72, 73))
TARGET = (71, 99, 80, 122)


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("mixtral", ("q_proj", "v_proj")),
        ("olmoe", ("all-linear",)),
        ("gpt_oss", ("all-linear",)),
        ("qwen2_moe", ("all-linear",)),
        ("deepseek_v3", ("q_b_proj", "kv_a_proj_with_mqa", "o_proj")),
    ],
)
def test_layers_of_a_mixture_learn_as_by_peft(family: str, targets: tuple[str, ...]) -> None:
    loaded = tiny_model(family)
    spec = LoRASpec(targets=targets, dropout=0.0, lr=1e-2)
    starts: list[Any] = [None, None]

    async def question(engine: BatchedEngine, n: int) -> list[float]:
        slot: Any = await engine.open_adapter(spec, seed=n)
        starts[n] = [(a.clone(), b.clone()) for a, b in slot.bank.factors(slot.index)]
        lesson = Lesson(CONTEXTS[n], (Target(TARGET, (0.25,) * 4),))
        return [(await engine.train(TrainRequest(slot, (lesson,)))).loss for _ in range(3)]

    async def main() -> list[list[float]]:
        engine = BatchedEngine(loaded, max_length=64, concurrency=2, adapter=spec)
        try:
            return list(await asyncio.gather(question(engine, 0), question(engine, 1)))
        finally:
            await engine.close()

    for n, losses in enumerate(asyncio.run(main())):
        alone = _peft_losses(loaded.model, spec, starts[n], CONTEXTS[n])
        assert losses == pytest.approx(alone, rel=1e-4)


def _peft_losses(model: Any, spec: LoRASpec, start: Any, context: tuple[int, ...]) -> list[float]:
    """Of three steps of PEFT's layers, whose context takes no gradient."""
    from peft import LoraConfig, get_peft_model

    names = list(target_layers(model, spec))
    config = LoraConfig(r=spec.rank, lora_alpha=int(spec.alpha), target_modules=names)
    tuned = get_peft_model(copy.deepcopy(model), config)
    layers = [m for m in tuned.modules() if hasattr(m, "lora_A")]
    with torch.no_grad():
        for layer, (a, b) in zip(layers, start, strict=True):
            layer.lora_A["default"].weight.copy_(a)
            layer.lora_B["default"].weight.copy_(b)
    optimizer = torch.optim.AdamW(
        [p for p in tuned.parameters() if p.requires_grad], lr=spec.lr, weight_decay=0.0
    )
    ids = torch.tensor([context[-1:] + TARGET])
    losses, name = [], cache_keyword(tuned.get_base_model().forward)
    for _ in range(3):
        with torch.no_grad():
            held = {name: tuned(torch.tensor([context[:-1]]), use_cache=True)[name]}
        logits = tuned(ids[:, :-1], **held).logits[0]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(
    ("family", "left_out"),
    [("mixtral", "experts"), ("deepseek_v3", ".experts"), ("gpt_oss", "experts")],
)
def test_all_linear_layers_of_a_mixture_are_those_that_see_every_token(
    family: str, left_out: str
) -> None:
    names = target_layers(tiny_model(family).model, LoRASpec(targets=("all-linear",)))
    assert any("attn" in name for name in names)
    assert not any(left_out in name for name in names)
    assert any("shared_experts" in name for name in names) == (family == "deepseek_v3")


@pytest.mark.parametrize(
    ("family", "target", "said"),
    [
        ("mixtral", "down_proj", "'down_proj' are experts of a mixture, which experts of this"),
        ("jetmoe", "input_linear", "'input_linear' are experts of a mixture"),
        ("gpt_oss", "gate_up_proj", "and carry no adapter; it has k_proj, o_proj, q_proj, v_proj"),
        ("gpt_oss", "router", "'router' of this model is no nn.Linear but GptOssTopKRouter"),
        ("llama", "gate_up_proj", "No linear layer 'gate_up_proj' in this model"),
    ],
)
def test_what_carries_no_adapter_is_refused_by_name(family: str, target: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        target_layers(tiny_model(family).model, LoRASpec(targets=(target,)))
    assert said in str(caught.value)
