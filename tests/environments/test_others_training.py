"""Environments of TRL, Gymnasium and OpenEnv in training: the recipes of docs/tools.md in a dry run, in training and in
evaluation, and a step that learns from what they give."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from openenv_servers import count_sessions, open_servers
from scripted_training import train_scripted
from typer.testing import CliRunner

from aurify import tasks
from aurify.cli.main import app
from aurify.engine.engine import Engine
from aurify.environments.rollout import Limits
from aurify.errors import UserError
from aurify.models.model import ModelConfig, load_model
from aurify.pipeline.recipe import OnlineStage
from aurify.samplers.scripted import ScriptedSampler

DOCS = (Path(__file__).parents[2] / "docs" / "tools.md").read_text()
SECTION = DOCS.partition("## Environments of others")[2].partition("\n## ")[0]
PYTHON = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)[0]
YAML = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL))
RECIPES = dict(zip(("trl", "gymnasium", "openenv"), YAML, strict=True))
PACKAGES = {"gymnasium": "gymnasium", "openenv": "openenv.core"}
WAY = ["down", "down", "right", "right", "down", "right"]  # over the frozen lake


@pytest.fixture(scope="module", params=list(RECIPES))
def kind(request: Any) -> str:
    if request.param in PACKAGES:
        pytest.importorskip(
            PACKAGES[request.param], reason=f"{request.param} is not installed: pip install 'aurify[{request.param}]'"
        )
    return str(request.param)


@pytest.fixture(scope="module")
def log(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The log of the server, where there is one; the working folder holds what the recipe names."""
    folder = tmp_path_factory.mktemp(kind)
    (folder / "mine.py").write_text(PYTHON)
    rows = [{"prompt": f"Count, round {k}.", "target": k % 3 + 4} for k in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch, open_servers(folder) as start:
        patch.chdir(folder)
        recipe, log = deepcopy(RECIPES[kind]), None
        if kind == "openenv":
            recipe["task"]["environment"]["url"], log, _ = start("numbers", 64)
        (folder / "task.json").write_text(json.dumps(recipe["task"]))
        recipe |= {
            "model": "random:tiny",
            "tools_as_text": True,
            "evaluation": {"num_tasks": 2, "sampling": {"max_tokens": 8}},
        }
        recipe["limits"] = {"turns": 3}
        stage = {"method": "grpo", "steps": 1, "prompts_per_step": 2, "completions_per_prompt": 2}
        recipe["stages"] = {"rl": stage | {"sampling": {"max_tokens": 8}, "samples_every": 1}}
        (folder / "recipe.yaml").write_text(json.dumps(recipe))
        yield log


def output(*command: str) -> str:
    result = CliRunner().invoke(app, list(command))
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_the_recipe_of_the_docs_is_checked_trained_and_evaluated(kind: str, log: Any) -> None:
    text = " ".join(output("train", "recipe.yaml", "--dry-run").split())
    shown = {"trl": "Bring the counter to", "gymnasium": "FHFH", "openenv": "Guess my number"}[kind]
    assert "the environment was started and played" in text and shown in text
    output("train", "recipe.yaml")
    [run] = Path("runs").iterdir()
    samples = [json.loads(line) for line in (run / "rl" / "samples.jsonl").read_text().splitlines()]
    assert samples and all(shown in json.dumps(sample) for sample in samples), "what reset() shows is in the prompt"
    [row] = [json.loads(line) for line in (run / "rl" / "metrics.jsonl").read_text().splitlines()]
    assert "reward/environment" in row, sorted(row)
    assert "environment" in output("eval", "last")
    if log is not None:
        begun, closed = count_sessions(log)
        assert begun == closed > 4


def test_a_step_learns_from_what_it_gives(kind: str, log: Any, tmp_path: Path) -> None:
    engine = Engine(load_model(ModelConfig("random:tiny", dtype="float32")))
    options = json.loads(Path("task.json").read_text())
    if kind == "gymnasium":
        options["environment"]["options"]["is_slippery"] = False
    taskset = tasks.make(options.pop("name"), **options)

    asked: Counter[str] = Counter()

    def reply(prompt: list[int]) -> str:
        """Every second answer to a prompt is a good one, whatever order the requests come in."""
        text = engine.tokenizer.decode(prompt)
        asked[text] += 1
        good = asked[text] % 2
        if kind == "openenv":
            return str(len(sampler.prompts) % 10)
        if kind == "gymnasium":
            walked = re.findall(r"\((Left|Down|Right|Up)\)", text)
            return "left" if "Left" in walked or (good and not walked) else WAY[len(walked)]
        if "It stands at" in text:
            return "done"
        target = re.findall(r"Bring the counter to (\d+)", text)[-1]
        call = {"name": "add", "arguments": {"number": int(target) + good}}
        return f"<tool_call>{json.dumps(call)}</tool_call>"

    sampler = ScriptedSampler(reply, engine.tokenizer)
    stage = OnlineStage(
        method="grpo", model=ModelConfig("random:tiny"), steps=1, prompts_per_step=2, completions_per_prompt=4,
        limits=Limits(turns=8),
    )  # fmt: skip
    recorder = train_scripted(engine, taskset, sampler, stage, tmp_path)
    [row] = recorder.rows
    assert row["ledger/trajectories"] == 8 and row["reward/std"] > 0 and row["optim/grad_norm"] > 0
    assert row["ledger/tokens_environment"] > 0
    if kind == "trl":
        assert row["reward/environment"] == 0.5 and row["reward/closeness"] == -0.5 and row["rollout/tool_calls"] == 1
    if kind == "gymnasium":
        assert row["reward/environment"] == 0.5 and row["rollout/steps"] == 7, (
            "six steps to the goal, eight to the limit"
        )


def test_they_are_listed() -> None:
    text = output("list", "environments")
    assert all(name in text for name in RECIPES)
    assert "episodes" in output("list", "tasks")


def test_tools_and_an_environment_cannot_both_be_given() -> None:
    with pytest.raises(UserError, match="task 'sorting': tools and environment are both given"):
        tasks.make("sorting", tools=["calculator"], environment="single_turn")


def test_episodes_differ_in_their_seeds_and_those_held_out_are_not_trained() -> None:
    from itertools import islice

    taskset = tasks.make("episodes", environment="single_turn", prompt="Play.", num_heldout=3)
    train = list(islice(taskset.train(0), 50))
    assert train == list(islice(taskset.train(0), 50)) != list(islice(taskset.train(1), 50))
    assert [task.info["seed"] for task in taskset.heldout] == [0, 1, 2]
    assert not {task.id for task in train} & {task.id for task in taskset.heldout}
    with pytest.raises(UserError, match="needs the option 'environment'"):
        tasks.make("episodes")
    with pytest.raises(UserError, match="num_heldout is 0"):
        tasks.make("episodes", environment="single_turn", num_heldout=0)
