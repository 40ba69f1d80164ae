"""Checkpoints in the engine against the models that they were saved from."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fttt.engine import BatchedEngine, GenerateRequest, LoRASpec, Target, TrainRequest
from fttt.errors import UsageError
from fttt.finetune.attach import attach, check_checkpoint, describe_checkpoint, load_finetuned
from fttt.finetune.checkpoint import METHODS, Method
from fttt.models import LoadedModel
from fttt.testing import save_tiny_model, tiny_model

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
    """What the model that was trained writes by its own ``generate``, one prompt at a time."""
    answers = []
    for prompt in PROMPTS:
        ids = torch.tensor([loaded.chat.prompt_ids(prompt)])
        out = model.generate(
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
from fttt.finetune.attach import load_finetuned
from test_attach import greedy
print(json.dumps([greedy(load_finetuned(f, device="cpu")) for f in sys.argv[1:]]))
"""


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
            trained = await engine.train(TrainRequest(slot, context, (target,)))
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


def test_what_does_not_belong_together_is_refused_by_name(make_checkpoint: Make) -> None:
    tuned = make_checkpoint("lora")
    other = save_tiny_model(tuned.base.parent / "another", "llama")
    assert load_finetuned(tuned.folder, model=str(other)).name == "another"  # a copy of it
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(UsageError, match="'tiny-llama' and cannot be used with 'another'"):
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
    monkeypatch.setattr("fttt.finetune.attach.find_spec", lambda name: None)
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
