"""The upper part of a model against the whole of it."""

from __future__ import annotations

import pytest
import torch

from fttt.engine.sequences import pack_sequences, prepared, run_model
from fttt.engine.upper import upper_part
from fttt.testing import tiny_model

EDITED = ("model.layers.2.self_attn.v_proj", "model.layers.1.self_attn.q_proj")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma2", "gemma3"])
def test_hidden_states_stand_for_the_layers_below(family: str) -> None:
    model = tiny_model(family, layers=3).model
    upper = upper_part(model, EDITED)
    assert upper is not None
    with prepared(model), torch.no_grad():
        batch = pack_sequences(model, [(5, 6, 7, 8), (9, 10)])
        expected = run_model(model, batch, slice(None))
        hidden_ND = upper.hidden(batch)
        lowest = model.model.layers[0].mlp.down_proj.weight
        before = lowest.clone()
        lowest.fill_(float("nan"))  # so nothing of it may run
        with upper.given(hidden_ND):
            torch.testing.assert_close(run_model(model, batch, slice(None)), expected)
            twice = run_model(model, batch, slice(None))
        lowest.copy_(before)
        assert torch.equal(run_model(model, batch, slice(None)), expected)
        assert torch.isfinite(twice).all()


def test_there_is_none_where_nothing_lies_below() -> None:
    model = tiny_model(layers=3).model
    assert upper_part(model, (*EDITED, "model.layers.0.self_attn.q_proj")) is None
    assert upper_part(model, ("lm_head",)) is None
    assert upper_part(model, (EDITED[0], "model.vision.layers.1.q_proj")) is None
