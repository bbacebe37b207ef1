"""The model may call tools until it answers without a call. Each call is answered by a message of its own."""

from __future__ import annotations

from typing import Any

from aurify.environments.env import Step
from aurify.environments.multi_turn import MultiTurnEnvironment
from aurify.tools.toolbox import CALL_SECONDS, Toolbox, build_tools
from aurify.types import Message, Task


class ToolUse(MultiTurnEnvironment):
    """A conversation in which the model may call tools. tools: names, or {name: ..., options}; or what `build_tools`
    made of them. seconds: for each call. max_calls: of one turn; further ones are answered with an error."""

    counts = ("tool_calls", "calls_failed")

    def __init__(self, task: Task, tools: Any, seconds: float = CALL_SECONDS, max_calls: int = 8) -> None:
        super().__init__(task)
        self.max_calls = max_calls
        self.toolbox = Toolbox((tools if callable(tools) else build_tools(tools))(), seconds)
        self.tools = self.toolbox.schemas

    async def step(self, message: Message) -> Step:
        calls = message.get("tool_calls") or []
        if not calls:
            return Step(done=True)
        self.toolbox.counts.clear()
        answers = [await self._answer(call, number) for number, call in enumerate(calls)]
        counts = self.toolbox.counts
        return Step(answers, metrics={"tool_calls": counts["calls"], "calls_failed": counts["calls_failed"]})

    async def _answer(self, call: dict[str, Any], number: int) -> Message:
        function = call["function"]
        name = str(function.get("name", ""))
        if number >= self.max_calls:
            result = self.toolbox.fail("too_many", f"at most {self.max_calls} calls of a turn are run")
        elif problem := call.get("problem"):
            result = self.toolbox.fail("unreadable", problem)
        else:
            result = await self.toolbox.call(name, function["arguments"])
        return {"role": "tool", "content": result, "name": name, "tool_call_id": call["id"]}

    async def close(self) -> None:
        await self.toolbox.close()
