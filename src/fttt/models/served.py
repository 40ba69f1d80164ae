"""A model that an OpenAI-compatible server has: whether it is there, and how to reach it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, ClassVar
from urllib.parse import urlsplit

from fttt.errors import UsageError
from fttt.files import SERVED
from fttt.models.loader import UNBOUNDED, LoadedModel
from fttt.models.messages import MessageFormat

__all__ = [
    "JUDGE_KEY",
    "KEY",
    "ReadyModel",
    "ServedModel",
    "check_address",
    "client_options",
    "find_served",
    "judge_key",
    "words",
]

KEY = "OPENAI_API_KEY"
"""The environment variable that holds the server's key; nothing else ever does."""
JUDGE_KEY = "JUDGE_API_KEY"
"""That of a judging model's server, where it is another one."""
_TIMEOUT = 600.0
"""Seconds for an answer: a long one comes in one piece."""
_LIST_SECONDS = 30.0
_CONNECT_SECONDS = 10.0
_PROBE_RETRIES = 2
_CONTEXTS = ("max_model_len", "context_length", "context_window", "max_context_length")
"""What servers call the longest conversation in their lists of models."""
_TAG = re.compile(r"<[^<>]*>")
"""Of a proxy's page that says that its server is down."""


@dataclass(frozen=True)
class ServedModel:
    """A model that a server has, in the place of a loaded one."""

    name: str
    """``openai:`` and what the server calls it."""
    url: str
    timeout: float
    """Seconds to wait for an answer."""
    card: Mapping[str, Any]
    """What the server's list says of the model; empty where it does not list it."""
    key: str = KEY
    """The environment variable with its key."""

    chat: ClassVar = MessageFormat()
    stop_ids: ClassVar[tuple[int, ...]] = ()
    dtype: ClassVar[str | None] = None
    quantized: ClassVar[str | None] = None
    device: ClassVar = "endpoint"
    adapter: ClassVar[Mapping[str, Any] | None] = None

    @property
    def served_name(self) -> str:
        """What the server calls it."""
        return self.name.removeprefix(SERVED)

    @property
    def max_context(self) -> int:
        """Tokens of the longest conversation, where the server says it."""
        found = next((self.card[key] for key in _CONTEXTS if self.card.get(key)), UNBOUNDED)
        return int(found)

    def facts(self) -> dict[str, Any]:
        """What ``environment.json`` says of the server."""
        return {
            "url": self.url,
            "listed": {k: v for k, v in self.card.items() if isinstance(v, str | int | float)},
            "client": f"openai {version('openai')}",
            "seed": "passed with each request; that it draws the same again is the server's "
            "promise, if it makes one",
        }


ReadyModel = LoadedModel | ServedModel


@lru_cache(maxsize=16)
def find_served(model: str, url: str, timeout: float | None = None, key: str = KEY) -> ServedModel:
    """Ask a server whether it has a model. One that its list lacks is asked for a single token.

    Args:
        model: ``openai:NAME``.
        url: of the server.
        timeout: seconds to wait for an answer.
        key: the environment variable with its key.

    Raises:
        UsageError: no package for it, no such server, no such model, or a key that it refuses.
    """
    openai, options = client_options(url, _LIST_SECONDS, key)
    name, timeout, here = model.removeprefix(SERVED), timeout or _TIMEOUT, f"at {url!r}"
    with openai.OpenAI(**options) as client:
        try:
            listed = getattr(client.models.list(), "data", None)
        except openai.APIConnectionError as error:
            raise UsageError(
                f"No server answers {here} ({words(error)}); start it, or correct the address."
            ) from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UsageError(
                f"The server {here} refuses the key ({words(error)}); set {key} to one that it "
                "takes."
            ) from None
        except (openai.APIError, ValueError):
            listed = None  # some have no list
        found = listed if isinstance(listed, list) else []
        cards = {card.id: card.model_dump(warnings=False) for card in found if hasattr(card, "id")}
        if name not in cards:
            # again where it has closed the connection after an error of its list
            patient = client.with_options(timeout=timeout, max_retries=_PROBE_RETRIES)
            _probe(openai, patient, url, name, list(cards))
    return ServedModel(model, url, timeout, cards.get(name, {}), key)


def _probe(openai: Any, client: Any, url: str, name: str, listed: Sequence[str]) -> None:
    """Ask a model that is not listed for one token, since some servers list few that they have."""
    messages = [{"role": "user", "content": "Hi"}]
    try:
        answer = client.chat.completions.create(model=name, messages=messages, max_tokens=1)
        if getattr(answer, "choices", None):
            return
        why = "what it answers is no chat completion"
    except openai.NotFoundError as error:
        why = words(error)
        if not listed and not url.rstrip("/").endswith("/v1"):
            raise UsageError(
                f"The server at {url!r} has no chat completions ({why}); most have them under "
                f"/v1, so try {url.rstrip('/')}/v1."
            ) from None
    except (openai.APIError, ValueError) as error:
        why = words(error)
    near = difflib.get_close_matches(name, listed, n=1)
    names = f"did you mean {near[0]!r}?" if near else f"it lists {', '.join(listed[:5]) or 'none'}."
    raise UsageError(
        f"The server at {url!r} gives no answer as the model {name!r} ({why}); {names}"
    )


def client_options(url: str, timeout: float, key: str = KEY) -> tuple[Any, dict[str, Any]]:
    """The client's package, and the arguments of a client.

    Its own retries are off: an engine's requests wait together.

    Raises:
        UsageError: the package is not installed, or the key is none.
    """
    missing = [name for name in ("openai", "tenacity") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"A served model needs the package {missing[0]}; run: pip install 'fttt[endpoint]'"
        )
    openai, secret = import_module("openai"), os.environ.get(key, "").strip()
    if not (secret.isascii() and secret.isprintable()):
        raise UsageError(f"The key in {key} has signs that no key has; set it again.")
    limits = openai.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS))
    options = {"base_url": url, "api_key": secret or "none", "timeout": limits, "max_retries": 0}
    return openai, options


def judge_key() -> str:
    """The environment variable whose key a judging model's server is given."""
    return JUDGE_KEY if JUDGE_KEY in os.environ else KEY


def check_address(url: str, name: str, key: str) -> None:
    """Refuse what is no address of a server, or more than that.

    Args:
        url: what was given.
        name: what gave it, as a sentence begins with it.
        key: the environment variable that holds the key.

    Raises:
        UsageError: it is such.
    """
    address = urlsplit(url)
    if address.scheme not in {"http", "https"} or not address.hostname:
        raise UsageError(
            f"{name} {url!r} is no http:// or https:// address; give one such as "
            "http://localhost:8000/v1."
        )
    if "@" in address.netloc or address.query:
        raise UsageError(
            f"{name} holds a name, a key or a query, which would be written down; give the "
            f"address alone, and the key in {key}."
        )


def words(error: Exception) -> str:
    """What a server or the network says, in a line without a key."""
    body: Any = getattr(error, "body", None)
    if isinstance(body, Mapping):
        said = body.get("message") or body.get("detail") or body.get("error") or body
    else:
        said = body or error.__cause__ or error
    line = " ".join(_TAG.sub(" ", str(said)).split()) or type(said).__name__
    status = getattr(error, "status_code", None)
    line = line if status is None or str(status) in line else f"{status}: {line}"
    for secret in (os.environ.get(name, "").strip() for name in (KEY, JUDGE_KEY)):
        line = line.replace(secret, "***") if secret else line
    return line[:300].rstrip(".")
