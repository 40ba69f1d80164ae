"""Text of token ids from a table of each token's bytes, where a tokenizer is a byte-level one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import decoders

__all__ = ["TokenBytes"]


def _bytes_of_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for.

    A byte that can be printed is its own letter of Latin-1, the others are those from U+0100 on
    (GPT-2, Radford et al. 2019).
    """
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = sorted(set(range(0x100)) - printed)
    letters = {chr(byte): byte for byte in printed}
    return letters | {chr(0x100 + number): byte for number, byte in enumerate(others)}


_LETTERS = _bytes_of_letters()


class TokenBytes(dict[int, bytes]):
    """The bytes of each token by its id, read when they are asked for first.

    Joining them takes less than half the time of the library, which makes a text of each
    token first, and gives the same text.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Take a tokenizer of the ``tokenizers`` library whose decoder is a byte-level one."""
        super().__init__()
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().values()
        self._special = {token.content for token in added if token.special}

    @classmethod
    def of(cls, tokenizer: Any) -> TokenBytes | None:
        """The table of a tokenizer; ``None`` where its decoder is another one."""
        return cls(tokenizer) if type(tokenizer.decoder) is decoders.ByteLevel else None

    def __missing__(self, token_id: int) -> bytes:
        text = self._tokenizer.id_to_token(token_id)
        if text is None or text in self._special:
            found = b""
        elif all(letter in _LETTERS for letter in text):
            found = bytes(_LETTERS[letter] for letter in text)
        else:  # an added token is its own text
            found = text.encode("utf-8")
        self[token_id] = found
        return found

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids without special tokens; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.__getitem__, token_ids)).decode("utf-8", "replace")
