"""The engine that asks a server, against a scripted one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest

from fttt.engine.endpoint import EndpointEngine
from fttt.engine.request import GenerateRequest, Generation, ScoreRequest
from fttt.errors import RunError, UsageError
from fttt.models.served import find_served
from fttt.testing.scripted_server import Reply, ScriptedServer, completion, refusal
from fttt.types import Text, assistant, user

Serve = Callable[[Callable[[dict[str, Any]], Any]], ScriptedServer]
QUESTION = (user("How many?"),)


def ask(number: int = 0, messages: tuple[Text, ...] = QUESTION, **more: Any) -> GenerateRequest:
    given = {"max_new_tokens": 20, "temperature": 0.6, "noise_key": number, **more}
    return GenerateRequest((), messages=messages, **given)


def engine_of(server: ScriptedServer, timeout: float = 200.0, **more: Any) -> EndpointEngine:
    model = replace(find_served("openai:tiny", server.url), timeout=timeout)
    return EndpointEngine(
        model, **{"max_length": 1000, "concurrency": 8, "first_pause": 0.001, **more}
    )


def play(engine: EndpointEngine, use: Callable[[EndpointEngine], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        try:
            return await use(engine)
        finally:
            await engine.close()

    return asyncio.run(run())


def answers(engine: EndpointEngine, *requests: GenerateRequest) -> Sequence[Generation]:
    found: Sequence[Generation] = play(
        engine, lambda e: asyncio.gather(*(e.generate(request) for request in requests))
    )
    return found


def test_arguments_of_the_template_are_sent_and_thoughts_are_set_apart(serve: Serve) -> None:
    def reply(body: dict[str, Any]) -> dict[str, Any]:
        answer = completion("Four.")
        answer["choices"][0]["message"]["reasoning_content"] = " 2 and 2.\n"
        return answer

    server = serve(reply)
    (found,) = answers(engine_of(server), ask(template_args={"enable_thinking": False}))
    assert server.asked[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert (found.text, found.thought) == ("Four.", "2 and 2.")


def several(body: dict[str, Any]) -> dict[str, Any]:
    """As many different answers as are asked for."""
    return completion(*(f"{body['seed']}-{n}" for n in range(body.get("n", 1))))


def test_what_is_asked_and_what_is_answered(serve: Serve) -> None:
    server = serve(lambda _: completion("Four.", finish_reason="length"))
    request = ask(5 + 2**31, (*QUESTION, assistant("3"), user("No.")), top_p=0.9, top_k=7)
    (answer,) = answers(engine_of(server), request)
    assert server.asked == [
        {
            "model": "tiny",
            "messages": [
                {"role": "user", "content": "How many?"},
                {"role": "assistant", "content": "3"},
                {"role": "user", "content": "No."},
            ],
            "max_tokens": 20,
            "temperature": 0.6,
            "top_p": 0.9,
            "top_k": 7,
            "seed": 5,
        }
    ]
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("Four.", (), "length")
    assert (answer.prompt_tokens, answer.generated_tokens) == (7, 10)
    assert answer.seconds > 0


def test_equal_questions_are_one_request_and_others_are_not(serve: Serve) -> None:
    server = serve(several)
    engine = engine_of(server)
    other = (user("What?"),)
    found = answers(engine, ask(0), ask(1), ask(9, other), ask(2), ask(3, temperature=0.7))
    assert [body.get("n") for body in server.asked].count(3) == 1
    assert len(server.asked) == 3
    assert sorted(one.text for one in (*found[:2], found[3])) == ["0-0", "0-1", "0-2"]
    assert [one.generated_tokens for one in found] == [10] * 5
    assert engine.generated_tokens == 50


def test_a_server_without_n_is_asked_for_one_answer_at_a_time(serve: Serve) -> None:
    def ignores(body: dict[str, Any]) -> dict[str, Any]:
        return completion(f"{body['seed']}")

    def refuses(body: dict[str, Any]) -> Any:
        return refusal(422, "Unexpected fields: n") if "n" in body else ignores(body)

    def repeats(body: dict[str, Any]) -> dict[str, Any]:  # one seed for all
        return completion(*[f"{body['seed']}"] * body.get("n", 1))

    for script in (ignores, refuses, repeats):
        server = serve(script)
        found = answers(engine_of(server), *(ask(n) for n in range(4)))
        assert [one.text for one in found] == ["0", "1", "2", "3"]
        assert [body.get("n") for body in server.asked][:1] == [4]
        assert len(server.asked) == (4 if script is not refuses else 5)


def test_no_more_answers_at_once_than_asked_for(serve: Serve) -> None:
    several = threading.Event()

    def script(_: dict[str, Any]) -> Reply:
        if server.most > 1:
            several.set()
        several.wait(60)  # a first one may be answered before the next has come
        return Reply(completion("x"), seconds=0.02)

    server = serve(script)
    found = answers(
        engine_of(server, concurrency=3), *(ask(0, (user(f"{n}?"),)) for n in range(10))
    )
    assert len(found) == 10
    assert 1 < server.most <= 3


def test_ids_that_a_server_gives_are_kept_and_counted(serve: Serve) -> None:
    def script(body: dict[str, Any]) -> dict[str, Any]:
        assert body["return_token_ids"] is True
        return completion("abc", token_ids=[4, 5, 2])

    server = serve(script)
    server.models["data"][0]["owned_by"] = "vllm"
    (answer,) = answers(engine_of(server), ask())
    assert answer.token_ids == (4, 5, 2)
    assert answer.generated_tokens == 3


def test_shares_of_a_common_count_add_up(serve: Serve) -> None:
    server = serve(lambda _: completion("a" * 60, "b" * 5, "c" * 20))
    found = answers(engine_of(server), ask(0), ask(1), ask(2))
    assert sum(one.generated_tokens or 0 for one in found) == 30
    assert [one.generated_tokens for one in found] == [20, 2, 8]


def test_an_answer_without_text_or_count(serve: Serve) -> None:
    server = serve(
        lambda _: completion("", usage=False, message={"role": "assistant", "content": None})
    )
    (answer,) = answers(engine_of(server), ask())
    assert (answer.text, answer.prompt_tokens) == ("", None)


def test_counts_that_a_server_leaves_empty(serve: Serve) -> None:
    empty = {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}
    server = serve(lambda _: completion("a" * 40) | {"usage": empty})
    (answer,) = answers(engine_of(server), ask())
    assert (answer.prompt_tokens, answer.generated_tokens) == (None, 10)


@pytest.mark.parametrize(
    "trouble",
    [
        refusal(500, "out of memory"),
        refusal(503, "loading", ("Retry-After", "0")),
        refusal(429, "slow down", ("retry-after-ms", "1")),
        Reply(completion("never read"), torn=True),
        Reply(b"<html>busy</html>"),
        Reply({"choices": []}),
        Reply({"choices": [{"index": 0}]}),
        Reply([1, 2]),
    ],
    ids=["500", "503", "429", "torn", "html", "no-choices", "no-message", "a-list"],
)
def test_trouble_that_passes_is_not_noticed(serve: Serve, trouble: Reply) -> None:
    server = serve(lambda _: trouble if len(server.asked) < 3 else completion("x"))
    (answer,) = answers(engine_of(server), ask())
    assert answer.text == "x"
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("trouble", "requests", "said"),
    [
        (refusal(500, "out of memory"), 8, "no answer in 8 requests .*500: out of memory"),
        (Reply(b"<html>"), 3, "in 3 requests .*no chat completion"),
        (Reply({"error": {"message": "busy upstream"}}), 3, "no chat completion: .*busy upstream"),
        (Reply(completion("x"), seconds=300.0), 2, r"none came within 0.2 seconds \(--request-tim"),
        (refusal(404, "no such model"), 1, r"refuses \(404: no such model\)"),
        (refusal(400, "top_k is unknown"), 1, "refuses .*leave away or change the option"),
        (refusal(400, "maximum context length is 9"), 1, "lower --max-new-tokens"),
        (refusal(429, "paid up?", code="insufficient_quota"), 1, "see to the account"),
        (refusal(429, "later", ("Retry-After", "7200")), 1, "come back in 7,200 seconds"),
    ],
    ids=["500", "html", "error-in-200", "hangs", "404", "option", "context", "quota", "later"],
)
def test_trouble_that_stays_is_one_sentence(
    serve: Serve, trouble: Reply, requests: int, said: str
) -> None:
    server = serve(lambda _: trouble)
    engine = engine_of(server, timeout=0.2 if trouble.seconds else 200.0)
    with pytest.raises(RunError, match=said) as caught:
        answers(engine, ask())
    # a time-out may come before a busy server has read the request
    assert len(server.asked) == requests or trouble.seconds
    assert "\n" not in str(caught.value)


def test_what_a_server_asks_to_wait_all_requests_wait(serve: Serve) -> None:
    times: list[float] = []

    def script(body: dict[str, Any]) -> Any:
        times.append(time.monotonic())
        return refusal(429, "busy", ("Retry-After", "0.4")) if len(times) == 1 else several(body)

    server = serve(script)

    async def two(engine: EndpointEngine) -> None:
        first = asyncio.create_task(engine.generate(ask()))
        # nobody tells of it
        while not (engine._client._paused_until or first.done()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.gather(first, engine.generate(ask(1, (user("Else?"),))))

    play(engine_of(server), two)
    assert len(times) == 3
    assert min(times[1:]) - times[0] >= 0.35


def test_a_limit_of_another_name_and_a_conversation_that_is_too_long(serve: Serve) -> None:
    def script(body: dict[str, Any]) -> Any:
        if "max_tokens" in body:
            return refusal(400, "'max_tokens' is not supported; use 'max_completion_tokens'")
        if len(body["messages"]) > 3:
            return refusal(400, "This model's maximum context length is 50 tokens")
        return completion("x")

    server = serve(script)
    turns = (*QUESTION, assistant("1"), user("No."), assistant("2"), user("Not yet."))
    (answer,) = answers(engine_of(server), ask(0, turns))
    assert answer.text == "x"
    assert server.asked[-1]["max_completion_tokens"] == 20
    said = [message["content"] for message in server.asked[-1]["messages"]]
    assert said == ["How many?", "2", "Not yet."]


def test_what_nobody_waits_for_is_not_asked_to_its_end(serve: Serve) -> None:
    server = serve(lambda _: Reply(completion("x"), seconds=300.0))

    async def gives_up(engine: EndpointEngine) -> int:
        waiting = [asyncio.create_task(engine.generate(ask(n))) for n in range(2)]
        await asyncio.to_thread(server.begun.wait, 60)
        assert engine.idle == 6
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for _ in range(600):
            if engine.idle == 8:
                break
            await asyncio.sleep(0.1)
        return engine.idle

    assert play(engine_of(server), gives_up) == 8


def test_half_a_surrogate_pair_is_borne(serve: Serve) -> None:
    server = serve(lambda _: completion("\ud83d!"))
    turns = (*QUESTION, assistant("\ud83d!"), user("No."))
    (answer,) = answers(engine_of(server), ask(0, turns))
    assert answer.text == "\ud83d!"
    assert server.asked[0]["messages"][1]["content"] == "?!"


def test_the_key_is_sent_and_never_shown(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", " sk-secret-1\n")
    server = serve(lambda _: refusal(401, "Incorrect key: sk-secret-1"))
    with pytest.raises(RunError, match=r"Incorrect key: \*\*\*\)") as caught:
        answers(engine_of(server), ask())
    assert server.keys == ["Bearer sk-secret-1"]
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_scores_are_refused(serve: Serve) -> None:
    server = serve(several)
    with pytest.raises(UsageError, match="gives answers only"):
        play(engine_of(server), lambda engine: engine.score(ScoreRequest((1,), (2,))))
