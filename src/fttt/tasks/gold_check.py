"""Check of a task: its gold answers, and wrong ones made from them, judged by its verifier."""

from __future__ import annotations

import ast
import asyncio
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from fttt.errors import UsageError
from fttt.tasks.task import Task, TaskOptions, fenced
from fttt.types import Question
from fttt.verifiers.choice import ChoiceVerifier, gold_letter, read_options
from fttt.verifiers.math import MathVerifier
from fttt.verifiers.number import NumberVerifier
from fttt.verifiers.python_source import parse_quietly
from fttt.verifiers.verifier import Verifier, verify_completion

__all__ = [
    "CheckReport",
    "Mistake",
    "Tally",
    "check_task",
    "echoes",
    "number_lists",
    "rewritten_answers",
    "rewritten_choices",
    "table_program",
    "wrong_answers",
    "wrong_choices",
    "wrong_programs",
    "wrong_tables",
]

_AT_ONCE = 64
_LONGEST_PROGRAM = 900_000
"""Characters of a program that is made here; the judge takes a million."""
_FENCED = re.compile(r"```python\n(.*?)\n?```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Mistake:
    """A verdict that was not the expected one."""

    question_id: str
    completion: str
    outcome: str
    detail: str


@dataclass(frozen=True, slots=True)
class Tally:
    """The number of judged completions of one kind, and the wrong verdicts."""

    judged: int
    mistakes: tuple[Mistake, ...]


@dataclass(frozen=True, slots=True)
class _Case:
    """A completion to judge."""

    question: Question
    completion: str
    cut: bool = False
    """Whether it counts as truncated at its length limit."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The result of :func:`check_task`."""

    task: str
    split: str
    questions: int
    golds: Tally
    """Gold answers, which must be correct."""
    rewritten: Tally
    """Gold answers of mathematics and choices written in other ways, which must be correct."""
    solutions: Tally
    """Gold solutions, which must be correct."""
    wrong: Tally
    """Wrong answers made from the gold ones, and texts without an answer (the question repeated,
    lists of numbers, the gold answer truncated), of which none may be correct."""
    broken: tuple[str, ...]
    """Questions left out, since their gold is known to be missing or wrong in the benchmark."""

    @property
    def as_expected(self) -> bool:
        tallies = (self.golds, self.rewritten, self.solutions, self.wrong)
        return not any(tally.mistakes for tally in tallies)


async def check_task(task: Task, options: TaskOptions) -> CheckReport:
    """Judge every gold answer, gold solution and deliberately wrong answer of a split.

    Raises:
        UsageError: the questions cannot be read, or none can be judged.
        RunError: judging is impossible (the judge is down).
    """
    questions = task.load(options)
    known = getattr(task, "broken", {})
    sound = [question for question in questions if question.id not in known]
    verifier = task.verifier()
    try:
        golds = [_Case(q, text) for q in sound for text in _right(q, verifier)]
        rewritten = [_Case(q, text) for q in sound for text in _rewritten(q, verifier)]
        solutions = [_Case(q, q.solution) for q in sound if q.solution is not None]
        wrong = [case for q in sound for case in _wrong(q, verifier)]
        if not (golds or rewritten or solutions or wrong):
            raise UsageError(
                f"There is nothing to judge in the {len(questions)} questions of {task.name!r}: "
                "none has a worked solution, and how an answer is stated is known for numbers, "
                "mathematics, choices and programs only; give them solutions."
            )
        return CheckReport(
            task=task.name,
            split=options.split,
            questions=len(questions),
            golds=await _judge(verifier, golds, correct=True),
            rewritten=await _judge(verifier, rewritten, correct=True),
            solutions=await _judge(verifier, solutions, correct=True),
            wrong=await _judge(verifier, wrong, correct=False),
            broken=tuple(question.id for question in questions if question.id in known),
        )
    finally:
        await verifier.close()


def _right(question: Question, verifier: Verifier) -> list[str]:
    """Completions that state the gold answer; of a program that prints, one that knows it."""
    outputs = _outputs(question)
    if outputs is not None:
        code = table_program(outputs, entry=_entry(question))
        return [fenced(code)] if len(code) <= _LONGEST_PROGRAM else []
    return _stated(verifier, [str(question.gold)])


def _letter(question: Question) -> str:
    return gold_letter(question.gold) or str(question.gold)


def _outputs(question: Question) -> dict[str, str] | None:
    """What a program should print for each input, where the question asks for one that prints."""
    gold = question.gold
    if not isinstance(gold, Mapping) or "inputs" not in gold or "test" in gold:
        return None
    inputs, outputs = gold["inputs"], gold["outputs"]
    if not (isinstance(inputs, Sequence) and isinstance(outputs, Sequence)):
        return None
    return dict(zip(map(str, inputs), map(str, outputs), strict=True))


def _entry(question: Question) -> str:
    """The function that a program has to define, if any."""
    return str(question.gold.get("entry_point", "")) if isinstance(question.gold, Mapping) else ""


def _stated(verifier: Verifier, answers: Iterable[str]) -> list[str]:
    """Completions that state answers as the verifier reads them; none where it reads none."""
    if isinstance(verifier, NumberVerifier):
        return [f"The final answer is {answer}" for answer in answers]
    if isinstance(verifier, MathVerifier):
        return [f"\\boxed{{{answer}}}" for answer in answers]
    if isinstance(verifier, ChoiceVerifier):
        return [f"The answer is ({answer})" for answer in answers]
    return []


def _rewritten(question: Question, verifier: Verifier) -> list[str]:
    if isinstance(verifier, ChoiceVerifier):
        return rewritten_choices(_letter(question), read_options(question.prompt))
    if not isinstance(verifier, MathVerifier) or verifier.rule == "strict":
        return []
    return _stated(verifier, rewritten_answers(str(question.gold)))


def _wrong(question: Question, verifier: Verifier) -> Iterator[_Case]:
    if isinstance(verifier, ChoiceVerifier):
        for text in wrong_choices(_letter(question), read_options(question.prompt)):
            yield _Case(question, text)
    elif isinstance(question.gold, str):
        for answer in _stated(verifier, wrong_answers(question.gold)):
            yield _Case(question, answer)
    outputs = _outputs(question)
    program = _FENCED.search(question.solution or "")
    if outputs is not None:
        for code in wrong_tables(outputs, _entry(question)):
            if len(code) <= _LONGEST_PROGRAM:
                yield _Case(question, fenced(code))
    elif isinstance(question.gold, Mapping) and program is not None:
        for code in wrong_programs(program[1]):
            yield _Case(question, fenced(code))
    kinds = NumberVerifier | MathVerifier | ChoiceVerifier
    if isinstance(question.gold, str) and isinstance(verifier, kinds):
        yield from _unanswered(question, verifier)
        yield from (_Case(question, text) for text in echoes(question.prompt))
    elif question.solution is not None:
        yield _Case(question, question.prompt)


def _unanswered(question: Question, verifier: Verifier) -> Iterator[_Case]:
    """The gold answer inside a thought, truncated, or without words that announce an answer."""
    gold = str(question.gold)
    for stated in _stated(verifier, [gold]):
        yield _Case(question, f"<think>\n{stated}")
        yield _Case(question, f"<think>\n{stated}\n</think>\n")
        yield _Case(question, stated.rstrip("})"), cut=True)
    if isinstance(verifier, NumberVerifier):
        yield _Case(question, f"So there are {gold} of them.", cut=True)
        yield from (_Case(question, text) for text in number_lists(gold))


async def _judge(verifier: Verifier, cases: Sequence[_Case], *, correct: bool) -> Tally:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(case: _Case) -> Mistake | None:
        async with gate:
            verdict = await verify_completion(
                verifier, case.question, case.completion, cut=case.cut
            )
        if verdict.correct == correct:
            return None
        return Mistake(case.question.id, case.completion, verdict.outcome, verdict.detail)

    found = await asyncio.gather(*map(one, cases))
    return Tally(len(cases), tuple(mistake for mistake in found if mistake is not None))


# ---- answers written in other ways, and wrong ones

_DIGITS = re.compile(r"\d+")
_PAIR = re.compile(r"([(\[])([^,()\[\]]+),([^,()\[\]]+)([)\]])")
_WORDS = re.compile(r"\\text\{[^{}]*[A-Za-z][^{}]*\}")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_OPERATOR = re.compile(r"(?<!\\)([+,=])")
_THOUSANDS = re.compile(r"\d(?:,|\{,\}|,\s*\\!)\s*\d{3}(?!\d)")
_STRUCTURE = re.compile(r"[()\[\]]|\\\{|\\begin|\\pm|\\cup|\\text|\\mbox")
_NO_EXPRESSION = re.compile(
    r"[=<>%:]|\\[lg]eq?\b|\\(?:circ|\$|in|approx|text|mbox|infty|overline)|_|^[A-Za-z]+$|\.$"
)


def rewritten_answers(gold: str) -> list[str]:
    """The mathematical answer ``gold`` written in other ways, without repetition.

    Between dollar signs and with larger fractions; with more space; a list in reverse order; a
    number as a reducible fraction; any other expression as half of its double.
    """
    large = gold.replace("\\frac", "\\dfrac").replace("\\left", "").replace("\\right", "")
    found = [f"${large}$."]
    if _THOUSANDS.search(gold):
        return found
    found.append(_OPERATOR.sub(r" \1 ", gold))
    parts = [part.strip() for part in gold.split(",")]
    if len(parts) > 1 and not _STRUCTURE.search(gold):
        found.append(", ".join(reversed(parts)))
    value = _value(gold)
    if value is not None:
        found.append(f"\\frac{{{3 * value.numerator}}}{{{3 * value.denominator}}}")
    elif len(parts) == 1 and not _STRUCTURE.search(gold) and not _NO_EXPRESSION.search(gold):
        found.append(f"\\frac{{2({gold})}}{{2}}")
    return list(dict.fromkeys(found))


def wrong_answers(gold: str) -> list[str]:
    """Answers near ``gold`` that differ from it in value, without repetition.

    A number one too large, with the opposite sign, or ten times as large; a pair with its parts
    exchanged or another kind of first bracket; other words; an expression plus one.
    """
    found = [answer for answer in _variants(gold) if answer != gold]
    return list(dict.fromkeys(found))


def _variants(gold: str) -> Iterator[str]:
    numbers = list(_DIGITS.finditer(gold))
    for match in {m.start(): m for m in (*numbers[:1], *numbers[-1:])}.values():
        larger = str(int(match[0]) + 1).rjust(len(match[0]), "0")
        yield gold[: match.start()] + larger + gold[match.end() :]
    value = _value(gold)
    if value is not None and value != 0:
        yield gold.replace("-", "", 1) if value < 0 else f"-{gold}"
        yield str(value * 10)
    pair = _PAIR.fullmatch(gold)
    if pair:
        opening, first, second, closing = pair.groups()
        if first.strip() != second.strip():
            yield f"{opening}{second},{first}{closing}"
        yield f"{'[' if opening == '(' else '('}{first},{second}{closing}"
    if not numbers:
        if _WORDS.search(gold):
            yield _WORDS.sub(lambda _: r"\text{something else}", gold, count=1)
        elif not pair:
            yield f"{gold}+1"


def _value(gold: str) -> Fraction | None:
    try:
        return None if "_" in gold else Fraction(gold)  # "52_8" has a base
    except (ValueError, ZeroDivisionError):
        return None


def rewritten_choices(gold: str, options: Mapping[str, str]) -> list[str]:
    """The letter of an option stated in other ways.

    With its text too, unless that would make the statement a question or a correction.
    """
    said = [
        f"\\boxed{{{gold}}}",
        f"\\boxed{{\\text{{({gold})}}}}",
        f"**Answer:** {gold}",
        f"The correct option is {gold}.",
        f"Option {gold} is correct.",
        f"({gold})",
    ]
    if gold in options and not re.search(r"\?|^No\b", options[gold]):
        said += [f"The answer is **{gold}. {options[gold]}**", f"({gold}) {options[gold]}"]
    return said


def wrong_choices(gold: str, options: Mapping[str, str]) -> list[str]:
    """The other options stated, several and all of them, and lists of options without a choice."""
    others = [letter for letter in options if letter != gold]
    said = [f"The answer is ({letter})" for letter in others]
    said += [f"\\boxed{{{letter}}}" for letter in others]
    said += [f"The answer is ({gold}) or ({letter})" for letter in others[:1]]
    letters = sorted(options)
    said.append(f"The answer is {', '.join(letters)}")
    said.append("\n".join(f"({letter}) {options[letter]}" for letter in letters))
    said.append("\n".join(letters))
    said.append(f"Is the answer ({gold})?")
    return said


def echoes(prompt: str) -> list[str]:
    """A question repeated instead of answered, without repetition.

    The whole prompt, each paragraph of it that has a number, that paragraph without its last
    sentence, and the first half of its words; texts of one or two words could be answers.
    """
    found = [prompt]
    for paragraph in prompt.split("\n\n"):
        if _DIGITS.search(paragraph):
            words = paragraph.split(" ")
            sentences = _SENTENCE.split(paragraph)
            found += [paragraph, " ".join(sentences[:-1]), " ".join(words[: len(words) // 2])]
    return [text for text in dict.fromkeys(found) if len(text.split()) > 2]


def number_lists(gold: str) -> list[str]:
    """Lists that end with the number ``gold`` without an answer; none for other golds.

    Numbers on one line and one a line, and a list that is truncated after its last marker.
    """
    value = _value(gold)
    if value is None:
        return []
    numbers = [str(value - 2), str(value - 1), str(value)]
    lists = [", ".join(numbers), " ".join(numbers), "\n".join(numbers)]
    lists.append("\n".join(f"- {number}" for number in numbers))
    if value.denominator == 1 and value > 0:
        lists.append(f"Step 1: Read the question.\nStep {value}:")
    if value in range(1, 100):
        steps = [f"{number}. We add {number} pens." for number in range(1, int(value))]
        lists.append("\n".join([*steps, f"{value}."]))
    return lists


def table_program(outputs: Mapping[str, str], ending: str = "", entry: str = "") -> str:
    """A program that prints what it should by a table of all inputs, and then does ``ending``.

    ``entry`` is a method to define instead, such as ``Solution().f``, which is given the lines of
    an input as JSON.
    """
    # By JSON, since a module of a megabyte of literals takes the compiler too long.
    lines = ["import json, sys"]
    if not entry:
        table = json.dumps(list(outputs.items()))
        lines += [f"table = dict(json.loads({table!r}))", "print(table[sys.stdin.read()])", ending]
        return "\n".join(lines).rstrip()
    known = {_canonical(given): json.loads(output) for given, output in outputs.items()}
    lines.append(f"table = json.loads({json.dumps(known)!r})")
    made, _, method = entry.rpartition(".")
    indent = "    " if made else ""
    lines += [f"class {made.removesuffix('()')}:"] if made else []
    lines += [
        f"{indent}def {method}({'self, ' if made else ''}*given):",
        f"{indent}    found = table[json.dumps(given)]",
        f"{indent}    {ending or 'pass'}",
        f"{indent}    return found",
    ]
    return "\n".join(lines)


def _canonical(given: str) -> str:
    """The arguments that the lines of an input are."""
    return json.dumps([json.loads(line) for line in given.split("\n")])


def wrong_tables(outputs: Mapping[str, str], entry: str = "") -> list[str]:
    """Programs that print nothing, or too much, or what they should but for one input.

    And one that prints what it should and raises then.
    """
    last = list(outputs)[-1]
    more = {given: f"[{out}]" if entry else f"{out}\nmore" for given, out in outputs.items()}
    other = f"[{outputs[last]}]" if entry else f"{outputs[last].rstrip()}1"
    return [
        "import sys\nsys.stdin.read()",
        table_program(more, entry=entry),
        table_program({**outputs, last: other}, entry=entry),
        table_program(outputs, "raise ValueError", entry),
    ]


def wrong_programs(program: str) -> list[str]:
    """Versions of ``program`` whose functions return nothing, or raise."""
    return [
        _with_bodies(program, "return None"),
        _with_bodies(program, "raise NotImplementedError"),
    ]


def _with_bodies(program: str, statement: str) -> str:
    tree = parse_quietly(program)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            node.body = ast.parse(f"def f():\n    {statement}").body[0].body  # type: ignore[attr-defined]
    return ast.unparse(tree)
