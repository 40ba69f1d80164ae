"""What a trained network fixes of a run, and what is refused before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fttt.config import resolve
from fttt.engine.request import LoRASpec
from fttt.errors import UsageError
from fttt.experiment.plan import plan_run, settle
from fttt.methods import LoRASettings, MethodSettings
from fttt.methods.optune import OpTuneSettings
from fttt.testing import save_tiny_model, tiny_model

MakeNetwork = Callable[..., Path]


def optune(checkpoint: Path, **flags: Any) -> Any:
    settings = {"checkpoint": str(checkpoint), **flags.pop("settings", {})}
    return resolve({"method": "optune", "settings": settings, **flags})


def test_settings_name_the_adapter(make_network: MakeNetwork) -> None:
    assert MethodSettings().adapter() is None
    assert LoRASettings.model_validate({"rank": 2}).adapter() == LoRASpec(rank=2)
    settings = OpTuneSettings.model_validate({"checkpoint": str(make_network())})
    once, again = settings.adapter(), settings.adapter()
    assert once == again
    assert once != settings.model_copy(update={"schedule": "accumulate"}).adapter()


def test_a_network_says_what_a_run_is(make_network: MakeNetwork, tmp_path: Path) -> None:
    make_network(step=3)
    newest = make_network(feedback="No.", step=12)
    model = save_tiny_model(tmp_path / "tiny-llama")
    config = settle(optune(tmp_path / "network", model=str(model))).config
    assert config.settings == {
        "checkpoint": str(newest), "schedule": "alternate", "feedback": "No.",
    }  # fmt: skip
    make_network(feedback="Again.", step=20)  # a resumed run keeps the network that it had
    assert settle(config).config == config


def test_the_model_is_that_of_the_network(
    make_network: MakeNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path / "tiny-llama")
    checkpoint = make_network()
    plan = plan_run(settle(optune(checkpoint, data={"limit": 2})))
    assert plan.config.model == str(tmp_path / "tiny-llama")
    with pytest.raises(UsageError, match="No model 'elsewhere'"):
        settle(optune(checkpoint, model="elsewhere")).check_model()


def test_another_feedback_is_refused(make_network: MakeNetwork) -> None:
    config = optune(make_network(), settings={"feedback": "Try again."})
    with pytest.raises(UsageError, match=r"feedback 'Wrong\.'.*cannot be 'Try again\.'"):
        plan_run(settle(config))
    with pytest.raises(UsageError, match="There is no checkpoint folder 'nowhere'"):
        plan_run(settle(optune(Path("nowhere"))))
    with pytest.raises(UsageError, match="'checkpoint' is missing"):
        plan_run(settle(resolve({"method": "optune"})))


def test_a_network_of_another_architecture_is_refused_with_both_shapes(
    make_network: MakeNetwork, tmp_path: Path
) -> None:
    checkpoint = make_network()
    wider = save_tiny_model(tmp_path / "wider", "qwen", layers=2)
    changed = (wider / "config.json").read_text().replace('"hidden_size": 32', '"hidden_size": 48')
    (wider / "config.json").write_text(changed)
    with pytest.raises(UsageError, match=r"q_proj' is 32 x 32, but this model has it as 48 x 48"):
        plan_run(settle(optune(checkpoint, model=str(wider))))
    other = save_tiny_model(tmp_path / "tiny-mistral", "mistral")  # of the same shapes
    with pytest.raises(UsageError, match=r"on 'tiny-llama' and cannot be used with .*tral'"):
        plan_run(settle(optune(checkpoint, model=str(other))))
    shallow = tiny_model(layers=1)
    settings = OpTuneSettings.model_validate({"checkpoint": str(checkpoint)})
    with pytest.raises(UsageError, match="this model has no such linear layer"):
        settings.check_model(shallow.model)
    settings.check_model(tiny_model("mistral").model)  # of the same shape
