"""A window's loss and gradient against one example at a time, by autograd on the plain model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from fttt.engine.sequences import prepared
from fttt.optune.attempts import AttemptExample
from fttt.optune.checkpoint import edited_layers
from fttt.optune.gradient import GradientRunner
from fttt.optune.network import OpTuneNetwork
from fttt.testing import tiny_model

MakeExamples = Callable[..., list[AttemptExample]]
FAMILIES = {"llama": "llama", "qwen2": "qwen", "gemma3_text": "gemma3"}
BAD = 270
"""A token of the vocabulary that no example has."""


def network_for(model: Any, **more: Any) -> OpTuneNetwork:
    """With parameters that are not at their start."""
    network = OpTuneNetwork(edited_layers(model), rank=3, alpha=3e-3, **more)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1e-3 * torch.randn(parameter.shape, generator=generator)
    return network


@pytest.fixture(params=["llama"])
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    model = tiny_model(request.param, layers=3).model
    with prepared(model):
        yield model


def plain_model(family: str) -> Any:
    """The same weights under the library's own code."""
    plain = tiny_model(FAMILIES[family], layers=3).model
    plain.set_attn_implementation("eager")
    return plain


def runner_for(model: Any, batch_tokens: int = 10_000, dropout: float = 0.0) -> GradientRunner:
    return GradientRunner(model, network_for(model, dropout=dropout), batch_tokens)


def window(runner: GradientRunner, examples: Sequence[AttemptExample], step: int = 0) -> Any:
    """As the trainer runs one: factors, statistics, gradient."""
    parts = runner.record(examples)
    runner.network.observe(runner.network.summarize(part.factors for part in parts))
    return runner.gradient(parts, 1, step)


def plain_factors(model: Any, name: str, ids: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's inputs and output gradients for one conversation, by the plain model's graph."""
    seen: dict[str, torch.Tensor] = {}

    def note(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        seen["x"], seen["y"] = inputs[0].detach(), output.requires_grad_()
        return output

    handle = model.get_submodule(name).register_forward_hook(note)
    whole = torch.tensor([ids])
    loss = F.cross_entropy(model(whole, use_cache=False).logits[0, :-1], whole[0, 1:])
    (delta,) = torch.autograd.grad(loss, seen["y"])
    handle.remove()
    return seen["x"][0], delta[0]


def by_definition(
    model: Any, network: OpTuneNetwork, examples: Sequence[AttemptExample]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The window's summed loss and gradients: dense changes in a functional model, in turn."""
    names = [layer.name for layer in network.layers]
    seen = {n: [plain_factors(model, n, e.conversation_ids) for e in examples] for n in names}
    by_shape: dict[str, list[torch.Tensor]] = {}
    for layer in network.layers:
        pairs = [torch.cat(pair, dim=1).double() for pair in seen[layer.name]]
        by_shape.setdefault(layer.shape, []).extend(pairs)
    total = torch.zeros(())
    for e, example in enumerate(examples):
        weights = {}
        for index, layer in enumerate(network.layers):
            tokens = torch.cat(by_shape[layer.shape])
            shape = network.shape_of(layer)
            z = torch.cat(seen[layer.name][e], dim=1).double()
            z = ((z - tokens.mean(0)) / tokens.std(0)).float()
            z = z + (z @ shape.down_RF.T) @ shape.up_FR.T + shape.bias_F
            x, delta = z[:, : layer.inputs], z[:, layer.inputs :]
            change = network.alpha_L[index] * delta.T @ x
            weights[f"{layer.name}.weight"] = model.get_submodule(layer.name).weight + change
        whole = torch.tensor([example.gold.prompt_ids + example.gold.solution_ids])
        logits = functional_call(model, weights, (whole,), {"use_cache": False}).logits[0]
        first = len(example.gold.prompt_ids) - 1
        total = total + F.cross_entropy(logits[first:-1], whole[0, first + 1 :])
    return total.detach(), list(torch.autograd.grad(total, list(network.parameters())))


@pytest.mark.parametrize("model", ["llama", "qwen", "gemma3"], indirect=True)
def test_loss_and_gradient_are_those_of_one_example_at_a_time(
    model: Any, make_examples: MakeExamples
) -> None:
    examples = make_examples(5)
    runner = runner_for(model)
    found = window(runner, examples)
    plain = plain_model(model.config.model_type)
    loss, gradients = by_definition(plain, runner.network, examples)
    assert found.examples == 5
    torch.testing.assert_close(found.loss, loss, rtol=1e-5, atol=0.0)
    sizes = [g.numel() for g in gradients]
    for mine, expected in zip(found.gradient_P.split(sizes), gradients, strict=True):
        scale = float(expected.abs().max())
        assert scale > 0
        torch.testing.assert_close(mine, expected.flatten(), rtol=1e-3, atol=2e-4 * scale)


@pytest.mark.parametrize("batch_tokens", [1, 100, 260])
def test_micro_batches_change_nothing(
    model: Any, make_examples: MakeExamples, batch_tokens: int
) -> None:
    examples = make_examples(7)
    whole = runner_for(model, dropout=0.3)
    expected = window(whole, examples, step=3)
    cut = runner_for(model, batch_tokens, dropout=0.3)
    assert len(cut.record(examples)) > 1
    found = window(cut, examples[::-1], step=3)
    torch.testing.assert_close(found.loss, expected.loss)
    scale = float(expected.gradient_P.abs().max())
    torch.testing.assert_close(found.gradient_P, expected.gradient_P, rtol=1e-4, atol=1e-5 * scale)
    other = window(runner_for(model, dropout=0.3), examples, step=4)
    assert not torch.allclose(other.gradient_P, expected.gradient_P)  # another step's dropout


@pytest.mark.parametrize("model", ["llama", "qwen", "gemma3"], indirect=True)
def test_what_lies_below_the_edits_runs_once_a_question(
    model: Any, make_examples: MakeExamples
) -> None:
    examples = make_examples(6)  # two attempts at each question share its solution
    examples = [replace(e, gold=examples[n // 2 * 2].gold) for n, e in enumerate(examples)]
    expected = window(runner_for(model), examples)
    runner = GradientRunner(model, network_for(model, dropout=0.0), 10_000, reuse_bytes=2**20)
    parts = runner.record(examples)
    runner.network.observe(runner.network.summarize(part.factors for part in parts))
    below: list[int] = []
    model.model.layers[0].self_attn.q_proj.register_forward_hook(
        lambda _, inputs, output: below.append(output.shape[1])
    )
    for _ in range(2):
        found = runner.gradient(parts, 1, 0)
        torch.testing.assert_close(found.loss, expected.loss)
        scale = float(expected.gradient_P.abs().max())
        torch.testing.assert_close(
            found.gradient_P, expected.gradient_P, rtol=1e-4, atol=1e-5 * scale
        )
    golds = {e.gold for e in examples}
    assert below == [sum(len(g.prompt_ids + g.solution_ids) - 1 for g in golds)]
    small = GradientRunner(model, network_for(model, dropout=0.0), 10_000, reuse_bytes=5000)
    torch.testing.assert_close(window(small, examples).loss, expected.loss)
    assert 0 < len(small._hidden) < len(golds)  # what does not fit is computed anew


@pytest.mark.parametrize("where", ["conversation", "solution"])
def test_an_example_that_is_not_finite_is_left_out_alone(
    model: Any, make_examples: MakeExamples, where: str
) -> None:
    examples = make_examples(5)
    with torch.no_grad():
        model.get_input_embeddings().weight[BAD] = float("inf")
    torn = examples[2]
    if where == "conversation":
        torn = replace(torn, conversation_ids=(BAD, *torn.conversation_ids))
    else:
        gold = replace(torn.gold, prompt_ids=(BAD, *torn.gold.prompt_ids))
        torn = replace(torn, gold=gold)
    expected = window(runner_for(model), [*examples[:2], *examples[3:]])
    runner = runner_for(model)
    if where == "solution":  # its conversation is sound, and so part of the statistics
        parts = runner_for(model).record(examples)
        reference = runner_for(model)
        reference.network.observe(reference.network.summarize(p.factors for p in parts))
        expected = reference.gradient(reference.record([*examples[:2], *examples[3:]]), 1, 0)
    found = window(runner, [*examples[:2], torn, *examples[3:]])
    assert found.examples == 4
    torch.testing.assert_close(found.loss, expected.loss)
    scale = float(expected.gradient_P.abs().max())
    torch.testing.assert_close(found.gradient_P, expected.gradient_P, rtol=1e-4, atol=1e-5 * scale)


def test_losses_are_the_changed_and_the_unchanged_model_s(
    model: Any, make_examples: MakeExamples
) -> None:
    examples = make_examples(4)
    runner = runner_for(model, dropout=0.5)
    parts = runner.record(examples)
    base = runner.losses(parts, change=False)
    expected = torch.zeros(())
    plain = plain_model("llama")
    for example in examples:
        ids = torch.tensor([example.gold.prompt_ids + example.gold.solution_ids])
        first = len(example.gold.prompt_ids) - 1
        expected += F.cross_entropy(plain(ids).logits[0, first:-1], ids[0, first + 1 :]).detach()
    torch.testing.assert_close(base.loss, expected)
    changed = runner.losses(parts)
    assert changed.examples == base.examples == 4
    assert abs(float(changed.loss) - float(base.loss)) > 1e-6
    assert torch.equal(changed.loss, runner.losses(parts).loss)  # nothing is dropped
