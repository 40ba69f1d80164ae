"""The public fakes: tiny models that generate, and an engine that follows its script."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from fttt.engine.request import GenerateRequest, Lesson, LoRASpec, Target, TrainRequest
from fttt.methods import MethodSettings, find_method
from fttt.models import load_model
from fttt.testing import FakeEngine, play, save_tiny_model, tiny_model, tiny_tokenizer

FAMILIES = ["llama", "mistral", "qwen", "qwen3", "gemma", "gemma2", "gemma3"]


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_are_seeded_and_run(family: str) -> None:
    one, same, other = (tiny_model(family, seed=seed) for seed in (1, 1, 2))
    ids = torch.tensor([one.chat.prompt_ids("Hi")])
    with torch.no_grad():
        logits = [loaded.model(ids).logits for loaded in (one, same, other)]
    assert logits[0].shape == (1, ids.shape[1], 272)
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


def test_the_tokenizer_keeps_every_text() -> None:
    tokenizer = tiny_tokenizer()
    text = "Zwölf\n\n  Δ 12<|im_end|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert ids[-1] == 2


def test_a_saved_tiny_model_loads_by_folder(tmp_path: Path) -> None:
    loaded = load_model(str(save_tiny_model(tmp_path / "tiny", seed=3)), device="cpu")
    ids = torch.tensor([loaded.chat.prompt_ids("Hi")])
    with torch.no_grad():
        expected = tiny_model(seed=3).model(ids).logits
        assert torch.allclose(loaded.model(ids).logits, expected)
    assert loaded.stop_ids == (2,)


def test_the_fake_engine_follows_its_script() -> None:
    async def scene() -> None:
        engine = FakeEngine(["one", "a long answer"])
        slot = await engine.open_adapter(LoRASpec(), seed=5)
        prompt = tiny_model().chat.prompt_ids("Hi")
        first = await engine.generate(GenerateRequest(prompt, 10, keep=True))
        second = await engine.generate(GenerateRequest(prompt, 4))
        assert tiny_tokenizer().decode(first.token_ids) == "one<|im_end|>"
        assert first.finish_reason == "stop"
        assert tiny_tokenizer().decode(second.token_ids) == "a lo"
        assert second.finish_reason == "length"
        assert second.kept is None
        assert first.kept is not None
        assert first.kept.token_ids == prompt + first.token_ids
        request = TrainRequest(slot, (Lesson(first.kept, (Target((1, 2, 3), (0.0, 0.5, 0.5)),)),))
        losses = [(await engine.train(request)).loss for _ in range(2)]
        assert losses == [1.0, 0.5]
        assert (await engine.train(request)).trained_tokens == 2
        first.kept.close()
        with pytest.raises(RuntimeError, match="given back"):
            await engine.train(request)
        assert engine.conversations[0].startswith("<|im_start|>user\nHi<|im_end|>")

    asyncio.run(scene())


def test_play_works_in_a_running_event_loop() -> None:
    async def notebook() -> list[str]:
        scene = play(find_method("best-of-n")(MethodSettings()), ["1", "7"], trials=4)
        return [trial.verdict for trial in scene.trials]

    assert asyncio.run(notebook()) == ["incorrect", "correct"]
