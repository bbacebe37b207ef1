"""Issue 16, Seeing: what a stage writes down of its conversations, up to the report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pipelines import SHORT_ONLINE

from aurify import registry
from aurify.algorithms.turns import turn_advantages
from aurify.pipeline.recipe import build_recipe
from aurify.pipeline.run import run_pipeline
from aurify.report.report import write_report
from aurify.tracking import jsonl
from aurify.tracking.run_folder import RunFolder
from aurify.types import Group, Segment, Task, Trajectory, Turn

PLUGIN = """
import aurify
from aurify.environments.env import Step
from aurify.environments.multi_turn import MultiTurnEnvironment

@aurify.environment
class asker(MultiTurnEnvironment):
    turns = 0

    def step(self, message):
        self.turns += 1
        found = float(len(message["content"]) % 2)
        return Step([{"role": "user", "content": "<b>Again</b>."}], rewards={"odd": found}, done=self.turns == 3)
"""
ONLINE = {"method": "grpo", "steps": 1, "prompts_per_step": 2, "completions_per_prompt": 4, "samples_every": 1}
VALUES = {
    "model": "random:tiny",
    "evaluation": {"num_tasks": 0},
    "task": {"name": "multiplication", "digits": 1, "environment": "asker"},
    "plugins": ["asker.py"],
}


@pytest.fixture
def train(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "ENTRIES", {kind: dict(entries) for kind, entries in registry.ENTRIES.items()})
    monkeypatch.chdir(tmp_path)
    Path("asker.py").write_text(PLUGIN)

    def run(values) -> tuple[RunFolder, list[dict]]:
        folder = RunFolder.create(tmp_path, values)
        run_pipeline(build_recipe(values), folder, show_samples=True)
        return folder, list(jsonl.read_log(folder.stage("rl").samples))

    return run


def read_turns(sample) -> list[set[float | None]]:
    """The advantages of each of the policy's turns."""
    turns: list[set[float | None]] = []
    before = ""
    for _, author, advantage in sample["spans"]:
        if author == "policy":
            turns = turns if before == "policy" else [*turns, set()]
            turns[-1].add(advantage)
        before = author
    return turns


def rebuild(sample) -> Trajectory:
    """What `credit: turn` reads of a trajectory."""
    turns = [Turn(turn["tokens"], 0.0, rewards=turn["rewards"]) for turn in sample["turns"]]
    segments = [part for _ in turns for part in (Segment([1], "prompt"), Segment([1], "policy"))]
    return Trajectory(segments, [], 0, sample["rewards"], sample["reward"], turns=turns)


def test_samples_console_and_report_show_conversations_with_the_advantage_of_each_turn(train):
    """A plain step() in a plugin, which docs/tools.md promises, is part of it."""
    stage = ONLINE | {"algorithm": {"credit": "turn"}, "sampling": {"max_tokens": 6, "stop": ["e", "a", "o", " "]}}
    folder, samples = train(VALUES | {"stages": {"rl": stage}})
    assert len(samples) == 8 and max(len(sample["turns"]) for sample in samples) > 1
    groups = [[sample for sample in samples if sample["task"] == task] for task in {s["task"]: 0 for s in samples}]
    weights = {"number_match": 1.0}
    expected = turn_advantages([Group(Task("t", []), [rebuild(s) for s in row], weights) for row in groups], "group", 1)
    for row, advantages in zip(groups, expected, strict=True):
        for sample, turns in zip(row, advantages, strict=True):
            known = [{float(f"{value:.3g}")} for value in turns]
            assert read_turns(sample) in (known, [{None}] * len(turns)), "those of the loss, or not trained"
    trained = [sample for sample in samples if read_turns(sample) != [{None}] * len(sample["turns"])]
    assert any(len({min(turn) for turn in read_turns(sample)}) > 1 for sample in trained), "turns differ"
    said = [text for sample in samples for text, author, _ in sample["spans"] if author == "environment"]
    assert said and set(said) == {"<b>Again</b>."}
    assert {part["ledger/turns"] for part in jsonl.read_log(folder.stage("rl").ledger)} == {
        float(sum(len(sample["turns"]) for sample in samples))
    }
    console = folder.stage("rl").console.read_text()
    assert re.search(r"assistant · advantage [+-]\d.* · odd [01] · \d+ tokens", console) and "user · " in console
    html = write_report(folder.path).read_text()
    assert "&lt;b&gt;Again&lt;/b&gt;." in html and "<b>Again" not in html
    assert re.search(r'<span class="(up|down)" style="--level:\d" title="the policy, advantage [+-]', html)


def test_tokens_of_one_turn_have_their_own_advantages_where_the_method_gives_them(train):
    """On-policy distillation: `prepare` has the last word."""
    taught = {**SHORT_ONLINE, "method": "distillation", "teacher": "random:tiny", "samples_every": 1, "steps": 1}
    stages = {"sft": {"method": "sft", "data": {"demonstrations": 8}, "steps": 8, "optim": {"lr": 0.01}}}
    stages |= {"rl": taught | {"model": "@sft", "algorithm": {"vocabulary": "sampled"}}}
    _, samples = train({**VALUES, "task": {"name": "largest_number"}, "stages": stages})
    values = [turn for sample in samples for turn in read_turns(sample)]
    assert max(map(len, values)) > 2 and None not in set().union(*values)
    text = json.dumps(samples[0]["messages"][-1]["content"])[1:-1][:3]
    assert json.dumps("".join(span[0] for span in samples[0]["spans"]))[1:-1].startswith(text)
