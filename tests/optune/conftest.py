"""Recorded factors of random examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from fttt.engine.adapters.delta import Factors
from fttt.optune.attempts import AttemptExample
from fttt.optune.checkpoint import EditedLayer
from fttt.training import GoldExample

MakeFactors = Callable[..., Factors]


@pytest.fixture
def layers() -> tuple[EditedLayer, ...]:
    """q and v of two layers, in two shapes."""
    return tuple(
        EditedLayer(f"layers.{n}.{name}", 6, outputs)
        for n in (2, 3)
        for name, outputs in (("q_proj", 6), ("v_proj", 3))
    )


@pytest.fixture
def make_factors(layers: tuple[EditedLayer, ...]) -> MakeFactors:
    """Factors of examples of the given lengths."""

    def make(lengths: Sequence[int], seed: int = 0) -> Factors:
        generator = torch.Generator().manual_seed(seed)
        tokens = sum(lengths)
        segment_N = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))

        def draw(width: int, scale: float) -> torch.Tensor:
            return torch.randn(tokens, width, generator=generator) * scale + scale

        return Factors(
            x_NI={layer.name: draw(layer.inputs, 3.0) for layer in layers},
            delta_NO={layer.name: draw(layer.outputs, 1e-6) for layer in layers},
            lengths=tuple(lengths),
            segment_N=segment_N,
            loss_Q=torch.zeros(len(lengths)),
        )

    return make


@pytest.fixture
def make_examples() -> Callable[..., list[AttemptExample]]:
    """Attempts of different lengths at questions with solutions of different lengths."""

    def make(count: int, seed: int = 0) -> list[AttemptExample]:
        generator = torch.Generator().manual_seed(seed)

        def ids(least: int) -> tuple[int, ...]:
            length = least + int(torch.randint(0, 20, (), generator=generator))
            return tuple(torch.randint(3, 259, (length,), generator=generator).tolist())

        examples = []
        for n in range(count):
            prompt = ids(3)
            gold = GoldExample(f"q{n // 2}", prompt, ids(1))
            examples.append(AttemptExample(f"q{n // 2}#{n % 2}", prompt + ids(2), gold))
        return examples

    return make
