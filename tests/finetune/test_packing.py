"""How a step's samples are packed and cut, and that the cut changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.trainer_pt_utils import find_batch_size

from fttt.config import SETTINGS
from fttt.finetune.packing import (
    MOST_PADDING,
    PackedPasses,
    PaddedPass,
    PaddedShape,
    SampleGroup,
    collate,
    groups,
)
from fttt.finetune.parameters import prepare
from fttt.testing import tiny_model
from fttt.training import GoldExample


def example(prompt: int, solution: int) -> GoldExample:
    ids = [5 + (7 * n + prompt) % 200 for n in range(prompt + solution)]
    return GoldExample("q", tuple(ids[:prompt]), tuple(ids[prompt:]))


SAMPLES = [example(3, 2), example(9, 5), example(4, 1), example(2, 17)]


@given(
    st.lists(st.integers(2, 50), min_size=1, max_size=9), st.integers(10, 200), st.integers(1, 4)
)
def test_every_sample_runs_once_in_a_group_that_fits(
    lengths: list[int], most: int, at_least: int
) -> None:
    samples = [GoldExample(f"{n}", (5,), (6,) * (size - 1)) for n, size in enumerate(lengths)]
    cut = groups(samples, most, at_least)
    ids = [e.question_id for group in cut for e in group.samples]
    assert sorted(ids) == sorted(e.question_id for e in samples)
    assert len(cut) >= min(at_least, len(samples))
    for group in cut:
        own = [len(e.prompt_ids) + len(e.solution_ids) for e in group.samples]
        assert len(own) == 1 or sum(own) <= most
        assert len(own) == 1 or len(own) * max(own) <= MOST_PADDING * most


def test_a_batch_holds_no_tensor_whose_copy_a_gpu_would_be_waited_for() -> None:
    batch = collate(SAMPLES)
    assert find_batch_size(batch) == len(SAMPLES)  # as the trainer counts them
    assert not any(isinstance(value, Tensor) for value in batch.values())


def test_a_processs_groups_can_be_made_as_many_as_anothers() -> None:
    samples = [example(3, n) for n in range(2, 8)]
    assert [len(groups(samples, 1000, at_least=k)) for k in (1, 2, 5, 6, 9)] == [1, 2, 5, 6, 6]


def test_only_tokens_of_solutions_carry_a_loss_and_each_sample_counts_the_same() -> None:
    group = SampleGroup(tuple(SAMPLES))
    flat = [i for own in group.sequences for i in own]
    wanted = [i for e in SAMPLES for i in (e.prompt_ids[-1:] + e.solution_ids[:-1])]
    assert [flat[n] for n in group.where] == wanted
    logits_MV = torch.zeros(len(wanted), 300)
    assert group.loss(logits_MV).item() == pytest.approx(4 * torch.tensor(300.0).log().item())


def alone(model: Any, sample: GoldExample) -> Tensor:
    """The mean cross-entropy of one solution by the model's own attention."""
    logits = model(input_ids=torch.tensor([sample.prompt_ids + sample.solution_ids])).logits[0]
    start = len(sample.prompt_ids) - 1
    return torch.nn.functional.cross_entropy(logits[start:-1], torch.tensor(sample.solution_ids))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "qwen3_5", "lfm2", "jamba"])
def test_the_loss_is_that_of_each_sample_alone(family: str) -> None:
    loaded = tiny_model(family)
    with torch.no_grad():
        wanted = sum(alone(loaded.model, sample).item() for sample in SAMPLES)
        for most in (1, 40, 1000):
            with PackedPasses(loaded.model) as packed:
                cut = groups(SAMPLES, most)
                total = sum(g.loss(packed(loaded.model, g)).item() for g in cut)
            assert total == pytest.approx(wanted, abs=1e-4)
        again = sum(alone(loaded.model, sample).item() for sample in SAMPLES)
    assert again == wanted, "the model has its own attention back"


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")  # by PEFT, of its prefix
@pytest.mark.parametrize(
    ("method", "family"),
    [
        *((method, "llama") for method in SETTINGS),
        *((method, "qwen3_5") for method in SETTINGS if method != "prefix"),
        *(("full", family) for family in ("lfm2", "granite_hybrid", "mamba")),
    ],
)
def test_the_gradient_is_that_of_each_sample_alone(method: str, family: str) -> None:
    torch.manual_seed(3)
    model = prepare(tiny_model(family, layers=4).model, SETTINGS[method]())
    model.eval()  # without dropout
    learned = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():  # what begins at zero would hide what it is multiplied with
        for parameter in learned:
            parameter += 0.1 * torch.randn(parameter.shape)
    wanted = torch.autograd.grad(sum(alone(model, s) for s in SAMPLES), learned, allow_unused=True)
    with PackedPasses(model) as packed:
        group = SampleGroup(tuple(SAMPLES))
        found = torch.autograd.grad(group.loss(packed(model, group)), learned, allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            size = max(1.0, float(other.abs().max()))
            # a chunked scan and a step at a time round apart by up to 4e-5, over eight seeds
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * size)


@pytest.mark.parametrize(
    ("method", "family"),
    [
        *((method, "llama") for method in SETTINGS if method != "prefix"),
        ("full", "mistral"),  # which sees a window
        ("full", "gemma3"),
        ("full", "gemma2"),  # with softcaps
        ("lora", "gpt2"),
    ],
)
def test_padding_changes_neither_loss_nor_gradient(method: str, family: str) -> None:
    settings = SETTINGS[method]()
    if family == "gpt2":
        settings = SETTINGS[method](targets=("c_attn",))
    model = prepare(tiny_model(family, layers=4).model, settings)
    model.eval()
    learned = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in learned:
            parameter += 0.1 * torch.randn(parameter.shape)
    with PackedPasses(model) as packed:
        group = SampleGroup(tuple(SAMPLES))
        padded = PaddedPass(PaddedShape(6, 64, 40, 32), torch.device("cpu"))
        for one in (SampleGroup(tuple(SAMPLES[:2])), group):  # filled twice
            padded.fill(one, 0.5)
        wanted = 0.5 * group.loss(packed(model, group))
        found = padded.loss(packed(model, padded))
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    expected = torch.autograd.grad(wanted, learned, allow_unused=True)
    for one, other in zip(
        torch.autograd.grad(found, learned, allow_unused=True), expected, strict=True
    ):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@given(st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=30))
def test_a_shape_has_room_for_its_group(lengths: list[tuple[int, int]]) -> None:
    group = SampleGroup(tuple(example(*one) for one in lengths))
    shape = PaddedShape.of(group)
    tokens = sum(e.length - 1 for e in group.samples)
    assert len(group.samples) <= shape.samples
    assert tokens <= shape.tokens <= 1.25 * tokens + 1
    longest = max(e.length for e in group.samples)
    assert longest <= shape.longest <= 2 * longest
    assert len(group.where) <= shape.trained <= 2 * len(group.where)
