"""What a trained network fixes of a run, and what is refused before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fttt.config import resolve
from fttt.engine.request import LoRASpec
from fttt.errors import UsageError
from fttt.experiment.adapters import adapter_spec, check_edits
from fttt.experiment.plan import check_names, prepare
from fttt.methods import LoRASettings, MethodSettings
from fttt.methods.optune import OpTuneSettings
from fttt.testing import save_tiny_model, tiny_model

MakeNetwork = Callable[..., Path]


def optune(checkpoint: Path, **flags: Any) -> Any:
    settings = {"checkpoint": str(checkpoint), **flags.pop("settings", {})}
    return resolve({"method": "optune", "settings": settings, **flags})


def test_settings_name_the_adapter(make_network: MakeNetwork) -> None:
    assert adapter_spec(MethodSettings()) is None
    assert adapter_spec(LoRASettings.model_validate({"rank": 2})) == LoRASpec(rank=2)
    settings = OpTuneSettings.model_validate({"checkpoint": str(make_network())})
    once, again = adapter_spec(settings), adapter_spec(settings)
    assert once == again
    assert once != adapter_spec(settings.model_copy(update={"schedule": "accumulate"}))


def test_a_network_says_what_a_run_is(make_network: MakeNetwork, tmp_path: Path) -> None:
    make_network(step=3)
    newest = make_network(feedback="No.", step=12)
    model = save_tiny_model(tmp_path / "tiny-llama")
    config = check_names(optune(tmp_path / "network", model=str(model)))
    assert config.settings == {
        "checkpoint": str(newest), "schedule": "alternate", "feedback": "No.",
    }  # fmt: skip
    make_network(feedback="Again.", step=20)  # a resumed run goes on with the network it had
    assert check_names(config) == config


def test_the_model_is_that_of_the_network(
    make_network: MakeNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path / "tiny-llama")
    checkpoint = make_network()
    assert prepare(optune(checkpoint, data={"limit": 2})).config.model == "tiny-llama"
    with pytest.raises(UsageError, match="No model 'elsewhere'"):
        check_names(optune(checkpoint, model="elsewhere"))


def test_another_feedback_is_refused(make_network: MakeNetwork) -> None:
    config = optune(make_network(), settings={"feedback": "Try again."})
    with pytest.raises(UsageError, match=r"feedback 'Wrong\.'.*cannot be 'Try again\.'"):
        prepare(config)
    with pytest.raises(UsageError, match="There is no checkpoint folder 'nowhere'"):
        prepare(optune(Path("nowhere")))
    with pytest.raises(UsageError, match="'checkpoint' is missing"):
        prepare(resolve({"method": "optune"}))


def test_a_network_of_another_architecture_is_refused_with_both_shapes(
    make_network: MakeNetwork, tmp_path: Path
) -> None:
    checkpoint = make_network()
    wider = save_tiny_model(tmp_path / "wider", "qwen", layers=2)
    changed = (wider / "config.json").read_text().replace('"hidden_size": 32', '"hidden_size": 48')
    (wider / "config.json").write_text(changed)
    with pytest.raises(UsageError, match=r"q_proj' is 32 x 32, but this model has it as 48 x 48"):
        prepare(optune(checkpoint, model=str(wider)))
    other = save_tiny_model(tmp_path / "tiny-mistral", "mistral")  # of the same shapes
    with pytest.raises(UsageError, match=r"on 'tiny-llama' and cannot be used with .*tral'"):
        prepare(optune(checkpoint, model=str(other)))
    shallow = tiny_model(layers=1)
    settings = OpTuneSettings.model_validate({"checkpoint": str(checkpoint)})
    with pytest.raises(UsageError, match="this model has no such linear layer"):
        check_edits(settings, shallow.model)
    check_edits(settings, tiny_model("mistral").model)  # of the same shape
