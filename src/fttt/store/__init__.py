"""The run folder: append-only facts, and how to read them.

``Run.open(path)`` reads a folder, finished or not. ``RunWriter`` appends to one.
"""

from fttt.store.followed_run import (
    FollowedQuestion,
    FollowedRun,
    PartialRun,
    QuestionTexts,
    find_runs,
)
from fttt.store.journal import (
    DivergenceEvent,
    GenerationEvent,
    History,
    Journal,
    MemoryJournal,
    ScoreEvent,
)
from fttt.store.outcome import DecidedBy, Unanswered, solved_within, spent, vote, wilson
from fttt.store.run_folder import (
    RUN_FILES,
    Run,
    RunWriter,
    check_free,
    fingerprint,
    open_runs,
    run_folders,
)

__all__ = [
    "RUN_FILES",
    "DecidedBy",
    "DivergenceEvent",
    "FollowedQuestion",
    "FollowedRun",
    "GenerationEvent",
    "History",
    "Journal",
    "MemoryJournal",
    "PartialRun",
    "QuestionTexts",
    "Run",
    "RunWriter",
    "ScoreEvent",
    "Unanswered",
    "check_free",
    "find_runs",
    "fingerprint",
    "open_runs",
    "run_folders",
    "solved_within",
    "spent",
    "vote",
    "wilson",
]
