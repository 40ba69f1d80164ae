"""For tests, ours and a user's: a scripted engine, tiny random models, a tiny task, a command.

Nothing here needs a download. The tokenizer is a real one, byte by byte, with a chat template, so
that conversations are formatted exactly as for a real model.
"""

from fttt.testing.fake_engine import FakeEngine, FakeKept, FakeSlot
from fttt.testing.play import Scene, TinyTask, TinyVerifier, call, play
from fttt.testing.tiny_models import fake_model, save_tiny_model, tiny_model, tiny_tokenizer

__all__ = [
    "FakeEngine",
    "FakeKept",
    "FakeSlot",
    "Scene",
    "TinyTask",
    "TinyVerifier",
    "call",
    "fake_model",
    "play",
    "save_tiny_model",
    "tiny_model",
    "tiny_tokenizer",
]
