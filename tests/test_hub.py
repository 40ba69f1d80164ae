"""Reading from the hub where it can be reached, and from the cache where not."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import is_offline_mode

import fttt.hub
from fttt.errors import UsageError
from fttt.hub import from_hub
from fttt.models.loader import load_config
from fttt.tasks.benchmark_data import read_hub
from fttt.testing import save_tiny_model


def unknown(*_: Any, **__: Any) -> None:
    raise socket.gaierror(-2, "Name or service not known")


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fttt.hub, "getproxies", dict)


@pytest.mark.parametrize("proxies", [{}, {"no": "localhost"}])
def test_without_a_connection_only_the_cache_is_asked(
    proxies: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fttt.hub, "getproxies", lambda: proxies)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with from_hub("nobody/nothing"):
        assert is_offline_mode()
    assert not is_offline_mode()


@pytest.mark.usefixtures("no_proxy")
def test_with_one_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a: asked.append(a))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://mirror.example:8443/hf")
    with from_hub("nobody/nothing"):
        assert not is_offline_mode()
    assert asked == [("mirror.example", 8443)]


def test_a_proxy_resolves_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(fttt.hub, "getproxies", lambda: {"https": "http://proxy:3128"})
    with from_hub("nobody/nothing"):
        assert not is_offline_mode()


@pytest.mark.usefixtures("no_proxy")
def test_a_folder_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("asked"))
    assert load_config(str(save_tiny_model(tmp_path / "tiny"))).model_type == "llama"


@pytest.mark.usefixtures("no_proxy")
def test_a_model_or_data_set_out_of_reach_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UsageError, match="'nobody/nothing' cannot be read"):
        load_config("nobody/nothing")
    with pytest.raises(UsageError, match="'nobody/nothing' could not be loaded from the hub"):
        read_hub("nobody/nothing", None, "test", ["question"])
    assert "Retry" not in "".join(capfd.readouterr())
