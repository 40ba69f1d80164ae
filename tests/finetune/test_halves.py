"""Checkpoints in bfloat16: what was trained is there, however small it is."""

import asyncio
import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fttt.config import SETTINGS, build
from fttt.engine import (
    AdapterSpec,
    BatchedEngine,
    GenerateRequest,
    LoRASpec,
    Target,
    TrainRequest,
    WeightDeltaSpec,
)
from fttt.engine.adapters import target_layers
from fttt.engine.factors import Factors
from fttt.engine.narrow import narrow_linears
from fttt.finetune.attach import attach
from fttt.finetune.checkpoint import FinetuneInfo, Method, architecture, write_info
from fttt.finetune.halves import TwoPartLinear
from fttt.finetune.methods import export, prepare
from fttt.models import LoadedModel, load_model
from fttt.testing import tiny_model

Make = Any
MERGED: tuple[Method, ...] = ("lora", "ia3", "ln-tuning")
QV = tuple(f"model.layers.1.self_attn.{name}_proj" for name in "qv")


def halved(family: str = "llama") -> LoadedModel:
    """The tiny model in bfloat16, its buffers as ``transformers`` loads them."""
    loaded = tiny_model(family)
    for parameter in loaded.model.parameters():
        parameter.data = parameter.data.bfloat16()
    return replace(loaded, dtype="bfloat16")


def widened(family: str = "llama") -> LoadedModel:
    """The numbers of half precision in float32, where a merge is exact."""
    loaded = halved(family)
    for parameter in loaded.model.parameters():
        parameter.data = parameter.data.float()
    return replace(loaded, dtype="float32")


def rounded(loaded: LoadedModel, like: LoadedModel) -> LoadedModel:
    """A plain merge: the weights of a merge in float32, rounded."""
    weights = dict(loaded.model.named_parameters())
    for name, parameter in like.model.named_parameters():
        parameter.data = weights[name].bfloat16()
    return like


@torch.no_grad()
def scores(model: Any, sequences: int = 64, tokens: int = 32) -> Tensor:
    """Log-probabilities of what follows random tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 259, (sequences, tokens), generator=generator)
    return model(input_ids=ids).logits.double().log_softmax(-1)


def kept(made: Tensor, wanted: Tensor) -> float:
    """The projection of one change on the other."""
    return float((made * wanted).sum() / (wanted * wanted).sum())


@pytest.mark.parametrize("bias", [None, 8.0])
def test_a_product_keeps_what_its_weights_or_its_output_would_lose(bias: float | None) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(96, 64, bias=bias is not None).requires_grad_(False).bfloat16()
    if bias is not None:
        plain.bias.fill_(bias)
    x = torch.randn(4, 128, 96).bfloat16().requires_grad_()
    exact = nn.Linear(96, 64, bias=bias is not None).requires_grad_(False)
    exact.load_state_dict(plain.state_dict())
    before = exact(x.double().float())
    for parameter in exact.parameters():
        parameter *= 1.001
    assert all(
        torch.equal(p.bfloat16(), q)
        for p, q in zip(exact.parameters(), plain.parameters(), strict=True)
    )
    rough, truth = plain(x), exact(x.float())
    assert torch.equal((rough.float() * 1.001).bfloat16(), rough)  # as PEFT's IA3 would run
    layer = TwoPartLinear(exact, torch.bfloat16)
    out = layer(x)
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous()
    made = (out.double() - rough.double()).detach()
    assert kept(made, (truth - before).detach()) == pytest.approx(1, abs=0.15)
    assert (out - truth).norm() < 1.05 * (rough - before).norm()
    for key, numbers in layer.numbers().items():
        assert torch.allclose(numbers, exact.get_parameter(key), rtol=2**-15, atol=0)
    weight = torch.randn_like(truth)
    (own,) = torch.autograd.grad((out * weight).sum(), x)
    (expected,) = torch.autograd.grad((truth * weight).sum(), x)
    assert (own.float() - expected.float()).norm() < 0.01 * expected.float().norm()


@pytest.mark.parametrize("family", ["llama", "qwen"])
@pytest.mark.parametrize("method", ["ia3", "ln-tuning"])
def test_a_change_that_a_merge_loses_wholly_reaches_the_logits(
    make_checkpoint: Make, method: Method, family: str
) -> None:
    tuned = make_checkpoint(method, family)
    file = tuned.folder / "adapter_model.safetensors"
    save_file({k: torch.full_like(v, 1.001) for k, v in load_file(file).items()}, file)
    exact, loaded = (attach(m(family), tuned.folder) for m in (widened, halved))
    merged = rounded(exact, halved(family))
    before = scores(halved(family).model)
    wanted = scores(exact.model) - scores(widened(family).model)
    assert kept(scores(merged.model) - before, wanted) == 0
    assert kept(scores(loaded.model) - before, wanted) == pytest.approx(1, abs=0.4)


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
@pytest.mark.parametrize("family", ["llama", "qwen", "gemma3"])
@pytest.mark.parametrize("method", MERGED)
def test_in_bfloat16_it_is_the_trained_model_but_for_rounding(
    make_checkpoint: Make, method: Method, family: str
) -> None:
    tuned = make_checkpoint(method, family)
    loaded = attach(halved(family), tuned.folder)
    truth = scores(attach(widened(family), tuned.folder).model)
    # PEFT's own norms, in float32, do not run in a model of bfloat16
    base = halved(family)
    with torch.autocast("cpu", torch.bfloat16, enabled=method == "ln-tuning"):
        theirs = scores(PeftModel.from_pretrained(base.model, tuned.folder).eval())
    ours = scores(loaded.model)
    rounding = (theirs - truth).norm()
    change = (truth - scores(widened(family).model)).norm()
    assert (ours - truth).norm() < 1.1 * rounding < 0.3 * change
    assert (ours - theirs).norm() < 2 * rounding
    assert loaded.adapter is not None
    assert loaded.adapter["change_kept"] == pytest.approx(1, abs=1e-3)
    assert all(b.dtype == torch.float32 for b in loaded.model.buffers() if b.is_floating_point())


def test_only_what_was_trained_is_in_two_parts_and_is_found_by_its_name(
    make_checkpoint: Make,
) -> None:
    tuned = make_checkpoint("lora")
    loaded = attach(halved(), tuned.folder)
    found = target_layers(loaded.model, LoRASpec(targets=("q_proj", "v_proj", "o_proj")))
    parted = {name for name, layer in found.items() if isinstance(layer, TwoPartLinear)}
    assert parted == set(QV)  # of the last quarter of the layers, the last one of two
    assert {name: layer.weight.shape for name, layer in found.items()} == {
        name: layer.weight.shape
        for name, layer in target_layers(
            tiny_model().model, LoRASpec(targets=("q_proj", "v_proj", "o_proj"))
        ).items()
    }
    stood_in = {id(layer) for layer, _, _ in narrow_linears(loaded.model)}
    assert all((id(found[name]) in stood_in) == (name not in parted) for name in found)
    exact = attach(tiny_model(), tuned.folder)
    assert not any(isinstance(m, TwoPartLinear) for m in exact.model.modules())


@pytest.mark.parametrize("method", MERGED)
def test_the_engine_writes_what_the_trained_model_prefers(
    make_checkpoint: Make, method: Method
) -> None:
    tuned = make_checkpoint(method)
    loaded = attach(halved(), tuned.folder)
    exact = attach(widened(), tuned.folder).model

    async def write(loaded: LoadedModel) -> list[tuple[int, ...]]:
        engine = BatchedEngine(loaded, max_length=128, batch_size=2, concurrency=3)
        prompts = [loaded.chat.prompt_ids("What is 2 + 2?" * n) for n in (1, 2, 3)]
        requests = [GenerateRequest(p, 24, stop_ids=loaded.stop_ids) for p in prompts]
        answers = await asyncio.gather(*map(engine.generate, requests))
        await engine.close()
        return [p + a.token_ids for p, a in zip(prompts, answers, strict=True)]

    def behind(written: list[tuple[int, ...]]) -> float:
        """By how many nats the exact model prefers its own token to a written one, at most."""
        most = 0.0
        for ids in written:
            with torch.no_grad():
                logits_TV = exact(input_ids=torch.tensor([ids])).logits[0, :-1]
            chosen_T = logits_TV.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            most = max(most, float((logits_TV.amax(1) - chosen_T)[-24:].max()))
        return most

    assert behind(asyncio.run(write(loaded))) < 0.5
    assert behind(asyncio.run(write(halved()))) > 2


def uphill(factors: Factors) -> dict[str, Tensor]:
    """A change of some size along the gradient's signs, turned round."""
    own = [factors.segment_N == q for q in range(factors.examples)]
    return {
        name: torch.stack(
            [-0.02 * (delta_NO[n].T @ factors.x_NI[name][n].float()).sign() for n in own]
        )
        for name, delta_NO in factors.delta_NO.items()
    }


@pytest.mark.parametrize("method", MERGED)
@pytest.mark.parametrize(
    "spec", [LoRASpec(lr=1e-2), WeightDeltaSpec(QV, uphill, True, "test")], ids=["fttt", "optune"]
)
def test_what_learns_on_top_learns_as_in_float32(
    make_checkpoint: Make, method: Method, spec: AdapterSpec
) -> None:
    tuned = make_checkpoint(method)

    def losses(loaded: LoadedModel) -> list[float]:
        prompt = loaded.chat.prompt_ids("What is 2 + 2?")
        turn = loaded.chat.turn_ids("Your answer is incorrect.", answer=False)
        target = Target(turn, (1 / len(turn),) * len(turn))

        async def main() -> list[float]:
            engine = BatchedEngine(loaded, max_length=128, concurrency=1, adapter=spec)
            slot = await engine.open_adapter(spec, seed=1)
            request = TrainRequest(slot, prompt, (target,))
            found = [(await engine.train(request)).loss for _ in range(4)]
            await engine.close()
            return found

        return asyncio.run(main())

    exact = losses(attach(widened(), tuned.folder))
    assert exact[-1] < 0.99 * exact[0]
    assert losses(attach(halved(), tuned.folder)) == pytest.approx(exact, rel=5e-3)


def test_a_gguf_model_keeps_it_too(tmp_path: Path) -> None:
    base = load_model("smollm2-135m", dtype="bfloat16", device="cpu")
    plain = copy.deepcopy(base.model.model.layers[-1].mlp.down_proj)
    model: Any = prepare(base.model, build(SETTINGS["ia3"], {}, "the test"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.fill_(1.001)
    export(model, build(SETTINGS["ia3"], {}, "the test"), tmp_path, base.name)
    write_info(
        tmp_path,
        FinetuneInfo(
            method="ia3", model=base.name, base_model=base.name, task="gsm8k", seed=42,
            architecture=architecture(base.model.config), settings={}, step=1, epoch=1.0,
            trained_parameters=1, trained_tokens=1, tokens=1, seconds=1.0,
        ),
    )  # fmt: skip
    loaded = attach(replace(base, model=model.unload()), tmp_path)
    assert loaded.adapter is not None
    assert loaded.adapter["change_kept"] == pytest.approx(1, abs=1e-3)
    layer: Any = loaded.model.model.layers[-1].mlp.down_proj
    x = torch.randn(64, layer.in_features).bfloat16()
    before = plain(x).double()
    assert kept(layer(x).double() - before, 0.001 * before) == pytest.approx(1, abs=0.15)
