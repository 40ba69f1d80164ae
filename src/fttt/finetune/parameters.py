"""What each fine-tuning method trains, and how its weights are written and read.

LoRA, IA3, layer-norm tuning and prefix tuning are PEFT's; full fine-tuning is the model itself;
bottleneck adapters (:class:`Bottleneck`) are here, since PEFT has none, and are saved in PEFT's
form (``adapter_config.json`` and ``adapter_model.safetensors``).

Axes: D the model's width, R = D / reduction.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fttt.config.run_config import Section
from fttt.config.training_configs import (
    AdapterSettings,
    FinetuneLoRASettings,
    FullSettings,
    IA3Settings,
    LNSettings,
    PrefixSettings,
)
from fttt.engine.states import Mixers
from fttt.errors import UsageError
from fttt.finetune.metadata import model_shape
from fttt.models import without_bars

__all__ = [
    "Bottleneck",
    "add_adapters",
    "calling_peft",
    "count_trained",
    "export",
    "load_adapters",
    "on_meta",
    "prefix_encoder",
    "prepare",
    "read_trained",
    "save_adapters",
    "sublayers",
    "write_trained",
]

TRAINED_FILE = "trained.safetensors"
PUBLISHED_ENCODER = 512
"""Inner width of the published prefix encoder, which made a key for every query head."""


def prepare(model: Any, settings: Section) -> Any:
    """Freeze a model except for the weights that a method trains, which are added if they are new.

    Args:
        model: a ``transformers`` causal language model; it is changed in place.
        settings: the method's.

    Returns:
        The model to train. Trained weights are float32; after full fine-tuning's preparation they
        keep their dtype.

    Raises:
        UsageError: the architecture cannot take the method.
    """
    model.requires_grad_(False)
    if isinstance(settings, FullSettings):
        return model.requires_grad_(True)
    if isinstance(settings, AdapterSettings):
        for adapter in add_adapters(model, settings.reduction, dtype=torch.float32).values():
            adapter.requires_grad_(True)
        return model
    prepared = _with_peft(model, _peft_config(model, settings))
    for parameter in prepared.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return prepared


def on_meta(config: Any, settings: Section) -> Any:
    """A prepared model on the meta device, for counts and checks.

    Raises:
        UsageError: the architecture cannot take the method.
    """
    auto: Any = import_module("transformers").AutoModelForCausalLM
    with torch.device("meta"):
        return prepare(auto.from_config(config), settings)


def count_trained(model: nn.Module) -> int:
    """The number of trained parameters; shared ones count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def prefix_encoder(config: Any, length: int) -> int:
    """The inner width at which a prefix's network has the published number of parameters.

    The published network (width 512) made keys and values for every query head. A model whose
    query heads share key heads needs fewer, so the same number of parameters goes into a wider
    network: 2,051 for the shape of Llama-3.1-8B, 136,592,387 parameters beside 136,618,496.
    """
    shape = model_shape(config)
    whole, own = (n * shape.head_dim for n in (shape.heads, shape.kv_heads))
    published = _encoder_size(whole, shape.layers, length, PUBLISHED_ENCODER)
    fixed = _encoder_size(own, shape.layers, length, 0)
    each = _encoder_size(own, shape.layers, length, 1) - fixed
    return max(1, round((published - fixed) / each))


def _encoder_size(width: int, layers: int, length: int, inner: int) -> int:
    """Parameters of an embedding and two linear layers, with their biases."""
    out = 2 * layers * width
    return length * width + (width + 1) * inner + (inner + 1) * out


def _peft_config(model: Any, settings: Section) -> Any:
    from peft import IA3Config, LNTuningConfig, LoraConfig, PrefixTuningConfig

    if isinstance(settings, FinetuneLoRASettings):
        transposed = _check_targets(model, "lora", settings.targets)
        layers = model_shape(model.config).layers
        first = layers - max(1, round(layers * settings.share))
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type] # any number serves
            lora_dropout=settings.dropout,
            target_modules=list(settings.targets),
            fan_in_fan_out=transposed,
            layers_to_transform=list(range(first, layers)),
        )
    if isinstance(settings, IA3Settings):
        targets = settings.targets + settings.feedforward
        return IA3Config(
            task_type="CAUSAL_LM",
            fan_in_fan_out=_check_targets(model, "ia3", targets),
            target_modules=list(targets),
            feedforward_modules=list(settings.feedforward),
        )
    if isinstance(settings, LNSettings):
        return LNTuningConfig(task_type="CAUSAL_LM", target_modules=_norms(model))
    assert isinstance(settings, PrefixSettings)
    if Mixers(model):
        raise UsageError(
            f"The architecture {model.config.model_type!r} cannot take the method 'prefix': some "
            "of its layers carry a state in place of keys and values; choose another method."
        )
    shape = model_shape(model.config)
    return PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=settings.length,
        prefix_projection=True,
        encoder_hidden_size=settings.encoder or prefix_encoder(model.config, settings.length),
        num_layers=shape.layers,
        token_dim=shape.kv_heads * shape.head_dim,
        num_attention_heads=shape.kv_heads,
    )


def _with_peft(model: Any, config: Any) -> Any:
    from peft import get_peft_model

    try:
        with calling_peft():
            return get_peft_model(model, config)
    except ValueError as error:
        raise UsageError(
            f"The architecture {model.config.model_type!r} cannot take this method: {error}"
        ) from None


@contextmanager
def calling_peft() -> Iterator[None]:
    """Leave out what PEFT warns of and a user cannot mend."""
    with warnings.catch_warnings():
        # norms other than torch's LayerNorm: it copies any module
        warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
        # which PEFT itself asks for by its old name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        yield


def _check_targets(model: Any, method: str, targets: tuple[str, ...]) -> bool:
    """Whether the targets hold their weights transposed, as GPT-2's ``Conv1D`` does.

    Raises:
        UsageError: a target is no projection of the model's layers.
    """
    found = {
        name.rpartition(".")[2]: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and re.search(r"\.\d+\.", name)
    }
    known = sorted(found)
    for target in targets:
        if target not in known:
            raise UsageError(
                f"The architecture {model.config.model_type!r} cannot take the method {method!r} "
                f"on {target!r}: the projections of its layers are {', '.join(known) or 'none'}; "
                "name others with --set targets=."
            )
    return any(isinstance(found[target], Conv1D) for target in targets)


def _norms(model: Any) -> list[str]:
    """The last parts of the names of normalisation modules that have weights."""
    found = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__ and any(True for _ in module.parameters(recurse=False))
    }
    if not found:
        raise UsageError(
            f"The architecture {model.config.model_type!r} cannot take the method 'ln-tuning': "
            "it has no normalisation layers with weights; choose another method."
        )
    return sorted(found)


def export(model: Any, settings: Section, folder: Path, base_model: str, state: Any = None) -> None:
    """Write the trained weights for use: an adapter, or the whole model.

    Args:
        model: as :func:`prepare` returned it.
        settings: the method's.
        folder: an existing folder.
        base_model: the base model's name in the adapter's configuration.
        state: the state dict of a whole model whose weights were sharded.
    """
    if isinstance(settings, AdapterSettings):
        save_adapters(model, folder, base_model, settings.reduction)
        return
    with without_bars():
        if isinstance(settings, FullSettings):
            if state is not None:  # gathered from shards, where tied weights are separate tensors
                tied = model.all_tied_weights_keys
                state = {name: value for name, value in state.items() if name not in tied}
            model.save_pretrained(folder, state_dict=state)
            return
        model.peft_config["default"].base_model_name_or_path = base_model
        # embeddings are never trained; without this PEFT asks the hub whether they were resized
        model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def write_trained(model: nn.Module, folder: Path) -> None:
    """Write the trained weights as they are in training, to resume from."""
    state = {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    save_file(state, folder / TRAINED_FILE)


def read_trained(model: nn.Module, folder: Path) -> None:
    """Load the weights that :func:`write_trained` wrote into a prepared model."""
    state = load_file(folder / TRAINED_FILE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state.pop(name))
    assert not state, f"unknown weights {list(state)[:3]}"


CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PEFT_TYPE = "BOTTLENECK"
CHILD = "bottleneck"
"""The adapter's name within the sublayer that it follows."""


class Bottleneck(nn.Module):
    """A bottleneck adapter, ``h + up(relu(down(h)))``, after a layer's attention or MLP.

    Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", section 2.1: the output of
    a sublayer passes through it before it joins the residual stream. The up-projection starts at
    zero, so that an untrained adapter leaves the model as it is.
    """

    def __init__(self, width: int, inner: int, **factory: Any) -> None:
        """Make an adapter that changes nothing before it is trained.

        Args:
            width: D.
            inner: R.
            factory: ``dtype`` and ``device`` of the weights.
        """
        super().__init__()
        self.down = nn.Linear(width, inner, **factory)
        self.up = nn.Linear(inner, width, **factory)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h_D: Tensor) -> Tensor:
        """Any leading axes; the result has the dtype of the input."""
        changed: Tensor = self.up(torch.relu(self.down(h_D)))
        return h_D + changed.to(h_D.dtype)


def sublayers(model: Any) -> list[tuple[str, nn.Module]]:
    """The attention and MLP modules of a decoder's layers with their full names, in order.

    Raises:
        UsageError: the architecture has no ``self_attn`` and ``mlp`` in its layers.
    """
    found = [
        (f"{name}.{part}", getattr(module, part))
        for name, module in model.named_modules()
        for part in ("self_attn", "mlp")
        if isinstance(getattr(module, "self_attn", None), nn.Module)
        and isinstance(getattr(module, "mlp", None), nn.Module)
    ]
    if not found:
        raise UsageError(
            f"The architecture {model.config.model_type!r} cannot take the method 'adapter': its "
            "layers have no self_attn and mlp to follow; choose full or lora."
        )
    return found


def add_adapters(
    model: Any, reduction: int, *, dtype: torch.dtype | None = None
) -> dict[str, Bottleneck]:
    """Add an adapter after every sublayer of a model, in place.

    Args:
        model: a ``transformers`` causal language model.
        reduction: D / R.
        dtype: dtype of the adapters' weights; by default the model's.

    Returns:
        The adapters by their full module names.
    """
    width = int(model.config.get_text_config().hidden_size)
    if not 1 <= reduction <= width:
        raise UsageError(f"The adapter's reduction must be from 1 to {width}, not {reduction}.")
    added = {}
    for name, sublayer in sublayers(model):
        weight = next(sublayer.parameters())
        adapter = Bottleneck(
            width, width // reduction, dtype=dtype or model.dtype, device=weight.device
        )
        sublayer.add_module(CHILD, adapter)
        sublayer.register_forward_hook(_apply)
        added[f"{name}.{CHILD}"] = adapter
    return added


def _apply(sublayer: Any, _: Any, output: Any) -> Any:
    """A hook: attention returns a tuple that starts with the hidden states, an MLP a tensor."""
    adapter = sublayer.bottleneck
    if isinstance(output, tuple):
        return (adapter(output[0]), *output[1:])
    return adapter(output)


def save_adapters(model: Any, folder: Path, base_model: str, reduction: int) -> None:
    """Write a model's adapters without the model."""
    config = {
        "peft_type": PEFT_TYPE,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "reduction": reduction,
        "non_linearity": "relu",
        "inference_mode": True,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {
        key: value.detach().contiguous()
        for key, value in model.state_dict().items()
        if f".{CHILD}." in key
    }
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load_adapters(model: Any, folder: Path) -> None:
    """Add saved adapters to a model without any, in place.

    Raises:
        UsageError: the folder holds no bottleneck adapters, or adapters of another shape.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        state = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"The adapter in {str(folder)!r} cannot be read: {error}.") from None
    if config.get("peft_type") != PEFT_TYPE:
        raise UsageError(
            f"The folder {str(folder)!r} holds an adapter of type {config.get('peft_type')!r}, "
            f"not {PEFT_TYPE!r}."
        )
    added = add_adapters(model, int(config["reduction"]))
    own = {f"{name}.{key}": p for name, a in added.items() for key, p in a.named_parameters()}
    fits = own.keys() == state.keys() and all(own[k].shape == v.shape for k, v in state.items())
    if not fits:
        raise UsageError(
            f"The adapter in {str(folder)!r} does not fit the model "
            f"{model.name_or_path or model.config.model_type!r}; give the model it was trained on."
        )
    with torch.no_grad():
        for key, value in state.items():
            own[key].copy_(value)
