"""Chat formatting through the tokenizer's own template, in token ids."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from fttt.errors import UsageError
from fttt.types import Completion, Turn

__all__ = ["ChatFormat"]

_ATTEMPT = "QXATTEMPTXQ"
_FEEDBACK = "QXFEEDBACKXQ"


class ChatFormat:
    """Turns a conversation into token ids without ever tokenising generated text again.

    The template is rendered once around placeholders; what it writes between an answer and the
    next user's turn is tokenised on its own, so that a completion keeps the ids that were sampled
    and no beginning-of-sequence token appears in mid-sequence.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Read the template of a ``transformers`` tokenizer.

        Raises:
            UsageError: the tokenizer has no chat template.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise UsageError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no chat template; use an "
                "instruction-tuned model, or a folder of this one with a chat_template.jinja in it."
            )
        self.tokenizer = tokenizer
        self._after_attempt, self._after_feedback, self._closing = self._read_template()
        self.end_ids = self._end_ids()

    @lru_cache(maxsize=4096)  # noqa: B019 - one format lives as long as its model
    def prompt_ids(self, prompt: str) -> tuple[int, ...]:
        """Ids of one user's turn and the header of the assistant's answer."""
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        return self._encode(text)

    def turn_ids(
        self, text: str, after: Completion | None = None, *, answer: bool = True
    ) -> tuple[int, ...]:
        """Ids of a user's turn that follows an answer.

        ``after`` is that answer: where it already ended with the end-of-turn token, the token is
        not written twice. ``answer`` adds the header of the assistant's next answer.
        """
        ids = self._turn(text, answer)
        if after is not None and after.token_ids and ids[:1] == (after.token_ids[-1],):
            return ids[1:]
        if after is not None and after.finish_reason == "stop" and ids[0] in self.end_ids:
            return ids[1:]  # another of the model's stop tokens ended the turn
        return ids

    def conversation_ids(self, prompt: str, turns: tuple[Turn, ...]) -> tuple[int, ...]:
        """Ids of a whole conversation up to the header of the next answer."""
        ids = self.prompt_ids(prompt)
        after: Completion | None = None
        for turn in turns:
            if isinstance(turn, Completion):
                ids += turn.token_ids
                after = turn
            else:
                ids += self.turn_ids(turn, after)
                after = None
        return ids

    def answer_ids(self, prompt: str, answer: str) -> tuple[int, ...]:
        """Ids of an answer that somebody else wrote, as the model would have sampled them.

        They follow ``prompt_ids(prompt)`` and end with the token that ends an answer, whatever the
        template writes after it.
        """
        messages = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]
        whole = self._encode(self.tokenizer.apply_chat_template(messages, tokenize=False))
        before = self.prompt_ids(prompt)
        ids = whole[len(before) :]
        if whole[: len(before)] != before:  # the answer's first token would merge with the header
            ids = self._encode(answer)
        end = next((n for n in range(len(ids), 0, -1) if ids[n - 1] in self.end_ids), None)
        if end is not None:
            return ids[:end]
        return ids + tuple(sorted(self.end_ids))[:1]

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """Text of generated ids, special tokens left out."""
        return str(
            self.tokenizer.decode(
                token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    @lru_cache(maxsize=64)  # noqa: B019 - one format lives as long as its model
    def _turn(self, text: str, answer: bool) -> tuple[int, ...]:
        body = self._after_attempt + text + (self._after_feedback if answer else self._closing)
        return self._encode(body)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _render(self, *, answer: bool) -> str:
        messages = [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": _ATTEMPT},
            {"role": "user", "content": _FEEDBACK},
        ]
        return str(
            self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=answer
            )
        )

    def _read_template(self) -> tuple[str, str, str]:
        with_header = self._render(answer=True)
        if with_header.count(_ATTEMPT) != 1 or with_header.count(_FEEDBACK) != 1:
            raise UsageError(
                f"The chat template of {self.tokenizer.name_or_path!r} does not keep a "
                "conversation of several turns; use a model whose template does."
            )
        rest = with_header.split(_ATTEMPT, 1)[1]
        before, after = rest.split(_FEEDBACK, 1)
        closing = self._render(answer=False).split(_FEEDBACK, 1)[1]
        return before, after, closing

    def _end_ids(self) -> frozenset[int]:
        """The special token with which the template ends an answer.

        A tokenizer's own end token is trusted only where the template writes none: some name the
        token that starts a turn.
        """
        ids = self._encode(self._after_attempt)
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        if ids and ids[0] in special:
            return frozenset(ids[:1])
        eos = self.tokenizer.eos_token_id
        return frozenset(() if eos is None else (eos,))
