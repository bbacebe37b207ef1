"""Environments of Gymnasium (extra `gymnasium`) that can be played in words: an action is read from each answer, and
what is observed then is the next message."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from aurify import registry
from aurify.environments.env import Step
from aurify.environments.episode import (
    extend_episode_prompt,
    pick_episode_columns,
    read_environment_action,
    read_episode_seed,
)
from aurify.environments.multi_turn import MultiTurnEnvironment
from aurify.errors import UserError
from aurify.files import require
from aurify.rewards.environment import REWARD
from aurify.tools.tool import CallError
from aurify.types import Message, Metrics, Task

WHAT = "environment 'gymnasium'"
MAX_LISTED = 20  # actions, in an error that the model reads


class Gymnasium(MultiTurnEnvironment):
    """An episode of an environment of Gymnasium. env: its id (FrozenLake-v1, module:Name-v0) or file.py:Class. options:
    of the environment; with `render_mode: ansi` the model sees what is rendered. actions: names of discrete actions, in
    their order. parse: file.py:function that makes an action of a text, or raises a ValueError that the model reads.
    Rewards of all steps are summed as the reward `environment`."""

    counts = ("steps", "invalid_actions", "cut_off")

    def __init__(
        self,
        task: Task,
        env: str,
        options: dict[str, Any] | None = None,
        actions: Sequence[str] = (),
        parse: str | None = None,
    ) -> None:
        super().__init__(task)
        self.env = open_gymnasium(env, options or {})
        self.parse = (
            registry.load_object(WHAT, parse) if parse else choose_action_parser(self.env.action_space, actions, env)
        )

    def begin(self) -> list[Message]:
        observation, _ = self.env.reset(
            seed=read_episode_seed(self.task), options=pick_episode_columns(self.task) or None
        )
        return extend_episode_prompt(self.task.prompt, self._show(observation))

    def step(self, message: Message) -> Step:
        try:
            action = self.parse(read_environment_action(message))
        except (CallError, ValueError) as error:
            return Step([{"role": "user", "content": f"Error: {error}"}], metrics={"invalid_actions": 1})
        observation, reward, terminated, truncated, _ = self.env.step(action)
        done, cut_off = terminated or truncated, truncated and not terminated
        messages: list[Message] = [] if done else [{"role": "user", "content": self._show(observation)}]
        return Step(messages, bool(done), {REWARD: float(reward)}, {"steps": 1, "cut_off": float(cut_off)})

    def finish(self, outcome: str) -> Metrics | None:
        return None if outcome == "error" else {REWARD: 0.0}  # an episode without a step earned nothing

    async def close(self) -> None:
        self.env.close()

    def _show(self, observation: Any) -> str:
        if isinstance(observation, str):
            return observation
        return str(self.env.render() if self.env.render_mode == "ansi" else observation)


def open_gymnasium(env: str, options: dict[str, Any]) -> Any:
    gymnasium = require("gymnasium", "gymnasium", f"for the {WHAT}")
    by_file = env.rpartition(":")[0].endswith(".py")
    make = registry.load_object(WHAT, env) if by_file else partial(gymnasium.make, env)
    try:
        return make(**options)
    except Exception as error:  # Gymnasium's own, and those of the environment
        shown = f" with the options {options}" if options else ""
        raise UserError(f"{WHAT}: {env}{shown} cannot be made: {type(error).__name__}: {error}") from error


def choose_action_parser(space: Any, actions: Sequence[str], env: str) -> Callable[[str], Any]:
    spaces = require("gymnasium.spaces", "gymnasium", f"for the {WHAT}")
    if isinstance(space, spaces.Text) and not actions:
        return partial(check_environment_action, space)
    if not isinstance(space, spaces.Discrete):
        given = "names of actions are given" if actions else "no text can be read as one"
        raise UserError(f"{WHAT}: the actions of {env} are {space}, and {given}; give parse: file.py:function")
    first, num = int(space.start), int(space.n)
    if actions and len(actions) != num:
        raise UserError(f"{WHAT}: {env} has {num} actions, and actions names {len(actions)}: {', '.join(actions)}")
    return partial(
        match_environment_action,
        dict(zip(actions or map(str, range(first, first + num)), range(first, first + num), strict=True)),
    )


def check_environment_action(space: Any, text: str) -> str:
    if space.contains(text):
        return text
    if wrong := sorted(set(text) - space.character_set):
        raise CallError(f"an action must not have {' '.join(map(repr, wrong[:MAX_LISTED]))} in it")
    raise CallError(f"an action has {space.min_length} to {space.max_length} characters; yours has {len(text)}")


def match_environment_action(known: dict[str, int], text: str) -> int:
    """The one action that a text names."""
    found = {name for name in known if re.search(rf"(?<![\w-]){re.escape(name)}(?!\w)", text, re.IGNORECASE)}
    if len(found) == 1:
        return known[found.pop()]
    more = " and others" if len(known) > MAX_LISTED else ""
    named = f"several are named: {', '.join(sorted(found))}" if found else "none is named"
    raise CallError(f"{named}. Write one action, of: {', '.join(list(known)[:MAX_LISTED])}{more}")
