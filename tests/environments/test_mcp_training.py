"""Issue 16, Shows 6: MCP servers over stdio and HTTP in a training run. A server that is killed in the middle is the
outcome of the trajectories that used it, and of no other; the run goes on."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from recorder import Recorder
from scripted_training import train_scripted

from aurify.engine.engine import Engine
from aurify.environments.rollout import Limits
from aurify.environments.tool_use import ToolUse
from aurify.models.model import ModelConfig, load_model
from aurify.pipeline.recipe import OnlineStage
from aurify.rewards.rubric import Rubric
from aurify.samplers.scripted import ScriptedSampler
from aurify.tasks.taskset import TaskSet, question
from aurify.tools.toolbox import build_tools
from aurify.types import Task

pytest.importorskip("mcp", reason="MCP servers need the extra mcp")
SERVER = str(Path(__file__).parents[1] / "tools" / "mcp_server.py")
STDIO = {"name": "mcp", "command": [sys.executable, SERVER, "stdio"], "one_session": False, "allow": ["add", "die"]}
ASKED = re.compile(r"use (\w+)(?! .*use )", re.DOTALL)
ARGUMENTS: dict[str, dict[str, Any]] = {"add": {"a": 2, "b": 3}, "die": {}}


class Server:
    """Over HTTP, at a port that stays the same."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, SERVER, "http", str(self.port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(400):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("the server does not start")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.kill()


def children() -> set[int]:
    """Processes that this one has started."""
    return {process.pid for process in psutil.Process().children()}


def train(
    tmp_path: Path, tools: list[Any], names: list[str], steps: int, watch: Callable[[int], None] = lambda number: None
) -> Recorder:
    """A step asks each task four times. The policy calls the tool that the task names, and then says what it got.
    watch: is told the number of each answer to come."""
    engine = Engine(load_model(ModelConfig("random:tiny", dtype="float32")))
    tasks = [Task(f"t{k}", question(f"use {name}"), "5") for k, name in enumerate(names)]

    def reply(prompt: list[int]) -> str:
        watch(len(sampler.prompts))
        text = engine.tokenizer.decode(prompt)
        name = ASKED.findall(text)[-1]
        if "</tool_call>" in text.rpartition(f"use {name}")[2]:
            return "It is 5." if len(sampler.prompts) % 3 else "I do not know."
        return f"<tool_call>{json.dumps({'name': name, 'arguments': ARGUMENTS[name]})}</tool_call>"

    def says_it(task: Task, trajectory: Any) -> float:
        return float("5" in trajectory.text and "use add" in task.prompt[0]["content"])

    sampler = ScriptedSampler(reply, engine.tokenizer)
    environment = partial(ToolUse, tools=build_tools(tools))
    schemas = environment(tasks[0]).tools
    taskset = TaskSet("mcp", lambda seed: iter(tasks * steps), tasks, Rubric([says_it]), environment, tools=schemas)
    stage = OnlineStage(
        method="grpo", model=ModelConfig("random:tiny"), steps=steps, prompts_per_step=len(names),
        completions_per_prompt=4, limits=Limits(turns=3, tool_errors=0),
    )  # fmt: skip
    return train_scripted(engine, taskset, sampler, stage, tmp_path)


def test_a_server_of_one_trajectory_that_dies_ends_that_trajectory_alone(tmp_path):
    before = children()
    [row] = train(tmp_path, [STDIO], ["add", "die", "add"], steps=1).rows
    assert row["ledger/trajectories"] == 12 and row["ledger/trajectories_tool_errors"] == 4
    assert row["rollout/calls_failed"] == pytest.approx(4 / 12)
    assert row["rollout/tool_calls"] == 1.0
    deadline = time.monotonic() + 10
    while (left := children() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, "each server ended with its trajectory"


def test_a_server_over_http_that_is_killed_and_comes_back(tmp_path, server):
    """12 trajectories a step, two answers each: killed before the second step, started again before the third."""
    seen: list[int] = []

    def watch(number: int) -> None:
        seen.append(number)
        if len(seen) == 8 * 2 + 1:
            server.kill()
        elif len(seen) == 8 * 2 + 8 + 1:
            server.start()

    url = f"http://127.0.0.1:{server.port}/mcp"
    rows = train(tmp_path, [{"name": "mcp", "url": url, "allow": ["add"]}], ["add", "add"], steps=3, watch=watch).rows
    failed = [row["rollout/calls_failed"] for row in rows]
    assert failed == [0.0, 1.0, 0.0], "the run goes on, and the next call finds the server that is there again"
    assert [row.get("ledger/trajectories_tool_errors", 0.0) for row in rows] == [0.0, 8.0, 0.0]
    assert [row["ledger/trajectories"] for row in rows] == [8.0] * 3
