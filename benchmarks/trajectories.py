"""200 trajectories at once, of which many go wrong: is one lost, how long does it take, how much memory?

    python benchmarks/trajectories.py --out docs/data/trajectories.json

Answers are written down beforehand, so what is measured is the way around the model. Environments wait (1 s a turn,
three turns), call a tool that blocks its thread as long, raise, never answer, or reply with 1 MB. The ideal is what the
slowest one takes alone: the time limit, twice, for a trajectory that never ends is tried twice. `crowd.py` kills a run
with such trajectories and resumes it."""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

from aurify.environments.env import Step
from aurify.environments.multi_turn import MultiTurnEnvironment
from aurify.environments.player import RolloutOptions
from aurify.loops.rollouts import Rollouts
from aurify.models.model import ModelConfig
from aurify.models.tiny import byte_tokenizer
from aurify.pipeline.recipe import OnlineStage
from aurify.renderer import Renderer
from aurify.rewards.rubric import Rubric
from aurify.samplers.scripted import ScriptedSampler
from aurify.tasks.taskset import TaskSet, question
from aurify.types import Task, Trajectory

KINDS = ["waits"] * 20 + ["blocks"] * 15 + ["raises"] * 5 + ["never answers"] * 5 + ["1 MB"] * 5  # four times each
GROUP, TURNS, WAIT = 4, 3, 1.0


class Troubled(MultiTurnEnvironment):
    """What happens is in the task."""

    turns = 0

    async def step(self, message: Any) -> Any:
        self.turns += 1
        kind = self.task.info["kind"]
        if kind == "raises":
            raise ZeroDivisionError("as it happens")
        if kind == "blocks":
            time.sleep(WAIT)
        elif kind == "never answers":
            await asyncio.sleep(3600)
        else:
            await asyncio.sleep(WAIT)
        return Step(done=True) if self.turns == TURNS else "x" * 2**20 if kind == "1 MB" else "go on"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=5.0, help="seconds that an environment may take to answer")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    record = measure(options.limit)
    print(json.dumps(record, indent=1))
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


def measure(limit: float) -> dict[str, Any]:
    tokenizer = byte_tokenizer()
    tasks = [Task(f"t{k}", question(f"say {k}"), str(k), {"kind": kind}) for k, kind in enumerate(KINDS)]
    sampler = ScriptedSampler([str(k) * (1 + k % 3) for k in range(10)], tokenizer)
    sampler.max_context = 4096  # type: ignore[attr-defined]
    taskset = TaskSet("troubled", lambda seed: iter(tasks), tasks, Rubric([write_length]), Troubled)
    stage = OnlineStage(
        method="grpo",
        model=ModelConfig("random:tiny"),
        steps=1,
        prompts_per_step=len(tasks),
        completions_per_prompt=GROUP,
        rollouts=RolloutOptions(step_seconds=limit, max_failures=1000),
    )
    rollouts = Rollouts(sampler, Renderer(tokenizer), taskset, taskset.rubric, stage, seed=1)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    played = asyncio.run(rollouts.play_groups(0, tasks))
    seconds = time.monotonic() - began
    counts = rollouts.player.take_counts()
    own = [trajectory for group in played.groups for trajectory in group.trajectories]
    ideal = 2 * limit
    return {
        "trajectories": len(tasks) * GROUP,
        "played": len(own),
        "outcomes": dict(Counter(trajectory.outcome for trajectory in own)),
        "ledger": counts,
        "seconds": round(seconds, 2),
        "ideal_seconds": ideal,
        "over_ideal": round(seconds / ideal, 3),
        "peak_mb_more": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1),
    }


def write_length(task: Task, trajectory: Trajectory) -> float:
    return float(len(trajectory.text))


if __name__ == "__main__":
    main()
