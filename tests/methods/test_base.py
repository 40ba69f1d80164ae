"""What methods may know of a question and of a verdict."""

from __future__ import annotations

import ast
from pathlib import Path

import fttt.methods


def test_no_method_reads_what_may_hold_the_gold_answer() -> None:
    """``Verdict.feedback`` is for models; ``detail`` and the question's gold are for people."""
    folder = Path(fttt.methods.__file__).parent
    read = {
        (path.name, node.attr)
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    assert ("fttt.py", "correct") in read  # or this test sees nothing
    assert not [(file, name) for file, name in read if name in ("detail", "gold", "solution")]
