"""Weights of a question's own, one file a kind."""

from __future__ import annotations

from fttt.engine.adapters.bank import Bank
from fttt.engine.adapters.delta import DeltaBank
from fttt.engine.adapters.lora import LoRABank
from fttt.engine.request import AdapterSpec, LoRASpec, WeightDeltaSpec

__all__ = ["bank_of"]

_BANKS: dict[type[AdapterSpec], type[LoRABank] | type[DeltaBank]] = {
    LoRASpec: LoRABank,
    WeightDeltaSpec: DeltaBank,
}


def bank_of(spec: AdapterSpec) -> type[Bank]:
    """The bank that holds adapters of a spec."""
    return _BANKS[type(spec)]
