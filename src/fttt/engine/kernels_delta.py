"""A Triton kernel for changes of weights in a decode step; see :mod:`fttt.engine.deltas`.

Each running sequence has a matrix of its own, so the step is bound by reading them: they are read
where they lie, each once, and not at all where a lane runs the base model.

Axes: N lanes, I inputs and O outputs of a layer, S slots.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["add_delta"]

_OUTPUTS, _INPUTS = 16, 512
"""The block of a matrix that a program reads at once."""


def add_delta(x_NI: Tensor, out_NO: Tensor, delta_SOI: Tensor, slot_N: Tensor) -> None:
    """Add ``ΔW x`` to each lane's output in place, by the lane's slot; a slot of -1 adds nothing.

    Slots are read on the device, so that a captured graph can be replayed with others.
    """
    (lanes, inputs), outputs = x_NI.shape, out_NO.shape[1]
    _delta_kernel[(triton.cdiv(outputs, _OUTPUTS), lanes)](
        x_NI, out_NO, delta_SOI, slot_N, x_NI.stride(0), out_NO.stride(0), delta_SOI.stride(0),
        inputs, outputs,
        OUTPUTS=_OUTPUTS, INPUTS=min(_INPUTS, triton.next_power_of_2(inputs)), num_warps=4,
    )  # fmt: skip


@triton.jit
def _delta_kernel(
    x_ptr, out_ptr, delta_ptr, slot_ptr, x_row, out_row, slot_stride, inputs, outputs,
    OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(1)
    slot = tl.load(slot_ptr + lane).to(tl.int64)
    if slot >= 0:
        o = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
        in_o = o < outputs
        base = delta_ptr + slot * slot_stride + o.to(tl.int64)[:, None] * inputs
        total = tl.zeros([OUTPUTS, INPUTS], tl.float32)
        for start in range(0, inputs, INPUTS):
            i = start + tl.arange(0, INPUTS)
            in_i = i < inputs
            x = tl.load(x_ptr + lane * x_row + i, mask=in_i, other=0.0).to(tl.float32)
            delta = tl.load(
                base + i[None, :], mask=in_o[:, None] & in_i[None, :], other=0.0
            ).to(tl.float32)  # fmt: skip
            total += delta * x[None, :]
        at = out_ptr + lane * out_row + o
        old = tl.load(at, mask=in_o, other=0.0)
        new = old.to(tl.float32) + tl.sum(total, 1)
        tl.store(at, new.to(old.dtype), mask=in_o)
