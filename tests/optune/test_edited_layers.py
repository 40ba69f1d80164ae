"""The choice of layers, and models that do not have them."""

from __future__ import annotations

import pytest

from fttt.errors import UsageError
from fttt.optune.edited_layers import EditedLayer, check_layers, edited_layers
from fttt.testing import tiny_model


def test_the_last_layers_in_the_model_s_order() -> None:
    found = edited_layers(tiny_model(layers=3).model)
    assert found == (
        EditedLayer("model.layers.1.self_attn.q_proj", 32, 32),
        EditedLayer("model.layers.1.self_attn.v_proj", 32, 16),
        EditedLayer("model.layers.2.self_attn.q_proj", 32, 32),
        EditedLayer("model.layers.2.self_attn.v_proj", 32, 16),
    )


def test_a_projection_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match=r"'q_porj'.*did you mean 'q_proj'.*down_proj.*--targets"):
        edited_layers(tiny_model().model, ["v_proj", "q_porj"])


def test_more_layers_than_the_model_has() -> None:
    with pytest.raises(UsageError, match=r"last 3 layers.*has 2 linear.*--layers.*1 to 2"):
        edited_layers(tiny_model().model, last=3)


def test_a_model_of_another_shape() -> None:
    model = tiny_model().model
    layers = list(edited_layers(model))
    check_layers(layers, model, "tiny")
    wider = EditedLayer(layers[0].name, 64, 64)
    with pytest.raises(UsageError, match=r"made for 'big'.*is 64 x 64.*has it as 32 x 32"):
        check_layers([wider], model, "big")
    with pytest.raises(UsageError, match="no such linear layer"):
        check_layers([EditedLayer("model.layers.9.self_attn.q_proj", 32, 32)], model, "deep")
