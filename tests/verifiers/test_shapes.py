from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fttt.verifiers.shapes import Shape, shape_of


@pytest.mark.parametrize(
    ("text", "kind", "parts"),
    [
        ("x+1", "one", 0),
        ("f(x, y)", "one", 0),
        ("1, 2, 3", "list", 3),
        ("1; 2", "list", 2),
        (r"\{1, 2\}", "list", 2),
        (r"\{1\}", "list", 1),
        (r"1 \pm \sqrt{2}", "list", 2),
        (r"1 \pm i, 3", "list", 3),
        ("(1, 2)", "tuple", 2),
        ("(1, 2], (3, 4)", "list", 2),
        ("[0, 1)", "tuple", 2),
        (r"(0,1) \cup [2, 3]", "union", 2),
        (r"x \in (0,1) \cup (2,3)", "union", 2),
        ("0 < x < 1", "tuple", 2),
        (r"x \ge 3", "tuple", 2),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "matrix", 4),
        (r"((1,2),(3,4))", "tuple", 2),
    ],
)
def test_kinds(text: str, kind: str, parts: int) -> None:
    shape = shape_of(text)
    assert (shape.kind, len(shape.parts)) == (kind, parts)


def test_brackets_and_columns_tell_shapes_apart() -> None:
    assert shape_of("(1, 2]").text == "(]"
    assert shape_of(r"1 < x \le 2") == shape_of("(1, 2]")
    assert shape_of(r"x > 2") == shape_of(r"(2, \infty)")
    row, column = (
        shape_of(rf"\begin{{pmatrix}} 1 {sign} 2 \end{{pmatrix}}") for sign in ("&", r"\\")
    )
    assert (row.text, column.text) == ("2", "1")


def test_both_signs() -> None:
    assert shape_of(r"1 \pm 2").parts == (Shape("one", text="1 + 2"), Shape("one", text="1 - 2"))
    assert shape_of(r"\pm 2").parts == (Shape("one", text="2"), Shape("one", text="-2"))


@given(st.text(alphabet="()[]{}\\,;<>x1 &", max_size=80))
def test_no_text_is_too_strange(text: str) -> None:
    assert shape_of(text).kind in ("one", "list", "tuple", "union", "matrix")
