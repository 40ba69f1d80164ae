"""``fttt run`` and ``fttt.solve`` with a model on a server, a scripted one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fttt
from fttt.errors import UsageError
from fttt.models.served import find_served
from fttt.store import Run
from fttt.testing import call
from fttt.testing.scripted_server import ScriptedServer, completion, refusal

Serve = Callable[[Callable[[dict[str, Any]], Any]], ScriptedServer]
QUESTIONS, TRIALS = 3, 4

pytestmark = pytest.mark.usefixtures("elsewhere")


def number(body: dict[str, Any]) -> dict[str, Any]:
    """A wrong answer that depends on all that a draw may depend on."""
    said = json.dumps(body["messages"])
    count = body.get("n", 1)
    return completion(
        *(f"The answer is {-len(said) - body['seed'] % 97 - n}." for n in range(count))
    )


def run(method: str, server: ScriptedServer, *more: str, out: str = "r") -> int:
    return call(
        *("run", method, "--model", "openai:tiny", "--endpoint", server.url),
        *("--limit", str(QUESTIONS), "--trials", str(TRIALS), "--out", out, *more),
    )


def facts(folder: str) -> list[tuple[str, int, str]]:
    return [(t.question_id, t.trial, t.completion) for t in Run.open(folder).trials]


@pytest.mark.parametrize("method", ["best-of-n", "self-consistency", "revision", "self-refine"])
def test_a_run_ends_in_a_table_and_a_folder(
    method: str, serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    server = serve(number)
    assert run(method, server) == 0
    found = Run.open("r")
    assert len(found.trials) == QUESTIONS * TRIALS
    answers = found.summary["usage"]["generations"]
    assert found.summary["usage"]["generated_tokens"] == 10 * answers
    assert sum(body.get("n", 1) for body in server.asked) == answers
    several = {"best-of-n": QUESTIONS * 3, "self-consistency": QUESTIONS}
    assert len(server.asked) == several.get(method, answers)
    assert {trial.token_ids for trial in found.trials} == {()}
    assert found.environment["device"] == "endpoint"
    assert found.environment["endpoint"]["url"] == server.url
    assert found.config["endpoint"] == server.url
    shown = capsys.readouterr()
    written = "".join(path.read_text() for path in Path("r").iterdir()) + shown.out + shown.err
    assert "sk-secret-1" not in written
    assert "note:" not in shown.out


def test_a_run_whose_server_forgets_the_model_is_resumed_on_another(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(body: dict[str, Any]) -> Any:
        return number(body) if len(server.asked) < 6 else refusal(404, "no such model")

    server = serve(script)
    assert run("best-of-n", server) == 1
    said = capsys.readouterr().err
    assert re.search(r"fttt: The server at \S+ refuses \(404: no such model\); .*resume\.\n", said)
    assert "Resume with `fttt run --resume r`" in said
    assert "Traceback" not in said
    before = facts("r")
    kept = sum(len(history.generations) for history in Run.open("r").histories.values())
    assert 0 < len(before) < QUESTIONS * TRIALS
    other = serve(number)
    assert call("run", "--resume", "r", "--endpoint", other.url, "--concurrency", "2") == 0
    after = facts("r")
    assert set(before) < set(after)
    assert len(after) == QUESTIONS * TRIALS
    assert sum(body.get("n", 1) for body in other.asked) == QUESTIONS * TRIALS - kept


def test_what_is_wrong_is_said_before_anything_is_asked(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(lambda _: refusal(404, "no such model"))
    assert run("fttt", server) == 2
    assert "`fttt run fttt --model MODEL --task arithmetic`" in capsys.readouterr().err
    words = ["run", "best-of-n", "--model", "openai:tini", "--out", "r", "--endpoint"]
    assert call(*words, server.url) == 2
    assert "did you mean 'tiny'?" in capsys.readouterr().err
    server.stop()
    assert call(*words, server.url) == 2
    assert re.match(r"fttt: No server answers at 'http.*\.\n$", capsys.readouterr().err)
    assert not Path("r").exists()


def test_a_method_of_ones_own_that_scores_stops_with_a_sentence(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("scoring_there.py").write_text(
        "import fttt\n"
        "class Scoring(fttt.Method):\n"
        "    name = summary = 'scoring'\n"
        "    async def solve(self, question, session):\n"
        "        async for trial in session.trials():\n"
        "            await session.score(await trial.generate())\n"
    )
    assert run("scoring_there:Scoring", serve(number)) == 2
    said = capsys.readouterr().err
    assert "\nfttt: The method scores or trains, and a served model gives answers on" in said
    assert "resume" not in said.lower()


def test_a_server_that_does_not_sample_is_noted(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(lambda _: completion("It is -1."))
    assert run("best-of-n", server) == 0
    assert "note: the server gave every question the same answer each time" in (
        capsys.readouterr().out
    )
    assert run("greedy", server, "--no-save-correct-cases", out="g") == 0
    table = capsys.readouterr().out
    assert "note:" not in table
    server.stop()
    find_served.cache_clear()
    assert call("run", "--resume", "g") == 0  # nothing is owed, so nobody is asked
    assert capsys.readouterr().out == table


def test_a_sweep_asks_the_server_for_all_its_runs(serve: Serve) -> None:
    server = serve(number)
    grid = f"""
        methods = ["greedy", "memory"]
        [base]
        model = "openai:tiny"
        endpoint = "{server.url}"
        save_correct_cases = false
        data = {{ limit = 2 }}
        budget = {{ trials = 2 }}
    """
    Path("grid.toml").write_text(grid)
    assert call("sweep", "grid.toml", "--out", "s") == 0
    assert {run.name for run in Path("s").iterdir() if run.is_dir()} == {
        "greedy-arithmetic", "memory-arithmetic-s42",
    }  # fmt: skip
    assert len(server.asked) == 2 + 4


def test_one_question_from_python(serve: Serve) -> None:
    server = serve(lambda body: completion("7" if len(body["messages"]) > 1 else "6"))
    ask: dict[str, Any] = {"verify": lambda text: text == "7", "model": "openai:tiny"}
    result = fttt.solve("Which?", **ask, endpoint=server.url, method="revision", trials=3)
    assert result.solved
    assert result.answer == "7"
    assert [trial.completion for trial in result.trials] == ["6", "7"]
    assert result.usage.generated_tokens == 20
    with pytest.raises(UsageError, match="The method 'fttt' needs the model's weights"):
        fttt.solve("Which?", **ask, endpoint=server.url)


def test_the_endpoint_of_a_judging_model(
    model: str, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai", reason="asks servers: pip install 'fttt[endpoint]'")
    Path("q.jsonl").write_text('{"question": "What is 3 + 4?"}\n')
    server = serve(lambda body: completion("Verdict: yes"))
    asked = ["--task", "jsonl", "--data-dir", "q.jsonl", "--max-new-tokens", "8", "--trials", "1"]
    judged = ["--verifier", "llm:judge", "--endpoint", server.url]
    assert call("run", "best-of-n", "--model", model, "--device", "cpu", *asked, *judged) == 0
    assert "A judging model is no oracle" in capsys.readouterr().err
    (folder,) = Path("outputs").iterdir()
    run = Run.open(folder)
    assert run.environment["judges"][0]["url"] == server.url
    assert (run.trials[0].verdict, run.trials[0].usage.verifier_tokens) == ("correct", 17)
    assert call("run", "best-of-n", "--model", "openai:w", *asked, *judged, "--out", "w") == 0
    assert {body["model"] for body in server.asked} == {"judge", "w"}
