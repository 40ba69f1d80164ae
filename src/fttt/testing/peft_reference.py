"""What the engine learns, beside the same by PEFT and ``torch.optim``, a question at a time."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from typing import Any

import torch

from fttt.engine import BatchedEngine, Lesson, LoRASpec, Target, TrainRequest
from fttt.engine.adapters.lora import target_layers
from fttt.models import LoadedModel

__all__ = ["learn_beside_peft"]

Losses = list[float]


def learn_beside_peft(
    loaded: LoadedModel,
    spec: LoRASpec,
    contexts: Sequence[tuple[int, ...]],
    target: tuple[int, ...],
) -> list[tuple[Losses, Losses]]:
    """Three steps of each context's own LoRA on a target: in one engine, and by PEFT one by one.

    Args:
        loaded: the model, without dropout.
        spec: of the weights; their dropout is 0.
        contexts: token ids; they take no gradient.
        target: token ids, whose mean cross-entropy is the loss.

    Returns:
        The losses of both, for each context.
    """
    starts: dict[int, Any] = {}

    async def question(engine: BatchedEngine, n: int) -> Losses:
        slot: Any = await engine.open_adapter(spec, seed=n)
        starts[n] = [(a.clone(), b.clone()) for a, b in slot.bank.factors(slot.index)]
        lesson = Lesson(contexts[n], (Target(target, (1 / len(target),) * len(target)),))
        return [(await engine.train(TrainRequest(slot, (lesson,)))).loss for _ in range(3)]

    async def main() -> list[Losses]:
        engine = BatchedEngine(loaded, max_length=128, concurrency=len(contexts), adapter=spec)
        try:
            return await asyncio.gather(*(question(engine, n) for n in range(len(contexts))))
        finally:
            await engine.close()

    together = asyncio.run(main())
    alone = [
        _peft_losses(loaded.model, spec, starts[n], context, target)
        for n, context in enumerate(contexts)
    ]
    return list(zip(together, alone, strict=True))


def _peft_losses(
    model: Any, spec: LoRASpec, start: Any, context: tuple[int, ...], target: tuple[int, ...]
) -> Losses:
    """Of three steps of PEFT's layers from ``start``, over whole sequences without any cache.

    The adapter's outputs before the target are constants, and so are all keys, values and states
    that come of them: the context takes no gradient.
    """
    from peft import LoraConfig, get_peft_model

    names = list(target_layers(model, spec))
    config = LoraConfig(r=spec.rank, lora_alpha=int(spec.alpha), target_modules=names)
    tuned: Any = get_peft_model(copy.deepcopy(model), config)
    layers = [m for m in tuned.modules() if hasattr(m, "lora_A")]
    with torch.no_grad():
        for layer, (a, b) in zip(layers, start, strict=True):
            layer.lora_A["default"].weight.copy_(a)
            layer.lora_B["default"].weight.copy_(b)
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay
    )
    past = len(context) - 1

    def constant_before(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
        rows = out.flatten(0, -2)  # of one sequence, some layers are given without a batch's axis
        return torch.cat([rows[:past].detach(), rows[past:]]).view_as(out)

    for layer in layers:
        layer.register_forward_hook(constant_before)
    ids = torch.tensor([context + target])
    losses = []
    for _ in range(3):
        logits = tuned(input_ids=ids[:, :-1], use_cache=False).logits[0, past:]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, past + 1 :])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
