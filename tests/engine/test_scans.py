"""State space scans against the library's plain code, and against themselves cut in two."""

from typing import Any

import pytest
import torch
from transformers.models.falcon_h1 import modeling_falcon_h1 as mamba2
from transformers.models.mamba import modeling_mamba as mamba

from fttt.engine.scans import mamba2_scan, mamba_scan


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 40])
def test_a_selective_scan_is_the_librarys_and_goes_on_from_a_state(tokens: int) -> None:
    x, dt, z = (random(2, 6, tokens, seed=s) for s in range(3))
    b, c = (random(2, 4, tokens, seed=s) for s in (3, 4))
    a, more = -random(6, 4).exp(), {"D": random(6), "delta_bias": random(6), "delta_softplus": True}
    expected, last = mamba.mamba_selective_scan(x, dt, a, b, c, z=z, return_last_state=True, **more)
    y, state = mamba_scan(x, dt, a, b, c, None, z=z, **more)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state, last)
    parts, state_BIS = [], None
    for part in (slice(0, tokens // 3), slice(tokens // 3, tokens)):
        if part.start < part.stop:
            cut = [t[..., part] for t in (x, dt, b, c, z)]
            y, state_BIS = mamba_scan(
                cut[0], cut[1], a, cut[2], cut[3], state_BIS, z=cut[4], **more
            )
            parts.append(y)
    torch.testing.assert_close(torch.cat(parts, -1), expected)
    torch.testing.assert_close(state_BIS, last)


@pytest.mark.parametrize("tokens", [1, 5, 63, 64, 150])
@pytest.mark.parametrize("begins", [True, False])
def test_chunks_of_a_state_space_scan_are_the_librarys(tokens: int, begins: bool) -> None:
    heads, features, groups, size = 6, 5, 2, 4
    x, dt = random(2, tokens, heads, features), random(2, tokens, heads, seed=1)
    b, c = (random(2, tokens, groups, size, seed=s) for s in (2, 3))
    more: dict[str, Any] = {
        "D": random(heads), "dt_bias": random(heads, seed=5), "dt_softplus": True,
        "dt_limit": (0.01, 2.0),
        "initial_states": None if begins else random(2, heads, features, size, seed=6),
    }  # fmt: skip
    a = -random(heads, seed=4).exp()
    expected, last = mamba2.mamba2_chunk_scan(
        x, dt, a, b, c, chunk_size=16, return_final_states=True, **more
    )
    y, state = mamba2_scan(x, dt, a, b, c, chunk_size=16, return_final_states=True, **more)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-4)
    assert y.is_contiguous()
