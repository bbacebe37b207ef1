"""A run of many trajectories at once, of which many go wrong, that is killed in mid-round and resumed: what is equal to
the run that was not?

    python benchmarks/crowd.py --out docs/data/crowd.json

The file is also the plugin of its recipe: a random model speaks, in its process, with an environment that waits, blocks
its thread, raises, never answers, replies with 1 MB, or asks an interpreter in the sandbox or an MCP server."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import signal
import string
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

import aurify
from aurify.environments.multi_turn import MultiTurnEnvironment
from aurify.tasks.taskset import TaskSet, listed, question
from aurify.tools.toolbox import Toolbox, build_tools

CROWD = {"waits": 16, "blocks": 12, "python": 6, "server": 1, "raises": 5, "never answers": 5, "1 MB": 5}  # tasks
GROUP, TURNS, STEPS, EVERY = 4, 3, 4, 2
KILLED_IN = 4  # the step; the newest checkpoint is that of step 2, so step 3 is done again
SERVER = """
from mcp.server import MCPServer
server = MCPServer("numbers")
@server.tool()
def add(a: int, b: int) -> int:
    return a + b
server.run()
"""


@aurify.task
def crowd(kinds: dict[str, int], wait: float = 0.3, trace: str = "") -> TaskSet:
    """kinds: how many tasks of each. trace: a file that gets a line for each answer of an environment."""
    names = [name for name, num in kinds.items() for _ in range(num)]
    tasks = [
        aurify.Task(f"{k} {name}", question(f"say {k}"), str(k), {"kind": name, "wait": wait, "trace": trace})
        for k, name in enumerate(names)
    ]
    held_out = [aurify.Task("held out", question("say it"), "", {"kind": "waits", "wait": 0.0, "trace": trace})]
    taskset = listed("crowd", tasks, aurify.Rubric([share_of_small_bytes]), heldout=held_out)
    server = {"name": "mcp", "command": [sys.executable, "-c", SERVER]}
    taskset.environment = partial(Troubled, tools=build_tools(["python", *[server] * ("server" in names)]))
    return taskset


def share_of_small_bytes(task: aurify.Task, trajectory: aurify.Trajectory) -> float:
    text = trajectory.text.encode()
    return sum(byte < 128 for byte in text) / max(1, len(text))


class Troubled(MultiTurnEnvironment):
    """What happens is in the task; what it says depends on nothing but the conversation."""

    stop = tuple(string.printable)  # so that the turns of a random model end

    def __init__(self, task: aurify.Task, tools: Any) -> None:
        super().__init__(task)
        self.kind, self.turn, self.toolbox = task.info["kind"], 0, Toolbox(tools())

    async def step(self, message: aurify.Message) -> Any:
        self.turn += 1
        if self.task.info["trace"]:
            with open(self.task.info["trace"], "a") as file:
                file.write(f"{self.task.id}\n")
        said = len(message["content"])
        if self.kind == "raises" and self.turn == 2:
            raise ZeroDivisionError("as it happens")
        if self.kind == "never answers" and self.turn == 2:
            await asyncio.sleep(3600)
        if self.kind == "blocks":
            time.sleep(self.task.info["wait"])
        else:
            await asyncio.sleep(self.task.info["wait"])
        answer = f"{said} characters"
        if self.kind == "python":
            code = f"x = {said}" if self.turn == 1 else f"x += {said}\nx"
            answer = await self.call("python", {"code": code})
        elif self.kind == "server":
            answer = await self.call("add", {"a": said, "b": self.turn})
        elif self.kind == "1 MB":
            answer = "x" * 2**20
        return aurify.Step(done=True) if self.turn == TURNS else answer

    async def call(self, name: str, arguments: dict[str, Any]) -> str:
        answer = await self.toolbox.call(name, arguments)
        assert not self.toolbox.counts["calls_failed"], answer
        return answer

    async def close(self) -> None:
        await self.toolbox.close()


# ---------------------------------------------------------------------- the runs


def make_recipe(
    folder: Path, kinds: dict[str, int], *, in_rounds: bool, seconds: float, wait: float = 0.3, dtype: str = "float32"
) -> Path:
    """A step plays each task, four times."""
    stage = {
        "method": "grpo",
        "steps": STEPS,
        "prompts_per_step": sum(kinds.values()),
        "completions_per_prompt": GROUP,
        "sampling": {"max_tokens": 12},
        "checkpoint_every": EVERY,
        "samples_every": 1,
        "optim": {"lr": 1e-3},
    }
    recipe = {
        "plugins": [str(Path(__file__).resolve())],
        "model": {"name": "random:tiny", "dtype": dtype},
        "task": {"name": "crowd", "kinds": kinds, "wait": wait, "trace": str(folder / "trace")},
        "limits": {"tool_tokens": 40},
        "rollouts": {"step_seconds": seconds, "in_rounds": in_rounds, "max_failures": 1000},
        "evaluation": {"num_tasks": 0},
        "stages": {"rl": stage},
    }
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder / "recipe.yaml"


def train(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "aurify.cli.main", "train", *arguments, "--runs", str(folder / "runs")]
    with (folder / "log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, text=True)


def run_to_the_end(folder: Path, *arguments: str) -> Path:
    """The folder of the stage."""
    if train(folder, *arguments).wait() != 0:
        raise RuntimeError((folder / "log").read_text()[-3000:])
    [run] = (folder / "runs").iterdir()
    return run / "rl"


def kill_in_mid_round(folder: Path, recipe: Path, num: int) -> dict[str, Any]:
    """SIGKILL for `aurify train` alone, `num` answers of environments after the round of step KILLED_IN has begun. Says
    which processes it had started, and which of them are there ten seconds later."""
    process, trace = train(folder, str(recipe)), folder / "trace"
    num_before = None
    while process.poll() is None:
        metrics = list((folder / "runs").glob("*/rl/metrics.jsonl"))
        if num_before is None and metrics and len(read_rows(metrics[0])) == KILLED_IN - 1:
            num_before = len(trace.read_text().splitlines())
        if num_before is not None and len(trace.read_text().splitlines()) >= num_before + num:
            break
        time.sleep(0.005)
    assert process.poll() is None, (folder / "log").read_text()[-3000:]
    started = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while (left := [one for one in started if is_alive(one)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return {"processes_started": len(started), "processes_left": len(left)}


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ---------------------------------------------------------------------- what is equal


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Without what no two runs have in common: times and memory."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [leave_out_times(json.loads(line)) for line in lines if line.endswith("}")]


def leave_out_times(value: Any) -> Any:
    if isinstance(value, list):
        return [leave_out_times(item) for item in value]
    if isinstance(value, dict):
        return {k: leave_out_times(v) for k, v in value.items() if not k.startswith(("time/", "memory/"))}
    return value


def compare(one: Path, other: Path) -> dict[str, Any]:
    """How many rows of each file are equal, to the bit; which metrics are not, and by how much."""
    record: dict[str, Any] = {}
    rows = {name: (read_rows(one / name), read_rows(other / name)) for name in ("metrics.jsonl", "ledger.jsonl")}
    samples = [read_rows(folder / "samples.jsonl") for folder in (one, other)]
    for name, (ours, theirs) in (*rows.items(), ("samples.jsonl", samples)):
        num_equal = sum(a == b for a, b in zip_longest(ours, theirs))
        record[name] = {"rows": max(len(ours), len(theirs)), "equal": num_equal}
    record["metrics.jsonl"]["differ"] = find_differences(*rows["metrics.jsonl"])
    record["tasks_equal"] = [[(row["step"], row["task"]) for row in part] for part in samples]
    record["tasks_equal"] = record["tasks_equal"][0] == record["tasks_equal"][1]
    record["messages_equal"] = sum(a["messages"] == b["messages"] for a, b in zip(*samples, strict=False))
    [weights] = [file.name for file in (one / "final").glob("*.safetensors")]
    ours, theirs = (load_file(folder / "final" / weights) for folder in (one, other))
    record["weights_equal"] = all(ours[name].equal(theirs[name]) for name in ours)
    record["weights_differ_by"] = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    return record


def find_differences(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, float]:
    """The largest difference of each metric that differs."""
    found: dict[str, float] = {}
    for a, b in zip(ours, theirs, strict=True):
        for key in a.keys() | b.keys():
            if a.get(key) != b.get(key):
                found[key] = max(found.get(key, 0.0), abs((a.get(key) or 0.0) - (b.get(key) or 0.0)))
    return dict(sorted(found.items()))


def kill_and_resume(folder: Path, kinds: dict[str, int], **options: Any) -> dict[str, Any]:
    """A straight run, one that is killed and resumed, and what is equal between them."""
    began = time.monotonic()
    straight = run_to_the_end(folder / "straight", str(make_recipe(folder / "straight", kinds, **options)))
    seconds = time.monotonic() - began
    killed = folder / "killed"
    recipe = make_recipe(killed, kinds, **options)
    record = kill_in_mid_round(killed, recipe, num=5 * GROUP * sum(kinds.values()) // 4)
    [run] = (killed / "runs").iterdir()
    resumed = run_to_the_end(killed, "--resume", str(run))
    num_answers = [len((folder / name / "trace").read_text().splitlines()) for name in ("straight", "killed")]
    record |= {"seconds_straight": round(seconds, 1), "answers_straight": num_answers[0]}
    return record | {"answers_killed_and_resumed": num_answers[1]} | compare(straight, resumed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="that an environment may take to answer")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    kinds = CROWD if importlib.util.find_spec("mcp") else {name: n for name, n in CROWD.items() if name != "server"}
    record: dict[str, Any] = {"trajectories_a_step": GROUP * sum(kinds.values()), "kinds": kinds, "steps": STEPS}
    for in_rounds, dtype in product((True, False), ("float32", "bfloat16")):
        with tempfile.TemporaryDirectory() as folder:
            played = kill_and_resume(Path(folder), kinds, in_rounds=in_rounds, dtype=dtype, seconds=options.seconds)
        record[f"{'in rounds' if in_rounds else 'as they come'}, {dtype}"] = played
    print(json.dumps(record, indent=1))
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
