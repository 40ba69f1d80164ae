"""One budget rule for every method."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fttt.config import BudgetSection, build
from fttt.experiment.ledger import Ledger
from fttt.methods.base import MethodSettings
from fttt.methods.best_of_n import BestOfN
from fttt.methods.revision import Revision, RevisionSettings
from fttt.methods.self_consistency import SelfConsistency, SelfConsistencySettings
from fttt.methods.self_refine import SelfRefine, SelfRefineSettings
from fttt.testing import Scene, play
from fttt.types import Question, Usage, Verdict

OUTCOMES = st.lists(st.sampled_from(["7", "3", "no"]), min_size=40, max_size=40)
"""Completions that are right, wrong, and without an answer."""


def ledger(**rule: Any) -> Ledger:
    return Ledger(build(BudgetSection, rule, "the test"))


def counted(scene: Scene, rule: str) -> int:
    return sum(rule == "count" or trial.verdict != "unanswered" for trial in scene.trials)


@given(OUTCOMES, st.integers(1, 12), st.sampled_from(["count", "retry"]))
def test_a_budget_of_trials_is_kept(script: list[str], trials: int, rule: str) -> None:
    scene = play(BestOfN(MethodSettings()), script, trials=trials, unanswered=rule)
    verdicts = [trial.verdict for trial in scene.trials]
    assert counted(scene, rule) <= trials
    assert len(verdicts) <= (trials if rule == "count" else 2 * trials + 1)
    assert "correct" not in verdicts[:-1]  # a solved question is not tried again
    stopped_early = (
        verdicts[-1] != "correct"
        and counted(scene, rule) < trials
        and not (rule == "retry" and len(verdicts) == 2 * trials + 1)
    )
    assert not stopped_early
    assert [trial.trial for trial in scene.trials] == list(range(len(verdicts)))


def test_trials_that_are_free_come_to_an_end() -> None:
    scene = play(BestOfN(MethodSettings()), lambda *_: "no", trials=3, unanswered="retry")
    assert len(scene.trials) == 2 * 3 + 1


@given(OUTCOMES, st.integers(1, 12), st.sampled_from(["count", "retry"]))
def test_trials_together_spend_the_same_budget(script: list[str], trials: int, rule: str) -> None:
    scene = play(SelfConsistency(SelfConsistencySettings()), script, trials=trials, unanswered=rule)
    full = counted(scene, rule) == trials
    assert full or (rule == "retry" and len(scene.trials) == 2 * trials + 1)


@given(st.lists(st.integers(1, 9), min_size=30, max_size=30), st.integers(1, 60))
def test_a_budget_of_tokens_ends_before_a_trial_begins(lengths: list[int], budget: int) -> None:
    script = ["3" * length for length in lengths]
    scene = play(BestOfN(MethodSettings()), script, token_budget=budget)
    spent = [trial.usage.generated_tokens for trial in scene.trials]
    assert sum(spent[:-1]) < budget <= sum(spent)


def test_a_budget_of_tokens_counts_one_at_a_time_where_trials_run_together() -> None:
    scene = play(SelfConsistency(SelfConsistencySettings()), lambda *_: "3", token_budget=5)
    assert len(scene.trials) == 3  # of two tokens each


def test_a_budget_of_seconds_ends_before_a_trial_begins() -> None:
    account = ledger(time_budget=2.5)
    account.spend(Usage(seconds=2.4))
    assert account.grants()
    account.spend(Usage(seconds=0.1))
    assert not account.grants()


def test_budgets_add_up() -> None:
    account = ledger(trials=2, token_budget=10)
    assert account.begin() == 0
    account.judge(Verdict("incorrect"))
    assert account.grants()
    account.spend(Usage(generated_tokens=10))
    assert not account.grants()
    assert not account.limited_by_trials


def test_without_a_budget_of_trials_there_is_no_end_of_them() -> None:
    account = ledger(token_budget=10)
    assert account.rule.trials is None
    assert account.trials > 10**9


class Everything:
    """A verifier that finds an answer in whatever it is shown."""

    async def verify(self, question: Question, completion: str) -> Verdict:
        return Verdict("correct" if "7" in completion else "incorrect", completion)

    def extract(self, question: Question, completion: str) -> str | None:
        return completion

    async def close(self) -> None: ...


WRITTEN = {
    "qwen3": "<think>\nIs it 7?\n</think>\n\nNo.",
    "deepseek-r1": "Is it 7?\n</think>\n\nNo.",
    "harmony": "<|channel|>analysis<|message|>Is it 7?<|end|><|start|>assistant"
    "<|channel|>final<|message|>No.",
}


@pytest.mark.parametrize("template", WRITTEN)
def test_no_verifier_sees_a_thought(template: str) -> None:
    text = WRITTEN[template]
    budget = {"trials": 2, "template": template, "verifier": Everything()}
    for method in (BestOfN(MethodSettings()), SelfConsistency(SelfConsistencySettings())):
        scene = play(method, lambda *_: text, **budget)
        assert {(t.verdict, t.extracted, t.thought) for t in scene.trials} == {
            ("incorrect", "No.", "Is it 7?")
        }
        cut = play(method, lambda *_: text, max_new_tokens=len(text.partition("7")[0]), **budget)
        assert {(t.verdict, t.completion, t.extracted) for t in cut.trials} == {
            ("unanswered", "", None)
        }
        assert "cut off by the length limit" in cut.trials[0].detail


@pytest.mark.parametrize("template", WRITTEN)
def test_a_thought_that_was_spent_is_closed(template: str) -> None:
    def write(*_: object) -> str:
        return WRITTEN[template].replace("Is it 7?", "Is it 7? " * 20)

    scene = play(
        Revision(RevisionSettings(feedback="Wrong.")),
        write,
        trials=2,
        template=template,
        think_tokens=50,
    )
    for trial in scene.trials:
        assert trial.completion == "No."
        assert 50 <= trial.thought_tokens < 100
        assert trial.thought is not None
        assert trial.thought.startswith("Is it 7?")
    assert "7?" not in scene.engine.conversations[1], "an earlier turn has lost its thought"
    assert scene.engine.conversations[1].count("No.") == 1


def test_a_critique_thinks_for_half_of_its_tokens_at_most() -> None:
    refine = SelfRefine(SelfRefineSettings(critique_tokens=64))
    scene = play(
        refine, lambda *_: "<think>" + "7" * 99, trials=2, template="qwen3", think_tokens=90
    )
    budgets = [r.thought.tokens for r in scene.engine.generations if r.thought]
    assert budgets == [90, 32, 90]
