"""The hypotheses of beam searches: their tensors, and one step of scoring and pruning.

The rule is that of ``transformers`` with its defaults (``early_stopping=False``, a length penalty
of 1): a beam's score is its log-probability, an ended one's is that divided by its length. A beam
ends by a stop token only where it is among the N best of all continuations; the N best that go on
are searched further. A question is done at the length limit, or once the best that goes on, as if
it ended now, is worse than the worst of N that have ended. Everything stays on the device, so that
a captured step serves any of them.

No key or value is ever copied: a beam writes each token's into its own row and knows of every
earlier token which row holds it. Likewise a state that layers carry is read from the row of the
beam that was continued, and written to its own.

Axes: Q questions, N beams of each, L = Q N lanes, S tokens of a row, V vocabulary, E stop tokens,
C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fttt.engine.batch import Batch
from fttt.engine.cache import KVCache
from fttt.engine.request import BeamRequest

__all__ = ["Beams"]

FAR_BELOW = -1e9
"""The score of a question's beams but the first before they differ."""


@dataclass(frozen=True, eq=False)
class Beams:
    """Beams of some questions. A blank question is done, and its lanes write to the spare row."""

    token_QN: Tensor
    """The token to run next."""
    past_QN: Tensor
    """Filled positions before it, those of the cache's prefix included."""
    row_QN: Tensor
    """The row that a beam writes to."""
    row_of_QNS: Tensor
    """The row that holds each earlier token."""
    source_QN: Tensor
    """The row that the state before the next token is read from, where layers carry one."""
    score_QN: Tensor
    """Log-probability, best first."""
    written_QNS: Tensor
    """The tokens after the prompt."""
    count_Q: Tensor
    """How many of them there are."""
    limit_Q: Tensor
    """How many there may be."""
    done_Q: Tensor
    ended_score_QN: Tensor
    """Log-probability a token of the best that have ended, best first; -inf where none has."""
    ended_QNS: Tensor
    ended_length_QN: Tensor

    @classmethod
    def blank(cls, questions: int, beams: int, cache: KVCache) -> Beams:
        """Room for so many questions."""

        def filled(value: float, dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.full((questions, *shape), value, dtype=dtype, device=cache.device)

        whole, small = torch.int64, torch.int32
        return cls(
            token_QN=filled(0, whole, beams),
            past_QN=filled(cache.prefix, whole, beams),
            row_QN=filled(cache.rows, whole, beams),
            row_of_QNS=filled(cache.rows, small, beams, cache.capacity),
            source_QN=filled(cache.rows, whole, beams),
            score_QN=filled(0, torch.float32, beams),
            written_QNS=filled(0, small, beams, cache.capacity),
            count_Q=filled(0, whole),
            limit_Q=filled(0, whole),
            done_Q=filled(True, torch.bool),
            ended_score_QN=filled(float("-inf"), torch.float32, beams),
            ended_QNS=filled(0, small, beams, cache.capacity),
            ended_length_QN=filled(0, whole, beams),
        )

    def first(self, questions: int) -> Beams:
        """The same tensors, as far as these questions go."""
        return Beams(*(getattr(self, part.name)[:questions] for part in fields(self)))

    def put(self, place: int, request: BeamRequest, rows: Sequence[int], cache: KVCache) -> None:
        """Begin a question whose prompt, but for its last token, lies in the first of its rows."""
        self.token_QN[place] = request.prompt_ids[-1]
        self.past_QN[place] = cache.prefix + len(request.prompt_ids) - 1
        self.row_QN[place] = torch.tensor(rows)
        self.row_of_QNS[place] = rows[0]
        self.source_QN[place] = rows[0]
        self.score_QN[place] = FAR_BELOW
        self.score_QN[place, 0] = 0
        self.count_Q[place] = 0
        self.limit_Q[place] = request.max_new_tokens
        self.done_Q[place] = False
        self.ended_score_QN[place] = float("-inf")

    def move(self, source: int, target: int, cache: KVCache) -> None:
        """Let a question take the place of one that is done, and leave a blank one behind."""
        if source != target:
            for part in fields(self):
                tensor = getattr(self, part.name)
                tensor[target] = tensor[source]
        self.row_QN[source] = self.source_QN[source] = cache.rows
        self.past_QN[source] = cache.prefix
        self.done_Q[source] = True

    def found(self, place: int) -> list[tuple[int, ...]]:
        """The tokens of a done question's beams, best first."""
        lengths = self.ended_length_QN[place].tolist()
        rows = self.ended_QNS[place, :, : max(lengths)].tolist()
        return [tuple(row[:length]) for row, length in zip(rows, lengths, strict=True)]

    def batch(self, cache: KVCache) -> Batch:
        """The decode step of all lanes."""
        past_L = self.past_QN.flatten()
        return Batch(
            "decode", cache, self.token_QN.flatten(), past_L, self.row_QN.flatten(), past_L,
            torch.full_like(past_L, -1), lengths=(), pasts=(), rows=(), adapted=False,
            row_of_BS=self.row_of_QNS.flatten(0, 1), source_B=self.source_QN.flatten(),
        )  # fmt: skip

    def expand(self, logits_LV: Tensor, stop_E: Tensor) -> None:
        """Continue each beam by one token, prune, and note what has ended."""
        beams, vocab = self.token_QN.shape[1], logits_LV.shape[1]
        score_QNV = logits_LV.float().log_softmax(-1).unflatten(0, (-1, beams))
        score_QNV += self.score_QN[..., None]
        stopped_QC = score_QNV[..., stop_E].flatten(1)
        score_QNV.index_fill_(2, stop_E, float("-inf"))
        going_QN, at_QN = score_QNV.flatten(1).topk(beams)
        parent_QN, token_QN = at_QN // vocab, at_QN % vocab
        # the N best of all are among the N best that go on and those that stop
        beam_C = (
            torch.arange(beams, device=stop_E.device)[:, None].expand(-1, len(stop_E)).flatten()
        )
        best_QN, choice_QN = torch.cat([going_QN, stopped_QC], 1).topk(beams)
        parent_QC = torch.cat([parent_QN, beam_C.expand_as(stopped_QC)], 1)
        token_QC = torch.cat([token_QN, stop_E.repeat(beams).expand_as(stopped_QC)], 1)
        last_Q = self.count_Q + 1 >= self.limit_Q
        ends_QN = ((choice_QN >= beams) | last_Q[:, None]) & ~self.done_Q[:, None]
        self._end(best_QN, parent_QC.gather(1, choice_QN), token_QC.gather(1, choice_QN), ends_QN)
        count_Q = self.count_Q + 1
        done_Q = last_Q | (going_QN[:, 0] / count_Q <= self.ended_score_QN.amin(1))
        if beams == 1:  # the library's search of one beam is greedy decoding
            done_Q |= ends_QN[:, 0]
        self._go_on(going_QN, parent_QN, token_QN)
        self.done_Q.logical_or_(done_Q)

    def _end(self, score_QN: Tensor, parent_QN: Tensor, token_QN: Tensor, ends_QN: Tensor) -> None:
        """Keep the best that have ended, those that end now among them."""
        count_Q1 = self.count_Q[:, None] + 1
        now_QN = (score_QN / count_Q1).masked_fill(~ends_QN, float("-inf"))
        score_QC = torch.cat([self.ended_score_QN, now_QN], 1)
        ended_QCS = torch.cat([self.ended_QNS, self._continued(parent_QN, token_QN)], 1)
        length_QC = torch.cat([self.ended_length_QN, count_Q1.expand_as(token_QN)], 1)
        best_QN, choice_QN = score_QC.topk(score_QN.shape[1])
        self.ended_score_QN.copy_(best_QN)
        self.ended_QNS.copy_(_pick(ended_QCS, choice_QN))
        self.ended_length_QN.copy_(length_QC.gather(1, choice_QN))

    def _go_on(self, score_QN: Tensor, parent_QN: Tensor, token_QN: Tensor) -> None:
        """Let each beam of a question that is not done continue another."""
        live_Q = ~self.done_Q
        live_Q1, live_Q11 = live_Q[:, None], live_Q[:, None, None]
        written_QNS = self._continued(parent_QN, token_QN)
        self.written_QNS.copy_(torch.where(live_Q11, written_QNS, self.written_QNS))
        row_QN1 = self.row_QN[..., None].to(self.row_of_QNS.dtype)
        row_of_QNS = _pick(self.row_of_QNS.scatter(2, self.past_QN[..., None], row_QN1), parent_QN)
        self.row_of_QNS.copy_(torch.where(live_Q11, row_of_QNS, self.row_of_QNS))
        source_QN = self.row_QN.gather(1, parent_QN)
        self.source_QN.copy_(torch.where(live_Q1, source_QN, self.source_QN))
        self.token_QN.copy_(torch.where(live_Q1, token_QN, self.token_QN))
        self.score_QN.copy_(torch.where(live_Q1, score_QN, self.score_QN))
        self.past_QN.add_(live_Q1)
        self.count_Q.add_(live_Q)

    def _continued(self, parent_QN: Tensor, token_QN: Tensor) -> Tensor:
        """What the parents have written, and one token each."""
        at_QN1 = self.count_Q[:, None, None].expand(-1, token_QN.shape[1], 1)
        token_QN1 = token_QN[..., None].to(self.written_QNS.dtype)
        return _pick(self.written_QNS, parent_QN).scatter(2, at_QN1, token_QN1)


def _pick(x_QCS: Tensor, choice_QN: Tensor) -> Tensor:
    """Rows of each question by their numbers."""
    return x_QCS.gather(1, choice_QN[..., None].expand(-1, -1, x_QCS.shape[2]))
