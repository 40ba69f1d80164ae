"""What is checked before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fttt.config import key_values, resolve
from fttt.errors import UsageError
from fttt.experiment.plan import plan_run, settle


def config(**flags: Any) -> Any:
    return resolve({"method": "fttt", **flags})


def test_settings_are_filled_in_and_what_the_method_fixes() -> None:
    settled = settle(config(settings={"lr": 1e-3}))
    resolved, method, settings = settled.config, settled.method, settled.settings
    assert method.name == "fttt"
    assert resolved.settings["lr"] == 1e-3
    assert resolved.settings["rank"] == 4
    assert settings.model_dump()["lr"] == 1e-3
    assert not resolved.save_correct_cases
    greedy = settle(config(method="greedy", budget={"trials": 8})).config
    assert greedy.budget.trials == 1
    assert greedy.sampling.temperature == 0.0
    assert greedy.save_correct_cases
    quiet = settle(config(method="greedy", save_correct_cases=False)).config
    assert not quiet.save_correct_cases


@pytest.mark.parametrize(
    ("given", "read"),
    [(1, 1.0), ("0.8", 0.8), ("0.6, 0.8", (0.6, 0.8)), ([0.6, 1], (0.6, 1.0)), ("1..0.5",) * 2],
)
def test_a_temperature_is_a_number_a_list_or_a_range(given: Any, read: Any) -> None:
    settled = settle(config(sampling={"temperature": given})).config
    assert settled.sampling.temperature == read
    assert settle(resolve({}, recipe=settled.to_toml())).config == settled
    greedy = settle(config(method="greedy", sampling={"temperature": given})).config
    assert greedy.sampling.temperature == 0.0


def test_a_list_of_words_is_read_as_the_listing_shows_it() -> None:
    given = key_values(["targets=q_proj, k_proj"], "--set")
    settled = settle(config(settings=given))
    assert settled.config.settings["targets"] == ["q_proj", "k_proj"]
    one = settle(config(settings=key_values(["targets=all-linear"], "--set")))
    assert one.config.settings["targets"] == ["all-linear"]


def test_a_resolved_config_resolves_to_itself() -> None:
    for method in ("greedy", "fttt", "revision", "policy", "self-distill"):
        once = settle(config(method=method)).config
        twice = settle(resolve({}, recipe=once.to_toml())).config
        assert once == twice


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"method": "ftt"}, "no method 'ftt'; did you mean 'fttt'"),
        ({"method": "nope"}, "no method 'nope'; choose from"),
        ({"method": "fft"}, "no method 'fft'; did you mean 'fttt'"),
        ({"task": "gsm9k"}, "no task 'gsm9k'; did you mean 'gsm8k'"),
        ({"model": "smollm2-13m"}, "did you mean 'smollm2-135m'"),
        (
            {"settings": {"rnk": 1}},
            r"Unknown key 'rnk' in the settings of 'fttt'; did you mean 'rank'",
        ),
        ({"settings": {"lr": -1}}, "'lr' in the settings of 'fttt' cannot be -1"),
        (
            {"method": "beam-search", "budget": {"token_budget": 5}},
            "'beam-search' makes one search.* --trials instead of --token-budget",
        ),
        (
            {"method": "beam-search", "budget": {"trials": 4, "time_budget": 5}},
            "'beam-search' makes one search.* --trials instead of --time-budget",
        ),
        (
            {"sampling": {"temperature": "0.6..1.2"}, "budget": {"token_budget": 5}},
            "temperature 0.6..1.2 goes from the first trial to the last.* give --trials too",
        ),
        ({"sampling": {"temperature": "0.6,hot"}}, "--temperature cannot be '0.6,hot'; it should"),
        ({"sampling": {"temperature": "0.6..0.8..1"}}, "cannot be '0.6..0.8..1'; it should be a n"),
        ({"sampling": {"temperature": [0.6, -1]}}, r"cannot be \[0.6, -1\]; it should be a number"),
        ({"sampling": {"temperature": []}}, r"cannot be \[\]; it should be a number of at least 0"),
        (
            {"sampling": {"think_tokens": 2048}},
            "--think-tokens 2048 leaves no room for an answer within --max-new-tokens 2048",
        ),
        (
            {"method": "beam-search", "sampling": {"think_tokens": 9}},
            "'beam-search' searches by the model's own probabilities and closes no thought",
        ),
        ({"sampling": {"think_tokens": 9}}, "has no thoughts, so --think-tokens does nothing"),
        ({"template_args": {"thinking": False}}, "has no argument 'thinking'; it has none"),
        ({"data": {"split": "tset"}}, "no split 'tset'"),
        ({"data": {"options": {"levls": [1]}}}, "does not take the option 'levls'"),
        (
            {
                "method": "self-consistency",
                "task": "jsonl",
                "data": {"options": {"verifier": "regex:x"}},
            },
            "votes over the answers that the verifier reads",
        ),
        ({"data": {"questions": ["x"]}}, "No question has the id 'x'"),
        ({"data": {"skip_cases": "no.json"}}, "no file of correct cases 'no.json'"),
    ],
)
def test_faults_are_named(flags: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        plan_run(settle(config(**flags)))


def test_names_are_checked_without_data() -> None:
    settled = settle(config(task="gsm8k", data={"data_dir": "nowhere"}))
    settled.check_model()
    assert settled.config.task == "gsm8k"
    with pytest.raises(UsageError, match="no method"):
        settle(config(method="nope"))


def test_limit_counts_what_is_left_after_skipping(tmp_path: Path) -> None:
    everything = plan_run(settle(config())).questions
    cases = tmp_path / "cases.json"
    cases.write_text("[0, 1, 3]")
    plan = plan_run(settle(config(data={"skip_cases": str(cases), "limit": 2})))
    assert [q.id for q in plan.questions] == [everything[2].id, everything[4].id]
    cases.write_text(str(list(range(len(everything)))))
    with pytest.raises(UsageError, match="No question of 'arithmetic' is left to ask"):
        plan_run(settle(config(data={"skip_cases": str(cases)})))


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the paper's folders: two questions, the first of them solved."""
    monkeypatch.chdir(tmp_path)
    data = Path("datasets/grade-school-math/grade_school_math/data")
    data.mkdir(parents=True)
    for split in ("test", "train"):
        row = '{"question": "How many?", "answer": "So #### 3"}\n'
        (data / f"{split}.jsonl").write_text(row * 2)
    cases = Path("metadata/smollm2-135m_gsm8k_correct_cases.json")
    cases.parent.mkdir()
    cases.write_text("[0]")
    return cases


def test_the_papers_places_are_looked_into_and_it_is_said(layout: Path) -> None:
    plan = plan_run(settle(config(task="GSM-8K")), find_cases=True)
    assert [question.id for question in plan.questions] == ["gsm8k/test/1"]
    assert plan.config.task == "gsm8k"
    assert plan.config.data.data_dir == Path("datasets").absolute()
    assert plan.config.data.skip_cases == layout.absolute()
    reading, leaving = plan.notes
    assert reading.startswith("Reading gsm8k from 'datasets'")
    assert leaving.startswith(f"Leaving out the 1 questions that '{layout}' lists")
    layout.write_text("[]")  # what is recorded does not follow the file
    again = plan_run(settle(plan.config), only=["gsm8k/test/1"], find_cases=True)
    assert (again.questions, again.notes) == (plan.questions, ())


@pytest.mark.parametrize(
    "flags",
    [
        {"method": "greedy"},
        {"save_correct_cases": True},
        {"data": {"skip_cases": "none"}},
        {"data": {"questions": ["gsm8k/test/0", "gsm8k/test/1"]}},
    ],
)
def test_cases_are_found_only_where_nothing_else_is_asked(
    layout: Path, flags: dict[str, Any]
) -> None:
    plan = plan_run(settle(config(task="gsm8k", **flags)), find_cases=True)
    assert len(plan.questions) == 2
    assert len(plan.notes) == 1


def test_cases_of_one_split_are_not_those_of_another(layout: Path) -> None:
    plan = plan_run(settle(config(task="gsm8k", data={"split": "train"})), find_cases=True)
    assert len(plan.questions) == 2
    assert len(plan_run(settle(config(task="gsm8k"))).questions) == 2  # as part of a sweep


def test_found_cases_of_other_questions_are_not_used(layout: Path) -> None:
    layout.write_text('["gsm8k/train/1"]')
    plan = plan_run(settle(config(task="gsm8k")), find_cases=True)
    assert len(plan.questions) == 2
    assert plan.config.data.skip_cases is None
    assert "Asking all questions: The file of correct cases" in plan.notes[1]


def test_a_folder_of_data_that_is_named_is_the_only_one(layout: Path) -> None:
    with pytest.raises(UsageError, match="is not in 'elsewhere'"):
        plan_run(settle(config(task="gsm8k", data={"data_dir": "elsewhere"})))


def test_folders_are_named_by_method_task_model_and_seed() -> None:
    assert plan_run(settle(config(seed=7))).folder_name == "fttt-arithmetic-smollm2-135m-s7"
