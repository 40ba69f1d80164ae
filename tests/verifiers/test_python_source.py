"""Names, definitions and the compiling part of Python source."""

from __future__ import annotations

import ast

import pytest

from fttt.verifiers.python_source import (
    LONG,
    Names,
    compiles,
    compiling_lines,
    find_definition,
    global_names,
    is_outline,
    made_by,
    name_path,
    syntax_tree,
    writes,
)


def parsed(source: str) -> ast.Module:
    tree = syntax_tree(source)
    assert tree is not None
    return tree


def test_global_names() -> None:
    names = global_names(
        "import math\nfrom os import path as p\nLIMIT = 3\n"
        "def area(r):\n    local = helper(r)\n    return math.pi * local ** LIMIT\n"
        "class Box:\n    size = LIMIT\n"
    )
    assert names is not None
    assert names.made == {"LIMIT", "area", "Box"}
    assert names.imported == {"math", "p"}
    assert names.missing == {"helper"}
    assert global_names("def f(:") is None
    assert Names(used=frozenset({"print", "x"})).missing == {"x"}


def test_source_that_does_not_compile() -> None:
    assert syntax_tree("return 1") is not None
    assert not compiles("return 1")
    assert compiles("x = '\\d'")  # an invalid escape is no error
    assert syntax_tree("x = 1\n" * LONG) is None
    assert not compiles("(" * 1000 + ")" * 1000)


@pytest.mark.parametrize(
    ("source", "outline"),
    [
        ('def f():\n    """Says what."""', True),
        ("def f(): ...", True),
        ("def f():\n    raise NotImplementedError('later')", True),
        ("class C:\n    def f(self):\n        pass", True),
        ("def f():\n    return None", False),
        ("class C:\n    x = 1", False),
        ("x = 1", False),
    ],
)
def test_outlines(source: str, outline: bool) -> None:
    assert is_outline(parsed(source).body[0]) == outline


def test_the_last_definition_counts_wherever_it_is() -> None:
    tree = parsed(
        "def f(): return 1\nif True:\n    def f(): return 2\n"
        "class C:\n    class D:\n        def f(self): return 3\n"
    )
    found, inner = find_definition(tree, ("f",)), find_definition(tree, ("C", "D", "f"))
    assert found is not None
    assert found.lineno == 3
    assert inner is not None
    assert inner.lineno == 6
    assert find_definition(tree, ("f", "g")) is None


@pytest.mark.parametrize(
    ("expression", "path"),
    [
        ("f", ("f",)),
        ("Solution().f", ("Solution", "f")),
        ("a.b(1).c", ("a", "b", "c")),
        ("f + 1", ()),
        ("(", ()),
    ],
)
def test_entry_points(expression: str, path: tuple[str, ...]) -> None:
    assert name_path(expression) == path


def test_names_that_a_statement_or_a_text_defines() -> None:
    assert made_by(parsed("a = b = 1").body[0]) == {"a", "b"}
    assert made_by(parsed("async def f(): pass").body[0]) == {"f"}
    assert made_by(parsed("a.b = 1").body[0]) == frozenset()
    assert writes("f", "def f(:")
    assert writes("f", "f: int = (")
    assert not writes("f", "f == 1")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("x = 1\ny = (", "x = 1\n"),
        ("def f():\n    return 1\n\nThis works.", "def f():\n    return 1\n"),
        ("x = 1\nExample\n", "x = 1\n"),  # a heading
        ("def f():\n    return 1\ndef f():\n    x = 1\n    return (", "def f():\n    return 1\n"),
        ("This is prose.", ""),
        ("", ""),
    ],
)
def test_the_lines_that_compile(text: str, kept: str) -> None:
    assert compiling_lines("", text, frozenset({"f"})) == kept


def test_lines_that_compile_only_behind_their_prompt() -> None:
    prompt = "def f(x):\n"
    assert compiling_lines(prompt, "    return x\nSo it is.", frozenset()) == "    return x\n"
    assert compiling_lines("", "    return x\n", frozenset()) == ""
