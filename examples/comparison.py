"""What `guided.py` and `replay.py` share: one model, trained step by step until a budget is used up, measured before
and after, and a table of several such runs."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from aurify import tasks
from aurify.algorithms.sft import SFT
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.engine.optim import OptimConfig
from aurify.evaluation.evaluate import evaluate
from aurify.loops.guidance import open_guide
from aurify.loops.online import learn
from aurify.loops.replay import Buffer
from aurify.loops.rollouts import Rollouts
from aurify.loops.task_stream import TaskStream
from aurify.models.model import ModelConfig, load_model
from aurify.pipeline.recipe import GuidanceOptions, OnlineStage, ReplayOptions
from aurify.renderer import Renderer
from aurify.rewards.rubric import Rubric
from aurify.samplers.inprocess import InProcessSampler
from aurify.types import Datum, Metrics, OnlineAlgorithm, SamplingParams, Task


class Learner:
    """A model with its sampler, its task and what it has used up so far."""

    def __init__(self, args: argparse.Namespace, taskset: tasks.TaskSet, seed: int) -> None:
        self.args, self.taskset, self.seed = args, taskset, seed
        lora = None if args.model == "random:tiny" else LoraConfig(rank=32, alpha=32)  # random weights need all of it
        self.engine = Engine(load_model(args.model), lora=lora, seed=seed)
        self.sampler = InProcessSampler(self.engine, seed=seed)
        self.renderer = Renderer(self.engine.tokenizer)
        self.stream = TaskStream(taskset, seed)
        self.runner = asyncio.Runner()
        self.step = self.tokens_trained = self.tokens_sampled = self.answers_sampled = 0
        self.curve: list[dict[str, float]] = []
        self.questions: Sequence[Task] = ()  # all that are trained, where they are a fixed list

    def accuracy(self, questions: Sequence[Task] | None = None) -> float:
        """Share of held-out tasks, or of these, that a greedy answer solves."""
        params = SamplingParams(max_tokens=self.args.max_tokens, temperature=0.0)
        taskset = self.taskset if questions is None else replace(self.taskset, heldout=questions)
        num = self.args.eval_tasks if questions is None else len(questions)
        work = evaluate(taskset, self.sampler, self.renderer, params, num_tasks=num)
        return self.runner.run(work).value

    def imitate(self, num_tokens: int, lr: float, batch_size: int) -> None:
        """Supervised fine-tuning on the task's own demonstrations, each seen once."""
        end = self.tokens_trained + num_tokens
        while self.tokens_trained < end:
            data = []
            for task in self.stream.take(batch_size):
                prompt = self.renderer.prompt(task.prompt)
                answer = self.renderer.reply(prompt, str(self.taskset.demonstration(task)))
                data.append(Datum(prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer)))
            metrics = self.engine.forward_backward(data, SFT())
            self.engine.optim_step(lr)
            self.tokens_trained += round(metrics["ledger/tokens_trained"])
            self.after({"loss": metrics["loss"]})
        self.refresh()

    def explore(
        self,
        algorithm: OnlineAlgorithm,
        *,
        trained: int | None = None,
        sampled: int | None = None,
        answers: int | None = None,
        guidance: GuidanceOptions | None = None,
        past: ReplayOptions | None = None,
    ) -> None:
        """Learns from its own answers, a guide's and its past, until so many more tokens were trained, or so many more
        tokens or answers were sampled. Answers of groups without spread count as trained: they were offered, and had
        nothing to say."""
        args = self.args
        stage = OnlineStage(
            method="grpo",
            model=ModelConfig(args.model),
            prompts_per_step=args.prompts,
            completions_per_prompt=args.completions,
            sampling=SamplingParams(max_tokens=args.max_tokens),
            optim=OptimConfig(lr=args.lr, warmup_steps=2),
            guidance=guidance,
            replay=past,
        )
        limit = self.engine.max_context
        rollouts = Rollouts(
            self.sampler,
            self.renderer,
            self.taskset,
            Rubric(self.taskset.rubric.rewards),
            stage,
            self.seed,
            guide=self.runner.run(open_guide(stage, self.taskset, self.renderer, limit)) if guidance else None,
            buffer=Buffer(past, args.completions) if past else None,
        )
        rollouts.tasks = self.stream
        ends = [
            None if more is None else used + more
            for more, used in zip((trained, sampled, answers), self.used, strict=True)
        ]
        step = 0
        while not any(end is not None and used >= end for end, used in zip(ends, self.used, strict=True)):
            made = self.runner.run(rollouts.sample(step, algorithm, self.engine))
            metrics = learn(self.engine, algorithm, made, rollouts, step)
            self.refresh()
            written = [s for g in made.groups for t in g.trajectories for s in t.segments if s.origin != "prompt"]
            self.tokens_trained += sum(len(segment.tokens) for segment in written)
            self.tokens_sampled += round(metrics["ledger/tokens_sampled"])
            self.answers_sampled += sum(t.source == "policy" for g in made.groups for t in g.trajectories)
            shown = ("reward/mean", "loss/guidance_probability", "guidance/reward", "loss/replay_ratio")
            kept = {name: metrics[name] for name in metrics if name in shown or name.startswith("replay/")}
            self.after(kept | {"flat": metrics["ledger/groups_without_spread"]})
            step += 1

    @property
    def used(self) -> tuple[int, int, int]:
        return self.tokens_trained, self.tokens_sampled, self.answers_sampled

    def refresh(self) -> None:
        self.runner.run(self.sampler.load_weights(self.engine.weights(), self.engine.version))

    def after(self, metrics: Metrics) -> None:
        self.step += 1
        facts = {"trained": float(self.tokens_trained), "sampled": float(self.tokens_sampled), **metrics}
        self.curve.append({name: round(value, 4) for name, value in facts.items()})
        shown = ("trained", "sampled", "loss", "reward/mean", "flat", "replay/used", "replay/trajectories")
        print("  ", "  ".join(f"{name} {facts[name]:g}" for name in shown if name in facts), flush=True)

    def close(self) -> None:
        self.runner.run(self.sampler.close())
        self.runner.close()
        self.engine.close()


def arguments(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--methods", default=defaults.pop("methods"), help="names with commas between them")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=defaults.pop("tokens"), help="the budget of each run")
    parser.add_argument("--prompts", type=int, default=defaults.pop("prompts", 8))
    parser.add_argument("--completions", type=int, default=defaults.pop("completions"))
    parser.add_argument("--max-tokens", type=int, default=defaults.pop("max_tokens"))
    parser.add_argument("--lr", type=float, default=defaults.pop("lr"))
    parser.add_argument("--eval-tasks", type=int, default=100)
    parser.add_argument("--log", type=Path, help="append one JSON object a run to this file")
    parser.add_argument("--out", type=Path, help="write all runs, with the command and versions, to this JSON file")
    assert not defaults
    return parser


def record(
    args: argparse.Namespace, method: str, learner: Learner, before: dict[str, float], seconds: float
) -> dict[str, Any]:
    """One run as a row of the table; appended to the log as soon as it is known."""
    facts = {
        "method": method,
        "seed": learner.seed,
        **before,
        "after": learner.accuracy(),
        **({"trained_after": learner.accuracy(learner.questions)} if learner.questions else {}),
        "tokens_trained": learner.tokens_trained,
        "tokens_sampled": learner.tokens_sampled,
        "answers_sampled": learner.answers_sampled,
        "steps": learner.step,
        "seconds": round(seconds, 1),
    }
    print(json.dumps(facts), flush=True)
    whole = facts | {"curve": learner.curve, "settings": settings(args)}
    if args.log:
        with args.log.open("a") as file:
            file.write(json.dumps(whole) + "\n")
    return whole


def settings(args: argparse.Namespace) -> dict[str, str]:
    return {name: str(value) for name, value in vars(args).items() if name not in ("log", "out")}


def compare(
    args: argparse.Namespace, taskset: tasks.TaskSet, run: Any, questions: Sequence[Task] = ()
) -> list[dict[str, Any]]:
    """Every method with every seed; run(learner, method) trains. questions: what is trained, where it is a fixed list;
    accuracy is then told of them, too. Returns one record a run."""
    rows: list[dict[str, Any]] = []
    for method, seed in ((m, s) for m in args.methods.split(",") for s in range(args.seeds)):
        print(f"{method}, seed {seed}", flush=True)
        learner = Learner(args, taskset, seed)
        learner.questions = questions
        before, began = {"before": learner.accuracy()}, time.perf_counter()
        if questions:
            before["trained_before"] = learner.accuracy(questions)
        run(learner, method)
        rows.append(record(args, method, learner, before, time.perf_counter() - began))
        learner.close()
        if args.out:  # after each run: hours of work are not lost with the last one
            write_results(args, rows)
    print(table(rows))
    return rows


def write_results(args: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    """What a table in docs/results.md is made of."""
    facts = {
        "command": " ".join(["python", *sys.argv]),
        "settings": settings(args),
        "versions": {name: importlib.metadata.version(name) for name in ("aurify", "torch", "transformers")},
        "threads": torch.get_num_threads(),
        "runs": [{name: value for name, value in row.items() if name != "settings"} for row in rows],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(facts, indent=1) + "\n")


LOGGED = ("curve", "settings")  # what a row of the log has besides numbers


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: held-out accuracy of each method, mean and deviation over seeds; that on the trained questions where
    they are a fixed list. Takes rows of the log, too."""
    known = all("trained_after" in row for row in rows)
    names = ["method", "before", "after", "each seed", *(["trained questions before", "after"] if known else [])]
    names += ["tokens trained", "tokens sampled", "steps", "seconds"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        mean = {name: statistics.fmean(row[name] for row in own) for name in own[0] if name not in ("method", *LOGGED)}
        cells = [method, f"{mean['before']:.2f}", spread(own, "after")]
        cells.append(", ".join(f"{row['after']:.2f}" for row in islice(own, 9)))
        if known:
            cells += [f"{mean['trained_before']:.2f}", spread(own, "trained_after")]
        cells += [f"{mean[name]:,.0f}" for name in ("tokens_trained", "tokens_sampled", "steps", "seconds")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(rows: Sequence[dict[str, Any]], name: str) -> str:
    values = [row[name] for row in rows]
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.2f}"
