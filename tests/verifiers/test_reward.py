"""A reward model scores answers as its own forward pass does, alone and together."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fttt.errors import RunError, UsageError
from fttt.testing import save_tiny_model, tiny_tokenizer
from fttt.types import Question, Verdict
from fttt.verifiers.reward import RewardVerifier, check_reward_model
from fttt.verifiers.verifier import check_choice

pytestmark = pytest.mark.usefixtures("one_thread")

QUESTION = Question("q", "What is 3 + 4?", "7")
ANSWERS = ("7", "It is seven.", "I do not know, so here are many words.", "", "8", "77")


def save_classifier(folder: Path, family: str = "llama", labels: int = 1, **more: Any) -> Path:
    """A tiny classifier on a decoder, or on an encoder without a chat template."""
    import transformers

    shape: dict[str, Any] = {
        "vocab_size": 272, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 256, "num_labels": labels,
        "pad_token_id": 0, "initializer_range": 0.3, **more,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(labels)
        if family == "bert":
            model: Any = transformers.BertForSequenceClassification(
                transformers.BertConfig(**shape)
            )
        else:
            own = transformers.LlamaConfig(**shape, num_key_value_heads=2)
            model = transformers.LlamaForSequenceClassification(own)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    if family == "bert":
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings.pop("chat_template", None)
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def judged(verifier: RewardVerifier, answers: tuple[str, ...] = ANSWERS) -> list[Verdict]:
    async def use() -> list[Verdict]:
        try:
            return list(await asyncio.gather(*(verifier.verify(QUESTION, a) for a in answers)))
        finally:
            await verifier.close()

    return asyncio.run(use())


def test_verifiers_of_one_model_have_its_weights_once(tmp_path: Path) -> None:
    name = str(save_classifier(tmp_path / "reward"))
    one, other = (RewardVerifier(name, device="cpu", mark=mark) for mark in (None, 0.0))
    assert one._model is other._model
    assert RewardVerifier(name, device="cpu", dtype="bfloat16")._model is not one._model
    assert judged(one)[0].score == judged(other)[0].score


@pytest.mark.parametrize(("family", "labels"), [("llama", 1), ("llama", 2), ("bert", 2)])
@pytest.mark.parametrize("pad", [0, None])
def test_scores_are_those_of_the_models_own_pass(
    family: str, labels: int, pad: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    folder = save_classifier(tmp_path / "reward", family, labels, pad_token_id=pad)
    passes: list[int] = []
    scores = RewardVerifier._scores

    def counted(self: RewardVerifier, sequences: Any) -> list[float]:
        passes.append(len(sequences))
        return scores(self, sequences)

    monkeypatch.setattr(RewardVerifier, "_scores", counted)
    found = judged(RewardVerifier(str(folder), device="cpu", mark=0.0))
    assert passes == ([1] * len(ANSWERS) if pad is None else [len(ANSWERS)])
    auto: Any = transformers.AutoModelForSequenceClassification
    model, tokenizer = auto.from_pretrained(folder), tiny_tokenizer()
    for answer, verdict in zip(ANSWERS, found, strict=True):
        if family == "bert":
            ids = tokenizer(QUESTION.prompt, answer)["input_ids"]
        else:
            messages = [
                {"role": "user", "content": QUESTION.prompt},
                {"role": "assistant", "content": answer},
            ]
            ids = tokenizer.apply_chat_template(messages)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        expected = float(logits[0] if labels == 1 else logits[1] - logits[0])
        assert verdict.score == pytest.approx(expected, abs=1e-4)
        assert verdict.correct is (expected >= 0)
        assert verdict.extracted is None
        assert "score" in verdict.feedback
    assert len({verdict.outcome for verdict in found}) == 2 or labels != 1


def test_without_a_mark_nothing_is_correct(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "reward")
    found = judged(RewardVerifier(str(folder), device="cpu"))
    assert {verdict.outcome for verdict in found} == {"incorrect"}
    assert len({verdict.score for verdict in found}) > 1


def test_an_answer_too_long_for_the_model_is_not_judged(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "reward", max_position_embeddings=64)
    short, long = judged(RewardVerifier(str(folder), device="cpu"), ("7", "7" * 99))
    assert not short.failed
    assert long.failed
    assert "longer than the reward model's context" in long.detail


def test_memory_that_does_not_suffice_makes_smaller_passes_and_then_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = RewardVerifier(str(save_classifier(tmp_path / "reward")), device="cpu")
    scores, room = verifier._scores, 2

    def scarce(sequences: Any) -> list[float]:
        if len(sequences) > room:
            raise torch.OutOfMemoryError
        return scores(sequences)

    monkeypatch.setattr(verifier, "_scores", scarce)
    assert all(verdict.score is not None for verdict in judged(verifier))
    room = 0
    with pytest.raises(RunError, match="ran out of memory on one answer"):
        judged(verifier)


@pytest.mark.parametrize("kind", ["decoder", "many labels", "nothing", "gguf"])
def test_what_is_no_reward_model_is_refused_by_its_config(kind: str, tmp_path: Path) -> None:
    if kind == "decoder":
        name, says = str(save_tiny_model(tmp_path / "m")), "no sequence classifier but Llama"
    elif kind == "many labels":
        name, says = str(save_classifier(tmp_path / "m", labels=5)), "has 5 labels"
    elif kind == "gguf":
        (tmp_path / "m.gguf").touch()
        name, says = str(tmp_path / "m.gguf"), "is a GGUF file"
    else:
        name, says = "./nowhere", "No model './nowhere'"
    for check in (check_reward_model, lambda name: check_choice(f"any(number, reward:{name}@1)")):
        with pytest.raises(UsageError, match=says):
            check(name)


@pytest.mark.parametrize("mark", ["nan", "inf"])
def test_a_score_that_nothing_reaches_is_refused(mark: str) -> None:
    with pytest.raises(UsageError, match=f"'reward:m@{mark}' has no finite score after @"):
        check_choice(f"any(number, reward:m@{mark})")
