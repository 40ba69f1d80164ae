"""A running sequence, as decode steps see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fttt.engine.batch import Segment

__all__ = ["Lane"]


@dataclass(eq=False)
class Lane:
    """A running sequence: its sampling settings and the tokens that were drawn."""

    row: int
    slot: int
    temperature: float
    top_p: float
    key: int
    length: int
    """Tokens of it in its cache row."""
    logprobs: bool
    """Whether the log-probabilities of its tokens are wanted."""
    room: int = 0
    """Tokens that are known to have pages."""
    stop_ids: frozenset[int] = frozenset()
    limit: int = 0
    """How many tokens may be drawn; while a thought has a budget, how many before it is over."""
    top_k: int = 0
    min_p: float = 0.0
    penalty: float = 1.0
    """Repetition penalty."""
    prompt: tuple[int, ...] = ()
    """The prompt's tokens, where a repetition penalty needs them."""
    prompt_end: int = 0
    """The last of them."""
    version: int = 0
    """Version of the adapter's weights when the sequence began."""
    tokens: list[int] = field(default_factory=list)
    """Drawn so far; the last one is not in the cache yet, nor the prompt's where there is none."""
    scores: list[float] = field(default_factory=list)
    """Their log-probabilities, where they are wanted."""
    forced: tuple[int, ...] = ()
    """The next tokens, whatever would be drawn."""
    cuts: int = 0
    """How often tokens were taken back."""

    shaped: bool = field(init=False)
    """Whether it has settings beside temperature and nucleus."""

    def __post_init__(self) -> None:
        self.shaped = self.top_k > 0 or self.min_p > 0 or self.penalty != 1

    @property
    def next_token(self) -> int:
        """The one to run next."""
        return self.tokens[-1] if self.tokens else self.prompt_end

    @property
    def segment(self) -> Segment:
        return Segment((self.next_token,), self.row, self.length, self.slot)

    def may_end(self, fresh: int) -> bool:
        """Whether it has reached its limit, or a stop token is among its last ``fresh`` ones."""
        return len(self.tokens) >= self.limit or not self.stop_ids.isdisjoint(self.tokens[-fresh:])

    def take(self, tokens: Sequence[int], scores: Sequence[float]) -> None:
        """Append what was drawn, or forced: then it has a log-probability of 0."""
        if self.forced:
            count = min(len(self.forced), len(tokens))
            tokens = [*self.forced[:count], *tokens[count:]]
            scores = [*(0.0,) * count, *scores[count:]]
            self.forced = self.forced[count:]
        self.tokens += tokens
        if self.logprobs:
            self.scores += scores

    def cut(self, tokens: int) -> None:
        """Take back what was drawn after so many tokens."""
        self.length -= len(self.tokens) - tokens
        self.cuts += 1
        del self.tokens[tokens:], self.scores[tokens:]
