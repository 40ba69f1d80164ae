"""Static analysis of Python source: syntax tree, names, definitions, the part that compiles."""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

__all__ = [
    "CODE_LINE",
    "CODE_START",
    "DEFINITION",
    "GIVEN_MODULES",
    "LONG",
    "Definition",
    "Names",
    "compiles",
    "compiling_lines",
    "find_definition",
    "global_names",
    "is_outline",
    "made_by",
    "name_path",
    "parse_quietly",
    "syntax_tree",
    "writes",
]

LONG = 100_000
"""Characters of a text that is analysed; the judge parses a longer text, inside its sandbox."""
CODE_LINE = (
    r"(?:(?:async[ \t]+def|def|class)[ \t]+\w|import[ \t]+\w|from[ \t]+[\w.]+[ \t]+import\b"
    r"|@\w|[^\W\d]\w*(?:[ \t]*,[ \t]*[^\W\d]\w*)*[ \t]*(?::[^=\n]+)?=(?!=))"
)
CODE_START = re.compile(CODE_LINE)
"""The beginning of a line of code that is rarely one of prose."""
DEFINITION = re.compile(r"^(?:async[ \t]+def|def|class)[ \t]+\w", re.MULTILINE)

_ATTEMPTS = 100
"""Attempts to find the last line of a truncated text that compiles."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
GIVEN_MODULES = frozenset(sys.stdlib_module_names)
"""Names of modules, which a test uses as modules and not as names of the program."""
_GIVEN = frozenset(dir(builtins)) | {"__name__", "__file__", "__doc__", "__builtins__"}
_NO_PYTHON = (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError)


@dataclass(frozen=True, slots=True)
class Names:
    """The global names of a program."""

    made: frozenset[str] = frozenset()
    """Bound by a definition or an assignment."""
    imported: frozenset[str] = frozenset()
    used: frozenset[str] = frozenset()

    @property
    def bound(self) -> frozenset[str]:
        return self.made | self.imported

    @property
    def missing(self) -> frozenset[str]:
        """Used, and neither bound nor built in."""
        return self.used - self.bound - _GIVEN


def parse_quietly(source: str) -> ast.Module:
    """The syntax tree, without warnings of invalid escapes.

    Raises:
        SyntaxError: and what else ``ast.parse`` raises of a source that is no Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


@lru_cache(maxsize=32)
def syntax_tree(source: str) -> ast.Module | None:
    """The syntax tree, or ``None`` where the source does not parse or is long."""
    if len(source) > 2 * LONG:
        return None
    try:
        return parse_quietly(source)
    except _NO_PYTHON:
        return None


def _compile(source: str) -> None:
    """Raise where a source does not compile (``ast.parse`` accepts a ``return`` at its top)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compile(source, "<completion>", "exec", dont_inherit=True)


@lru_cache(maxsize=32)
def compiles(source: str) -> bool:
    """Whether a source compiles."""
    try:
        _compile(source)
    except _NO_PYTHON:
        return False
    return True


@lru_cache(maxsize=32)
def global_names(source: str) -> Names | None:
    """The global names of a program, or ``None`` where it does not compile."""
    if len(source) > 2 * LONG:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            top = symtable.symtable(source, "<completion>", "exec")
    except _NO_PYTHON:
        return None
    made, imported, used = set(), set(), set()
    waiting = [top]
    while waiting:
        table = waiting.pop()
        for symbol in table.get_symbols():
            if table is not top and not symbol.is_global():
                continue
            if symbol.is_imported():
                imported.add(symbol.get_name())
            elif symbol.is_assigned() or (table is top and symbol.is_namespace()):
                made.add(symbol.get_name())
            if symbol.is_referenced():
                used.add(symbol.get_name())
        waiting += table.get_children()
    return Names(frozenset(made), frozenset(imported), frozenset(used))


def writes(name: str, text: str) -> bool:
    """Whether a text that does not parse seems to define a name."""
    named = re.escape(name)
    pattern = rf"^(?:(?:async[ \t]+def|def|class)[ \t]+{named}\b|{named}[ \t]*(?::[^=\n]+)?=(?!=))"
    return re.search(pattern, text, re.MULTILINE) is not None


def made_by(node: ast.stmt) -> frozenset[str]:
    """The names that a statement defines."""
    if isinstance(node, Definition):
        return frozenset((node.name,))
    targets = node.targets if isinstance(node, ast.Assign) else []
    return frozenset(target.id for target in targets if isinstance(target, ast.Name))


def _first_line(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, Definition) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def find_definition(tree: ast.Module | ast.ClassDef, path: Sequence[str]) -> Definition | None:
    """The last definition of a name, or of a dotted path through classes."""
    found: Definition | None = None
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, Definition):
            if node.name == path[0]:
                found = node
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            waiting[:0] = [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]
    if len(path) > 1:
        return find_definition(found, path[1:]) if isinstance(found, ast.ClassDef) else None
    return found


def is_outline(node: ast.AST | None) -> bool:
    """Whether a definition has no body but a docstring, ``pass``, ``...`` or "not implemented"."""
    if not isinstance(node, Definition):
        return False
    return all(
        isinstance(part, ast.Pass)
        or (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
        or (isinstance(part, ast.Raise) and _name(part.exc) == "NotImplementedError")
        or (isinstance(node, ast.ClassDef) and is_outline(part))
        for part in node.body
    )


def _name(node: ast.expr | None) -> str | None:
    """The name that an expression is or calls."""
    called = node.func if isinstance(node, ast.Call) else node
    return called.id if isinstance(called, ast.Name) else None


def name_path(entry_point: str) -> tuple[str, ...]:
    """``("Solution", "f")`` for ``Solution().f``."""
    try:
        node = ast.parse(entry_point.strip(), mode="eval").body
    except _NO_PYTHON:
        return ()
    names: list[str] = []
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        elif isinstance(node, ast.Call):
            node = node.func
        else:
            return ()
    return (node.id, *reversed(names))


def compiling_lines(before: str, text: str, names: frozenset[str]) -> str:
    """The longest prefix of ``text``, in lines, that compiles behind ``before``.

    A truncated statement is dropped where it redefines one of ``names``. So is a single word at the
    end, such as a heading.
    """
    lines = text.split("\n")
    base = before.count("\n")
    count = len(lines)
    for _ in range(_ATTEMPTS):
        while count and not lines[count - 1].strip():
            count -= 1
        if count == 0:
            return ""
        try:
            _compile(before + "\n".join(lines[:count]) + "\n")
            break
        except SyntaxError as error:
            at = (error.lineno or 0) - base
            count = min(count, at) - 1 if at > 0 else 0
            count = max(count, 0)
        except _NO_PYTHON:
            return ""
    else:
        return ""
    tree = syntax_tree(before + "\n".join(lines[:count]) + "\n")
    rest = next((line for line in lines[count:] if line.strip()), "")
    *others, last = tree.body if tree is not None and tree.body else [ast.Pass()]
    again = names & made_by(last)
    if rest[:1].isspace() and again and any(again & made_by(other) for other in others):
        count = _first_line(last) - 1 - base
    elif others and isinstance(last, ast.Expr) and isinstance(last.value, ast.Name):
        count = last.lineno - 1 - base
    return "\n".join(lines[:count]).rstrip("\n") + "\n"
