"""What goes with a model on a server, before anything is asked."""

from __future__ import annotations

from typing import Any

import pytest

from fttt.config import resolve
from fttt.errors import UsageError
from fttt.experiment.plan import settle
from fttt.methods import METHODS

SERVED = {"model": "openai:owner/tiny", "endpoint": "http://localhost:1/v1"}
ANSWERS = {"greedy", "best-of-n", "sample", "self-consistency", "revision", "self-refine", "memory"}


def refused(method: str = "best-of-n", **flags: Any) -> str:
    with pytest.raises(UsageError) as caught:
        settle(resolve({"method": method, **flags}))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_need_weights_are_refused_by_name(method: str) -> None:
    settings = {"settings": {"checkpoint": "DIR"}} if method == "optune" else {}
    if method in ANSWERS:
        assert settle(resolve({"method": method, **SERVED})).config.endpoint == SERVED["endpoint"]
        return
    said = refused(method, **SERVED, **settings)
    assert said.startswith(f"The method {method!r} needs the model's weights")
    assert f"`fttt run {method} --model owner/tiny --task arithmetic`" in said
    assert "greedy, best-of-n, " in said


def test_a_checkpoint_is_refused_by_name() -> None:
    said = refused(model="openai:tiny", endpoint="http://localhost:1/v1", adapter="outputs/lora")
    assert "`fttt run best-of-n --model MODEL --adapter outputs/lora --task arithmetic`" in said


def test_an_endpoint_and_a_served_model_go_together() -> None:
    assert "say where with --endpoint URL" in refused(model="openai:tiny")
    assert "--model openai:NAME" in refused(endpoint="http://localhost:1/v1")
    assert "--model openai:NAME" in refused(endpoint="http://localhost:1/v1", model="openai:")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8000/v1", "is no http:// or https:// address"),
        ("http:///v1", "is no http:// or https:// address"),
        ("http://me:sk-1@host/v1", "which would be written down"),
        ("http://host/v1?api-key=sk-1", "which would be written down"),
    ],
)
def test_addresses_that_are_none_or_hold_a_secret(url: str, said: str) -> None:
    found = refused(**{**SERVED, "endpoint": url})
    assert said in found
    assert "sk-1" not in found


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"device": "cpu"}, "--device cpu is of a model that runs here"),
        ({"dtype": "float32"}, "--dtype float32 is"),
        ({"batch_size": 4}, "--batch-size 4 is"),
        ({"memory_share": 0.5}, "--memory-share 0.5 is"),
    ],
)
def test_options_of_weights_have_no_meaning(engine: dict[str, Any], said: str) -> None:
    assert said in refused(**SERVED, engine=engine)


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"concurrency": 4}, "--concurrency 4 is of requests to a server"),
        ({"request_timeout": 0.5}, "--request-timeout 0.5 is"),
    ],
)
def test_options_of_requests_have_no_meaning_without_a_server(
    engine: dict[str, Any], said: str
) -> None:
    assert said in refused(engine=engine)
