"""Factors of a ragged batch against autograd, one example at a time on the plain model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from fttt.engine import attention, sequences
from fttt.engine.deltas import changed
from fttt.engine.factors import FactoredDelta, Factors
from fttt.engine.record import record_factors
from fttt.engine.sequences import pack_sequences, prepared, weighted_nll
from fttt.errors import UsageError
from fttt.testing import tiny_model

FAMILIES = ["llama", "mistral", "qwen", "qwen3", "gemma", "gemma2", "gemma3"]
LENGTHS = (9, 30, 2, 21)
LAYERS = tuple(
    f"model.layers.{n}.self_attn.{p}_proj" for n in (1, 2) for p in ("q", "v")
)  # of three: the first one is below


def examples(seed: int = 0) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(3, 259, (n,), generator=generator).tolist()) for n in LENGTHS]


def mean_nll(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """Of all tokens but the first, by the plain model."""
    whole = torch.tensor([ids])
    return F.cross_entropy(model(whole, use_cache=False).logits[0, :-1].float(), whole[0, 1:])


def recorded(model: Any, **more: Any) -> Factors:
    with prepared(model), torch.no_grad():
        return record_factors(model, pack_sequences(model, examples()), LAYERS, **more)


def gradient(factors: Factors, name: str, example: int) -> torch.Tensor:
    own = factors.segment_N == example
    return factors.delta_NO[name][own].T @ factors.x_NI[name][own]


@pytest.mark.parametrize("family", FAMILIES)
def test_delta_times_x_is_the_weight_gradient_of_each_example(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family, layers=3).model
    monkeypatch.setattr(sequences, "LOGIT_BYTES", 4 * 272 * 7)  # several chunks of logits
    factors = recorded(model)
    assert factors.lengths == LENGTHS
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")  # the others leave out Gemma 2's soft cap
    weights = [plain.get_submodule(name).weight.requires_grad_() for name in LAYERS]
    for q, ids in enumerate(examples()):
        loss = mean_nll(plain, ids)
        expected = torch.autograd.grad(loss, weights)
        assert float(factors.loss_Q[q]) == pytest.approx(float(loss.detach()), rel=1e-5)
        for name, weight_gradient in zip(LAYERS, expected, strict=True):
            found = gradient(factors, name, q)
            scale = max(float(weight_gradient.abs().max()), 0.01)  # exactly 0 after one token
            torch.testing.assert_close(found, weight_gradient, rtol=1e-3, atol=1e-4 * scale)


def test_query_and_value_share_one_input_and_nothing_below_keeps_a_graph() -> None:
    model = tiny_model(layers=3).model
    graphs: dict[int, bool] = {}

    def note(n: int) -> Any:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
            graphs[n] = output.requires_grad

        return hook

    for n, layer in enumerate(model.model.layers):
        layer.register_forward_hook(note(n))
    factors = recorded(model)
    query, value, above, _ = LAYERS
    assert factors.x_NI[query] is factors.x_NI[value]
    assert factors.x_NI[query] is not factors.x_NI[above]
    assert graphs == {0: False, 1: True, 2: True}
    assert not any(x.requires_grad for x in [*factors.x_NI.values(), *factors.delta_NO.values()])


def test_weights_of_tokens_take_the_place_of_the_mean() -> None:
    model = tiny_model(layers=3).model
    plain = recorded(model)
    halved = recorded(model, weights=[(0.5 / (n - 1),) * (n - 1) for n in LENGTHS])
    torch.testing.assert_close(halved.loss_Q, plain.loss_Q / 2)
    for name in LAYERS:
        torch.testing.assert_close(halved.delta_NO[name], plain.delta_NO[name] / 2)


def test_an_example_that_is_not_finite_spares_the_others() -> None:
    model = tiny_model(layers=3).model
    weights = [(1 / (n - 1),) * (n - 1) for n in LENGTHS]
    weights[1] = (float("nan"),) * (LENGTHS[1] - 1)
    plain, torn = recorded(model), recorded(model, weights=weights)
    spared = plain.segment_N != 1
    assert torn.loss_Q.isfinite().tolist() == [True, False, True, True]
    for name in LAYERS:
        torch.testing.assert_close(torn.delta_NO[name][spared], plain.delta_NO[name][spared])
        assert not torn.delta_NO[name][~spared].isfinite().any()


def test_an_unknown_layer_is_refused_with_its_neighbours() -> None:
    model = tiny_model().model
    with prepared(model), pytest.raises(UsageError, match=r"near it are .*1\.self_attn\.q_proj"):
        record_factors(model, pack_sequences(model, [(5, 6)]), ["model.layers.1.attn.q_proj"])


def test_the_model_gets_its_own_code_back() -> None:
    model = tiny_model().model
    ids = torch.tensor([[5, 6, 7]])
    before = model(ids).logits
    attention = model.config._attn_implementation
    recorded(tiny_model(layers=3).model)
    with prepared(model):
        assert model.config._attn_implementation != attention
    assert model.config._attn_implementation == attention
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("factored", [False, True], ids=["dense", "factored"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen"])
def test_changes_of_each_example_and_their_gradient(family: str, factored: bool) -> None:
    model = tiny_model(family, layers=3).model
    torch.manual_seed(1)
    made: dict[str, FactoredDelta] = {}
    for name in LAYERS:
        outputs, inputs = model.get_submodule(name).weight.shape
        left = torch.randn(len(LENGTHS), 5, outputs) * 0.1
        made[name] = FactoredDelta(
            left.requires_grad_(), torch.randn(len(LENGTHS), 5, inputs).requires_grad_()
        )
    deltas = made if factored else {name: delta.dense() for name, delta in made.items()}
    with prepared(model):
        batch = pack_sequences(model, examples())
        keep = [t for t in range(len(batch.token_ids_N)) if t + 1 not in batch.ends]
        where_M = torch.tensor(keep)
        weight_M = torch.tensor([1 / (n - 1) for n in LENGTHS for _ in range(n - 1)])
        with changed(model, batch, deltas):
            loss, nll_M = weighted_nll(
                model, batch, where_M, batch.token_ids_N[where_M + 1], weight_M
            )
        loss.backward()
    model.set_attn_implementation("eager")  # the others leave out Gemma 2's soft cap
    expected = torch.zeros(())
    again = {
        name: FactoredDelta(
            delta.left_BFO.detach().requires_grad_(), delta.right_BFI.detach().requires_grad_()
        )
        for name, delta in made.items()
    }
    for q, ids in enumerate(examples()):
        own = {
            f"{name}.weight": model.get_submodule(name).weight + delta.dense()[q]
            for name, delta in again.items()
        }
        whole = torch.tensor([ids])
        logits = functional_call(model, own, (whole,), {"use_cache": False}).logits[0, :-1]
        expected = expected + F.cross_entropy(logits, whole[0, 1:])
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float((nll_M * weight_M).sum()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name in LAYERS:
        for one, other in zip(
            (made[name].left_BFO, made[name].right_BFI),
            (again[name].left_BFO, again[name].right_BFI),
            strict=True,
        ):
            assert one.grad is not None
            assert other.grad is not None
            scale = float(other.grad.abs().max())
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4 * scale)


def test_attention_without_a_mask_is_that_with_one() -> None:
    model = tiny_model().model
    batch = pack_sequences(model, examples())
    torch.manual_seed(2)
    q, k, v = (torch.randn(sum(LENGTHS), n, 8, requires_grad=True) for n in (6, 2, 2))

    def own(window: int | None, softcap: float | None) -> attention._Own:
        return attention._Own(batch, 0, 0.3, attention.Reach(window, None), softcap, None, None)

    masked = attention._train(q, k, v, own(None, None))
    plain = attention._causal(q, k, v, own(None, None))  # as a GPU takes it
    torch.testing.assert_close(plain, masked)
    up = torch.randn_like(masked)
    for one, other in zip(
        torch.autograd.grad(plain, (q, k, v), up),
        torch.autograd.grad(masked, (q, k, v), up),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    assert own(None, None).plainly_causal
    assert own(max(LENGTHS), None).plainly_causal
    assert not own(max(LENGTHS) - 1, None).plainly_causal
    assert not own(None, 30.0).plainly_causal
