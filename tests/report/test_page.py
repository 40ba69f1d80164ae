from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from fttt.errors import UsageError
from fttt.report.page import build_page, gather, pack, question_texts, unpack
from fttt.report.sides import form_sides
from fttt.store import QuestionTexts, Run

MakeRun = Callable[..., Run]
HOSTILE = "</script><script>document.title='pwned'</script><img src=x onerror=alert(1)>\ud800\x00"


class Tags(HTMLParser):
    """Counts the elements of a page and keeps their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(page)
    return parser.seen


def test_the_page_holds_all_that_it_needs(make_run: MakeRun) -> None:
    runs = [
        make_run("a", {"x": "ic", "y": "uuii"}, method="fttt"),
        make_run("b", {"x": "c", "y": "iiii"}),
    ]
    page = build_page(gather(runs))
    for tag, attributes in tags(page):
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
        assert "src" not in attributes
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "url(http" not in page
    assert "@import" not in page
    for text in ("50.0 %", "What follows", "No difference was shown", "Where the tokens go"):
        assert text in page


def test_what_chose_the_hard_questions_has_a_section_of_its_own(make_run: MakeRun) -> None:
    greedy = make_run("g", {"x": "c", "y": "i", "z": "i"}, method="greedy", trials=1)
    hard = [
        make_run("a", {"y": "ic", "z": "iiii"}),
        make_run("b", {"y": "c", "z": "iiii"}, method="fttt"),
    ]
    first, second = gather([greedy, *hard])
    assert [first.title, second.title] == [
        "arithmetic · tiny · all questions",
        "arithmetic · tiny · hard questions",
    ]
    assert [side.method for side in second.sides] == ["best-of-n", "fttt"]
    assert "Greedy decoding (g) solved 1 of 3 questions" in second.notes[0]
    build_page([first, second])


def test_a_baseline_is_what_the_others_are_held_against(make_run: MakeRun) -> None:
    runs = [make_run(name, {"x": "ic"}, method=name) for name in ("a", "b", "c")]
    (section,) = gather(runs, baseline="b")
    assert section.comparison is not None
    assert [pair.second for pair in section.comparison.pairs] == ["b"] * 4
    with pytest.raises(UsageError, match="no side 'd' to compare with; the sides are 'a', 'b'"):
        gather(runs, baseline="d")


def test_the_policy_allows_this_script_and_no_other(make_run: MakeRun) -> None:
    page = build_page(gather([make_run("a", {"x": "c"})]))
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert policy is not None
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert "default-src 'none'" in policy[1]


def test_what_a_model_or_a_run_wrote_is_never_markup(make_run: MakeRun) -> None:
    markup = "<script>alert(1)</script>"
    run = make_run(
        f"run {markup.replace('/', '')}",
        {f"x{markup}": "ic"},
        method=f"m{markup}$\\frac$",
        model=f"n{markup}",
        task="t\"'><b>",
        completion=HOSTILE,
        extracted=[markup, markup],
        prompt=markup,
        note=markup,
    )
    page = build_page(gather([run]))
    scripts = [attributes for tag, attributes in tags(page) if tag == "script"]
    assert len([a for a in scripts if not a]) == 1  # ours
    assert all(a.get("type") == "text/plain" for a in scripts if a)
    assert "pwned" not in page
    assert not [tag for tag, _ in tags(page) if tag == "img"]
    page.encode()  # a lone surrogate would not go to disk


def test_of_a_problem_of_megabytes_a_page_holds_the_beginning(make_run: MakeRun) -> None:
    run = make_run("a", {"x": "c"})
    (record,) = run.records
    gold = {"inputs": ["1"] * 100_000, "outputs": ["1"] * 100_000}
    question = replace(run.questions[0], gold=gold)
    text = question_texts(run, QuestionTexts(question, record.trials, (), {}))[1]
    assert isinstance(text, str)
    assert text.endswith("\n...")
    assert len(text) < 21_000


def test_the_archive_gives_back_every_trial(make_run: MakeRun) -> None:
    runs = [
        make_run("a", {"x": "uic", "y": "iiii"}, completion=HOSTILE),
        make_run("b", {"x": "", "y": "c"}, seed=85),
    ]
    archive = pack(form_sides(runs))
    index = unpack(archive.index)["runs"]
    assert archive.trials == 8
    assert [run["label"] for run in index] == ["best-of-n, seed 42", "best-of-n, seed 85"]
    assert index[0]["verdicts"] == ["uic", "iiii"]
    assert index[0]["solved"] == [3, 0]
    assert index[1]["solved"] == [0, 1]
    assert index[0]["tokens"] == [30, 40]
    chunk, place = index[0]["places"][0]
    prompt, gold, trials = unpack(archive.chunks[chunk])[place]
    assert (prompt, gold, len(trials)) == ("What is 2 + 2? (x)", "4", 3)
    assert trials[0] == [
        1,
        "u",
        "stop",
        None,
        "the answer is another",
        2.0,
        20,
        10,
        5,
        0.5,
        HOSTILE,
        [],
        None,
        None,
        None,
        None,
    ]


def test_how_close_a_trial_came_is_said(make_run: MakeRun) -> None:
    path = make_run("a", {"x": "iic"}).path
    lines = [json.loads(line) for line in (path / "trials.jsonl").read_text().splitlines()]
    lines[0] |= {"score": 0.4, "tests_passed": 2, "tests_total": 5}
    lines[0] |= {"thought": HOSTILE, "thought_tokens": 4}
    lines[1] |= {"score": -1.5, "divergence": 0.04567, "reset": False}
    lines[2] |= {"divergence": 1.25, "reset": True}
    (path / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    archive = pack(form_sides([Run.open(path)]))
    (((_, _, trials),),) = [unpack(chunk) for chunk in archive.chunks]
    assert [trial[-4] for trial in trials] == ["2 of 5 tests passed", "score -1.5", None]
    said = [None, "divergence 0.0457", "divergence 1.25, adapter reset"]
    assert [trial[-3] for trial in trials] == said
    assert [trial[-2] for trial in trials] == [HOSTILE, None, None]
    assert unpack(archive.index)["runs"][0]["scores"] == [[0.4, -1.5, None]]


def test_what_was_said_after_a_trial_is_kept_with_it(make_run: MakeRun) -> None:
    run = make_run("a", {"x": "iic"}, critique="Look again.", settings={"feedback": "Wrong."})
    archive = pack(form_sides([run]))
    (((_, _, trials),),) = [unpack(chunk) for chunk in archive.chunks]
    assert [trial[-1] for trial in trials] == ["Wrong.", "Wrong.", None]
    assert [trial[-5] for trial in trials] == [["Look again."], ["Look again."], []]


def test_feedback_is_shown_as_the_model_read_it(make_run: MakeRun) -> None:
    settings = {"feedback": "No: {feedback} Again."}
    run = make_run("a", {"x": "iic"}, settings=settings, feedback="too small")
    (((_, _, trials),),) = [unpack(chunk) for chunk in pack(form_sides([run])).chunks]
    assert [trial[-1] for trial in trials] == ["No: too small Again."] * 2 + [None]
    run = make_run("b", {"x": "iic"}, settings=settings, feedback="too small", ablate="shuffle")
    (((_, _, trials),),) = [unpack(chunk) for chunk in pack(form_sides([run])).chunks]
    assert [trial[-1] for trial in trials] == [None] * 3  # told another attempt's


def test_a_title_names_a_model_and_not_its_path(make_run: MakeRun) -> None:
    named = {"/data/models/Tiny-1B": "Tiny-1B", "owner/Tiny": "owner/Tiny", "a/b.gguf": "b"}
    for n, (model, shown) in enumerate(named.items()):
        (section,) = gather([make_run(f"run{n}", {"x": "c"}, model=model)])
        assert section.title == f"arithmetic · {shown}"
        assert f"<title>arithmetic · {shown} · fttt report</title>" in build_page([section])


def test_long_runs_are_cut_into_chunks_that_open_alone(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fttt.report.page.CHUNK_CHARACTERS", 100)
    run = make_run("a", {f"q{n}": "iic" for n in range(7)})
    archive = pack(form_sides([run]))
    assert len(archive.chunks) > 2
    places = unpack(archive.index)["runs"][0]["places"]
    for n, (chunk, place) in enumerate(places):
        assert unpack(archive.chunks[chunk])[place][0].endswith(f"(q{n})")


def test_each_task_and_model_has_its_section(make_run: MakeRun) -> None:
    runs = [make_run("a", {"x": "c"}), make_run("b", {"x": "c"}, task="gsm8k")]
    sections = gather(runs)
    assert [section.title for section in sections] == ["arithmetic · tiny", "gsm8k · tiny"]
    page = build_page(sections)
    assert page.count("<h2>") == 2
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))  # the figures share no mark or clip path


def test_sides_that_must_not_be_compared_are_shown_with_the_reason(make_run: MakeRun) -> None:
    runs = [make_run("a", {"x": "c"}, method="fttt"), make_run("b", {"y": "c"})]
    (section,) = gather(runs)
    assert section.comparison is None
    assert section.notes[0].startswith("Not compared. The runs are not on the same questions")
    assert "Not compared" in build_page([section])


def test_sides_of_two_temperatures_are_compared_where_that_is_allowed(make_run: MakeRun) -> None:
    runs = [
        make_run("a", {"x": "c"}, method="fttt"),
        make_run("b", {"x": "i"}, temperature=1.0),
    ]
    (section,) = gather(runs)
    assert "add --allow temperature" in section.notes[0]
    (section,) = gather(runs, allow=["temperature"])
    assert section.comparison is not None
    assert "temperature is" in section.notes[0]


def test_the_intersection_is_said(make_run: MakeRun) -> None:
    runs = [make_run("a", {"x": "c", "y": "c"}, method="fttt"), make_run("b", {"y": "c"})]
    (section,) = gather(runs, intersection=True)
    assert section.comparison is not None
    assert "Compared on the intersection: 1 questions" in build_page([section])


def test_an_unfinished_run_is_refused_or_its_finished_questions_shown(make_run: MakeRun) -> None:
    cut = make_run("cut", {"x": "ic", "y": "ii"}, finish=False)
    with pytest.raises(UsageError, match="unfinished: 1 of its 2 questions"):
        gather([cut])
    (section,) = gather([cut], intersection=True)
    assert section.results[0].questions == 1
    bare = make_run("bare", {"x": "i", "y": ""}, finish=False)
    with pytest.raises(UsageError, match="no finished question"):
        gather([bare], intersection=True)


def test_a_run_named_twice_is_refused(make_run: MakeRun) -> None:
    run = make_run("a", {"x": "c"})
    with pytest.raises(UsageError, match="named twice"):
        gather([run, run])


def test_pass_at_k_is_shown_where_the_samples_allow_it(make_run: MakeRun) -> None:
    page = build_page(gather([make_run("a", {"x": "cici", "y": "iiii"})]))
    assert "best-of-n, pass@k" in page
