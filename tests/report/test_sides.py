"""The sides of a comparison: what makes one, what it is called, what must not be compared."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fttt.errors import UsageError
from fttt.report.sides import check_rules, form_sides, name_sides, shared_questions, shorten_paths
from fttt.store import Run

MakeRun = Callable[..., Run]
VERDICTS = {"a": "ic", "b": "iiii"}


def test_runs_that_differ_in_the_seed_alone_are_one_side(make_run: MakeRun) -> None:
    runs = [
        make_run("b85", {"a": "c", "b": "iiii"}, seed=85),
        make_run("f42", VERDICTS, method="fttt"),
        make_run("b42", VERDICTS),
    ]
    best, fttt = form_sides(runs)
    assert (best.label, best.seeds) == ("best-of-n", (42, 85))
    assert (fttt.label, fttt.seeds) == ("fttt", (42,))
    assert best.values("trials", [1, 2])[0].tolist() == [0.5, 1.0]


def test_where_questions_are_asked_makes_no_side(make_run: MakeRun) -> None:
    there = {"replicas": 4, "gpus_per_replica": 0.5, "ray_address": "h:6379", "batch_size": 8}
    runs = [make_run("here", VERDICTS), make_run("there", VERDICTS, seed=85, **there)]
    assert [side.seeds for side in form_sides(runs)] == [(42, 85)]


def test_sides_of_one_method_are_named_by_what_tells_them_apart(make_run: MakeRun) -> None:
    runs = [make_run("slow", VERDICTS, lr=0.1, rank=4), make_run("fast", VERDICTS, lr=0.2, rank=4)]
    assert [side.label for side in form_sides(runs)] == ["best-of-n (lr 0.1)", "best-of-n (lr 0.2)"]


def test_the_same_run_made_twice_is_two_sides_named_by_folder(make_run: MakeRun) -> None:
    runs = [make_run("before", VERDICTS), make_run("after", VERDICTS)]
    assert [side.label for side in form_sides(runs)] == ["before", "after"]


def test_a_side_has_the_name_that_its_runs_were_given(make_run: MakeRun) -> None:
    one = [make_run(f"o{n}", VERDICTS, seed=n, named="ours", lr=0.1) for n in (1, 2)]
    other = make_run("p", VERDICTS, lr=0.2)
    sides = form_sides([*one, other])
    assert [(side.label, side.seeds) for side in sides] == [
        ("ours", (1, 2)),
        ("best-of-n (lr 0.2)", (42,)),
    ]
    twins = [make_run(f"t{n}", VERDICTS, named="same", lr=n) for n in (1, 2)]
    assert [s.label for s in form_sides(twins)] == ["best-of-n (lr 1)", "best-of-n (lr 2)"]


def test_a_setting_that_only_one_side_has_still_tells_them_apart(make_run: MakeRun) -> None:
    runs = [make_run("plain", VERDICTS), make_run("more", VERDICTS, steps=2)]
    assert [side.label for side in form_sides(runs)] == ["plain", "best-of-n (steps 2)"]


def test_a_finished_run_that_has_lost_trials_is_not_compared_as_whole(make_run: MakeRun) -> None:
    whole, hurt = make_run("whole", VERDICTS), make_run("hurt", VERDICTS, method="fttt")
    path = hurt.path / "trials.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    hurt = Run.open(hurt.path)
    with pytest.raises(UsageError, match=r"'.*hurt' has lost trials.* ended with 6 trials and 1"):
        shared_questions([whole, hurt], intersection=False)
    assert Run.open(whole.path).lost == ()


def test_a_model_is_told_by_its_content(make_run: MakeRun) -> None:
    one = make_run("one", VERDICTS, model="m", content="a" * 64)
    copy = make_run("copy", VERDICTS, model="copies/m", content="a" * 64, method="fttt")
    older = make_run("older", VERDICTS, model="m", method="revision")
    assert check_rules([one, copy, older], allow=()) == []
    other = make_run("other", VERDICTS, model="m", content="b" * 64, method="fttt")
    with pytest.raises(UsageError, match=r"model is m .sha256 a{8}. in 'one' and m .sha256 b{8}."):
        check_rules([one, other], allow=())


def test_other_questions_are_refused_or_left_out_and_said(make_run: MakeRun) -> None:
    runs = [make_run("one", VERDICTS), make_run("two", {"b": "iiii", "c": "c"})]
    with pytest.raises(UsageError, match=r"1 are shared of 3 in all.*--intersection"):
        shared_questions(runs, intersection=False)
    ids, notes = shared_questions(runs, intersection=True)
    assert ids == ["b"]
    assert notes == [
        "Compared on the intersection: 1 questions that every run has finished, of 3 in all."
    ]


def test_the_same_id_with_another_prompt_is_another_question(make_run: MakeRun) -> None:
    runs = [make_run("one", VERDICTS), make_run("two", VERDICTS, prompt="What is 3 + 1?")]
    with pytest.raises(UsageError, match="0 are shared of 4"):
        shared_questions(runs, intersection=False)
    with pytest.raises(UsageError, match="share no finished question"):
        shared_questions(runs, intersection=True)


def test_an_unfinished_run_is_refused_or_its_owed_questions_left_out(make_run: MakeRun) -> None:
    whole = make_run("whole", {"a": "ic", "b": "c", "c": "c"})
    cut = make_run("cut", {"a": "ic", "b": "ii", "c": ""}, finish=False)
    assert cut.owed == ("b", "c")
    assert whole.owed == ()
    with pytest.raises(UsageError, match=r"unfinished: 2 of its 3 questions.*--resume"):
        shared_questions([whole, cut], intersection=False)
    assert shared_questions([whole, cut], intersection=True)[0] == ["a"]


@pytest.mark.parametrize(
    "difference",
    [
        {"model": "other"},
        {"task": "gsm8k"},
        {"temperature": 1.0},
        {"max_new_tokens": 99},
        {"unanswered": "retry"},
    ],
)
def test_other_rules_are_refused_unless_allowed_and_then_said(
    make_run: MakeRun, difference: dict[str, object]
) -> None:
    runs = [make_run("one", VERDICTS), make_run("two", VERDICTS, method="fttt", **difference)]
    (name,) = difference
    with pytest.raises(UsageError, match=rf"same rules: {name} is .*--allow {name}"):
        check_rules(runs, allow=[])
    (note,) = check_rules(runs, allow=[name])
    assert name in note


def test_another_task_is_said_before_what_goes_with_it(make_run: MakeRun) -> None:
    other = {"task": "gsm8k", "model": "other", "max_new_tokens": 99}
    runs = [make_run("one", VERDICTS), make_run("two", VERDICTS, method="fttt", **other)]
    with pytest.raises(UsageError, match="same rules: task is arithmetic in 'one' and gsm8k"):
        check_rules(runs, allow=[])


def test_a_method_that_draws_nothing_has_no_sampling_rule(make_run: MakeRun) -> None:
    runs = [make_run("one", VERDICTS), make_run("two", VERDICTS, method="greedy", temperature=0.0)]
    assert check_rules(runs, allow=[]) == []


def test_the_options_of_a_task_are_rules(make_run: MakeRun) -> None:
    runs = [
        make_run("one", VERDICTS, data={"options": {"verifier": "number"}, "limit": 2}),
        make_run("two", VERDICTS, data={"options": {"verifier": "regex"}, "limit": 3}),
    ]
    with pytest.raises(UsageError, match="verifier is number in 'one' and regex in 'two'"):
        check_rules(runs, allow=[])


@pytest.mark.parametrize(
    ("paths", "short"),
    [
        (
            ["/long/way/optune-real", "/long/way/optune-shuffled"],
            ["optune-real", "optune-shuffled"],
        ),
        (["/a/real/step-00000100", "/a/plain/step-00000100"], ["real", "plain"]),
        (["out/real", "out/real/step-00000100"], ["real", "real/step-00000100"]),
        (["a", "/b/c"], ["a", "/b/c"]),
        (["a/b/a", "a/a"], ["b/a", "a"]),
        (["a/b"], ["b"]),
    ],
)
def test_paths_keep_only_what_differs(paths: list[str], short: list[str]) -> None:
    assert list(shorten_paths(paths).values()) == short


def test_sides_of_two_checkpoints_are_named_by_what_differs_in_their_paths() -> None:
    folder = "/dev/shm/somewhere/very/deep/indeed/checkpoints"
    settings = [{"checkpoint": f"{folder}/{name}", "rank": 4} for name in ("real", "shuffled")]
    names = name_sides(["optune", "optune"], settings)
    assert names == ["optune (real)", "optune (shuffled)"]


def test_a_switch_is_named_by_itself() -> None:
    settings = [{"reflection": True, "rank": 4}, {"reflection": False, "rank": 8}]
    names = name_sides(["fttt", "fttt"], settings)
    assert names == ["fttt (reflection, rank 4)", "fttt (no reflection, rank 8)"]


def test_a_long_folder_name_keeps_its_end() -> None:
    settings = [{"adapter": "x" * 50 + end} for end in ("first", "second")]
    first, second = name_sides(["fttt", "fttt"], settings)
    assert first == "fttt (…" + "x" * 34 + "first)"
    assert second == "fttt (…" + "x" * 33 + "second)"


def test_what_cannot_be_told_apart_has_no_name() -> None:
    settings = [{"feedback": "x" * 50 + end} for end in ("first", "second")]
    assert name_sides(["fttt", "fttt"], settings) == [None, None]
    assert name_sides(["fttt", "fttt", "greedy"], [{}, {"adapter": "a"}, {}]) == [
        None, "fttt (adapter a)", "greedy",
    ]  # fmt: skip
