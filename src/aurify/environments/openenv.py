"""Environments of OpenEnv (extra `openenv`), on a server that runs somewhere: a client, and so a session, for each
trajectory.

How the policy acts follows from the server's schema. An MCP environment offers its tools. Where an action has one
field, or `field` names one, the answer is put there. Any other action is a tool `act` with the action's fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aurify.environments.env import Step
from aurify.environments.episode import (
    extend_episode_prompt,
    pick_episode_columns,
    read_environment_action,
    read_episode_seed,
)
from aurify.environments.tool_use import ToolUse
from aurify.errors import UserError
from aurify.files import require
from aurify.rewards.environment import REWARD
from aurify.tools.tool import (
    CallError,
    Tool,
    describe_tool_signature,
    inline_schema_refs,
    tidy_schema,
    write_tool_result,
)
from aurify.tools.toolbox import CALL_SECONDS, Toolbox
from aurify.types import Message, Metrics, Task

WHAT = "environment 'openenv'"
NOT_SHOWN = ("metadata", "reward", "done")  # of an observation
ANSWERS = ("VALIDATION_ERROR", "EXECUTION_ERROR")  # what a server says to an action; others are about the session
EMPTY: tuple[Any, ...] = (None, "", [], {})
LOCAL = ("localhost", "127.0.0.1", "::1")
SCHEMAS: dict[str, dict[str, Any]] = {}  # of actions, by url


class OpenEnv(ToolUse):
    """An environment of OpenEnv on a server at `url`, with a session for each trajectory. field: of the action, which
    the answer is put into; an action of one field needs none. show: the field of observations that the model sees; else
    all that are filled. seconds: for each action. Rewards of all steps are summed as the reward `environment`."""

    counts = ("steps", "calls_failed")

    def __init__(
        self,
        task: Task,
        url: str,
        field: str | None = None,
        show: str | None = None,
        seconds: float = CALL_SECONDS,
        max_calls: int = 8,
    ) -> None:
        super().__init__(task, list, seconds + 1, max_calls)  # the client gives up first
        core = require("openenv.core", "openenv", f"for the {WHAT}")
        self.client = core.GenericEnvClient(base_url=url, message_timeout_s=seconds)
        self.url, self.field, self.show = url.rstrip("/"), field, show
        self.expected, self.lost = "", ""
        self.reward, self.done, self.num_steps = 0.0, False, 0

    async def begin(self) -> list[Message]:
        action = await read_environment_schema(self.url, self.toolbox.seconds)
        fields = action["properties"]
        self.expected = describe_tool_signature("action", action)
        tools: list[Tool] = []
        try:
            await self.client.connect()
            result = await self.client.reset(
                **{**pick_episode_columns(self.task), "seed": read_episode_seed(self.task)}
            )
            if self.field is None and {"tool_name", "arguments"} <= fields.keys():
                listed = await self.client.step({"type": "list_tools"})
                tools = [self._make_tool(tool) for tool in listed.observation["tools"]]
            elif self.field is None and len(fields) > 1:
                tools = [Tool("act", "Take an action.", action, self._act, blocking=False)]
        except Exception as error:
            hint = "a server needs max_concurrent_envs of at least the trajectories that are played at a time"
            raise UserError(f"{WHAT}: {self.url} gives no episode: {type(error).__name__}: {error} ({hint})") from error
        if not tools:
            self.field = self.field or next(iter(fields), "")
            if self.field not in fields:
                raise UserError(f"{WHAT}: {self.url} has no action field {self.field!r}; it takes {self.expected}")
        self.toolbox = Toolbox(tools, self.toolbox.seconds)
        self.tools = self.toolbox.schemas
        return extend_episode_prompt(self.task.prompt, self._describe(result.observation))

    async def step(self, message: Message) -> Step:
        self.reward, self.num_steps = 0.0, 0
        step = await (super().step(message) if self.tools else self._answer_text(message))
        if self.lost:
            raise UserError(self.lost)  # a tool's answer hides it
        metrics = {**step.metrics, "steps": float(self.num_steps)}
        return replace(step, done=step.done or self.done, rewards={REWARD: self.reward}, metrics=metrics)

    def finish(self, outcome: str) -> Metrics | None:
        return None if outcome == "error" else {REWARD: 0.0}  # an episode without a step earned nothing

    async def close(self) -> None:
        await self.client.close()

    async def _answer_text(self, message: Message) -> Step:
        try:
            text, failed = await self._act({str(self.field): read_environment_action(message)}), 0.0
        except CallError as error:
            text, failed = f"Error: {error}", 1.0
        return Step([{"role": "user", "content": text}], metrics={"calls_failed": failed})

    def _make_tool(self, described: Mapping[str, Any]) -> Tool:
        name = described["name"]

        async def call(arguments: Mapping[str, Any]) -> Any:
            observation = await self._take({"type": "call_tool", "tool_name": name, "arguments": dict(arguments)})
            result, error = observation.get("result"), observation.get("error")
            if error:
                raise CallError(error["message"])
            if not isinstance(result, Mapping) or "content" not in result:
                return result
            text = "\n".join(part.get("text", "") for part in result["content"])
            if result.get("is_error"):
                raise CallError(text)
            return text if result.get("data") is None else result["data"]

        return Tool(name, described.get("description") or "", described["input_schema"], call, blocking=False)

    async def _act(self, action: Mapping[str, Any]) -> str:
        return self._describe(await self._take(action)) or write_tool_result(None)

    async def _take(self, action: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.done:
            raise CallError("the episode is over")
        try:
            result = await self.client.step(dict(action))
        except Exception as error:
            if not any(code in str(error) for code in ANSWERS):
                self.lost = f"{WHAT}: the session on {self.url} is lost: {type(error).__name__}: {error}"
                raise UserError(self.lost) from error
            raise CallError(f"{error}. Expected: {self.expected}") from None
        self.num_steps += 1
        self.reward += float(result.reward or 0.0)
        self.done = bool(result.done)
        observation: Mapping[str, Any] = result.observation
        return observation

    def _describe(self, observation: Mapping[str, Any]) -> str:
        fields = {name: value for name, value in observation.items() if name not in NOT_SHOWN}
        if self.show is not None and self.show not in fields:
            known = ", ".join(fields)
            raise UserError(f"{WHAT}: observations of {self.url} have no field {self.show!r}; they have {known}")
        shown = [fields[self.show]] if self.show else [value for value in fields.values() if value not in EMPTY]
        if len(shown) == 1:
            return write_tool_result(shown[0])
        return json.dumps({k: v for k, v in fields.items() if v not in EMPTY}, ensure_ascii=False) if shown else ""


async def read_environment_schema(url: str, seconds: float) -> dict[str, Any]:
    """Of the actions that a server takes; asked once a process."""
    httpx = require("httpx", "openenv", f"for the {WHAT}")
    if url not in SCHEMAS:
        base = "http" + url.removeprefix("ws") if url.startswith("ws") else url
        try:
            async with httpx.AsyncClient(timeout=seconds, trust_env=httpx.URL(base).host not in LOCAL) as client:
                response = await client.get(f"{base}/schema")
            schema = tidy_schema(inline_schema_refs(response.raise_for_status().json()["action"]))
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise UserError(f"{WHAT}: no server of OpenEnv answers at {url} ({problem}); start it first") from error
        SCHEMAS[url] = {**schema, "properties": {k: v for k, v in schema["properties"].items() if k != "metadata"}}
    return SCHEMAS[url]
