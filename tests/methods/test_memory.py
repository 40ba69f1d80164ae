"""Fresh attempts that are told what has been refuted."""

from __future__ import annotations

from fttt.methods.memory import Memory, MemorySettings
from fttt.testing import play
from fttt.types import Question, Verdict

METHOD = Memory(
    MemorySettings(most=2, answers="Not {answers}.", failures="It failed:{failures}\nBetter!")
)
ASK = "<|im_start|>user\nWrite the number 7."
END = "<|im_end|>\n<|im_start|>assistant\n"


def test_the_last_refuted_answers_end_the_questions_own_turn() -> None:
    scene = play(METHOD, ["1", "2", "no idea", "1", "3", "7"], trials=8)
    assert scene.engine.conversations == [
        ASK + END,
        ASK + "\n\nNot 1." + END,
        ASK + "\n\nNot 1, 2." + END,
        ASK + "\n\nNot 1, 2." + END,  # what gave no answer refutes none
        ASK + "\n\nNot 2, 1." + END,  # the first was refuted again
        ASK + "\n\nNot 1, 3." + END,
    ]
    assert [t.verdict for t in scene.trials][-1] == "correct"


class Says:
    """A verifier whose answers are programs, say, of which it tells what failed."""

    async def verify(self, question: Question, completion: str) -> Verdict:
        if completion == "7":
            return Verdict("correct", "7")
        return Verdict("incorrect", f"def f():\n    {completion}", "gold 7", feedback="f() " * 200)

    def extract(self, question: Question, completion: str) -> str | None:
        return completion

    async def close(self) -> None:
        pass


def test_of_what_is_no_short_answer_the_feedback_is_listed_and_shortened() -> None:
    scene = play(METHOD, ["1", "2", "7"], trials=8, verifier=Says())
    (first, second, third) = scene.engine.conversations
    assert first == ASK + END
    shown = second.removeprefix(ASK + "\n\nIt failed:\n- ").removesuffix("\nBetter!" + END)
    assert len(shown) == 400 + len(" ... ")
    assert "gold" not in second
    assert third == second, "the same failure is listed once"


def test_an_answer_that_was_cut_is_not_refuted() -> None:
    scene = play(METHOD, ["1111111111", "7"], trials=2, max_new_tokens=4)
    assert scene.engine.conversations[1] == ASK + END


def test_what_does_not_fit_is_left_out() -> None:
    bare = len(play(METHOD, ["7"], trials=1).engine.generations[0].prompt_ids)
    scene = play(METHOD, ["1", "7"], trials=2, max_new_tokens=8, max_length=bare + 8)
    assert scene.engine.conversations[1] == ASK + END


def test_a_coin_lists_half_of_what_was_refuted() -> None:
    listed = 0
    for seed in range(24):
        scene = play(METHOD, ["1", "7"], trials=2, seed=seed, ablate="random-verdict")
        listed += scene.engine.conversations[1] != ASK + END
    assert 5 <= listed <= 19
    scene = play(METHOD, ["1", "7"], trials=2, ablate="constant")
    assert scene.engine.conversations[1] == (
        ASK + "\n\nIt failed:\n- Your answer is incorrect.\nBetter!" + END
    )
