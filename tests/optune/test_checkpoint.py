"""Checkpoints: whole or not at all, and refused with one sentence where they are not."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fttt.errors import RunError, UsageError
from fttt.files import hub_http_error
from fttt.optune import OpTuneInfo, load_checkpoint, push, read_info
from fttt.optune import checkpoint as module
from fttt.optune.checkpoint import (
    EditedLayer,
    TrainingState,
    check_layers,
    check_training,
    edited_layers,
    load_training,
    write_checkpoint,
)
from fttt.optune.network import OpTuneNetwork
from fttt.testing import tiny_model


@pytest.fixture
def network(layers: Any, make_factors: Any) -> OpTuneNetwork:
    network = OpTuneNetwork(layers, rank=3, seed=5)
    network.observe(network.summarize([make_factors([20, 4])]))
    return network


@pytest.fixture
def info(layers: Any) -> OpTuneInfo:
    return OpTuneInfo(
        model="tiny", task="arithmetic", layers=layers, rank=3, dropout=0.1, feedback="No.",
        step=20, parameters=100, settings={"lr": 1e-5},
    )  # fmt: skip


def state(step: int) -> TrainingState:
    return TrainingState({"step": step}, {"moment.0": torch.full((2,), float(step))})


def test_what_is_written_is_read(
    tmp_path: Path, info: OpTuneInfo, network: OpTuneNetwork, make_factors: Any
) -> None:
    folder = write_checkpoint(tmp_path, info, network, state(20))
    assert read_info(folder) == read_info(tmp_path) == info
    loaded = load_checkpoint(tmp_path)
    assert loaded.info == info
    factors = make_factors([6, 2], seed=3)
    for name, delta in loaded.network(factors).items():
        assert torch.equal(delta, network(factors)[name])
    kept = load_training(tmp_path)
    assert kept.numbers == {"step": 20}
    assert kept.tensors["moment.0"].tolist() == [20, 20]


def test_the_newest_two_are_kept(tmp_path: Path, info: OpTuneInfo, network: OpTuneNetwork) -> None:
    for step in (9, 10, 100):
        write_checkpoint(tmp_path, replace(info, step=step), network, state(step))
    assert read_info(tmp_path).step == 100
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]


def test_a_full_disk_leaves_the_one_before_whole(
    tmp_path: Path, info: OpTuneInfo, network: OpTuneNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = module.write_whole

    def full(path: Path, content: bytes) -> None:
        if path.name == "training.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_whole", full)
        with pytest.raises(RunError, match=r"step-00000020.*there is none before it: from step 0"):
            write_checkpoint(tmp_path, info, network, state(20))
    write_checkpoint(tmp_path, info, network, state(20))
    monkeypatch.setattr(module, "write_whole", full)
    with pytest.raises(RunError, match=r"step-00000040.*No space left.*step-00000020 is whole"):
        write_checkpoint(tmp_path, replace(info, step=40), network, state(40))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000020"]
    (tmp_path / ".step-00000030.partial").mkdir()  # of a process that was killed
    assert load_training(tmp_path).numbers == {"step": 20}
    monkeypatch.undo()
    write_checkpoint(tmp_path, replace(info, step=40), network, state(40))
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["step-00000020", "step-00000040"]


def test_a_torn_or_foreign_checkpoint_is_refused_before_it_is_loaded(
    tmp_path: Path, info: OpTuneInfo, network: OpTuneNetwork
) -> None:
    with pytest.raises(UsageError, match=r"There is no checkpoint folder '.*nowhere'"):
        read_info(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"holds no OpTune checkpoint"):
        read_info(tmp_path)
    folder = write_checkpoint(tmp_path, info, network, state(20))
    weights = folder / "network.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:-9], whole[:100], b"", b"no safetensors at all"):
        weights.write_bytes(content)
        with pytest.raises(UsageError, match=r"is broken: network.safetensors .*train it again"):
            read_info(folder)
    weights.write_bytes(whole)
    for name in ("training.json", "training.safetensors"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(kept[: len(kept) // 2])
        read_info(folder)  # good enough to be used
        with pytest.raises(UsageError, match=f"is broken: {name}"):
            check_training(folder)
        (folder / name).write_bytes(kept)
    check_training(folder)
    facts = json.loads((folder / "optune.json").read_text())
    for change in ({"format": 9}, {"rank": None, "step": None, "colour": 1}, {"layers": [1]}):
        (folder / "optune.json").write_text(json.dumps(facts | change))
        with pytest.raises(UsageError, match=r"another format|is broken: optune.json"):
            read_info(folder)
    (folder / "optune.json").write_text(json.dumps(facts | {"rank": 4}))
    with pytest.raises(UsageError, match=r"network.safetensors does not fit optune.json"):
        load_checkpoint(folder)


def test_reading_what_a_checkpoint_is_for_loads_no_torch() -> None:
    script = "import sys, fttt.optune, fttt.cli.trainings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


class FakeHub:
    """The two calls of the hub that are made, on a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
        assert (private, exist_ok) == (True, True)
        (self.root / name).mkdir(parents=True)

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        for file in Path(folder_path).iterdir():
            (self.root / repo_id / file.name).write_bytes(file.read_bytes())
        assert commit_message == "OpTune, step 20"
        return type("Commit", (), {"commit_url": f"https://hub/{repo_id}"})


def test_to_the_hub_and_back(
    tmp_path: Path, info: OpTuneInfo, network: OpTuneNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    fake = FakeHub(tmp_path / "hub")

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        if not (fake.root / name).is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError("no such repository")
        return str(fake.root / name)

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    write_checkpoint(tmp_path / "run", info, network, state(20))
    assert push(tmp_path / "run", "me/optune-tiny", private=True) == "https://hub/me/optune-tiny"
    shared = fake.root / "me/optune-tiny"
    assert {p.name for p in shared.iterdir()} == {"optune.json", "network.safetensors", "README.md"}
    assert "--checkpoint me/optune-tiny" in (shared / "README.md").read_text()
    loaded = load_checkpoint("me/optune-tiny")
    assert loaded.info == info
    with pytest.raises(RunError, match=r"no folder 'me/other', and .* no such repository"):
        load_checkpoint("me/other")
    assert not module.is_hub_name(tmp_path / "run")


def test_a_missing_folder_beside_others_is_no_name_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert module.is_hub_name("outputs/optune")
    (tmp_path / "outputs").mkdir()
    assert not module.is_hub_name("outputs/optune")
    with pytest.raises(UsageError, match="'outputs/optune'"):
        module.fetch("outputs/optune")


def test_a_hub_out_of_reach_is_named(
    tmp_path: Path, info: OpTuneInfo, network: OpTuneNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    class Nowhere:
        def create_repo(self, name: str, **_: Any) -> None:
            raise hub_http_error()("Name or service not known")  # its client's, not the system's

    monkeypatch.setattr(huggingface_hub, "HfApi", Nowhere)
    write_checkpoint(tmp_path / "run", info, network, state(20))
    with pytest.raises(RunError, match="'me/optune-tiny': Name or service not known; check the"):
        push(tmp_path / "run", "me/optune-tiny")


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
