"""Judges programs by running their tests in the sandboxed judge."""

from __future__ import annotations

import re
import textwrap
import warnings
from typing import TYPE_CHECKING

from fttt.types import Question, Verdict

if TYPE_CHECKING:
    from fttt.judge.client import Judge

__all__ = ["CodeVerifier", "completion_for", "extract_code"]

_FENCE = re.compile(
    r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.M | re.S
)
_PYTHON = frozenset(("python", "py", "python3"))
_DEFINES = re.compile(r"^(?:async[ \t]+def|def|class)[ \t]+\w+", re.M)
_FUTURE = re.compile(r"^from[ \t]+__future__[ \t]+import[^\n]*\n?", re.M)
_LONG = 100_000  # characters; more is left for the judge to parse, inside its box


def extract_code(completion: str) -> str | None:
    """The program in a completion, or ``None`` where there is none.

    The last fenced block marked as Python counts, else the last fenced block; a block that the
    completion ends within counts as well. Without a fence the whole text counts where it is
    Python that defines something.
    """
    blocks = [(m[2].lower(), m[3]) for m in _FENCE.finditer(completion) if m[3].strip()]
    codes = [code for language, code in blocks if language in _PYTHON]
    codes = codes or [code for _, code in blocks]
    if codes:
        # A block in a list is indented as a whole; one that goes on in mid-function is not.
        dedented = textwrap.dedent(codes[-1])
        return dedented if _DEFINES.search(dedented) else codes[-1]
    if _DEFINES.search(completion) and _compiles(completion):
        return completion
    return None


def completion_for(prompt: str, entry_point: str, code: str) -> str:
    """What to put behind ``prompt`` so that ``code`` is judged as it was meant.

    Code may go on where the prompt stops, as HumanEval's own solutions do, or repeat the whole
    function, as a chat model does; then the prompt's unfinished function is closed first.
    """
    code = _FUTURE.sub("", code)
    if not prompt.strip():
        return code
    name = re.escape(entry_point.split(".")[0].partition("(")[0])
    whole = re.search(rf"^(?:async[ \t]+def|def|class)[ \t]+{name}\b|^{name}[ \t]*=", code, re.M)
    if whole:
        ways = [
            f"{closing}{code}" for closing in ("\n", "    pass\n\n", "\tpass\n\n", "\n    pass\n\n")
        ]
    else:
        ways = [code, textwrap.indent(textwrap.dedent(code), "    ")]
        ways += [f"\n{way}" for way in ways]
    return next((way for way in ways if _compiles(prompt + way)), ways[0])


def _compiles(source: str) -> bool:
    if len(source) > _LONG:
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(source, "<completion>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
            return False
    return True


class CodeVerifier:
    """A client of the code judge; a question's gold is the judge's problem object.

    ``judge_url`` (else the variable ``OJ_API``) names a served judge; without either, an embedded
    one starts with the first program, in this process tree.
    """

    def __init__(self, judge_url: str | None = None, *, judge: Judge | None = None) -> None:
        self._judge_url = judge_url
        self._judge = judge

    def extract(self, question: Question, completion: str) -> str | None:
        """The program in ``completion``; ``None`` where there is none."""
        return extract_code(completion)

    async def verify(self, question: Question, completion: str) -> Verdict:
        """Run the program in ``completion`` against the tests of ``question.gold``.

        Raises :class:`fttt.errors.RunError` where the judge is down.
        """
        # Here, since the sandbox's libraries are Linux's own and only programs need them.
        from fttt.judge.client import find_judge
        from fttt.judge.problem import BadRequest, Problem, Submission

        try:
            problem = Problem.from_json(question.gold)
        except BadRequest as error:
            return Verdict("incorrect", self.extract(question, completion), f"error: {error}")
        code = extract_code(completion)
        if code is None:
            # A base model goes on in mid-function, without a fence.
            if not completion[:1].isspace() or not _compiles(problem.prompt + completion):
                return Verdict("unanswered", detail="no Python program was found")
            if not completion.strip():
                return Verdict("unanswered", detail="no Python program was found")
            code = completion
        if self._judge is None:
            self._judge = find_judge(self._judge_url)
        wanted = completion_for(problem.prompt, problem.entry_point, code)
        judgement = await self._judge.judge(Submission(problem, wanted))
        detail = f"{judgement.status}: {judgement.detail}" if judgement.detail else judgement.status
        if judgement.passed:
            return Verdict("correct", code, "", judgement.seconds)
        return Verdict("incorrect", code, detail, judgement.seconds)

    async def close(self) -> None:
        """End the embedded judge or close the connections to a served one."""
        judge, self._judge = self._judge, None
        if judge is not None:
            await judge.close()
