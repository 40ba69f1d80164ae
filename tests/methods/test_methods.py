"""Methods by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from fttt.errors import UsageError
from fttt.methods import METHODS, Method, find_method
from fttt.report.sides import OUTER_SETTINGS, RULE_SETTINGS


def test_built_in_methods_are_described() -> None:
    assert list(METHODS) == [
        "greedy", "best-of-n", "sample", "self-consistency", "beam-search", "revision",
        "self-refine", "fttt", "unlearn", "policy", "self-distill", "memory", "optune", "finetuned",
    ]  # fmt: skip
    for name, method in METHODS.items():
        assert find_method(name) is method
        assert method.name == name
        assert method.summary
        for setting, field in method.Settings.model_fields.items():
            assert field.description
            # comparisons know settings by their last name
            assert setting not in {*RULE_SETTINGS, *OUTER_SETTINGS}


def test_an_unknown_method_is_named_with_its_neighbour() -> None:
    with pytest.raises(UsageError, match=r"no method 'best-of'; did you mean 'best-of-n'\?"):
        find_method("best-of")


def test_a_class_of_the_users_own_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_for_test.py").write_text(
        "from fttt import Method\n"
        "class Mine(Method):\n"
        "    name = 'mine'\n"
        "    summary = 'mine'\n"
        "    async def solve(self, question, session): ...\n"
        "other = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert issubclass(find_method("mine_for_test:Mine"), Method)
    for wrong, match in [
        ("mine_for_test:other", "is no method"),
        ("mine_for_test:Nope", "has no method 'Nope'"),
        ("no_such_module:X", "No module named 'no_such_module'"),
    ]:
        with pytest.raises(UsageError, match=match):
            find_method(wrong)
