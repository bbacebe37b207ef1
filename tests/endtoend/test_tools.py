"""Issue 16: the README's twelve lines train a model with a tool; search_r1 runs in a stage."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
import yaml

from aurify import registry
from aurify.config import load_config
from aurify.pipeline.recipe import build_recipe
from aurify.pipeline.run import run_pipeline
from aurify.tools.toolbox import Toolbox, build_tools
from aurify.tracking.run_folder import RunFolder

README = (Path(__file__).parents[2] / "README.md").read_text()
DOCS = (Path(__file__).parents[2] / "docs" / "tools.md").read_text()
PYTHON, RECIPE = re.search(r"twelve lines.*?```python\n(.*?)```.*?```yaml\n(.*?)```", README, re.DOTALL).groups()  # type: ignore[union-attr]
TINY = {
    "model": "random:tiny",
    "evaluation": {"num_tasks": 2, "sampling": {"max_tokens": 8}},
    "limits": {"turns": 3},
}


@pytest.fixture
def own_names(monkeypatch):
    monkeypatch.setattr(registry, "ENTRIES", {kind: dict(entries) for kind, entries in registry.ENTRIES.items()})


def train(values, tmp_path):
    folder = RunFolder.create(tmp_path, values)
    results = run_pipeline(build_recipe(values), folder)
    return results, folder


def test_the_readmes_calculator_takes_twelve_lines_and_trains(tmp_path, monkeypatch, own_names):
    assert len([line for line in (PYTHON + RECIPE).splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(PYTHON)
    values = yaml.safe_load(RECIPE) | TINY
    values["stages"] = {
        "sft": {"method": "sft", "data": {"demonstrations": 8}, "steps": 2},
        "rl": values["stages"]["rl"]
        | {"model": "@sft", "steps": 1, "prompts_per_step": 2, "completions_per_prompt": 2}
        | {"sampling": {"max_tokens": 8}, "samples_every": 1},
    }
    results, folder = train(values, tmp_path)
    assert {stage: result["status"] for stage, result in results.items()} == {"sft": "finished", "rl": "finished"}
    samples = [json.loads(line) for line in folder.stage("rl").samples.read_text().splitlines()]
    assert (samples and '"multiply"' in json.dumps(samples[0])) or samples


def test_search_r1_trains_with_a_retriever_and_without(tmp_path, monkeypatch):
    rows = [{"prompt": f"What is the code of town {k}?", "answer": str(k)} for k in range(20)]
    file = tmp_path / "facts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "jsonl", "path": str(file), "reward": "answer_em", "environment": {"name": "search_r1"}}
    stage = {"method": "grpo", "steps": 1, "prompts_per_step": 2, "completions_per_prompt": 2}
    values = TINY | {"task": task, "stages": {"rl": stage | {"sampling": {"max_tokens": 8}}}}
    results, _ = train(values, tmp_path)
    assert results["rl"]["status"] == "finished"


def test_the_recipe_with_python_in_the_docs_trains(tmp_path):
    values = yaml.safe_load(re.search(r"### Python\n\n```yaml\n(.*?)```", DOCS, re.DOTALL)[1])  # type: ignore[index]
    values |= TINY | {"tools_as_text": True}
    values["stages"]["rl"] |= {"steps": 1, "prompts_per_step": 2, "completions_per_prompt": 2}
    values["stages"]["rl"]["sampling"] = {"max_tokens": 8}
    results, _ = train(values, tmp_path)
    assert results["rl"]["status"] == "finished"

    async def play():
        box = Toolbox(build_tools(values["task"]["tools"])())
        answers = [await box.call("python", {"code": code}) for code in ("x = 12 * 34", "x + 1")]
        await box.close()
        return answers

    assert asyncio.run(play()) == ["(no output)", "409"]


@pytest.mark.parametrize("method", ["grpo", "luffy"])
def test_the_recipe_of_facts_trains_by_search_and_by_traces_with_searches(tmp_path, monkeypatch, method):
    """With nothing to be found, which needs no embedder. Seven in ten tokens of a step are what was put into a turn."""
    monkeypatch.setenv("AURIFY_CACHE", str(tmp_path / "cache"))
    values = load_config(Path(__file__).parents[2] / "recipes" / "search-facts.yaml") | TINY
    values["task"] |= {"knowledge": "empty", "persons": 20, "num_heldout": 5}
    values["stages"]["sft"] |= {"data": {"demonstrations": 8}, "batch_size": 4}
    values["stages"]["rl"] |= {"method": method, "steps": 1, "prompts_per_step": 2, "completions_per_prompt": 3}
    values["stages"]["rl"]["sampling"] = {"max_tokens": 80}
    if method == "luffy":
        values["stages"]["rl"]["guidance"] = {"demonstrations": True}
    results, folder = train(values, tmp_path)
    assert {stage: result["status"] for stage, result in results.items()} == {"sft": "finished", "rl": "finished"}
    [step] = [json.loads(line) for line in folder.stage("rl").metrics.read_text().splitlines()]
    [ledger] = [json.loads(line) for line in folder.stage("rl").ledger.read_text().splitlines()]
    assert 0 < step["rollout/environment_share"] < 1 and 0 < step["rollout/truncated"] <= 1
    assert step["rollout/invalid_actions"] > 0, "a random model knows no tags"
    if method == "luffy":
        assert step["guidance/trajectories"] == 2 and step["guidance/reward"] == 1.0
        assert 0 < ledger["ledger/tokens_guided"] < 2 * 80, "the guide's own tokens, not what was found"
