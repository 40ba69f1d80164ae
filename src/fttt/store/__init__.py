"""The run folder: append-only facts, and how to read them.

``Run.open(path)`` reads a folder, finished or not. ``RunWriter`` appends to one.
"""

from fttt.store.events import GenerationEvent, History, ScoreEvent
from fttt.store.outcome import DecidedBy, Unanswered, solved_within, spent, vote, wilson
from fttt.store.run import Run, fingerprint, open_runs
from fttt.store.writer import Journal, MemoryJournal, RunWriter, check_free

__all__ = [
    "DecidedBy",
    "GenerationEvent",
    "History",
    "Journal",
    "MemoryJournal",
    "Run",
    "RunWriter",
    "ScoreEvent",
    "Unanswered",
    "check_free",
    "fingerprint",
    "open_runs",
    "solved_within",
    "spent",
    "vote",
    "wilson",
]
