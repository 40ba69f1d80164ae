"""What a question has written so far, and what it holds of the engine's cache.

A sequence of the question's own adapter is held for the train step on it, until its trial ends. Of
the base model's only the last one is held, since the next one may begin as it does; where a train
step may read any sequence, it reads that one too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fttt.engine.request import AdapterSpec, Engine, GenerateRequest, Generation, Kept
from fttt.types import Completion

__all__ = ["Written", "WrittenSequences"]


@dataclass
class Written:
    """A conversation as the model saw it, and what the cache holds of it for its train step."""

    prompt_ids: tuple[int, ...]
    completion: Completion
    kept: Kept | None = None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Prompt and completion."""
        return self.prompt_ids + self.completion.token_ids

    def release(self) -> None:
        """Let go what is held. Calling it twice is harmless."""
        if self.kept is not None:
            self.kept.close()
            self.kept = None


class WrittenSequences:
    """A question's sequences by the number of their generation."""

    def __init__(self, engine: Engine, spec: AdapterSpec | None) -> None:
        """``spec`` is that of the question's own weights, which says what a train step reads."""
        self._engine, self._spec = engine, spec
        self._written: dict[int, Written] = {}
        self._held: Kept | None = None  # of the base model's last turn

    def __getitem__(self, number: int) -> Written:
        return self._written[number]

    def add(self, number: int, written: Written) -> None:
        """Take note of a sequence."""
        self._written[number] = written

    def learns_from(self, *, adapted: bool) -> bool:
        """Whether train steps read what the adapter wrote, or what the base model did."""
        return self._spec is not None and self._spec.learns_from(adapted=adapted)

    async def generate(self, request: GenerateRequest) -> Generation:
        """Generate; the base model's last sequence may begin as this one does."""
        if request.adapter is not None:
            return await self._engine.generate(request)
        held, self._held = self._held, None
        try:
            generation = await self._engine.generate(replace(request, reuse=held))
        finally:
            if held is not None:
                held.close()
        self._let_go()
        self._held = generation.kept
        return replace(generation, kept=None)

    def context(self, number: int) -> Kept | tuple[int, ...]:
        """What a train step after a sequence is given: what is held of it, or its token ids."""
        written = self._written[number]
        if written.kept is not None:
            return written.kept
        ids, held = written.token_ids, self._held
        if held is not None and held.token_ids == ids and self.learns_from(adapted=False):
            return held
        return ids

    def release(self) -> None:
        """Let go what was held for the train steps of a trial."""
        for written in self._written.values():
            written.release()

    def close(self) -> None:
        """Let everything go."""
        self.release()
        self._let_go()

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None
