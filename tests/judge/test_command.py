from __future__ import annotations

import pytest

from fttt.cli.services import serve_judge
from fttt.errors import UsageError


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"port": 70_000}, "--port is 70000"),
        ({"port": -1}, "--port is -1"),
        ({"limit_concurrency": 0}, "--limit-concurrency is 0"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_a_number_out_of_range_is_refused_before_anything_starts(
    options: dict[str, int], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        serve_judge(**options)  # type: ignore[arg-type]
