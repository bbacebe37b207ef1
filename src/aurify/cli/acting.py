"""A chat in which an environment answers too: the one that a stage was trained in, or tools. A question is played as a
rollout is, so the model sees what it saw in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import typer

from aurify.errors import UserError

if TYPE_CHECKING:
    from aurify.cli.names import NamedModel
    from aurify.cli.writer import Writer
    from aurify.environments.env import Environment, Observation, Step
    from aurify.types import Message, SamplingParams, Task

    Factory = Callable[[Task], Environment]


def find_chat_environment(model: NamedModel, tools: Sequence[str], *, act: bool) -> Factory | None:
    """act: the environment of the stage's task. None: nobody but the person answers."""
    if tools:
        from aurify.environments.env import build_environment

        return build_environment({"name": "tool_use", "tools": list(tools)})
    if not act:
        return None
    from aurify import registry, tasks
    from aurify.pipeline.recipe import expand_recipe_shorthands

    options = expand_recipe_shorthands(model.stage_options())
    registry.load_plugins(options.get("plugins") or ())
    task = dict(options.get("task") or {})
    if "name" not in task:
        raise UserError(f"--act: {model.name} was trained without a task, so it has no environment; give --tools")
    if task["name"] == "mix":
        raise UserError("--act: the stage mixes several tasks; give --tools with those that the model may call")
    return tasks.make(task.pop("name"), **task).environment


def act_on_question(writer: Writer, params: SamplingParams, messages: list[Message], factory: Factory) -> None:
    """Plays the question and appends what was said. Ctrl-C, and what an environment cannot do, take it back."""
    from aurify.environments.hosting import host_environment
    from aurify.environments.player import RolloutOptions
    from aurify.environments.rollout import rollout
    from aurify.types import Task, Trajectory

    task, seconds = Task("chat", list(messages)), RolloutOptions().step_seconds

    async def play() -> tuple[Trajectory, int]:
        async with host_environment(factory, task, seconds=seconds) as environment:
            told = Told(environment)
            return await rollout(task, told, writer.sampler, writer.renderer, params), told.num_told

    try:
        trajectory, num_told = writer.run(play())
    except (KeyboardInterrupt, UserError) as error:
        messages.pop()
        typer.secho(f"({error})" if str(error) else "(stopped)", dim=True)
        return
    for message in trajectory.completion[num_told:]:
        print_notice(message)
    if trajectory.truncated:
        typer.secho(f"(ended: {trajectory.outcome})", dim=True)
    messages += trajectory.completion


def print_notice(message: Message) -> None:
    name = "model" if message["role"] == "assistant" and message.get("weight", 1.0) else message["role"]
    typer.echo(typer.style(f"{name}> ", fg=typer.colors.CYAN) + message["content"])


class Told:
    """An environment whose turns are shown as they come."""

    def __init__(self, inner: Environment) -> None:
        self.inner, self.num_told = inner, 0

    async def start(self) -> Observation:
        return await self.inner.start()

    async def step(self, message: Message) -> Step:
        from aurify.environments.rollout import step_environment

        self._tell(message)
        step = await step_environment(self.inner, message)
        for answer in step.messages:
            self._tell(answer)
        if step.continue_turn:
            self._tell({"role": "assistant", "content": step.continue_turn, "weight": 0.0})
        return step

    def finish(self, outcome: str) -> Any:
        last_word = getattr(self.inner, "finish", None)
        return None if last_word is None else last_word(outcome)

    async def close(self) -> None:
        await self.inner.close()

    def _tell(self, message: Message) -> None:
        print_notice(message)
        self.num_told += 1
