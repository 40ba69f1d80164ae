"""Faster forms of a model's own operations on a CPU, against the model's own code."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from fttt.engine.ops import cpu


def test_operations_are_found_and_leave_the_model_as_it_was(
    replaced_logits: Callable[..., tuple[torch.Tensor, ...]],
) -> None:
    before, *with_forms = replaced_logits(cpu, torch.device("cpu"))
    for logits in with_forms:
        torch.testing.assert_close(logits, before, rtol=1e-5, atol=1e-5)


def test_a_norm_follows_its_weight_and_has_a_gradient() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 7, 96, requires_grad=True)
    weight = torch.randn(96)
    for offset in (0.0, 1.0):
        expected = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * (offset + weight)
        total, out = cpu.sum_and_norm(x / 2, x / 2, weight, 1e-5, offset)
        assert torch.equal(total, x)
        torch.testing.assert_close(out, expected)
        gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (out, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
        weight.mul_(-2)


def test_a_norm_that_was_trained_in_float32_keeps_the_dtype_of_its_input() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 7, 96, dtype=torch.bfloat16), torch.randn(96)
    out = cpu.rms_norm(x, weight, 1e-5, 0.0)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, cpu.rms_norm(x.float(), weight, 1e-5, 0.0).bfloat16())


@pytest.mark.parametrize("width", [80, 32])
def test_rotary_positions_turn_the_features_that_have_angles(width: int) -> None:
    torch.manual_seed(0)
    q = torch.randn(1, 6, 3 * 80).view(1, 6, 3, 80).transpose(1, 2)
    k = torch.randn(1, 6, 80).view(1, 6, 1, 80).transpose(1, 2)
    for _ in range(3):  # angles of a pass are kept, others take their place
        cos, sin = torch.randn(1, 6, width), torch.randn(1, 6, width)
        for out, x in zip(cpu.rotary(q, k, cos, sin), (q, k), strict=True):
            first, second = x[..., :width].chunk(2, -1)
            turned = x[..., :width] * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]
            torch.testing.assert_close(out, torch.cat([turned, x[..., width:]], -1))


def test_gates_of_each_kind() -> None:
    gate, up = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 5)
    expected = [F.silu(gate), F.gelu(gate), F.gelu(gate, approximate="tanh")]
    for kind, activated in zip(cpu.ACTIVATIONS, expected, strict=True):
        assert torch.equal(cpu.gated_product(gate, up, kind), activated * up)
