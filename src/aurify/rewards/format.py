"""Rewards for the shape of a reply: tags in their order, as a finite automaton."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from aurify.errors import UserError
from aurify.types import Task, Trajectory


def tags(
    order: Sequence[str] = ("think", "answer"), opened: bool = False, partial: bool = False
) -> Callable[[Task, Trajectory], float]:
    """1 if the reply is `<think>...</think> <answer>...</answer>`: each tag once, in this order, with something inside
    and nothing but white space outside. opened: the prompt has written the first opening tag already. partial: the
    share of the tags that stand right, up to the first mistake."""
    if isinstance(order, str) or not order or len(set(order)) != len(order):
        raise UserError(
            f"reward 'tags': order is {order!r}; expected a list of different names, such as [think, answer]"
        )
    wanted = [f"<{slash}{name}>" for name in order for slash in ("", "/")]
    splitter = re.compile(f"({'|'.join(map(re.escape, wanted))})")

    def score(task: Task, trajectory: Trajectory) -> float:
        text = wanted[0] * opened + trajectory.text
        right, complete = walk(splitter.split(text), wanted)
        if partial:
            given = int(opened)
            return max(0, right - given) / (len(wanted) - given)
        return float(complete)

    return score


def walk(parts: Sequence[str], wanted: Sequence[str]) -> tuple[int, bool]:
    """How many tags stand as they should, and whether that is all there is. parts: text, tag, text, tag, ..., text.

    State k: k tags were read. It is inside where k is odd; there text must stand, elsewhere none may."""
    for state, (text, tag) in enumerate(zip(parts[::2], [*parts[1::2], None], strict=True)):
        inside = state % 2 == 1
        if bool(text.strip()) != inside:
            return state, False
        if tag is None:
            return state, state == len(wanted)
        if state == len(wanted) or tag != wanted[state]:
            return state, False
    raise AssertionError("a split ends with text")
