"""Flags over file over defaults, and one sentence for the first fault."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from fttt.config import (
    FinetuneConfig,
    RunConfig,
    field_help,
    in_sections,
    key_values,
    merge,
    read_toml,
    resolve,
    to_toml,
)
from fttt.errors import UsageError


def test_flags_go_over_the_file_and_the_file_over_defaults() -> None:
    recipe = {"method": "fttt", "seed": 1, "sampling": {"top_p": 0.5, "temperature": 0.1}}
    config = resolve({"seed": 2, "sampling": {"top_p": 0.7}}, recipe=recipe)
    assert config.seed == 2
    assert (config.sampling.top_p, config.sampling.temperature) == (0.7, 0.1)
    assert config.sampling.max_new_tokens == 2048
    assert config.budget.trials == 32
    assert config.model == "smollm2-135m"


def test_the_papers_settings_are_the_defaults() -> None:
    config = resolve({"method": "fttt"})
    assert config.budget.trials == 32
    assert config.budget.unanswered == "count"
    assert config.sampling.model_dump() == {
        "temperature": 0.6,
        "top_p": 0.95,
        "max_new_tokens": 2048,
        "think_tokens": None,
        "top_k": None,
        "min_p": None,
        "repetition_penalty": None,
    }
    assert config.seed == 42


def test_another_budget_takes_the_place_of_trials() -> None:
    assert resolve({"method": "fttt", "budget": {"token_budget": 9}}).budget.trials is None
    recipe = {"method": "fttt", "budget": {"trials": 8}}
    config = resolve({"budget": {"time_budget": 9}}, recipe=recipe)
    assert (config.budget.trials, config.budget.time_budget) == (None, 9.0)
    both = resolve({"budget": {"time_budget": 9, "trials": 4}}, recipe=recipe)
    assert both.budget.trials == 4


@pytest.mark.parametrize("model", [RunConfig, FinetuneConfig])
def test_a_flat_setting_goes_where_its_field_is(model: type[BaseModel]) -> None:
    assert in_sections({"seed": 1, "data.seed": 2, "split": "dev", "dtype": "float32"}, model) == {
        "seed": 1,
        "data": {"seed": 2, "split": "dev"},
        "engine": {"dtype": "float32"},
    }
    tables = {
        n: f.annotation
        for n, f in model.model_fields.items()
        if hasattr(f.annotation, "model_fields")
    }
    names = [name for table in tables.values() for name in table.model_fields]
    twice = {name for name in names if names.count(name) > 1 or name in model.model_fields}
    assert twice == {"seed"}, "a name that is asked for alone must mean one field"


def test_what_was_not_given_is_left_out() -> None:
    given = {"trials": None, "options": {}, "settings": {}, "save_correct_cases": False}
    assert in_sections(given) == {"save_correct_cases": False}
    assert in_sections({"questions": []}) == {"data": {"questions": []}}  # given, and refused later


def test_a_resolved_config_is_a_recipe_that_resolves_to_itself() -> None:
    config = resolve({"method": "fttt", "settings": {"lr": 1e-3, "targets": ["q_proj"]}})
    assert resolve({}, recipe=tomllib.loads(to_toml(config))) == config


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            {"method": "fttt", "sampling": {"temprature": 1}},
            "Unknown key 'sampling.temprature' in r.toml; did you mean 'temperature'? "
            "Known there: temperature, top_p, top_k, min_p, repetition_penalty, max_new_tokens, "
            "think_tokens.",
        ),
        (
            {"method": "fttt", "zzz": 1},
            "Unknown key 'zzz' in r.toml; known there: method, model, endpoint, adapter, "
            "template_args, task, seed, name, ablate, save_correct_cases, data, budget, "
            "sampling, engine, settings.",
        ),
        (
            {"method": "fttt", "budget": {"trials": 0}},
            "'budget.trials' in r.toml cannot be 0; it should be greater than or equal to 1.",
        ),
        (
            {"method": "fttt", "budget": 3},
            "'budget' in r.toml cannot be 3; it should be a valid dictionary or instance of "
            "BudgetSection.",
        ),
    ],
)
def test_faults_of_the_file_are_named(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve({}, recipe=recipe, source="r.toml")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"budget": {"trials": 0}},
            "--trials cannot be 0; it should be greater than or equal to 1.",
        ),
        (
            {"sampling": {"top_p": 1.5}},
            "--top-p cannot be 1.5; it should be less than or equal to 1.",
        ),
        (
            {"budget": {"unanswered": "skip"}},
            "--unanswered cannot be 'skip'; it should be 'count' or 'retry'.",
        ),
        ({"data": {"limit": -1}}, "--limit cannot be -1; it should be greater than or equal to 1."),
    ],
)
def test_faults_of_flags_are_named_as_flags(flags: dict[str, Any], message: str) -> None:
    for recipe in (None, {"method": "fttt", "seed": 3}):
        with pytest.raises(UsageError) as caught:
            resolve({"method": "fttt", **flags}, recipe=recipe, source="r.toml")
        assert str(caught.value) == message


def test_a_missing_method_is_asked_for() -> None:
    with pytest.raises(UsageError, match="'method' is missing"):
        resolve({})


def test_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Cannot read the file '.*none.toml': No such file"):
        read_toml(tmp_path / "none.toml")
    path = tmp_path / "r.toml"
    path.write_text("seed = 1\nmethod = \n")
    with pytest.raises(UsageError, match=r"is no valid TOML: .*line 2"):
        read_toml(path)


def test_pairs_hold_toml_values_or_words() -> None:
    pairs = ["a=1", "b=1e-3", "c=true", "d=[1, 2]", "e=hello world", 'f="3"', "g=x=y"]
    assert key_values(pairs, "--set") == {
        "a": 1, "b": 1e-3, "c": True, "d": [1, 2], "e": "hello world", "f": "3", "g": "x=y",
    }  # fmt: skip
    for wrong in ("a", "=1"):
        with pytest.raises(UsageError, match=r"--set .* is not of the form key=value"):
            key_values([wrong], "--set")


def test_tables_are_merged_table_by_table() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}, "d": {"e": 5}}) == {
        "a": {"b": 4, "c": 2},
        "d": {"e": 5},
    }


def test_every_field_says_what_it_is() -> None:
    sections = {name: f for name, f in RunConfig.model_fields.items() if f.default_factory}
    for name, field in RunConfig.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for inner in kind.model_fields:
                assert field_help(f"{name}.{inner}")
        else:
            assert field_help(name)
    assert {"data", "budget", "sampling", "engine"} <= set(sections)
