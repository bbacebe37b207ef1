"""Was a procedure followed? The steps that show, by a call or by words, must show in their order.

What is to be seen stands in the task's column `procedure`, as `{name, signs: [{tool: NAME} or {says: PATTERN}, ...]}`.
`sop:` of a task fills it (see `procedures/tasks.py`)."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

from aurify.thoughts import final_answer
from aurify.tools.calls import read_message_calls
from aurify.types import Task, Trajectory

Place = tuple[int, int, int]  # message; 0 for its text and 1 for its calls, which come after it; offset or number
MAX_MATCHES = 100  # of one pattern in one message


def procedure(partial: bool = True) -> Callable[[Task, Trajectory], float | None]:
    """The share of the signs that came in their order: the longest chain of them. partial: false gives 1 for all of
    them and else 0. None for tasks without a procedure, or with one of which nothing shows."""

    def score(task: Task, trajectory: Trajectory) -> float | None:
        wanted = task.info.get("procedure")
        if wanted is None:
            return None
        if not isinstance(wanted, Mapping) or not isinstance(wanted.get("signs"), Sequence):
            raise ValueError(
                f"task {task.id!r}: its procedure is {str(wanted)[:80]!r}; expected {{name: ..., signs: [...]}}, which "
                "`sop: FOLDER` of the task fills in"
            )
        if not wanted["signs"]:
            return None
        share = longest_chain([places_of(sign, trajectory) for sign in wanted["signs"]]) / len(wanted["signs"])
        return share if partial else float(share == 1)

    return score


def places_of(sign: Mapping[str, str], trajectory: Trajectory) -> list[Place]:
    """Where a sign shows in what the policy wrote after its thoughts."""
    found: list[Place] = []
    for number, message in enumerate(trajectory.replies):
        text = final_answer(str(message.get("content") or "")) or ""
        if "tool" in sign:
            calls = read_message_calls(message)
            found += [(number, 1, place) for place, call in enumerate(calls) if call.name == sign["tool"]]
        else:
            matches = re.finditer(sign["says"], text, re.IGNORECASE | re.MULTILINE)
            found += [(number, 0, match.start()) for match, _ in zip(matches, range(MAX_MATCHES), strict=False)]
    return found


def longest_chain(places: Sequence[Sequence[Place]]) -> int:
    """How many entries can be given one of their places so that the places rise."""
    ends: list[Place] = []  # ends[n]: the earliest place at which a chain of n + 1 ends
    for options in places:
        for place in sorted(options, reverse=True):  # so that no entry follows itself
            at = bisect_left(ends, place)
            ends[at : at + 1] = [place]
    return len(ends)
