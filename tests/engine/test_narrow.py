"""The CPU's linear layers of few rows against ``F.linear``."""

import pytest
import torch

from fttt.engine.narrow import BLOCK, narrow_linear, narrow_linears
from fttt.engine.stand_ins import StandIns
from fttt.testing import tiny_model


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 9, 15, 16])
@pytest.mark.parametrize(("outputs", "bias"), [(7, True), (BLOCK + 5, False), (3 * BLOCK, True)])
def test_it_is_a_linear_layer(rows: int, outputs: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(1, rows, 33, generator=generator)
    weight = torch.randn(outputs, 33, generator=generator)
    offset = torch.randn(outputs, generator=generator) if bias else None
    expected = torch.nn.functional.linear(x, weight, offset)
    out = narrow_linear(x, weight, offset)
    assert out.is_contiguous()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_a_model_computes_the_same_with_it_and_is_itself_again() -> None:
    model = tiny_model("qwen").model
    ids = torch.arange(5, 17)[None]
    before = model(ids).logits
    narrow = StandIns(narrow_linears(model))
    narrow.enable()
    with torch.no_grad():
        inside = model(ids).logits
    narrow.disable()
    narrow.disable()
    torch.testing.assert_close(inside, before, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(ids).logits, before)
    assert all("forward" not in vars(m) for m in model.modules())
