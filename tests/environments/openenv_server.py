"""Servers of OpenEnv for the tests, made with its own server: `python openenv_server.py KIND PORT`.

numbers: guess a number; its action has one field. moves: an action of two fields. tools: an MCP environment. The file
that OPENENV_LOG names gets a line for each session that begins and ends."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, Literal

import uvicorn
from fastmcp import FastMCP
from openenv.core.env_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation
from openenv.core.env_server.types import Action, Observation, State


def note(text: str) -> None:
    with open(os.environ["OPENENV_LOG"], "a") as file:
        file.write(text + "\n")


class Guess(Action):
    number: int


class Move(Action):
    direction: Literal["up", "down"]
    steps: int = 1


class Seen(Observation):
    text: str
    left: int | None = None


class Noted:
    SUPPORTS_CONCURRENT_SESSIONS = True
    state = State()

    def close(self) -> None:
        note("close")


class Numbers(Noted, Environment):  # type: ignore[misc]
    def reset(self, seed: int | None = None, episode_id: str | None = None, level: int = 0, **_: Any) -> Seen:
        note("reset")
        self.secret = (seed or 0) % 10
        return Seen(text=f"Guess my number, level {level}.")

    def step(self, action: Guess, timeout_s: float | None = None, **_: Any) -> Seen:
        if action.number == 98:
            os._exit(1)
        if action.number == 99:
            raise ValueError("from 0 to 9, please")
        if action.number == 97:
            time.sleep(3)
        hit = action.number == self.secret
        return Seen(text="hit" if hit else "no", reward=1.0 if hit else -0.25, done=hit)


class Moves(Noted, Environment):  # type: ignore[misc]
    def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Seen:
        self.height = 0
        return Seen(text="You stand at 0.", left=2)

    def step(self, action: Move, timeout_s: float | None = None, **_: Any) -> Seen:
        self.height += action.steps * (1 if action.direction == "up" else -1)
        return Seen(text=f"You stand at {self.height}.", left=1, reward=1.0, done=self.height > 2)


class Tools(Noted, MCPEnvironment):
    def __init__(self) -> None:
        server = FastMCP("tools")

        @server.tool
        def echo(message: str) -> str:
            """Say a message again."""
            if message == "boom":
                raise ValueError("boom!")
            return message

        @server.tool
        def measure(message: str) -> dict[str, int]:
            """Measure a message."""
            return {"length": len(message)}

        super().__init__(server)

    def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Observation:
        self.num = 0
        return Observation()

    def _step_impl(self, action: Any, timeout_s: float | None = None, **_: Any) -> Observation:
        return Observation()

    async def step_async(self, action: Any, timeout_s: float | None = None, **options: Any) -> Observation:
        observation = await super().step_async(action, timeout_s=timeout_s, **options)
        if action.type == "call_tool":
            self.num += 1
            observation.reward, observation.done = 0.5, self.num == 4
        return observation


KINDS: dict[str, Any] = {
    "numbers": (Numbers, Guess, Seen),
    "moves": (Moves, Move, Seen),
    "tools": (Tools, CallToolAction, CallToolObservation),
}

if __name__ == "__main__":
    made = create_app(*KINDS[sys.argv[1]], max_concurrent_envs=int(sys.argv[3]))
    uvicorn.run(made, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
