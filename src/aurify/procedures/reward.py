"""Was a procedure followed? Its signs, calls or words, must show in their order.

The signs stand in the task's column `procedure`, as `{name, signs: [{tool: NAME} or {says: PATTERN}, ...]}`. `sop:` of
a task fills it (see `procedures/tasks.py`)."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from aurify.thoughts import final_answer
from aurify.tools.calls import read_message_calls
from aurify.types import Task, Trajectory

Position = tuple[int, int, int]  # message; 0 for its text, 1 for its calls, which come after it; offset or number
MAX_MATCHES = 100  # of one pattern in one message


def procedure(partial: bool = True) -> Callable[[Task, Trajectory], float | None]:
    """The share of the steps of the task's procedure whose signs show in their order: the longest chain of them.
    partial: false gives 1 if all of them came and else 0. None for tasks without a procedure, or with a procedure that
    has no signs."""

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
        share = longest_sign_chain([find_procedure_sign(sign, trajectory) for sign in wanted["signs"]]) / len(
            wanted["signs"]
        )
        return share if partial else float(share == 1)

    return score


def find_procedure_sign(sign: Mapping[str, str], trajectory: Trajectory) -> list[Position]:
    """Where a sign shows in what the policy wrote after its thoughts."""
    found: list[Position] = []
    for number, message in enumerate(trajectory.replies):
        if "tool" in sign:
            calls = read_message_calls(message)
            found += [(number, 1, index) for index, call in enumerate(calls) if call.name == sign["tool"]]
        else:
            text = final_answer(str(message.get("content") or "")) or ""
            matches = re.finditer(sign["says"], text, re.IGNORECASE | re.MULTILINE)
            found += [(number, 0, match.start()) for match in islice(matches, MAX_MATCHES)]
    return found


def longest_sign_chain(positions: Sequence[Sequence[Position]]) -> int:
    """How many entries can be given one of their positions so that the positions rise."""
    ends: list[Position] = []  # ends[n]: the earliest position at which a chain of n + 1 ends
    for options in positions:
        for position in sorted(options, reverse=True):  # so that no entry follows itself
            index = bisect_left(ends, position)
            ends[index : index + 1] = [position]
    return len(ends)
