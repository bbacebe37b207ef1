"""The model may call tools until it answers without a call. Each call is answered by a message of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aurify.environments.env import Observation, Step
from aurify.environments.multi_turn import MultiTurnEnvironment
from aurify.tools.calls import read_calls
from aurify.tools.toolbox import CALL_SECONDS, Open, Toolbox, build_tools
from aurify.types import Message, Task


class ToolUse(MultiTurnEnvironment):
    """tools: names, or {name: ..., options}. seconds: for each call. max_calls: of one turn; further ones are answered
    with an error."""

    def __init__(self, task: Task, tools: Sequence[Any], seconds: float = CALL_SECONDS, max_calls: int = 8) -> None:
        super().__init__(task)
        self.max_calls = max_calls
        self.toolbox = Toolbox((tools if callable(tools) else build_tools(tools))(), seconds)
        self.tools = self.toolbox.schemas

    async def step(self, message: Message) -> Step:
        calls = message.get("tool_calls") or []
        if not calls:
            return Step(done=True)
        ...
