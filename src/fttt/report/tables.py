"""The comparison as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fttt.report.compare import ArmResult, Comparison, PairResult
from fttt.report.sentences import budget_label, caveats, conclusions, first_pairs
from fttt.report.wording import count, interval, p_value, percent, points, quantity

__all__ = ["render"]


def render(comparison: Comparison) -> RenderableType:
    """Two tables and the sentences that say what follows.

    Of many sides, only the pairs that showed a difference are told one by one.
    """
    title = f"{comparison.task} with {comparison.model}, {count(comparison.questions)} questions"
    parts: list[RenderableType] = [Text(title, style="bold")]
    parts.extend(Text(note, style="yellow") for note in comparison.notes)
    parts.append(_arms(comparison.arms))
    brief, follows = first_pairs(comparison), conclusions(comparison)
    left = len(follows) - len(brief)
    parts.append(_pairs([p for p in comparison.pairs if (p.first, p.second) in brief], left))
    parts.append(Text("\nWhat follows", style="bold"))
    parts.extend(_item(sentence) for sentence in follows[: len(brief)])
    if left:
        parts.append(_item(f"No difference was shown in the other {left} pairs."))
    parts.append(Text("\nWhat does not", style="bold"))
    parts.extend(_item(sentence) for sentence in caveats(comparison))
    return Group(*parts)


def _item(sentence: str) -> Table:
    """A sentence behind a bullet, its further lines indented."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row(Text("•"), Text(sentence))
    return grid


def _arms(arms: tuple[ArmResult, ...]) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("Method", overflow="fold")
    table.add_column("Seeds", justify="right")  # may be many
    for name in ("Trials", "Solved", "95 % interval", "Generated", "Trained", "Blank"):
        table.add_column(name, justify="right", no_wrap=True)
    for arm in arms:
        table.add_row(
            Text(arm.label),
            ", ".join(map(str, arm.seeds)),
            f"{quantity(arm.trials_mean)}" + (f" of {arm.budget}" if arm.budget else ""),
            Text(percent(arm.accuracy.value), style="bold"),
            interval(arm.accuracy),
            count(arm.tokens["generated"]),
            count(arm.tokens["trained"]),
            percent(arm.unanswered),
        )
    table.caption = "Trials and tokens: mean a question. Blank: trials without an answer."
    table.caption_justify = "left"
    return table


def _pairs(pairs: Sequence[PairResult], left: int) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("First − second", overflow="fold")  # noqa: RUF001
    table.add_column("At equal", no_wrap=True)
    for name in ("Points", "95 % interval", "Won : lost", "p", "Visible"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Shown", no_wrap=True)
    table.caption = (
        "Won : lost: questions that only the first, only the second solved. Visible: the smallest "
        "difference that would have been shown, with 80 % power."
    )
    if left:
        table.caption += (
            f" {left} more pairs, none of which showed a difference, are in --json; with "
            "--baseline METHOD every side is held against that one only."
        )
    table.caption_justify = "left"
    for pair in pairs:
        visible = "none" if pair.detectable is None else points(pair.detectable, sign=False)
        table.add_row(
            Text(f"{pair.first} − {pair.second}"),  # noqa: RUF001
            budget_label(pair),
            Text(points(pair.difference.value), style="bold"),
            f"{points(pair.difference.low)} to {points(pair.difference.high)}",
            f"{quantity(pair.only_first)} : {quantity(pair.only_second)}",
            p_value(pair.p_holm).removeprefix("p ").removeprefix("= "),
            visible,
            Text("yes", style="bold green") if pair.shown else Text("no", style="dim"),
        )
    return table
