"""Norms, sums, rotary positions and gates in one kernel each, on a GPU.

Decode and train passes there are bound by the number of small kernels;
:mod:`fttt.engine.operations` finds where a model's own code launches many.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["ACTIVATIONS", "gated_product", "rms_norm", "rotary", "sum_and_norm"]


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, offset: float) -> Tensor:
    """``x / rms(x) * (offset + weight)`` over the last axis, in float32 inside.

    Differentiable in ``x``, and in the weight where it is trained.
    """
    apply: Any = _RMSNorm.apply
    out: Tensor = apply(x, weight_D, eps, offset)
    return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, offset: float) -> Tensor:
        dim = weight_D.shape[0]
        inner = 1
        if x.dim() == 4 and x.shape[0] == 1 and x.stride(3) == 1 and not any(ctx.needs_input_grad):
            flat_ND, inner = x[0], x.shape[2]  # heads, parts of a wider product as they lie
        else:
            flat_ND = x.reshape(-1, dim)
        out_ND = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        _norm_kernel[(x.numel() // dim,)](
            flat_ND, weight_D, out_ND, flat_ND.stride(0), flat_ND.stride(-2), inner,
            dim, eps, offset, **_blocks(dim),
        )  # fmt: skip
        ctx.save_for_backward(flat_ND, weight_D)
        ctx.constants = eps, offset
        return out_ND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        flat_ND, weight_D = ctx.saved_tensors
        dim = weight_D.shape[0]
        gradient_ND = gradients[0].reshape(-1, dim)
        out_ND = torch.empty_like(gradient_ND)
        _norm_backward_kernel[(flat_ND.shape[0],)](
            flat_ND, weight_D, gradient_ND, out_ND, flat_ND.stride(0), gradient_ND.stride(0),
            dim, *ctx.constants, **_blocks(dim),
        )  # fmt: skip
        weight_gradient = None
        if ctx.needs_input_grad[1]:
            zeros_D = torch.zeros_like(weight_D)
            unit_ND = rms_norm(flat_ND, zeros_D, ctx.constants[0], 1.0)
            weight_gradient = (gradient_ND.float() * unit_ND).sum(0).to(weight_D.dtype)
        return out_ND.view(gradients[0].shape), weight_gradient, None, None


def _blocks(dim: int) -> dict[str, int]:
    block = triton.next_power_of_2(dim)
    return {"BLOCK": block, "num_warps": 8 if block >= 2048 else 2}


@triton.jit
def _norm_kernel(
    x_ptr, weight_ptr, out_ptr, outer_stride, inner_stride, inner, dim, eps, offset,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    mask = d < dim
    at = row // inner * outer_stride + row % inner * inner_stride
    x = tl.load(x_ptr + at + d, mask=mask, other=0.0)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / dim + eps)
    weight = tl.load(weight_ptr + d, mask=mask, other=0.0).to(tl.float32) + offset
    out = wide * scale * weight
    tl.store(out_ptr + row * dim + d, out.to(x.dtype), mask=mask)


@triton.jit
def _norm_backward_kernel(
    x_ptr, weight_ptr, gradient_ptr, out_ptr, stride, gradient_stride, dim, eps, offset,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    mask = d < dim
    x = tl.load(x_ptr + row * stride + d, mask=mask, other=0.0)
    wide = x.to(tl.float32)
    gradient = tl.load(gradient_ptr + row * gradient_stride + d, mask=mask, other=0.0)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / dim + eps)
    weight = tl.load(weight_ptr + d, mask=mask, other=0.0).to(tl.float32) + offset
    inner = gradient.to(tl.float32) * weight
    out = scale * (inner - wide * scale * scale * tl.sum(inner * wide, 0) / dim)
    tl.store(out_ptr + row * dim + d, out.to(x.dtype), mask=mask)


def rotary(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Rotate ``[1, heads, N, D]`` queries and keys by ``[1, N, D]`` angles, or fewer features."""
    width = cos.shape[-1]
    if width < query.shape[-1]:
        turned = rotary(query[..., :width], key[..., :width], cos, sin)
        rest = (query[..., width:], key[..., width:])
        q, k = (torch.cat(parts, -1) for parts in zip(turned, rest, strict=True))
        return q, k
    apply: Any = _Rotary.apply
    q, k = apply(query, key, cos, sin)
    return q, k


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _rotated(query, key, cos, sin, back=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return *_rotated(*gradients, *ctx.saved_tensors, back=True), None, None


def _rotated(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *, back: bool
) -> tuple[Tensor, Tensor]:
    q, k = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key))
    tokens, half = q.shape[2], q.shape[3] // 2
    found = [
        torch.empty(1, tokens, x.shape[1], x.shape[3], dtype=x.dtype, device=x.device)
        for x in (q, k)
    ]
    _rotary_kernel[(tokens,)](
        q, k, cos, sin, *found, q.stride(1), q.stride(2), k.stride(1), k.stride(2), cos.stride(1),
        q.shape[1], k.shape[1], half, BACK=back, QUERIES=triton.next_power_of_2(q.shape[1]),
        KEYS=triton.next_power_of_2(k.shape[1]), HALF=triton.next_power_of_2(half), num_warps=4,
    )  # fmt: skip
    return found[0].transpose(1, 2), found[1].transpose(1, 2)


@triton.jit
def _rotary_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr, q_head, q_token, k_head, k_token,
    angle_token, queries, keys, half,
    BACK: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, HALF)[None, :]
    angle = token * angle_token + d
    cos_1 = tl.load(cos_ptr + angle, mask=d < half, other=0.0).to(tl.float32)
    cos_2 = tl.load(cos_ptr + angle + half, mask=d < half, other=0.0).to(tl.float32)
    sin_1 = tl.load(sin_ptr + angle, mask=d < half, other=0.0).to(tl.float32)
    sin_2 = tl.load(sin_ptr + angle + half, mask=d < half, other=0.0).to(tl.float32)
    _turn(
        q_ptr + token * q_token, q_head, q_out_ptr + token * queries * 2 * half, queries, half,
        cos_1, cos_2, sin_1, sin_2, BACK, QUERIES, HALF,
    )  # fmt: skip
    _turn(
        k_ptr + token * k_token, k_head, k_out_ptr + token * keys * 2 * half, keys, half,
        cos_1, cos_2, sin_1, sin_2, BACK, KEYS, HALF,
    )  # fmt: skip


@triton.jit
def _turn(
    x_ptr, x_head, out_ptr, heads, half, cos_1, cos_2, sin_1, sin_2,
    BACK: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Rotate all heads of a token."""
    h = tl.arange(0, HEADS)[:, None]
    d = tl.arange(0, HALF)[None, :]
    mask = (h < heads) & (d < half)
    at = x_ptr + h * x_head + d
    first = tl.load(at, mask=mask, other=0.0)
    second = tl.load(at + half, mask=mask, other=0.0)
    first_wide = first.to(tl.float32)
    second_wide = second.to(tl.float32)
    if BACK:
        out_1 = first_wide * cos_1 + second_wide * sin_2
        out_2 = second_wide * cos_2 - first_wide * sin_1
    else:
        out_1 = first_wide * cos_1 - second_wide * sin_1
        out_2 = second_wide * cos_2 + first_wide * sin_2
    to = out_ptr + h * 2 * half + d
    tl.store(to, out_1.to(first.dtype), mask=mask)
    tl.store(to + half, out_2.to(first.dtype), mask=mask)


def sum_and_norm(
    x: Tensor, y: Tensor, weight_D: Tensor, eps: float, offset: float
) -> tuple[Tensor, Tensor]:
    """``x + y``, and its :func:`rms_norm`, in one kernel; no gradient passes."""
    dim = weight_D.shape[0]
    x_ND, y_ND = x.reshape(-1, dim), y.reshape(-1, dim)
    total, normed = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    _sum_and_norm_kernel[(x_ND.shape[0],)](
        x_ND, y_ND, weight_D, total, normed, x_ND.stride(0), y_ND.stride(0), dim, eps, offset,
        **_blocks(dim),
    )  # fmt: skip
    return total, normed


@triton.jit
def _sum_and_norm_kernel(
    x_ptr, y_ptr, weight_ptr, sum_ptr, norm_ptr, x_row, y_row, dim, eps, offset,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    mask = d < dim
    x = tl.load(x_ptr + row * x_row + d, mask=mask, other=0.0)
    y = tl.load(y_ptr + row * y_row + d, mask=mask, other=0.0)
    weight = tl.load(weight_ptr + d, mask=mask, other=0.0).to(tl.float32) + offset
    total = (x.to(tl.float32) + y.to(tl.float32)).to(x.dtype)
    wide = total.to(tl.float32)  # as the norm reads it
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / dim + eps)
    tl.store(sum_ptr + row * dim + d, total, mask=mask)
    tl.store(norm_ptr + row * dim + d, (wide * scale * weight).to(x.dtype), mask=mask)


SILU, GELU, GELU_TANH = 0, 1, 2
ACTIVATIONS = (SILU, GELU, GELU_TANH)


def gated_product(gate: Tensor, up: Tensor, kind: int) -> Tensor:
    """``activation(gate) * up`` in float32 inside, differentiable."""
    apply: Any = _GatedProduct.apply
    out: Tensor = apply(gate, up, kind)
    return out


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kind: int) -> Tensor:
        gate_NI, up_NI = gate.flatten(0, -2), up.flatten(0, -2)
        rows, width = gate_NI.shape
        out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        _gated_kernel[(rows, triton.cdiv(width, 1024))](
            gate_NI, up_NI, out, gate_NI.stride(0), up_NI.stride(0), width, KIND=kind, BLOCK=1024,
            num_warps=4,
        )  # fmt: skip
        ctx.save_for_backward(gate_NI, up_NI)
        ctx.kind = kind
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        gate_NI, up_NI = ctx.saved_tensors
        shape = gradients[0].shape
        out_NI = gradients[0].reshape(gate_NI.shape).contiguous()
        rows, width = gate_NI.shape
        found = [
            torch.empty(shape, dtype=gate_NI.dtype, device=gate_NI.device) for _ in ("gate", "up")
        ]
        _gated_backward_kernel[(rows, triton.cdiv(width, 1024))](
            gate_NI, up_NI, out_NI, *found, gate_NI.stride(0), up_NI.stride(0), width,
            KIND=ctx.kind, BLOCK=1024, num_warps=4,
        )  # fmt: skip
        return found[0], found[1], None


@triton.jit
def _gated_kernel(
    gate_ptr, up_ptr, out_ptr, gate_row, up_row, width, KIND: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = i < width
    gate = tl.load(gate_ptr + row * gate_row + i, mask=mask, other=0.0)
    up = tl.load(up_ptr + row * up_row + i, mask=mask, other=0.0).to(tl.float32)
    x = gate.to(tl.float32)
    out = x * _share(x, KIND) * up
    tl.store(out_ptr + row * width + i, out.to(gate.dtype), mask=mask)


@triton.jit
def _gated_backward_kernel(
    gate_ptr, up_ptr, gradient_ptr, gate_gradient_ptr, up_gradient_ptr, gate_row, up_row, width,
    KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = i < width
    gate = tl.load(gate_ptr + row * gate_row + i, mask=mask, other=0.0)
    up = tl.load(up_ptr + row * up_row + i, mask=mask, other=0.0).to(tl.float32)
    at = row * width + i
    gradient = tl.load(gradient_ptr + at, mask=mask, other=0.0).to(tl.float32)
    x = gate.to(tl.float32)
    share = _share(x, KIND)
    if KIND == 0:
        slope = share * (1.0 - share)
    elif KIND == 1:
        slope = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    else:
        inner = 1.5957691216057308 * (1.0 + 3.0 * 0.044715 * x * x)
        slope = share * (1.0 - share) * inner
    gate_gradient = gradient * up * (share + x * slope)
    tl.store(gate_gradient_ptr + at, gate_gradient.to(gate.dtype), mask=mask)
    tl.store(up_gradient_ptr + at, (gradient * x * share).to(gate.dtype), mask=mask)


@triton.jit
def _share(x, KIND: tl.constexpr):
    """What an activation is of its input."""
    if KIND == 0:
        share = tl.sigmoid(x)
    elif KIND == 1:
        share = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    else:  # 1 + tanh(y) is twice the logistic function of 2 y
        share = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    return share
