"""What environments of others have in common: a first observation, a seed, and an action read from an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from zlib import crc32

from aurify.thoughts import final_answer
from aurify.tools.tool import CallError
from aurify.types import Message, Task

ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL | re.IGNORECASE)


def extend_episode_prompt(prompt: Sequence[Message], observation: str, separator: str = "\n\n") -> list[Message]:
    """The prompt with what an environment shows first, at the end of the last message."""
    *before, last = prompt
    parts = [part for part in (last["content"], observation) if part]
    return [*before, {**last, "content": separator.join(parts)}]


def read_episode_seed(task: Task) -> int:
    """That of the task, so that all answers of a group begin in the same state."""
    seed = task.info.get("seed")
    return seed if isinstance(seed, int) else crc32(task.id.encode())


def pick_episode_columns(task: Task) -> dict[str, Any]:
    """What else an environment may want to know of a task."""
    answer = {} if task.answer is None else {"answer": task.answer}
    return {**answer, **{name: value for name, value in task.info.items() if name != "seed"}}


def read_environment_action(message: Message) -> str:
    """What the policy does: between the last <action> tags, else the answer after its thought."""
    answer = final_answer(message["content"])
    if answer is None:
        raise CallError("the thought does not end; end it, and then write the action")
    tagged = ACTION.findall(answer)
    return (tagged[-1] if tagged else answer).strip()
