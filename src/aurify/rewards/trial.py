"""Tries the rewards of a rubric before anything is trained: on an answer that is no answer, for one task of each kind.
Tasks are of one kind where the same columns are filled. So a reward that needs a column which a task lacks is seen at
the start, and not after hours."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from aurify.errors import UserError
from aurify.rewards.rubric import Rubric, describe_reward_failure
from aurify.rows.row import is_missing_value
from aurify.types import Task, Trajectory

MAX_KINDS = 32  # of tasks, the commonest columns first; mixed files have a handful


async def try_rewards(
    rubric: Rubric, tasks: Iterable[Task], answer: Callable[[Task], Trajectory], *, alone: bool
) -> list[str]:
    """Raises a UserError for a task that a reward cannot judge. Returns what else went wrong, which may be the fault of
    the answer. alone: no environment gives rewards, so a task that none of Aurify's own judges teaches nothing."""
    alone = alone and all(reward.caller.is_ours for reward in rubric.rewards)
    kinds: dict[tuple[str, frozenset[str]], Task] = {}  # mixed tasks have rewards of their own
    for task in tasks:
        kinds.setdefault((task.part, list_judged_columns(task)), task)
    rich_first = sorted(kinds.items(), key=lambda kind: -len(kind[0][1]))[:MAX_KINDS]
    worked: dict[str, set[str]] = {}  # reward -> columns of tasks that it has judged
    cautions: dict[str, str] = {}
    for (_, columns), task in rich_first:
        judged = False
        for reward in rubric.rewards:
            [value] = await reward(task, [answer(task)], rubric.seconds, rubric.state)
            problem = describe_reward_failure(value, task)
            if problem is None:
                judged = judged or value is not None
                worked.setdefault(reward.name, set()).update(columns)
                continue
            told = f"task {task.id!r}: reward {reward.name!r}"
            if lacking := find_lacking_reward_column(value, columns, worked.get(reward.name, set())):
                raise UserError(
                    f"{told} needs the column {lacking!r}, and the task has {name_judged_columns(columns)}: {problem}. "
                    "Add the column, drop the row, or let the reward return None where it does not apply"
                )
            if reward.caller.is_ours:
                raise UserError(f"{told} cannot judge it: {problem}")
            cautions.setdefault(reward.name, f"{told}, tried on an answer that is none: {problem}")
        if alone and not judged:
            names = ", ".join(reward.name for reward in rubric.rewards)
            raise UserError(
                f"task {task.id!r}: no reward judges it ({names}), and the "
                f"task has {name_judged_columns(columns)}. Add the column that holds the answer (answer_column), drop "
                "the row, or take another reward"
            )
    return list(cautions.values())


def list_judged_columns(task: Task) -> frozenset[str]:
    """Those that are filled."""
    filled = {name for name, value in task.info.items() if not is_missing_value(value)}
    return frozenset(filled if task.answer is None else filled | {"answer"})


def name_judged_columns(columns: frozenset[str]) -> str:
    return "the columns " + ", ".join(sorted(columns)) if columns else "no columns"


def find_lacking_reward_column(error: Any, columns: frozenset[str], worked: set[str]) -> str:
    """The column for want of which a reward failed; "" if that was not why. worked: columns of tasks that it has
    judged."""
    if not isinstance(error, Exception):
        return ""
    text = str(error)
    if isinstance(error, KeyError) and error.args and reward_names_column(error, error.args[0]):
        named = [str(error.args[0])]
    elif isinstance(error, TypeError) and "required" in text and "argument" in text:
        named = re.findall(r"'(\w+)'", text)
    else:
        named = sorted(worked)
    return next((name for name in named if name not in columns), "")


def reward_names_column(error: Exception, key: Any) -> bool:
    """Whether the code that raised says this key, as in info["level"]: not one that it took from an answer."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and key in [c for c in frames[-1][0].f_code.co_consts if isinstance(c, str)]
