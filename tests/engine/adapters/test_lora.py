"""Which layers carry low-rank weights; mixtures of experts against PEFT, one question at a time."""

import pytest

from fttt.engine import LoRASpec
from fttt.engine.adapters.lora import target_layers
from fttt.errors import UsageError
from fttt.testing import tiny_model
from fttt.testing.peft_reference import learn_beside_peft

CONTEXTS = ((80, 90, 100, 110, 85), (71, 72, 73))
TARGET = (71, 99, 80, 122)


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("mixtral", ("q_proj", "v_proj")),
        ("olmoe", ("all-linear",)),
        ("gpt_oss", ("all-linear",)),
        ("qwen2_moe", ("all-linear",)),
        ("deepseek_v3", ("q_b_proj", "kv_a_proj_with_mqa", "o_proj")),
    ],
)
def test_layers_of_a_mixture_learn_as_by_peft(family: str, targets: tuple[str, ...]) -> None:
    loaded = tiny_model(family)
    spec = LoRASpec(targets=targets, dropout=0.0, lr=1e-2)
    for losses, alone in learn_beside_peft(loaded, spec, CONTEXTS, TARGET):
        assert losses == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize(
    ("family", "left_out"),
    [("mixtral", "experts"), ("deepseek_v3", ".experts"), ("gpt_oss", "experts")],
)
def test_all_linear_layers_of_a_mixture_are_those_that_see_every_token(
    family: str, left_out: str
) -> None:
    names = target_layers(tiny_model(family).model, LoRASpec(targets=("all-linear",)))
    assert any("attn" in name for name in names)
    assert not any(left_out in name for name in names)
    assert any("shared_experts" in name for name in names) == (family == "deepseek_v3")


@pytest.mark.parametrize(
    ("family", "target", "said"),
    [
        ("mixtral", "down_proj", "'down_proj' are experts of a mixture, which experts of this"),
        ("jetmoe", "input_linear", "'input_linear' are experts of a mixture"),
        ("gpt_oss", "gate_up_proj", "and carry no adapter; it has k_proj, o_proj, q_proj, v_proj"),
        ("gpt_oss", "router", "'router' of this model is no nn.Linear but GptOssTopKRouter"),
        ("llama", "gate_up_proj", "No linear layer 'gate_up_proj' in this model"),
    ],
)
def test_what_carries_no_adapter_is_refused_by_name(family: str, target: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        target_layers(tiny_model(family).model, LoRASpec(targets=(target,)))
    assert said in str(caught.value)
