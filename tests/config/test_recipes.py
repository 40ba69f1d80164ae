"""The recipes that are shipped: each is valid, and its first line is the command that runs it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from fttt.config import SETTINGS, FinetuneConfig, build, merge, read_toml, resolve
from fttt.config.training_configs import OpTuneConfig
from fttt.experiment.plan import settle
from fttt.experiment.sweep import Grid, SweepConfig
from fttt.tasks import TASKS

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.toml"))


def test_there_is_one_for_each_model_and_benchmark() -> None:
    names = {path.stem for path in RECIPES}
    for model in ("llama-3.1-8b", "mistral-7b"):
        for task in ("gsm8k", "math500", "humaneval", "mbpp"):
            assert f"{model}-{task}" in names
            assert f"optune-{model}-{task}" in names or task == "humaneval"
    assert "toy" in names


@pytest.mark.parametrize("name", ["llama-3.1-8b-gsm8k", "mistral-7b-mbpp", "toy"])
def test_a_grid_compares_the_methods_of_one_model(name: str, tmp_path: Path) -> None:
    grid = Grid(build(SweepConfig, read_toml(FOLDER / f"{name}.toml"), name), tmp_path)
    runs = [place.config for place in grid.places]
    assert {run.method for run in runs} >= {
        "greedy", "beam-search", "best-of-n", "self-consistency", "revision", "self-refine", "fttt",
    }  # fmt: skip
    seeds = grid.config.seeds
    for run in runs:  # what draws nothing runs once
        asked = {other.seed for other in runs if other.method == run.method}
        assert asked == set(seeds[:1] if run.method in ("greedy", "beam-search") else seeds)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_by_its_first_line(path: Path, tmp_path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    words = shlex.split(first.removeprefix("# "))
    assert words[0] == "fttt"
    assert f"recipes/{path.name}" in words
    content = read_toml(path)
    if "gym/" in path.read_text(encoding="utf-8"):
        pytest.importorskip("reasoning_gym", reason="needs requirements/gym.txt")
    if words[1:3] == ["optune", "train"]:
        assert build(OpTuneConfig, content, path.name).task in TASKS
        return
    if words[1:3] == ["finetune", "train"]:
        with_method = merge(content, {"method": words[3]})
        config = build(FinetuneConfig, with_method, path.name)
        build(SETTINGS[config.method], config.settings, path.name)
        assert config.task in TASKS
        return
    if words[1] == "sweep":
        places = Grid(build(SweepConfig, content, path.name), tmp_path).places
        configs = [place.config for place in places]
    else:
        assert words[1:3] == ["run", "--recipe"]
        configs = [resolve({}, recipe=content, source=path.name)]
    for config in configs:
        settled = settle(config).config  # the method and its settings exist
        assert settled.task.partition("/")[0] in TASKS
