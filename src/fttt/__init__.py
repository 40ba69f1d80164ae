"""Solve hard problems by trying, being told what was wrong, and learning from it."""

__version__ = "0.1.0"
