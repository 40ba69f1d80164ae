"""The network against its definition token by token, and its running statistics against numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from fttt.optune.checkpoint import EditedLayer
from fttt.optune.network import OpTuneNetwork, RunningStatistics


def shape_layers(hidden: int, kv: int) -> list[EditedLayer]:
    return [
        EditedLayer(f"model.layers.{n}.self_attn.{name}", hidden, outputs)
        for n in (30, 31)
        for name, outputs in (("q_proj", hidden), ("v_proj", kv))
    ]


def test_parameters_at_the_shape_of_llama_8b() -> None:
    with torch.device("meta"):
        network = OpTuneNetwork(shape_layers(4096, 1024))
    assert network.count_parameters() == (439_296, 4)


def learned(network: OpTuneNetwork) -> None:
    """Parameters that are not at their start."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * 0.1 * (parameter.abs().mean() + 0.1))


def by_definition(
    network: OpTuneNetwork, layers: Any, factors: Any, keep: Any = None
) -> dict[str, np.ndarray[Any, Any]]:
    """DESIGN's formula for each example, one token at a time, in float64."""
    result = {}
    seen: dict[str, list[np.ndarray[Any, Any]]] = {}
    for layer in layers:
        z = torch.cat([factors.x_NI[layer.name], factors.delta_NO[layer.name]], 1).double().numpy()
        seen.setdefault(layer.shape, []).append(z)
    for index, layer in enumerate(layers):
        everything = np.concatenate(seen[layer.shape])
        mean, std = everything.mean(0), everything.std(0, ddof=1)
        shape = network.shape_of(layer)
        down, up, bias = (
            p.detach().double().numpy() for p in (shape.down_RF, shape.up_FR, shape.bias_F)
        )
        delta_w = np.zeros((factors.examples, layer.outputs, layer.inputs))
        for t, example in enumerate(factors.segment_N.tolist()):
            x, delta = factors.x_NI[layer.name][t], factors.delta_NO[layer.name][t]
            z = (torch.cat([x, delta]).double().numpy() - mean) / std
            hidden = down @ z
            if keep is not None:
                hidden = hidden * keep[index][t]
            z = z + up @ hidden + bias
            x_new, delta_new = z[: layer.inputs], z[layer.inputs :]
            delta_w[example] += network.alpha_L[index].item() * np.outer(delta_new, x_new)
        result[layer.name] = delta_w
    return result


def test_the_change_is_the_definition_s(layers: Any, make_factors: Any) -> None:
    network, factors = OpTuneNetwork(layers, rank=2), make_factors([5, 1, 9])
    learned(network)
    network.observe(network.summarize([factors]))
    expected = by_definition(network, layers, factors)
    for name, found in network(factors).items():
        assert_allclose(found.detach().numpy(), expected[name], rtol=1e-4, atol=1e-8)


def test_an_example_s_change_does_not_depend_on_its_neighbours(
    layers: Any, make_factors: Any
) -> None:
    network, factors = OpTuneNetwork(layers, rank=2), make_factors([5, 1, 9])
    learned(network)
    network.observe(network.summarize([factors]))
    keys = torch.tensor([11, -5, 2**60])
    together = network.factored(factors, keys)
    for q in range(3):
        mine = factors.segment_N == q
        alone = type(factors)(
            x_NI={k: v[mine] for k, v in factors.x_NI.items()},
            delta_NO={k: v[mine] for k, v in factors.delta_NO.items()},
            segment_N=torch.zeros(int(mine.sum()), dtype=torch.int64),
            lengths=(int(mine.sum()),),
            loss_Q=torch.zeros(1),
        )
        for name, delta in network.factored(alone, keys[q : q + 1]).items():
            torch.testing.assert_close(delta.dense()[0], together[name].dense()[q])


def test_dropout_drops_its_share_and_keeps_the_mean(layers: Any, make_factors: Any) -> None:
    network, factors = OpTuneNetwork(layers, rank=8, dropout=0.25), make_factors([400, 100])
    learned(network)
    network.observe(network.summarize([factors]))
    masks = [network._keep(factors.segment_N, torch.tensor([3, 4]), n) for n in range(4)]
    for mask in masks:
        assert mask is not None
        assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
        assert float((mask == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert not torch.equal(masks[0], masks[1])  # each matrix has a mask of its own
    expected = by_definition(network, layers, factors, [m.numpy() for m in masks])
    for name, found in network.factored(factors, torch.tensor([3, 4])).items():
        assert_allclose(found.dense().detach().numpy(), expected[name], rtol=2e-3, atol=1e-6)


def test_matrices_of_one_shape_share_all_but_the_step_size(layers: Any) -> None:
    network = OpTuneNetwork(layers)
    assert network.shape_of(layers[0]) is network.shape_of(layers[2])
    assert network.shape_of(layers[0]) is not network.shape_of(layers[1])
    assert network.alpha_L.tolist() == pytest.approx([1e-4] * 4)


def tokens(count: int) -> torch.Tensor:
    """Gradients are tiny beside their mean; inputs have a large one."""
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor([1e-8, 1.0, 100.0, 0.0])
    mean = torch.tensor([3e-6, -1.0, 1e4, 0.1])
    return torch.randn(count, 4, generator=generator) * scale + mean


def check(found: RunningStatistics, seen: torch.Tensor) -> None:
    reference = seen.double().numpy()
    assert int(found.count) == len(reference)
    assert_allclose(found.mean_F.numpy(), reference.mean(0), rtol=1e-12)
    assert_allclose(found.std_F[:3].numpy(), reference.std(0, ddof=1)[:3], rtol=1e-9)
    assert found.std_F[3] == 1.0  # it never varied


def test_blocks_of_any_size_give_the_statistics_of_all() -> None:
    seen = tokens(5000)
    found = RunningStatistics(4)
    for block in seen.split([1, 7, 2500, 0, 2492]):
        found.update(block)
    check(found, seen)


def test_processes_join_into_the_statistics_of_all() -> None:
    seen = tokens(900)
    found, other, idle = (RunningStatistics(4) for _ in range(3))
    found.update(seen[:300])
    other.update(seen[300:])
    found.join_flat(other.flat())
    found.join_flat(idle.flat())
    check(found, seen)


def test_scores_have_mean_zero_and_deviation_one() -> None:
    seen = tokens(2000)
    found = RunningStatistics(4)
    assert torch.equal(found.z_score(seen), seen)  # nothing is known yet
    found.update(seen)
    scores = found.z_score(seen).numpy()
    assert_allclose(scores.mean(0), np.zeros(4), atol=1e-2)
    assert_allclose(scores.std(0)[1:3], [1, 1], rtol=1e-3)
