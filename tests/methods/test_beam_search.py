"""One search as wide as the budget, its beams checked best first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fttt.engine.request import BeamRequest, Generation
from fttt.methods.base import Method, MethodSettings, Session
from fttt.methods.beam_search import BeamSearch
from fttt.testing import FakeEngine, play, tiny_tokenizer
from fttt.types import Question

METHOD = BeamSearch(MethodSettings())
PROMPT = "<|im_start|>user\nWrite the number 7.<|im_end|>\n<|im_start|>assistant\n"


def test_one_search_of_the_budgets_width_is_checked_best_first() -> None:
    scene = play(METHOD, ["is 1", "is 22", "7", "is 4"], trials=4, max_new_tokens=50)
    (search,) = scene.engine.searches
    assert str(tiny_tokenizer().decode(search.prompt_ids)) == PROMPT
    assert (search.beams, search.max_new_tokens, search.stop_ids) == (4, 50, (2,))
    assert scene.engine.generations == []
    assert [t.completion for t in scene.trials] == ["is 1", "is 22", "7"]
    assert [t.verdict for t in scene.trials] == ["incorrect", "incorrect", "correct"]
    assert [(t.trial, t.generation) for t in scene.trials] == [(0, 0), (1, 1), (2, 2)]


def test_the_first_trial_bears_what_all_beams_cost() -> None:
    beams = ["is 1", "is 22", "7", "is 4"]
    scene = play(METHOD, beams, trials=4)
    first, *others = (t.usage for t in scene.trials)
    assert first.generations == 4
    assert first.generated_tokens == sum(len(beam) + 1 for beam in beams)  # a byte is a token
    assert first.prompt_tokens == 4 * len(scene.engine.searches[0].prompt_ids)
    assert [u.generated_tokens for u in others] == [0, 0]
    assert [u.verifier_calls for u in (first, *others)] == [1, 1, 1]
    assert scene.usage.generated_tokens == first.generated_tokens
    assert scene.engine.generated_tokens == first.generated_tokens


def test_a_search_is_timed_once_whatever_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    search = FakeEngine.beam

    async def slow(engine: FakeEngine, request: BeamRequest) -> tuple[Generation, ...]:
        return tuple(replace(beam, seconds=1000.0) for beam in await search(engine, request))

    monkeypatch.setattr(FakeEngine, "beam", slow)
    scene = play(METHOD, ["1", "2", "3", "4"], trials=4)
    assert scene.trials[0].usage.seconds == pytest.approx(1000.0, abs=5)
    assert scene.usage.seconds == pytest.approx(1000.0, abs=5)


def test_a_beam_that_was_cut_is_a_trial_like_any_other() -> None:
    scene = play(METHOD, ["1111111", "7"], trials=2, max_new_tokens=3)
    assert [t.completion for t in scene.trials] == ["111", "7"]
    assert [t.finish_reason for t in scene.trials] == ["length", "stop"]


def test_the_budget_ends_with_the_last_beam_answered_or_not() -> None:
    for rule in ("count", "retry"):
        scene = play(METHOD, ["1", "none", "2"], trials=3, unanswered=rule)
        assert [t.verdict for t in scene.trials] == ["incorrect", "unanswered", "incorrect"]
        assert len(scene.engine.searches) == 1


def test_one_beam_is_a_search_too() -> None:
    scene = play(METHOD, ["7"], trials=1)
    assert scene.engine.searches[0].beams == 1
    assert [t.verdict for t in scene.trials] == ["correct"]


def test_the_run_is_told_that_nothing_is_drawn() -> None:
    assert BeamSearch.fixed == {"temperature": 0.0}
    assert BeamSearch.searches


class Undeclared(Method):
    """Searches without saying so."""

    name = "undeclared"
    summary = "for tests"

    async def solve(self, question: Question, session: Session) -> None:
        async for trial in session.trials():
            await trial.search(2)


def test_a_method_says_that_it_searches() -> None:
    with pytest.raises(TypeError, match="without saying so; give the class searches = True"):
        play(Undeclared(MethodSettings()), ["1", "2"], trials=2)
