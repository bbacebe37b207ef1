"""What a policy said to a task, and what a reward makes of it."""

from __future__ import annotations

import asyncio
import inspect

from aurify.types import Segment, Task, Trajectory


def said(text, **message):
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": text, **message}]
    return Trajectory([Segment([1], "prompt"), Segment([2], "policy", [0.0])], messages, 1)


def task_of(answer=None, **info):
    return Task("t/1", [{"role": "user", "content": "?"}], answer, info)


def rewarded(reward, text, answer=None, message=None, **info):
    async def score():
        value = reward(task_of(answer, **info), said(text, **(message or {})))
        return await value if inspect.isawaitable(value) else value

    return asyncio.run(score())
