"""A vote among independent samples (Wang et al. 2023, arXiv 2203.11171)."""

from __future__ import annotations

from fttt.methods.sample import Sample

__all__ = ["SelfConsistency"]


class SelfConsistency(Sample):
    """Draw the whole budget at once; the most frequent answer is the method's answer.

    The verdict on that answer decides, and nothing else does: no sample stops the others. Each
    sample's own verdict is written down too, so that one run tells the accuracy of the vote at
    every smaller budget.
    """

    name = "self-consistency"
    summary = "N samples, the majority of the extracted answers decides"
    decided_by = "vote"
