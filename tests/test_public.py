"""What ``fttt`` exports, and that nothing else is public by accident."""

from __future__ import annotations

import subprocess
import sys

import fttt

EXPORTED = {
    "Attempt",
    "Completion",
    "Example",
    "FTTTError",
    "FunctionVerifier",
    "Group",
    "Judged",
    "LoRASettings",
    "Method",
    "MethodSettings",
    "Question",
    "Record",
    "Result",
    "LLMVerifier",
    "RewardVerifier",
    "Run",
    "RunError",
    "Scores",
    "Session",
    "Step",
    "Task",
    "TaskOptions",
    "Teacher",
    "Text",
    "Trial",
    "Turn",
    "Usage",
    "UsageError",
    "Verdict",
    "Verifier",
    "__version__",
    "all_of",
    "any_of",
    "assistant",
    "solve",
    "solve_many",
    "system",
    "user",
    "weighted",
}


def test_the_exported_list_is_kept() -> None:
    assert set(fttt.__all__) == EXPORTED
    assert fttt.__all__ == sorted(fttt.__all__)
    for name in fttt.__all__:
        assert getattr(fttt, name) is not None


def test_what_is_exported_is_documented() -> None:
    for name in EXPORTED - {"__version__", "Turn"}:
        assert getattr(fttt, name).__doc__, name


def test_importing_it_loads_nothing_else_of_ours() -> None:
    """Every worker process imports the package first."""
    script = (
        "import sys, fttt; sys.exit(any(m.startswith(('fttt.', 'pydantic')) for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    assert set(dir(fttt)) == EXPORTED


def test_importing_it_loads_no_torch() -> None:
    script = "import sys, fttt, fttt.cli, fttt.experiment.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
