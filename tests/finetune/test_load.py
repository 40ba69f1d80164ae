"""Checkpoints in the engine against the models they were saved from, in float32 and bfloat16."""

import asyncio
import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from fttt.config import SETTINGS, build
from fttt.engine import (
    AdapterSpec,
    BatchedEngine,
    GenerateRequest,
    Lesson,
    LoRASpec,
    Target,
    TrainRequest,
    WeightDeltaSpec,
)
from fttt.engine.adapters.delta import Factors
from fttt.engine.adapters.lora import target_layers
from fttt.engine.batch import cache_keyword
from fttt.engine.linear import linear_replacements
from fttt.errors import UsageError
from fttt.finetune.load import (
    TwoPartLinear,
    attach,
    check_checkpoint,
    describe_checkpoint,
    load_finetuned,
)
from fttt.finetune.metadata import METHODS, FinetuneInfo, Method, model_shape, write_info
from fttt.finetune.packing import PackedPasses, SampleGroup
from fttt.finetune.parameters import export, prepare
from fttt.models import LoadedModel, load_model
from fttt.testing import save_tiny_model, tiny_model
from fttt.training import GoldExample

PROMPTS = ("Hello", "What is 2 + 2?", "A rather longer question, with more words in it.")
Make = Any


def greedy(loaded: LoadedModel, tokens: int = 24) -> list[tuple[int, ...]]:
    async def main() -> list[tuple[int, ...]]:
        engine = BatchedEngine(loaded, max_length=128, batch_size=2, concurrency=3)
        requests = [
            GenerateRequest(loaded.chat.prompt_ids(p), tokens, stop_ids=loaded.stop_ids)
            for p in PROMPTS
        ]
        try:
            return [a.token_ids for a in await asyncio.gather(*map(engine.generate, requests))]
        finally:
            await engine.close()

    return asyncio.run(main())


def own_greedy(model: Any, loaded: LoadedModel, tokens: int = 24) -> list[tuple[int, ...]]:
    """What the model that was trained writes by its own ``generate``, one prompt at a time.

    After a prefix by the one inside it, since PEFT 0.21's drops the prefix under transformers 5.24.
    """
    answers = []
    for prompt in PROMPTS:
        before, more, inner = (), {}, model
        if (
            getattr(model, "active_peft_config", None)
            and model.active_peft_config.is_prompt_learning
        ):
            before, inner = (0,) * model.active_peft_config.num_virtual_tokens, model.base_model
            more = {cache_keyword(inner.forward): model.get_prompt(1)}
        ids = torch.tensor([before + loaded.chat.prompt_ids(prompt)])
        out = inner.generate(
            **more,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=tokens,
            pad_token_id=0,
            eos_token_id=list(loaded.stop_ids),
        )
        answers.append(tuple(out[0, ids.shape[1] :].tolist()))
    return answers


@pytest.mark.parametrize("family", ["llama", "qwen", "gemma3"])
@pytest.mark.parametrize("method", METHODS)
def test_the_engine_writes_what_the_trained_model_writes(
    make_checkpoint: Make, method: Method, family: str
) -> None:
    tuned = make_checkpoint(method, family)
    expected = own_greedy(tuned.model, tuned.loaded)
    before = greedy(tuned.loaded)
    loaded = load_finetuned(tuned.folder, device="cpu", dtype="float32")
    assert greedy(loaded) == expected
    if family != "gemma3":  # whose tied head makes it repeat itself
        assert expected != before
    assert loaded.name == tuned.loaded.name
    assert loaded.adapter is not None
    assert loaded.adapter["method"] == method
    taken = loaded.prefix.length if loaded.prefix else 0
    assert (taken > 0) is (method == "prefix")
    assert loaded.max_context == tuned.loaded.max_context - taken
    assert not any(p.requires_grad for p in loaded.model.parameters())


SCRIPT = """
import json, sys
from fttt.finetune.load import load_finetuned
from test_load import greedy
print(json.dumps([greedy(load_finetuned(f, device="cpu")) for f in sys.argv[1:]]))
"""


@pytest.mark.slow
def test_a_fresh_process_writes_the_same(make_checkpoint: Make) -> None:
    tuned = [make_checkpoint(method) for method in METHODS]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *(str(t.folder) for t in tuned)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=True,
    )
    written = [[tuple(ids) for ids in answers] for answers in json.loads(done.stdout)]
    assert written == [own_greedy(t.model, t.loaded) for t in tuned]


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")  # by PEFT, of its prefix
@pytest.mark.parametrize("method", METHODS)
def test_fttt_trains_on_top_kept_and_replayed(make_checkpoint: Make, method: Method) -> None:
    tuned = make_checkpoint(method)
    loaded = attach(tuned.loaded, tuned.folder)
    spec = LoRASpec(lr=1e-2)
    prompt = loaded.chat.prompt_ids("What is 2 + 2?")
    turn = loaded.chat.turn_ids("Your answer is incorrect.", answer=False)
    target = Target(turn, (1 / len(turn),) * len(turn))

    async def main(*, kept: bool) -> list[tuple[tuple[int, ...], float]]:
        engine = BatchedEngine(loaded, max_length=128, batch_size=1, concurrency=1, adapter=spec)
        slot = await engine.open_adapter(spec, seed=1)
        seen = []
        for _ in range(3):
            answer = await engine.generate(GenerateRequest(prompt, 9, adapter=slot, keep=True))
            assert answer.kept is not None
            context: Any = answer.kept
            if not kept:
                answer.kept.close()
                context = prompt + answer.token_ids
            trained = await engine.train(TrainRequest(slot, (Lesson(context, (target,)),)))
            seen.append((answer.token_ids, trained.loss))
        await engine.close()
        return seen

    kept, replayed = asyncio.run(main(kept=True)), asyncio.run(main(kept=False))
    assert [ids for ids, _ in kept] == [ids for ids, _ in replayed]
    assert [loss for _, loss in kept] == pytest.approx([loss for _, loss in replayed], rel=1e-4)
    context = torch.tensor([prompt + kept[0][0] + turn])
    with torch.no_grad():
        logits = tuned.model(input_ids=context, attention_mask=torch.ones_like(context)).logits[0]
    start = len(prompt) + len(kept[0][0])
    expected = torch.nn.functional.cross_entropy(logits[start - 1 : -1], context[0, start:])
    assert kept[0][1] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "ia3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gpt2_whose_weights_are_transposed_is_trained_and_merged(
    method: Method, dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=272, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=None,
        eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    base = GPT2LMHeadModel(config).eval().requires_grad_(False).to(dtype)
    targets = {"targets": ["c_attn"]}
    values: Any = targets if method == "lora" else {**targets, "feedforward": ["c_proj"]}
    settings = build(SETTINGS[method], values, "the test")
    model = prepare(copy.deepcopy(base), settings)
    group = SampleGroup((GoldExample("a", (5, 6, 7), (8, 9, 2)),))
    with PackedPasses(model, dtype=dtype) as packed:
        group.loss(packed(model, group)).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    for parameter in trained:
        parameter.data += 0.1 * torch.randn(parameter.shape)
    export(model, settings, tmp_path, "gpt2")
    info = FinetuneInfo(
        method=method, model="gpt2", base_model="gpt2", architecture=model_shape(config),
        task="arithmetic", seed=42, settings=values, step=1, epoch=1.0, trained_parameters=1,
        trained_tokens=1, tokens=1, seconds=1.0,
    )  # fmt: skip
    write_info(tmp_path, info)
    loaded = attach(replace(tiny_model(), name="gpt2", model=base), tmp_path)
    ids = torch.randint(3, 259, (2, 20))
    expected = model.eval().float()(input_ids=ids).logits
    found = loaded.model(input_ids=ids).logits.float()
    far = 1e-4 if dtype == torch.float32 else 0.5  # of bfloat16's activations
    torch.testing.assert_close(found, expected, rtol=0, atol=far)
    assert loaded.adapter is not None
    assert loaded.adapter["change_kept"] == pytest.approx(1, abs=1e-4)


def test_what_does_not_belong_together_is_refused_by_name(make_checkpoint: Make) -> None:
    tuned = make_checkpoint("lora")
    other = save_tiny_model(tuned.base.parent / "another", "llama")
    assert load_finetuned(tuned.folder, model=str(other)).name == "another"  # a copy of it
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(UsageError, match=r"tiny-llama' and cannot be used with '.*another', which"):
        check_checkpoint(tuned.folder, str(other))
    wider = save_tiny_model(tuned.base.parent / "wide" / "tiny-llama", "llama", layers=3)
    with pytest.raises(UsageError, match=r"layers 2, but the model .*tiny-llama' has 3"):
        check_checkpoint(tuned.folder, str(wider))
    with pytest.raises(UsageError, match="cannot be used with 'tiny-qwen'"):
        attach(tiny_model("qwen"), tuned.folder)
    with pytest.raises(UsageError, match="already"):
        attach(attach(tiny_model(), tuned.folder), tuned.folder)


def test_without_peft_the_package_is_named(
    make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora, own = make_checkpoint("lora"), make_checkpoint("adapter")
    monkeypatch.setattr("fttt.finetune.load.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'fttt\[train\]'"):
        check_checkpoint(lora.folder, str(lora.base))
    check_checkpoint(own.folder, str(own.base))  # which is our own


def test_a_broken_folder_is_refused(make_checkpoint: Make) -> None:
    tuned = make_checkpoint("lora")
    before = describe_checkpoint(tuned.folder)["fingerprint"]
    weights = tuned.folder / "adapter_model.safetensors"
    state = load_file(weights)
    save_file({k: v for k, v in state.items() if "v_proj" not in k}, weights)
    assert describe_checkpoint(tuned.folder)["fingerprint"] != before
    with pytest.raises(UsageError, match="missing adapter keys"):
        attach(tiny_model(), tuned.folder)
    weights.write_bytes(b"nothing")
    with pytest.raises(UsageError, match="is broken: adapter_model"):
        attach(tiny_model(), tuned.folder)
    weights.rename(tuned.folder / "adapter_model.bin")
    with pytest.raises(UsageError, match=r"no adapter_model\.safetensors"):
        attach(tiny_model(), tuned.folder)
    prefix = make_checkpoint("prefix")
    (prefix.folder / "finetune.json").write_text(
        (tuned.folder / "finetune.json").read_text()
    )  # a kind that the weights are not
    with pytest.raises(UsageError, match="'PREFIX_TUNING'"):
        check_checkpoint(prefix.folder, str(prefix.base))


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
    stood_in = {id(layer) for layer, _, _ in linear_replacements(loaded.model)}
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
            request = TrainRequest(slot, (Lesson(prompt, (target,)),))
            found = [(await engine.train(request)).loss for _ in range(4)]
            await engine.close()
            return found

        return asyncio.run(main())

    exact = losses(attach(widened(), tuned.folder))
    assert exact[-1] < 0.99 * exact[0]
    assert losses(attach(halved(), tuned.folder)) == pytest.approx(exact, rel=5e-3)


def test_beside_a_quantised_base_it_is_what_peft_computes(make_checkpoint: Make) -> None:
    pytest.importorskip("bitsandbytes", reason="quantises: pip install 'fttt[quantized]'")
    tuned = make_checkpoint("lora")
    loaded = load_finetuned(tuned.folder, device="cpu", quantize="nf4")
    assert loaded.quantized == "nf4"
    base = load_model(str(tuned.base), device="cpu", quantize="nf4").model
    alone = PeftModel.from_pretrained(base, tuned.folder).eval()
    ids = torch.tensor([loaded.chat.prompt_ids(PROMPTS[2])])
    with torch.no_grad():
        right, got, without = (m(ids).logits for m in (alone, loaded.model, tuned.loaded.model))
    torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)
    assert (got - without).abs().max() > 0.5
    assert greedy(loaded) == own_greedy(alone, loaded)
    learns_on = asyncio.run(_losses(loaded))
    assert learns_on[-1] < learns_on[0]


async def _losses(loaded: LoadedModel) -> list[float]:
    """Of three steps of a question's own weights on top."""
    spec = LoRASpec(dropout=0.0, lr=1e-2)
    engine = BatchedEngine(loaded, max_length=128, adapter=spec)
    try:
        slot = await engine.open_adapter(spec, seed=0)
        lesson = Lesson(loaded.chat.prompt_ids(PROMPTS[0]), (Target((70, 80), (0.5, 0.5)),))
        return [(await engine.train(TrainRequest(slot, (lesson,)))).loss for _ in range(3)]
    finally:
        await engine.close()


def test_scales_of_a_quantised_base_are_refused_by_name(make_checkpoint: Make) -> None:
    pytest.importorskip("bitsandbytes", reason="quantises: pip install 'fttt[quantized]'")
    tuned = make_checkpoint("ia3")
    with pytest.raises(UsageError, match="'ia3' scales a base model's weights"):
        check_checkpoint(tuned.folder, str(tuned.base), "nf4")


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
            architecture=model_shape(base.model.config), settings={}, step=1, epoch=1.0,
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
