"""Llama 3's scaling told from its divisors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fttt.models.gguf.rotary import llama3_settings


def divisors(
    base: float, width: int, factor: float, low: float, high: float, trained: int
) -> torch.Tensor:
    """As llama.cpp's converter computes them of a model's settings."""
    out = []
    for n in range(0, width, 2):
        wavelength = 2 * math.pi * base ** (n / width)
        if wavelength < trained / high:
            out.append(1.0)
        elif wavelength > trained / low:
            out.append(factor)
        else:
            smooth = (trained / wavelength - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(out)


@settings(max_examples=200, deadline=None)
@given(
    base=st.sampled_from([10_000.0, 500_000.0]),
    width=st.sampled_from([8, 16, 64, 128]),
    factor=st.floats(1.5, 40),
    low=st.floats(0.5, 2),
    ratio=st.floats(1.5, 8),
    trained=st.sampled_from([64, 256, 2048, 8192]),
)
def test_the_settings_give_the_same_frequencies(
    base: float, width: int, factor: float, low: float, ratio: float, trained: int
) -> None:
    given = divisors(base, width, factor, low, low * ratio, trained)
    found = llama3_settings(given, base, width)
    assert found is not None
    if float(given.max()) == 1:  # a context so long that nothing is divided
        assert found == {}
        return
    again = divisors(
        base,
        width,
        found["factor"],
        found["low_freq_factor"],
        found["high_freq_factor"],
        found["original_max_position_embeddings"],
    )
    torch.testing.assert_close(again, given, rtol=2e-4, atol=0)


def test_the_settings_of_llama_3_are_told_as_they_are() -> None:
    given = divisors(500_000.0, 128, 32.0, 1.0, 4.0, 8192)
    found = llama3_settings(given, 500_000.0, 128)
    assert found == {
        "rope_type": "llama3",
        "factor": pytest.approx(32),
        "low_freq_factor": pytest.approx(1, rel=1e-3),
        "high_freq_factor": pytest.approx(4, rel=1e-3),
        "original_max_position_embeddings": 8192,
    }


@pytest.mark.parametrize(
    "given", [[1.0, 3.0, 2.0, 5.0], [0.5, 1.0, 1.0, 1.0], [2.0, 1.0, 1.0, 1.0]]
)
def test_divisors_of_another_rule_are_not_taken_for_it(given: list[float]) -> None:
    assert llama3_settings(torch.tensor(given), 10_000.0, 8) is None
