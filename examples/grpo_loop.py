"""GRPO from the four verbs alone: no recipe, no trainer class, everything in sight.

    python examples/grpo_loop.py                      # the real SmolLM2-135M, about ten minutes on two CPU cores
    python examples/grpo_loop.py --model random:tiny --steps 3

The task: say which of five numbers is the largest. The model starts near 0.1 and should end above 0.8.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path

from aurify import tasks
from aurify.algorithms.grpo import GRPO
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.environments.rollout import build_datum, rollout
from aurify.models.model import load_model
from aurify.renderer import Renderer
from aurify.samplers.inprocess import InProcessSampler
from aurify.types import Group, SamplingParams, Task


@dataclass
class Player:
    """Plays tasks with the present policy."""

    taskset: tasks.TaskSet
    sampler: InProcessSampler
    renderer: Renderer
    max_tokens: int

    async def play(self, task: Task, num: int, seed: int) -> Group:
        """A group: `num` answers to one task, each with its reward."""
        rollouts = [
            rollout(
                task,
                self.taskset.environment(task),
                self.sampler,
                self.renderer,
                SamplingParams(max_tokens=self.max_tokens, seed=seed + k),
            )
            for k in range(num)
        ]
        trajectories = await asyncio.gather(*rollouts)
        await self.taskset.rubric.score(task, trajectories)
        return Group(task, list(trajectories))

    async def accuracy(self, num_tasks: int) -> float:
        """Share of held-out tasks that one answer, sampled as in training, solves."""
        heldout = self.taskset.heldout[:num_tasks]
        groups = await asyncio.gather(*(self.play(task, 1, seed) for seed, task in enumerate(heldout)))
        return sum(group.rewards[0] or 0.0 for group in groups) / len(heldout)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--task", default="largest_number")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--completions", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--entropy", type=float, default=0.01, help="weight of the entropy bonus")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-tasks", type=int, default=128)
    parser.add_argument("--log", type=Path, help="append one JSON object a step to this file")
    args = parser.parse_args()

    model = load_model(args.model, seed=args.seed)
    engine = Engine(model, lora=LoraConfig(rank=32, alpha=32), seed=args.seed)
    sampler = InProcessSampler(engine, seed=args.seed)
    taskset = tasks.make(args.task)
    player = Player(taskset, sampler, Renderer(engine.tokenizer), args.max_tokens)
    algorithm = GRPO(entropy_coef=args.entropy)
    training = taskset.train(args.seed)

    before = await player.accuracy(args.eval_tasks)
    print(f"held-out accuracy before: {before:.3f}")
    for step in range(args.steps):
        begin = time.perf_counter()

        # sample: all prompts and completions at the same time
        seeds = [((args.seed * 10_000 + step) * args.prompts + k) * args.completions for k in range(args.prompts)]
        groups = await asyncio.gather(*(player.play(next(training), args.completions, seed) for seed in seeds))
        sampled = time.perf_counter()

        # learn: one advantage a trajectory; a group whose rewards are all equal has nothing to say
        advantages = algorithm.advantages(groups)
        data = [
            build_datum(trajectory, advantage)
            for group, row in zip(groups, advantages, strict=True)
            for trajectory, advantage in zip(group.trajectories, row, strict=True)
            if any(row)
        ]
        if data:
            engine.forward_backward(data, algorithm)
            engine.optim_step(args.lr)
            await sampler.load_weights(engine.weights(), engine.version)

        rewards = [reward or 0.0 for group in groups for reward in group.rewards]
        num_tokens = sum(t.num_policy_tokens for group in groups for t in group.trajectories)
        record = {
            "step": step + 1,
            "reward": sum(rewards) / len(rewards),
            "length": num_tokens / len(rewards),
            "groups_with_spread": sum(any(row) for row in advantages),
            "seconds_sampling": round(sampled - begin, 2),
            "seconds_training": round(time.perf_counter() - sampled, 2),
        }
        print("  ".join(f"{key} {value:.3g}" for key, value in record.items()), flush=True)
        if args.log:
            with args.log.open("a") as file:
                file.write(json.dumps(record) + "\n")

    after = await player.accuracy(args.eval_tasks)
    print(f"held-out accuracy: {before:.3f} before, {after:.3f} after {args.steps} steps")
    if args.log:
        with args.log.open("a") as file:
            file.write(json.dumps({"seed": args.seed, "before": before, "after": after}) + "\n")
    await sampler.close()


if __name__ == "__main__":
    asyncio.run(main())
