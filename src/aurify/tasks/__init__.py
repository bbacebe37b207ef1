"""Data, environment and reward in one object, by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aurify import registry
from aurify.environments.env import build_environment
from aurify.errors import UserError
from aurify.rewards.rubric import build_rubric
from aurify.signatures import call_with_options
from aurify.tasks.taskset import TaskSet
from aurify.tools.toolbox import build_tools

__all__ = ["TaskSet", "make"]

REPLACED = ("reward", "environment", "tools", "sop")  # options that every task set takes


def make(name: str, **options: Any) -> TaskSet:
    """The task set of that name, with its options; `gym:<data set>` for those of reasoning-gym. Every task set also
    takes `reward` and `environment`, which replace its own (see `build_rubric` and `build_environment`), `tools`,
    which the model may call (see `build_tools`), and `sop`, a folder of procedures for its prompts (see
    `with_procedures`)."""
    prefix, _, rest = name.partition(":")
    if prefix == "gym" and rest:
        from aurify.tasks.gym import gym

        replaced = {key: options.pop(key) for key in REPLACED if key in options}
        taskset = gym(rest, **options)
    else:
        function = registry.get_entry("task", name)
        known = inspect.signature(function).parameters
        replaced = {key: options.pop(key) for key in REPLACED if key in options and key not in known}
        taskset = call_with_options(f"task {name!r}", function, options)
    if not isinstance(taskset, TaskSet):
        raise UserError(f"task {name!r} gave a {type(taskset).__name__}; it must return a TaskSet")
    if "reward" in replaced:
        taskset = replace(taskset, rubric=build_rubric(replaced["reward"]))
    if "environment" in replaced:
        taskset = replace(taskset, environment=build_environment(replaced["environment"]))
    if replaced.get("tools") is not None:
        if "environment" in replaced:
            raise UserError(
                f"task {name!r}: tools and environment are both given, and tools are an environment; keep one"
            )
        taskset = offer_tools(taskset, replaced["tools"])
    if "sop" in replaced:
        from aurify.procedures.library import open_procedure_library
        from aurify.procedures.tasks import with_procedures

        taskset = with_procedures(taskset, open_procedure_library(replaced["sop"]))
    return taskset


def offer_tools(taskset: TaskSet, entries: Any) -> TaskSet:
    """The task set with tools: a list, or {tools: list, options of the environment tool_use}."""
    options = dict(entries) if isinstance(entries, Mapping) else {"tools": entries}
    if "tools" not in options:
        raise UserError("tools: expected a list of names, or {tools: [...], seconds: ..., max_calls: ...}")
    open_tools = build_tools(options.pop("tools"))
    environment = build_environment({"name": "tool_use", "tools": open_tools, **options})
    schemas = [tool.schema for tool in open_tools()]
    taskset = replace(taskset, environment=environment, tools=schemas)
    if (demonstrate := taskset.tool_demonstration) is not None:
        taskset = replace(taskset, demonstration=lambda task: demonstrate(task, schemas))
    return taskset
