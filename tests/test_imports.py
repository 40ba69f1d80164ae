"""The layers: who may import whom, read from the syntax trees."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import fttt

ROOT = Path(fttt.__file__).parent
Function = ast.FunctionDef | ast.AsyncFunctionDef
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
ALLOWED = {
    "types": set(),
    "errors": set(),
    "files": {"errors"},
    "registry": {"errors"},
    "forecast": {"types"},
    "progress": {"types", "forecast"},
    "trackers": {"errors"},
    "models": {"types", "errors", "files"},
    "engine": {"types", "errors", "models"},
    "verifiers": {"types", "errors", "registry", "judge", "models", "files"},
    "judge": {"types", "errors"},
    "store": {"types", "errors", "files"},
    "tasks": {"types", "errors", "files", "registry", "verifiers"},
    # with what optune's network is, and the plain data that the engine is asked for
    "methods": {"types", "errors", "registry", "engine", "models", "optune"},
    "training": {"types", "errors", "files", "models", "tasks"},
    "finetune": {
        "types",
        "errors",
        "models",
        "engine",
        "training",
        "tasks",
        "config",
        "files",
        "progress",
        "registry",
        "trackers",
    },
    "config": {"types", "errors"},
    "report": {"types", "errors", "files", "store"},
    "viewer": {"types", "errors", "files", "store", "report"},
    "optune": {
        "types",
        "errors",
        "models",
        "engine",
        "training",
        "store",
        "config",
        "tasks",
        "files",
        "progress",
        "trackers",
    },
}
"""What the layers under ``experiment`` may import beside themselves. ``verifiers/code.py`` is the
judge's embedded client, the one place that may start it, and ``verifiers/reward.py`` and
``verifiers/llm_judge.py`` those that run and ask a model."""
SPECIAL = {
    "verifiers/code.py": {"judge"},
    "verifiers/reward.py": {"models", "files"},
    "verifiers/llm_judge.py": {"models", "files"},
}


def layer(module: str) -> str:
    return module.split("/")[0].removesuffix(".py")


def imported(module: str) -> Iterator[str]:
    """The layers of ours that a module imports, anywhere in it."""
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1, f"{module} imports relatively from another folder"
            names = [] if node.level else [node.module or ""]
            if node.module == "fttt":
                names = [f"fttt.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "fttt" and len(parts) > 1:
                yield parts[1]


def test_a_layer_imports_what_lies_under_it() -> None:
    for module in (m for m in MODULES if layer(m) in ALLOWED):
        own = layer(module)
        allowed = ALLOWED[own] | {own}
        if own == "verifiers":
            allowed = allowed - {"judge", "models", "files"} | SPECIAL.get(module, set())
        assert set(imported(module)) <= allowed, module


def test_every_layer_is_known() -> None:
    upper = {"experiment", "cli", "solving", "testing", "__init__", "__main__"}
    assert {layer(module) for module in MODULES} <= set(ALLOWED) | upper


def test_no_two_files_and_no_two_classes_share_a_name() -> None:
    """A name that a reader meets in a traceback or an import leads to one place."""
    files = Counter(Path(module).name for module in MODULES if not module.endswith("__init__.py"))
    assert [name for name, times in files.items() if times > 1] == []
    classes = Counter(
        node.name
        for module in MODULES
        for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, times in classes.items() if times > 1] == []


def test_nothing_is_a_drawer_for_odds_and_ends() -> None:
    names = {part.removesuffix(".py") for module in MODULES for part in module.split("/")}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


def test_methods_see_no_tensors_and_no_files() -> None:
    for module in (m for m in MODULES if layer(m) == "methods"):
        text = (ROOT / module).read_text(encoding="utf-8")
        assert "torch" not in text, module
        assert "open(" not in text, module


LONG = {
    "engine/ops/triton.py": {"_attention_kernel"},
    "engine/ops/nucleus.py": {"_sample_kernel"},
}
"""Functions that may be long: one pass of a Triton kernel, which keeps its values in registers."""


def test_modules_stay_small_and_say_what_they_are() -> None:
    """A file may have 600 lines where it is one noun; functions are counted without docstrings."""
    for module in MODULES:
        text = (ROOT / module).read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 600, module
        tree = ast.parse(text)
        assert ast.get_docstring(tree), module
        for node in ast.iter_child_nodes(tree):
            if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{node.name} in {module} has no docstring"
        assert set(_long_functions(tree)) == LONG.get(module, set()), module


def _long_functions(tree: ast.Module) -> Iterator[str]:
    """Functions of 60 lines and more: neither a command's options nor a docstring are counted."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            code = node.body[1:] if ast.get_docstring(node) else node.body
            if code and (code[-1].end_lineno or 0) - code[0].lineno >= 60:
                yield node.name


def test_benchmarks_import_names_that_exist() -> None:
    """Nothing else runs or type-checks them."""
    for file in sorted((ROOT.parents[1] / "benchmarks").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fttt"):
                try:
                    module = import_module(node.module or "")
                except ModuleNotFoundError as error:
                    if error.name != "triton":  # which only a GPU's installation has
                        raise
                    continue
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{file.name}: {node.module}.{alias.name}"
