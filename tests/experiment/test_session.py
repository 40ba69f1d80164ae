"""The session: conversation to token ids, verdicts that never stop a run, training targets."""

from __future__ import annotations

import asyncio

import pytest

from fttt.errors import RunError
from fttt.experiment.session import AdapterRoom
from fttt.methods.base import LoRASettings, Method, MethodSettings, Session
from fttt.methods.best_of_n import BestOfN
from fttt.testing import TinyVerifier, play, tiny_tokenizer
from fttt.types import Example, Question, Record, Verdict, system, user
from fttt.verifiers.number import NumberVerifier


class Broken(TinyVerifier):
    """Raises for one answer."""

    async def verify(self, question: Question, completion: str) -> Verdict:
        if completion == "3":
            raise ZeroDivisionError("by three")
        return await super().verify(question, completion)


class Down(TinyVerifier):
    """Cannot judge at all."""

    async def verify(self, question: Question, completion: str) -> Verdict:
        raise RunError("The judge is down.")


def test_a_verifier_that_raises_is_a_fact_about_one_trial() -> None:
    scene = play(BestOfN(MethodSettings()), ["3", "7"], trials=4, verifier=Broken())
    assert [trial.verdict for trial in scene.trials] == ["incorrect", "correct"]
    assert scene.trials[0].detail == "the verifier raised ZeroDivisionError: by three"


def test_a_verifier_that_cannot_judge_ends_the_run() -> None:
    with pytest.raises(RunError, match="The judge is down"):
        play(BestOfN(MethodSettings()), ["3"], trials=4, verifier=Down())


def test_a_verifier_that_asks_is_told_of_an_answer_that_was_cut_off() -> None:
    asked = Question("q", "How many?", "7")
    script = ["The answer is 7 and nothing more than that", "The answer is 7"]
    method = BestOfN(MethodSettings())
    for longest, verdicts in ((3, ["unanswered"] * 2), (256, ["correct"])):
        scene = play(
            method,
            script,
            question=asked,
            verifier=NumberVerifier(),
            trials=2,
            max_new_tokens=longest,
        )
        assert [trial.verdict for trial in scene.trials] == verdicts
    scene = play(method, ["7"], verifier=TinyVerifier(), trials=1, max_new_tokens=1)
    assert [trial.verdict for trial in scene.trials] == ["correct"]  # it does not ask


class Attempts(Method):
    """Pushes down its own wrong attempts, and learns a given text."""

    name = "attempts"
    summary = "for tests"

    def __init__(self, settings: LoRASettings) -> None:
        self.settings = settings

    def conversation(self, max_new_tokens: int) -> tuple[str | int, ...]:
        return (max_new_tokens, "More.", max_new_tokens)

    async def solve(self, question: Question, session: Session) -> None:
        async with session.adapter() as adapter:
            async for trial in session.trials():
                first = await trial.generate(adapter=adapter)
                more = (first, user("More."))
                second = await trial.generate(*more, adapter=adapter, temperature=0.0)
                if (await trial.verify(second)).correct:
                    return
                told = (*more, second, user("No."), first)
                lessons = [
                    Example(second, more, weight=-0.5),
                    Example(user("Yes."), told, weight=2.0),
                    Example(second),
                ]
                await trial.train(adapter, lessons)


def test_targets_reach_into_the_attempt_or_follow_it() -> None:
    scene = play(Attempts(LoRASettings()), ["1", "2"], trials=1)
    (request,) = scene.engine.trainings
    attempt, turn, alone = request.lessons
    first, second = scene.engine.generations
    two = (*tiny_tokenizer()("2")["input_ids"], 2)
    assert attempt.context is scene.engine.kept[0]  # up to the last answer before the target
    (target,) = attempt.targets
    assert target.after is None
    assert scene.engine.kept[0].token_ids + target.token_ids == second.prompt_ids + two
    assert target.weights[-2:] == (-0.25, -0.25)
    assert not any(target.weights[:-2])
    # what stands before a turn is as the conversation has it, whatever it was written after
    assert tiny_tokenizer().decode(turn.context) == (
        tiny_tokenizer().decode(second.prompt_ids)
        + "2<|im_end|>\n<|im_start|>user\nNo.<|im_end|>\n<|im_start|>assistant\n1<|im_end|>"
    )
    (target,) = turn.targets
    assert tiny_tokenizer().decode(target.token_ids) == "\n<|im_start|>user\nYes.<|im_end|>\n"
    assert sum(target.weights) == pytest.approx(2.0)
    (target,) = alone.targets  # an attempt may be put after another prompt than its own
    assert target.after == len(first.prompt_ids)
    assert target.token_ids == two
    assert scene.trials[0].loss == 3.0  # of three targets at 1.0 each


def test_a_trial_keeps_the_completion_that_was_judged() -> None:
    scene = play(Attempts(LoRASettings()), ["7", "2", "1", "7"], trials=4)
    assert [(t.generation, t.completion) for t in scene.trials] == [(1, "2"), (3, "7")]
    assert [t.usage.generations for t in scene.trials] == [2, 2]
    assert scene.engine.generations[1].temperature == 0.0


class Silent(Method):
    """Never judges."""

    name = "silent"
    summary = "for tests"

    async def solve(self, question: Question, session: Session) -> None:
        async for trial in session.trials():
            await trial.generate()


def test_a_method_that_never_judges_is_told_so() -> None:
    with pytest.raises(RuntimeError, match="ended trial 0 without a verdict"):
        play(Silent(MethodSettings()), ["1", "2"], trials=2)


class NoWeights(Method):
    """Asks for an adapter without settings for one."""

    name = "no-weights"
    summary = "for tests"

    async def solve(self, question: Question, session: Session) -> None:
        async with session.adapter():
            pass


def test_an_adapter_needs_settings() -> None:
    with pytest.raises(TypeError, match="without LoRASettings"):
        play(NoWeights(MethodSettings()), [], trials=1)


class Twice(Method):
    """Would have two verdicts for one trial of its budget."""

    name = "twice"
    summary = "for tests"

    async def solve(self, question: Question, session: Session) -> None:
        async for trial in session.trials():
            await trial.verify(await trial.generate())
            await trial.verify(await trial.generate())


def test_a_verdict_is_a_trial_of_the_budget() -> None:
    with pytest.raises(RuntimeError, match="judged a second answer in trial 0"):
        play(Twice(MethodSettings()), ["1", "7"], trials=1)


class Talks(Method):
    """Continues a conversation without saying so."""

    name = "talks"
    summary = "for tests"

    async def solve(self, question: Question, session: Session) -> None:
        async for trial in session.trials():
            first = await trial.generate()
            await trial.verify(await trial.generate(first, user("Again.")))


def test_a_method_says_how_long_its_conversation_grows() -> None:
    with pytest.raises(TypeError, match="'talks' continues a conversation without saying how"):
        play(Talks(MethodSettings()), ["1", "2"], trials=1)


def test_answers_are_extracted_for_votes_and_budget_is_told() -> None:
    seen: list[object] = []

    class Looks(Method):
        name = "looks"
        summary = "for tests"

        async def solve(self, question: Question, session: Session) -> None:
            seen.append(session.budget)
            async for trial in session.trials():
                completion = await trial.generate()
                seen.append((trial.index, session.extract(completion)))
                await trial.verify(completion)

    play(Looks(MethodSettings()), ["is 3", "none"], trials=2)
    assert seen == [2, (0, "3"), (1, None)]


class Groups(Method):
    """Asks in groups, with a system's text and a hint in the question's own turn."""

    name = "groups"
    summary = "for tests"

    def __init__(self, settings: LoRASettings, *, climb: bool = False) -> None:
        self.settings, self.climb = settings, climb
        self.judged: list[list[str]] = []

    def conversation(self, max_new_tokens: int) -> tuple[str | int, ...]:
        return ("Be brief.", "Not 1.", max_new_tokens)

    async def solve(self, question: Question, session: Session) -> None:
        async with session.adapter() as own:
            async for group in session.groups(3, climb=self.climb):
                judged = await group.attempt(
                    user("Not 1."), before=(system("Be brief."),), adapter=own
                )
                self.judged.append([one.completion.text for one in judged])
                await group.train(own, [Example(one.completion) for one in judged])


def test_a_group_ends_at_its_first_success_and_its_texts_are_the_questions() -> None:
    method = Groups(LoRASettings())
    scene = play(method, ["1", "2", "3", "4", "7", "5"], trials=8)
    assert method.judged == [["1", "2", "3"], ["4", "7"]]
    assert [(t.trial, t.completion, t.verdict) for t in scene.trials] == [
        (0, "1", "incorrect"), (1, "2", "incorrect"), (2, "3", "incorrect"),
        (3, "4", "incorrect"), (4, "7", "correct"),
    ]  # fmt: skip
    assert scene.engine.conversations[0] == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWrite the number 7.\n\nNot 1."
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    # what was written and not judged costs all the same
    assert scene.usage.generated_tokens == 12
    assert sum(t.usage.generated_tokens for t in scene.trials) == 12
    assert [len(request.lessons) for request in scene.engine.trainings] == [3, 2]
    # an attempt's loss is on its tokens in the bare conversation, not in the one it was written in
    assert all(isinstance(x.context, tuple) for x in scene.engine.trainings[0].lessons)
    assert [t.loss for t in scene.trials] == [None, None, 3.0, None, 1.0]


def test_a_group_that_climbs_judges_all_and_continues_after_a_success() -> None:
    method = Groups(LoRASettings(), climb=True)
    scene = play(method, ["7", "2", "3", "4"], trials=4)
    assert method.judged == [["7", "2", "3"], ["4"]]
    assert len(scene.trials) == 4


class Two(Method):
    """Opens two adapters."""

    name = "two"
    summary = "for tests"
    Settings = LoRASettings
    adapters = 2

    def __init__(self, settings: LoRASettings) -> None:
        self.settings = settings

    async def solve(self, question: Question, session: Session) -> None:
        async with session.adapter() as one, session.adapter() as two:
            async for trial in session.trials():
                attempt = await trial.generate(adapter=one if trial.index % 2 else two)
                if not (await trial.verify(attempt)).correct:
                    await trial.train(one, [Example(attempt)])


def test_two_adapters_differ_and_a_row_is_read_by_the_one_that_wrote_it() -> None:
    scene = play(Two(LoRASettings()), ["1", "2", "7"], trials=4)
    one, two = scene.engine.slots
    assert one.seed != two.seed
    assert [r.adapter for r in scene.engine.generations] == [two, one, two]
    contexts = [r.lessons[0].context for r in scene.engine.trainings]
    assert isinstance(contexts[0], tuple), "the first attempt was the other adapter's"
    assert contexts[1] is scene.engine.kept[1]


def test_a_second_adapter_is_declared() -> None:
    class Undeclared(Two):
        name = "undeclared"
        adapters = 1

    with pytest.raises(TypeError, match=r"'undeclared' opened a further.*adapters = 2"):
        play(Undeclared(LoRASettings()), ["7"], trials=1)


def test_places_for_two_adapters_are_taken_at_once_and_too_many_are_refused() -> None:
    async def main() -> list[str]:
        room, done = AdapterRoom(3), []

        async def question(name: str) -> None:
            await room.take(2)
            await asyncio.sleep(0.001)
            done.append(name)
            room.give(2)

        cancelled = asyncio.create_task(question("cancelled"))
        others = [asyncio.create_task(question(name)) for name in ("a", "b", "c")]
        await asyncio.sleep(0)
        others[0].cancel()
        await asyncio.gather(cancelled, *others, return_exceptions=True)
        with pytest.raises(RunError, match="4 adapters at once and the engine has room for 3"):
            await room.take(4)
        await room.take(3)  # nothing was lost
        return done

    assert asyncio.run(main()) == ["cancelled", "b", "c"]


class Closeness(TinyVerifier):
    """Scores an answer by how near it is to 7, as a cost below 0."""

    async def verify(self, question: Question, completion: str) -> Verdict:
        return Verdict("incorrect", completion, score=-abs(7.0 - float(completion)))


def test_a_question_ends_at_the_score_that_it_is_to_reach() -> None:
    script, method = ["3", "5", "6", "7"], BestOfN(MethodSettings())
    scene = play(method, script, verifier=Closeness(), trials=4, until=-1.0)
    assert [(t.score, t.verdict) for t in scene.trials] == [
        (-4.0, "incorrect"), (-2.0, "incorrect"), (-1.0, "correct"),
    ]  # fmt: skip
    scene = play(method, script, verifier=Closeness(), trials=4)
    assert [t.verdict for t in scene.trials] == ["incorrect"] * 4
    best = Record(Question("q", "?"), scene.trials, scene.usage).best
    assert best is not None
    assert (best.completion, best.score) == ("7", 0.0)


def test_places_that_come_free_as_a_question_is_cancelled_go_to_the_next() -> None:
    async def main() -> list[object]:
        room = AdapterRoom(2)
        await room.take(2)
        waits = [asyncio.create_task(room.take(count)) for count in (2, 1, 1)]
        await asyncio.sleep(0)
        waits[0].cancel()
        room.give(1)  # before the cancelled one has noticed
        await asyncio.sleep(0)
        assert [task.done() for task in waits[1:]] == [True, False]
        room.give(1)
        found = await asyncio.gather(*waits, return_exceptions=True)
        room.give(1)
        room.give(1)
        await room.take(2)  # nothing was lost
        return list(found)

    found = asyncio.run(main())
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == [None, None]
