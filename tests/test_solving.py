"""``fttt.solve`` on a tiny model with the real engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import fttt
from fttt.methods.base import MethodSettings
from fttt.methods.beam_search import BeamSearch
from fttt.methods.greedy import Greedy
from fttt.methods.optune import OpTune, OpTuneSettings
from fttt.testing import TinyVerifier, save_tiny_model, tiny_model


@pytest.fixture(scope="module")
def model(one_thread: None) -> Any:
    return tiny_model()


def test_a_question_is_tried_until_it_verifies(model: Any) -> None:
    def third(completion: str) -> bool:
        return completion == wanted

    wanted = ""
    all_wrong = fttt.solve("Hi", verify=third, model=model, trials=3, max_new_tokens=8)
    assert not all_wrong.solved
    assert all_wrong.answer is None
    assert [trial.verdict for trial in all_wrong.trials] == ["incorrect"] * 3
    *others, last = all_wrong.trials
    assert all(trial.loss is not None for trial in others)
    assert last.loss is None  # nothing would use what is learned from it
    wanted = all_wrong.trials[2].completion
    result = fttt.solve("Hi", verify=third, model=model, trials=9, max_new_tokens=8)
    assert result.solved
    assert result.answer == wanted
    assert len(result.trials) == 3
    assert result.usage.generations == 3
    assert result.usage.generated_tokens == sum(len(t.token_ids) for t in result.trials)
    assert result.usage.trained_tokens > 0


def test_it_works_inside_a_running_event_loop(model: Any) -> None:
    async def notebook() -> fttt.Result:
        return fttt.solve("Hi", verify=bool, model=model, trials=2, max_new_tokens=8)

    assert asyncio.run(notebook()).solved


def test_several_questions_are_asked_together_and_alone_alike(model: Any) -> None:
    given = [fttt.Question(f"q{n}", f"Write {n}.", str(n)) for n in range(3)]
    asked: dict[str, Any] = {"model": model, "trials": 2, "max_new_tokens": 8}
    together = fttt.solve_many(given, verify="number", **asked)
    alone = [fttt.solve(one, verify="number", **asked) for one in given]
    assert [result.question for result in together] == given
    assert [[t.token_ids for t in result.trials] for result in together] == [
        [t.token_ids for t in result.trials] for result in alone
    ]
    texts = fttt.solve_many(["Hi", "Ho"], verify=bool, method="best-of-n", **asked)
    assert [result.question.id for result in texts] == ["question/0", "question/1"]
    assert all(result.solved and len(result.trials) == 1 for result in texts)
    with pytest.raises(fttt.UsageError, match="Two questions have the id 'q1'"):
        fttt.solve_many([given[1], given[1]], verify="number", **asked)
    with pytest.raises(fttt.UsageError, match="There is no question to solve"):
        fttt.solve_many([], verify="number", **asked)
    with pytest.raises(TypeError, match="trails"):
        fttt.solve_many(["Hi"], verify=bool, trails=3)


def test_one_question_is_asked_here_however_many_replicas_there_may_be(model: Any) -> None:
    more: dict[str, Any] = {"replicas": 4, "gpus_per_replica": 0.5}
    assert fttt.solve("Hi", verify=bool, model=model, max_new_tokens=8, **more).solved


def test_threads_take_turns_but_a_verifier_may_ask_in_its_turn(model: Any) -> None:
    inside: list[int] = []
    most: list[int] = []

    class Asking(TinyVerifier):
        async def verify(self, question: fttt.Question, completion: str) -> fttt.Verdict:
            inside.append(1)
            most.append(len(inside))
            await asyncio.sleep(0.1)
            inside.pop()
            asked = fttt.solve("Hi", verify=TinyVerifier(), model=model, trials=1, max_new_tokens=4)
            return fttt.Verdict("incorrect", detail=asked.trials[0].completion)

    def ask(number: int) -> fttt.Result:
        return fttt.solve(
            f"Hi {number}", verify=Asking(), model=model, method="best-of-n", trials=2,
            max_new_tokens=8,
        )  # fmt: skip

    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(ask, range(3)))
    assert most == [1] * 6
    assert [one.trials[1].token_ids for one in together] == [
        ask(number).trials[1].token_ids for number in range(3)
    ]


def test_a_verifier_object_and_a_gold(model: Any) -> None:
    verifier = TinyVerifier()
    result = fttt.solve(
        fttt.Question("mine", "Hi", gold="none"),
        verify=verifier,
        model=model,
        method="best-of-n",
        trials=2,
        max_new_tokens=8,
    )
    assert not result.solved
    assert {trial.question_id for trial in result.trials} == {"mine"}
    assert not verifier.closed  # it is the caller's


def test_a_beam_search_is_as_wide_as_its_trials(model: Any) -> None:
    wrong = fttt.solve(
        "Hi", verify=TinyVerifier(), model=model, method="beam-search", trials=20, max_new_tokens=4
    )
    assert len({trial.token_ids for trial in wrong.trials}) == 20
    assert wrong.usage.generated_tokens == sum(len(trial.token_ids) for trial in wrong.trials)
    with pytest.raises(fttt.UsageError, match="--trials instead of --token-budget"):
        fttt.solve(
            "Hi", verify=bool, model=model, method=BeamSearch(MethodSettings()), token_budget=100
        )


def test_a_vote_is_won_by_the_most_frequent_answer(model: Any) -> None:
    class Same(TinyVerifier):
        def extract(self, question: fttt.Question, completion: str) -> str | None:
            return "7"

    result = fttt.solve(
        fttt.Question("mine", "Hi", gold="7"),
        verify=Same(),
        model=model,
        method="self-consistency",
        trials=3,
        max_new_tokens=4,
    )
    assert result.solved
    assert len(result.trials) == 3
    assert result.answer == min(result.trials, key=lambda t: t.trial).completion


def test_a_method_of_your_own(model: Any) -> None:
    class Twice(fttt.Method):
        name = "twice"
        summary = "for tests"

        async def solve(self, question: fttt.Question, session: fttt.Session) -> None:
            async for trial in session.trials():
                await trial.verify(await trial.generate(temperature=0.0))

    result = fttt.solve(
        "Hi",
        verify=lambda _: False,
        model=model,
        method=Twice(fttt.MethodSettings()),
        trials=2,
        max_new_tokens=4,
    )
    assert len(result.trials) == 2
    assert result.trials[0].token_ids == result.trials[1].token_ids


def test_what_a_method_object_fixes_is_kept(model: Any) -> None:
    greedy = Greedy(fttt.MethodSettings())
    result = fttt.solve(
        "Hi", verify=lambda _: False, model=model, method=greedy, trials=5, max_new_tokens=4
    )
    assert len(result.trials) == 1


def test_a_model_by_its_folder_and_another_budget(tmp_path: Any) -> None:
    folder = save_tiny_model(tmp_path / "tiny")
    result = fttt.solve(
        "Hi",
        verify=lambda _: False,
        model=str(folder),
        device="cpu",
        trials=None,
        token_budget=9,
        max_new_tokens=4,
    )
    assert len(result.trials) == 3


def test_a_trained_network_is_used_where_it_fits(
    model: Any, make_network: Callable[..., Path]
) -> None:
    settings = {"checkpoint": str(make_network())}
    asked: dict[str, Any] = {"verify": lambda _: False, "trials": 3, "max_new_tokens": 8}
    named = fttt.solve("Hi", model=model, method="optune", settings=settings, **asked)
    assert [trial.loss is None for trial in named.trials] == [False, True, True]
    made = OpTune(OpTuneSettings.model_validate(settings))
    by_object = fttt.solve("Hi", model=model, method=made, **asked)
    assert [t.token_ids for t in by_object.trials] == [t.token_ids for t in named.trials]
    assert by_object.trials[0].loss == pytest.approx(named.trials[0].loss)
    with pytest.raises(fttt.UsageError, match="is 32 x 32, but this model has no such"):
        fttt.solve("Hi", model=tiny_model(layers=1), method="optune", settings=settings, **asked)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"trials": 0}, r"'budget.trials' in fttt.solve\(\) cannot be 0"),
        ({"method": "ftt"}, "no method 'ftt'"),
        ({"model": "nope"}, "No model 'nope'"),
        ({"settings": {"lrr": 1}}, "did you mean 'lr'"),
        ({"verify": 3}, "verify cannot be 3"),
        ({"verify": "reg:x"}, "no verifier 'reg'; did you mean 'regex'"),
        ({"verify": "number"}, "'number' needs a gold answer"),
        ({"verify": 3, "model": "nobody/nothing"}, "verify cannot be 3"),
        ({"method": "self-consistency"}, "votes over the answers that the verifier reads"),
        ({"method": "self-consistency", "verify": "regex:x"}, "votes over the answers"),
        ({"question": " "}, "The question cannot be ' '"),
        ({"question": None}, "The question cannot be None"),
        ({"max_new_tokens": 4096}, "is longer than the context"),
        ({"replicas": 0}, "should be a number of at least 1, or auto"),
        ({"ray_address": "127.0.0.1:1"}, "loaded in this process, and replicas load their own"),
    ],
)
def test_faults_are_named(arguments: dict[str, Any], match: str, model: Any) -> None:
    given = {"question": "Hi", "verify": bool, "model": model, **arguments}
    with pytest.raises(fttt.UsageError, match=match):
        fttt.solve(**given)


def test_a_verifier_as_on_the_command_line(model: Any) -> None:
    asked: dict[str, Any] = {"model": model, "trials": 1, "max_new_tokens": 4}
    found = fttt.solve("Hi", verify=r"regex:(?s)\A.", **asked)
    assert found.solved
    question = fttt.Question("sum", "1+1?", gold="2")
    result = fttt.solve(question, verify="number", **asked)
    assert [trial.question_id for trial in result.trials] == ["sum"]
