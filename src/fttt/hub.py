"""The Hugging Face hub, or its local cache where the hub cannot be reached."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

__all__ = ["from_hub"]


@contextmanager
def from_hub(name: str) -> Iterator[None]:
    """Read from the hub, or from its cache alone where the hub's host name does not resolve.

    The hub's client would retry for half a minute, with a message each time, before it reads the
    cache. Behind a proxy the proxy resolves names, so no look-up is made; neither is one for a
    ``name`` that is a local folder, since a failing look-up may take as long.
    """
    offline = constants.HF_HUB_OFFLINE or not (Path(name).is_dir() or _resolves())
    with patch.object(constants, "HF_HUB_OFFLINE", offline):
        yield


def _resolves() -> bool:
    address = urlsplit(constants.ENDPOINT)
    if {address.scheme, "all"} & getproxies().keys():  # not "no", which names exceptions
        return True
    try:
        socket.getaddrinfo(address.hostname, address.port or 443)
    except OSError:
        return False
    return True
