"""LiveCodeBench: problems of programming contests by their release date (Jain et al. 2024)."""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import re
import zlib
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

from fttt.errors import UsageError
from fttt.tasks.benchmark_data import Row, check_split, find_local, hub_file, read_jsonl
from fttt.tasks.task import TaskOptions, fenced, fill_prompt
from fttt.types import JSON, Question
from fttt.verifiers.verifier import Verifier

__all__ = ["LiveCodeBenchTask"]

PROMPT = (
    "Solve this problem with a Python program.\n\n"
    "{question}\n\n"
    "Give the whole program, with the imports that it needs, in one fenced ```python block."
)
STDIN = "The program reads its input from standard input and prints its output."
STARTER = "Complete this code:\n{code}"

HUB = "livecodebench/code_generation_lite"
FIELDS = (
    "question_content",
    "question_id",
    "contest_date",
    "starter_code",
    "public_test_cases",
    "private_test_cases",
    "metadata",
)
LAST = 6
"""The last release of the data, whose files are ``test.jsonl``, ``test2.jsonl`` and so on."""
_RELEASE = re.compile(r"release_(?:v(?P<all>\d)|latest)|v(?P<first>\d)(?:_v(?P<last>\d))?")

_IMPORTED = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random",
    "statistics", "itertools", "functools", "operator", "io", "sys", "json",
)  # fmt: skip
_PRELUDE = "\n".join(
    [
        *(f"from {name} import *" for name in (*_IMPORTED, "builtins", "typing")),
        *(f"import {name}" for name in _IMPORTED),
        "sys.setrecursionlimit(50000)\n",
    ]
)
"""What the published harness imports before a program."""

# A function is called in a process of its own for each input, and what it prints goes nowhere.
_BEFORE_FUNCTION = (
    "import json as _json, sys as _sys\n_printed, _sys.stdout = _sys.stdout, _sys.stderr\n"
)
_CALL = """\
def _plain(value):
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (bool, float)) and value == value // 1:
        return int(value)
    return value
_given = [_json.loads(line) for line in _sys.stdin.read().split("\\n")]
_printed.write(_json.dumps(_plain(CALLED(*_given)), sort_keys=True))
_printed.flush()
"""

_TEXT_OPCODES = frozenset(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"))
_OTHER_OPCODES = frozenset(("PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP"))
_LARGEST = 1 << 30
"""Bytes of the private tests of one problem."""


class LiveCodeBenchTask:
    """1,055 problems of AtCoder, LeetCode and Codeforces from May 2023 to April 2025, by date.

    Programs that read standard input, and functions; the score is the share of the tests passed.
    """

    name: ClassVar[str] = "livecodebench"
    splits: ClassVar[tuple[str, ...]] = ("test",)

    def __init__(
        self,
        start: str | date | None = None,
        end: str | date | None = None,
        release: str = "release_latest",
        *,
        judge_url: str | None = None,
    ) -> None:
        """Choose problems.

        Args:
            start: the first release date, such as 2024-08-01.
            end: the last release date.
            release: ``release_v1`` to ``release_v6`` with all before, ``v6`` or ``v4_v6`` alone.
            judge_url: a served judge; by default ``OJ_API``, else an embedded one.

        Raises:
            UsageError: what is given is no date or no release.
        """
        self.start, self.end = _day("start", start), _day("end", end)
        self.files = _files(release)
        self._judge_url = judge_url

    def load(self, options: TaskOptions) -> list[Question]:
        """Read ``test.jsonl``, ``test2.jsonl`` ... of the benchmark's data set, or of the hub."""
        check_split(self.name, options.split, self.splits)
        template = options.prompt or PROMPT
        questions: dict[str, Question] = {}
        days: set[str] = set()
        for where, row in self._rows(options):
            day = str(row["contest_date"])[:10]
            days.add(day)
            if (self.start or day) <= day <= (self.end or day):
                question = _question(where, row, template)
                questions.setdefault(question.id, question)
        if not questions:
            asked = [f"on or after {self.start}"] if self.start else []
            asked += [f"on or before {self.end}"] if self.end else []
            raise UsageError(
                f"No problem of livecodebench was released {' and '.join(asked)}; these files have "
                f"problems of {min(days)} to {max(days)}."
            )
        return list(questions.values())

    def published_places(self, split: str) -> list[str]:
        """Where a folder of all benchmarks has the first file."""
        folders = ("code_generation_lite", "livecodebench")
        return [f"{folder}/{file}" for folder in folders for file in self.files]

    def _rows(self, options: TaskOptions) -> Iterator[tuple[str, Row]]:
        """One row after the other, since all of them together are some GB."""
        for path in self._paths(options.data_dir):
            for number, row in read_jsonl(path, FIELDS):
                yield f"Line {number} of {str(path)!r}", row

    def _paths(self, data_dir: Path | None) -> list[Path]:
        if data_dir is None:
            return [hub_file(HUB, file) for file in self.files]
        places = [*self.published_places("test"), *self.files]
        folder = find_local(self.name, data_dir, places).parent
        missing = [file for file in self.files if not (folder / file).is_file()]
        if missing and self.files != _files("release_latest"):
            raise UsageError(
                f"The release has the file {missing[0]!r}, which is not in {str(folder)!r}; "
                "add it, or name a release whose files are there."
            )
        return [folder / file for file in self.files if file not in missing]

    def verifier(self) -> Verifier:
        """Run the programs in the code judge."""
        from fttt.verifiers.code import CodeVerifier

        return CodeVerifier(self._judge_url)


def _day(name: str, value: str | date | None) -> str | None:
    if value is None:
        return None
    try:
        return date.fromisoformat(str(value)).isoformat()
    except ValueError:
        raise UsageError(
            f"The option {name} of livecodebench is {value!r}; give a date such as 2024-08-01."
        ) from None


def _files(release: str) -> list[str]:
    """The files of a release."""
    match = _RELEASE.fullmatch(release)
    first = last = 0
    if match is not None and release.startswith("release"):
        first, last = 1, int(match["all"] or LAST)
    elif match is not None:
        first, last = int(match["first"]), int(match["last"] or match["first"])
    if not 1 <= first <= last <= LAST:
        raise UsageError(
            f"livecodebench has no release {release!r}; give release_v1 to release_v{LAST} (each "
            f"with those before), v{LAST} alone, or a range such as v4_v{LAST}."
        )
    return ["test.jsonl" if n == 1 else f"test{n}.jsonl" for n in range(first, last + 1)]


def _question(where: str, row: Row, template: str) -> Question:
    starter = str(row["starter_code"] or "").rstrip()
    form = STARTER.format(code=fenced(starter)) if starter else STDIN
    return Question(
        id=f"livecodebench/{row['question_id']}",
        prompt=fill_prompt(template, f"{row['question_content'].strip()}\n\n{form}"),
        gold=_problem(where, row),
    )


def _problem(where: str, row: Row) -> dict[str, JSON]:
    """The judge's problem object: the public tests first, which may be shown."""
    public = _tests(where, row["public_test_cases"])
    tests = public + _tests(where, row["private_test_cases"])
    if not tests:
        raise UsageError(f"{where} has no test.")
    inputs: list[JSON] = [str(test["input"]) for test in tests]
    outputs: list[JSON] = [str(test["output"]) for test in tests]
    shown = len(public)
    if tests[0].get("testtype") != "functional":
        return {"inputs": inputs, "outputs": outputs, "prompt": _PRELUDE, "visible": shown}
    try:
        function = json.loads(row["metadata"])["func_name"]
        outputs = [json.dumps(_plain(json.loads(str(text))), sort_keys=True) for text in outputs]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise UsageError(
            f"{where} asks for a function, and has no func_name in its metadata or an output that "
            "is no JSON."
        ) from None
    called = f"Solution().{function}" if "class Solution" in row["starter_code"] else function
    return {
        "inputs": inputs,
        "outputs": outputs,
        "prompt": _BEFORE_FUNCTION + _PRELUDE,
        "entry_point": called,
        "ending": _CALL.replace("CALLED", called),
        "visible": shown,
    }


def _plain(value: Any) -> Any:
    """A result without the difference of ``1``, ``1.0`` and ``true``, which are equal in Python."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, bool | float) and value == value // 1:
        return int(value)
    return value


def _tests(where: str, packed: str) -> list[Row]:
    """The tests in a field: JSON, or JSON in a pickled text, compressed, in base 64."""
    fault = "tests that are neither JSON nor a compressed text"
    try:
        held = json.loads(packed if packed.lstrip()[:1] in ("[", "") else _unpacked(packed))
    except (ValueError, RecursionError, zlib.error, binascii.Error) as error:
        raise UsageError(f"{where} has {fault}: {error}.") from None
    if not isinstance(held, list) or not all(
        isinstance(test, dict) and {"input", "output"} <= set(test) for test in held
    ):
        raise UsageError(f"{where} has tests without 'input' and 'output'.")
    return held


def _unpacked(packed: str) -> str:
    """The text in a field of private tests.

    It is pickled, and a pickle may hold a program. So it is not unpickled: its instructions are
    read, and may do nothing but make one text.
    """
    stream = zlib.decompressobj()
    data = stream.decompress(base64.b64decode(packed, validate=True), _LARGEST)
    if stream.unconsumed_tail or not stream.eof:
        raise ValueError("they are cut off, or too large")
    texts = []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in _TEXT_OPCODES:
            texts.append(str(argument))
        elif opcode.name not in _OTHER_OPCODES:
            raise ValueError(f"a pickle that does more than hold a text ({opcode.name})")
    if len(texts) != 1:
        raise ValueError(f"a pickle that holds {len(texts)} texts")
    return texts[0]
