"""Models whose linear layers are held in 8 or 4 bits, by the libraries that made them so.

``--quantize`` quantises the weights of a checkpoint as they are read, by ``bitsandbytes``: int8
(one scale an output; Dettmers et al. 2022, arXiv 2208.07339), nf4 and fp4 (blocks of 64 numbers,
whose scales are quantised as well; QLoRA, arXiv 2305.14314). A checkpoint that is quantised already
is loaded by the library that its ``config.json`` names.

Only the weights are quantised: each product is taken in the model's dtype, with the weights
dequantised, so that a row's output is its own whoever shares the pass, and its gradient is that of
the same product. ``bitsandbytes`` would do otherwise in two places, which :func:`settle_layers`
changes: its 8-bit layers round their inputs too, with columns left out by what all rows of a pass
hold, and its 4-bit layers on a CPU with bfloat16 instructions take another layout of the weights,
through which no gradient comes back.

Axes: O outputs and I inputs of a layer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fttt.errors import UsageError
from fttt.types import Quantize

__all__ = [
    "SCHEMES",
    "check_quantized",
    "describe_quantized",
    "held_bytes",
    "is_plain",
    "library_config",
    "quantized_by",
    "quantized_layers",
    "settle_layers",
    "stored_tensors",
    "wanted",
]

SCHEMES = tuple(scheme for scheme in get_args(Quantize) if scheme != "none")

_LIBRARIES = {
    "bitsandbytes": ("bitsandbytes", "'fttt[quantized]'"),
    "torchao": ("torchao", "torchao"),
    "gptq": ("gptqmodel", "gptqmodel optimum"),
    "awq": ("gptqmodel", "gptqmodel optimum"),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
    "hqq": ("hqq", "hqq"),
    "quanto": ("optimum", "optimum-quanto"),
    "aqlm": ("aqlm", "'aqlm[gpu,cpu]'"),
    "auto-round": ("auto_round", "auto-round"),
    "vptq": ("vptq", "vptq"),
}
"""By a checkpoint's ``quant_method``: the module that reads it, and what installs that."""

for _name in (
    "bitsandbytes",
    "torchao",
    "torch.utils._pytree",
):  # which tell on import what this machine could do better
    logging.getLogger(_name).setLevel(logging.ERROR)


def check_quantized(
    name: str, scheme: str | None, *, gguf: bool = False, config: Mapping[str, Any] | None = None
) -> None:
    """Refuse a model that cannot be quantised so, or whose own quantisation nothing here reads.

    Args:
        name: of the model.
        scheme: what was asked for; ``None``: the model as it is.
        gguf: whether it is a GGUF file.
        config: its ``config.json``, where that is known.

    Raises:
        UsageError: a scheme that does not exist or fit, or a library that is not installed.
    """
    if scheme is not None and scheme not in get_args(Quantize):
        raise UsageError(
            f"--quantize cannot be {scheme!r}; it should be {', '.join(SCHEMES)} or none (4 bits "
            "are nf4)."
        )
    if gguf and wanted(scheme):
        raise UsageError(
            f"--quantize {scheme} is for checkpoints in full precision, and {name!r} is a GGUF "
            "file, whose tensors are dequantised as they are read; give the hub name or the "
            "folder of the model that it was made from, or leave --quantize away."
        )
    method = quantized_by(config or {})
    if method is None:
        if wanted(scheme):
            _need(*_LIBRARIES["bitsandbytes"], f"--quantize {scheme}")
        return
    if scheme is not None:
        undone = "does not undo it" if scheme == "none" else "is not possible"
        raise UsageError(
            f"The model {name!r} is quantised already ({method}, by its config.json), and "
            f"--quantize {scheme} {undone}; leave it away, or give the model in full precision."
        )
    if method in _LIBRARIES:
        _need(*_LIBRARIES[method], f"The model {name!r}, which is quantised ({method}),")


def wanted(scheme: str | None) -> bool:
    """Whether weights are quantised as they are read."""
    return scheme not in (None, "none")


def _need(module: str, requirement: str, what: str) -> None:
    for package in (module, "accelerate"):
        if find_spec(package) is None:
            wanted = requirement if package == module else f"accelerate {requirement}"
            raise UsageError(
                f"{what} needs the package {package.replace('_', '-')!r}, which is not installed; "
                f"run: pip install {wanted}"
            )


def quantized_by(config: Mapping[str, Any]) -> str | None:
    """The method that a ``config.json`` says its weights are quantised by, if any."""
    found = config.get("quantization_config")
    if not found:
        return None
    found = found if isinstance(found, Mapping) else found.to_dict()
    method = found.get("quant_method")
    if method is None and (found.get("load_in_4bit") or found.get("load_in_8bit")):
        return "bitsandbytes"  # as older versions wrote it
    return str(getattr(method, "value", method))


def describe_quantized(model: Any, scheme: str | None) -> str | None:
    """How a loaded model's weights are quantised, in a word or two; ``None`` where they are not."""
    if wanted(scheme):
        return scheme
    method = quantized_by(vars(model.config))
    if method is None or next(quantized_layers(model), None) is None:
        return None  # some are dequantised as they are loaded
    if method != "bitsandbytes":
        return method
    own = model.config.quantization_config
    given = own if isinstance(own, Mapping) else own.to_dict()
    return "int8" if given.get("load_in_8bit") else str(given.get("bnb_4bit_quant_type", "fp4"))


def library_config(scheme: str, dtype: torch.dtype) -> Any:
    """What ``transformers`` quantises by.

    Args:
        scheme: one of :data:`SCHEMES`.
        dtype: of the products.
    """
    config: Any = import_module("transformers").BitsAndBytesConfig
    if scheme == "int8":
        return config(load_in_8bit=True)
    return config(
        load_in_4bit=True,
        bnb_4bit_quant_type=scheme,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
    )


def settle_layers(model: nn.Module, dtype: torch.dtype) -> None:
    """Let all layers of ``bitsandbytes`` take their products in ``dtype``, each row for itself.

    Args:
        model: as it was loaded; it is changed in place.
        dtype: the model's.
    """
    for layer in quantized_layers(model):
        own: Any = layer
        if _is(layer, "Linear4bit"):
            own.compute_dtype, own.compute_type_is_set = dtype, True
            own.support_avx512bf16_for_cpu = False
        elif _is(layer, "Linear8bitLt"):
            own.__class__ = _weight_only(type(own))  # type: ignore[arg-type] # a class has a hash


def _is(layer: nn.Module, name: str) -> bool:
    """Whether a layer is of that class of ``bitsandbytes``, which need not be installed."""
    return any(
        kind.__name__ == name and kind.__module__.startswith("bitsandbytes.")
        for kind in type(layer).__mro__
    )


@cache
def _weight_only(kind: type[Any]) -> type[Any]:
    """A class of 8-bit layers, with the product of the input and the dequantised weights."""

    def forward(layer: Any, x: Tensor) -> Tensor:
        weight = layer.weight
        scale_O = weight.SCB if weight.SCB is not None else layer.state.SCB
        out: Tensor = _Product.apply(x, weight.data, scale_O)  # type: ignore[no-untyped-call]
        return out if layer.bias is None else out + layer.bias.to(out.dtype)

    return type(f"WeightOnly{kind.__name__}", (kind,), {"forward": forward})


class _Product(torch.autograd.Function):
    """``x @ weightᵀ`` of 8-bit weights, which are dequantised again for the gradient, not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, scale_O: Tensor) -> Tensor:
        ctx.save_for_backward(weight_OI, scale_O)
        return F.linear(x, _dequantized(weight_OI, scale_O, x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        weight_OI, scale_O = ctx.saved_tensors
        return grad @ _dequantized(weight_OI, scale_O, grad.dtype), None, None


def _dequantized(weight_OI: Tensor, scale_O: Tensor, dtype: torch.dtype) -> Tensor:
    whole_OI = torch.empty_like(weight_OI, dtype=dtype)
    return torch.mul(weight_OI, scale_O[:, None] / 127, out=whole_OI)


def is_plain(layer: nn.Module) -> bool:
    """Whether a module is torch's own linear layer, with weights that are plain numbers."""
    return type(layer) is nn.Linear and type(layer.weight) is nn.Parameter


def quantized_layers(model: nn.Module) -> Iterator[nn.Linear]:
    """The linear layers whose weights are not plain floating-point numbers."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight: Any = getattr(module, "weight", None)
            plain = type(weight) in (nn.Parameter, Tensor) and weight.is_floating_point()
            if not plain:
                yield module


def stored_tensors(number: Any) -> Iterator[Tensor]:
    """The tensors that hold a parameter: itself, or packed weights and their scales."""
    if hasattr(number, "__tensor_flatten__"):  # torch's protocol of tensors made of others
        for name in number.__tensor_flatten__()[0]:
            yield from stored_tensors(getattr(number, name))
        return
    yield number
    scale = getattr(number, "SCB", None)
    if scale is not None:
        yield scale
    state = getattr(number, "quant_state", None)
    while state is not None:  # the scales may be quantised as well
        yield from (t for t in (state.absmax, state.offset) if isinstance(t, Tensor))
        state = state.state2


def held_bytes(model: nn.Module) -> int:
    """What a model's weights take, packed as they are."""
    return sum(t.numel() * t.element_size() for p in model.parameters() for t in stored_tensors(p))
