"""Whether a server has a model, before anything is asked of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fttt.errors import UsageError
from fttt.models import find_model
from fttt.models.messages import MessageFormat
from fttt.models.served import find_served
from fttt.testing.scripted_server import Reply, ScriptedServer, completion, refusal
from fttt.types import Completion, Usage, assistant, system, user

Serve = Callable[[Callable[[dict[str, Any]], Any]], ScriptedServer]


def test_a_listed_model_is_found_without_a_question(serve: Serve) -> None:
    server = serve(lambda _: completion("x"))
    server.models["data"][0] |= {"max_model_len": 4096, "permission": [{"id": "p"}]}
    found = find_served("openai:tiny", server.url)
    assert (found.name, found.max_context, found.timeout) == ("openai:tiny", 4096, 600.0)
    assert found.facts()["listed"] == {"id": "tiny", "object": "model", "max_model_len": 4096}
    assert "key" not in str(found.facts())
    assert not server.asked


@pytest.mark.parametrize(
    "listed", [refusal(404, "none here"), Reply(b"<html>"), Reply({"data": 3})]
)
def test_a_model_that_no_list_names_is_asked_for_a_token(serve: Serve, listed: Reply) -> None:
    server = serve(lambda _: completion("x"))
    server.models = listed
    found = find_served("openai:folder/tiny", server.url)
    assert [(body["model"], body["max_tokens"]) for body in server.asked] == [("folder/tiny", 1)]
    assert found.card == {}
    assert found.max_context > 10**9


def test_a_connection_that_ends_behind_the_list_is_no_answer(serve: Serve) -> None:
    server = serve(
        lambda _: Reply(completion("x"), torn=True) if len(server.asked) < 2 else completion("x")
    )
    server.models = refusal(500, "no cache to list")
    assert find_served("openai:folder", server.url).card == {}
    assert len(server.asked) == 2


def test_a_model_that_it_does_not_have(serve: Serve) -> None:
    server = serve(lambda _: refusal(404, "The model tini does not exist"))
    with pytest.raises(UsageError, match=r"no answer as the model 'tini' \(404.*mean 'tiny'\?"):
        find_served("openai:tini", server.url)
    with pytest.raises(UsageError, match="it lists tiny"):
        find_served("openai:other", server.url)
    server.models = {"data": []}
    with pytest.raises(UsageError, match=r"try http://\S+/v1\."):
        find_served("openai:other", server.url.removesuffix("/v1"))


def test_no_server_and_a_refused_key(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(lambda _: completion("x"))
    server.models = refusal(401, "no key sk-wrong")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    with pytest.raises(UsageError, match=r"refuses the key \(401: no key \*\*\*\); set OPENAI_API"):
        find_served("openai:tiny", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wröng")
    with pytest.raises(UsageError, match="OPENAI_API_KEY has signs that no key has") as caught:
        find_served("openai:tiny", server.url)
    assert "wr" not in str(caught.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    server.models = Reply(b"<html><h1>Bad\nGateway</h1></html>", 403)
    with pytest.raises(UsageError, match=r"\(403: Bad Gateway\)"):
        find_served("openai:tiny", server.url)
    server.stop()
    with pytest.raises(UsageError, match=r"No server answers at 'http.*refused.*start it, or corr"):
        find_served("openai:tiny", server.url)


def test_without_the_package(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fttt.models.served.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs the package openai; run: pip install 'fttt\[endp"):
        find_served("openai:tiny", "http://127.0.0.1:1/v1")


def test_a_served_model_has_no_weights() -> None:
    with pytest.raises(UsageError, match="'openai:a/b' is a server's, which is asked with --endpo"):
        find_model("openai:a/b")


def test_messages_of_a_conversation() -> None:
    chat = MessageFormat()
    said = Completion("4", (), "stop", 0, Usage(generated_tokens=30))
    turns = (user("Mind the sign."), said, user("No."), user("Again."))
    before = (system("Be brief."), user("A task."))
    assert chat.conversation("2+3?", turns, before, room=1000) == (
        system("Be brief."),
        user("A task.\n\n2+3?\n\nMind the sign."),
        assistant("4"),
        user("No.\n\nAgain."),
    )
    # the oldest go first, as they do where token ids are counted
    assert chat.conversation("2+3?", turns, (), room=33) == chat.conversation(
        "2+3?", turns[1:], (), room=1000
    )
    assert chat.conversation("2+3?", turns[1:3], (), room=20) == (user("2+3?"),)
    for wrong in ((said, said), (user("x"), system("y")), (system("y"), said)):
        with pytest.raises(ValueError, match="answers and user texts alternate"):
            chat.conversation("2+3?", wrong, (), room=1000)
