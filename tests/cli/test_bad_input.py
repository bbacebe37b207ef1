"""What people get wrong, kind by kind: each is one paragraph on stderr that says what and how to mend it, with exit
code 2.

A case is the files of the working directory, the command, and what its message must say."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aurify import registry
from aurify.cli.main import app

CHAT = json.dumps({"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]})
PAIR = json.dumps({"prompt": "2+2?", "chosen": "4", "rejected": "5"})
SFT = (
    "name: bad\nmodel: random:tiny\nstages:\n  sft: {method: sft, data: {path: rows.jsonl}, steps: 1, batch_size: 1}\n"
)
DPO = (
    "name: bad\nmodel: random:tiny\nstages:\n  dpo: {method: dpo, data: {path: rows.jsonl}, steps: 1, batch_size: 1}\n"
)
GRPO = """
name: bad
model: random:tiny
task: largest_number
evaluation: {num_tasks: 0}
stages:
  grpo: {method: grpo, steps: 1, prompts_per_step: 1, completions_per_prompt: 2, sampling: {max_tokens: 4}}
"""
REWARDED = GRPO.replace(
    "task: largest_number", "plugins: [mine.py]\ntask: {name: jsonl, path: tasks.jsonl, reward: mine, num_heldout: 1}"
)
TASKS = "".join(json.dumps({"prompt": f"{n}+1?", "answer": str(n + 1)}) + "\n" for n in range(4))
PLUGIN = "import aurify\n@aurify.reward\ndef mine(task, trajectory):\n    return "


@dataclass(frozen=True)
class Case:
    says: tuple[str, ...]
    recipe: str = SFT
    rows: str | None = CHAT  # rows.jsonl
    files: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ("train", "recipe.yaml")


CASES = {
    "no recipe": Case(("no recipe", "aurify train recipe.yaml"), command=("train",)),
    "missing recipe": Case(
        ("recipes.yaml: no such file", "did you mean 'recipe.yaml'"), command=("train", "recipes.yaml")
    ),
    "broken YAML": Case(("recipe.yaml:2: not valid YAML",), "stages:\n\tsft: {}\n"),
    "unknown key": Case(("unknown key 'lora.rnak'", "did you mean 'rank'"), SFT + "lora: {rnak: 4}\n"),
    "unknown key at the top": Case(("unknown key 'stagse'", "did you mean 'stages'"), SFT + "stagse: 1\n"),
    "wrong type": Case(("'stages.sft.steps' is 'many'", "an integer"), SFT.replace("steps: 1", "steps: many")),
    "out of range": Case(("sampling.max_tokens", "0"), GRPO.replace("max_tokens: 4", "max_tokens: 0")),
    "malformed override": Case(("override 'steps'", "dotted.key=value"), command=("train", "recipe.yaml", "steps")),
    "unresolved name": Case(("'name' cannot be resolved", "'nmae'"), SFT.replace("name: bad", "name: ${nmae}")),
    "no stages": Case(("stages", "at least one stage"), "name: empty\n"),
    "unknown method": Case(
        ("unknown algorithm 'sftt'", "did you mean 'sft'"), SFT.replace("method: sft", "method: sftt")
    ),
    "unknown option of a method": Case(
        ("unknown key 'stages.dpo.algorithm.bta'", "did you mean 'beta'"),
        DPO.replace("steps: 1", "steps: 1, algorithm: {bta: 1}"),
        PAIR,
    ),
    "unknown task": Case(
        ("unknown task 'largest_nmber'", "'largest_number'"), GRPO.replace("largest_number", "largest_nmber")
    ),
    "unknown option of a task": Case(
        ("largest_number", "nmbers"), GRPO.replace("task: largest_number", "task: {name: largest_number, nmbers: 3}")
    ),
    "unknown model": Case(
        ("model 'random:tinny'", "did you mean 'random:tiny'"), SFT.replace("random:tiny", "random:tinny")
    ),
    "folder without a model": Case(
        ("no config.json",), SFT.replace("random:tiny", "./folder"), files={"folder/notes.txt": "x"}
    ),
    "unknown stage": Case(("@sfft", "does not exist"), SFT.replace("method: sft", 'method: sft, model: "@sfft"')),
    "no reward model": Case(
        ("'@sft' trains no reward model",),
        GRPO.replace("stages:", "stages:\n  sft: {method: sft, data: {demonstrations: 2}, steps: 1}").replace(
            "steps: 1, prompts", 'steps: 1, reward: "@sft", prompts'
        ),
    ),
    "no GPU": Case(("no GPU",), SFT.replace("model: random:tiny", "model: {name: random:tiny, device: cuda}")),
    "missing data": Case(("rows.jsonl",), rows=None),
    "empty data": Case(("rows.jsonl", "no rows"), rows="\n"),
    "broken row": Case(("rows.jsonl:2: not JSON",), rows=CHAT + '\n{"messages": [\n'),
    "row without answer": Case(
        ("rows.jsonl:1", "assistant"), rows='{"messages": [{"role": "user", "content": "2+2?"}]}'
    ),
    "row without messages": Case(("rows.jsonl:1: no column 'messages'",), rows='{"message": "hi"}'),
    "pair without a loser": Case(("rows.jsonl:1: no column 'rejected'",), DPO, '{"prompt": "a", "chosen": "b"}'),
    "equal pair": Case(("rows.jsonl:1", "same text"), DPO, '{"prompt": "a", "chosen": "b", "rejected": "b"}'),
    "row longer than allowed": Case(("max_length",), SFT.replace("steps: 1", "steps: 1, max_length: 8")),
    "prompt longer than the context": Case(("max_context", "prompt"), GRPO + "sampler: {max_context: 16}\n"),
    "greedy GRPO": Case(("temperature", "greedy"), GRPO.replace("max_tokens: 4", "max_tokens: 4, temperature: 0")),
    "task without answer": Case(
        ("tasks.jsonl:1: no column 'answer'",),
        REWARDED,
        files={"tasks.jsonl": '{"prompt": "2"}', "mine.py": PLUGIN + "1\n"},
    ),
    "empty plugin": Case(
        ("plugin mine.py registers nothing", "@aurify.reward"), REWARDED, files={"tasks.jsonl": TASKS, "mine.py": ""}
    ),
    "reward of another form": Case(
        ("mine.py:2: reward 'mine' takes (task, answer)", "(task, trajectory)"),
        REWARDED,
        files={"tasks.jsonl": TASKS, "mine.py": PLUGIN.replace("trajectory", "answer") + "1\n"},
    ),
    "broken plugin": Case(
        ("plugin mine.py", "SyntaxError"), REWARDED, files={"tasks.jsonl": TASKS, "mine.py": "def f(:"}
    ),
    "reward that raises": Case(
        ("reward 'mine'", "ZeroDivisionError"), REWARDED, files={"tasks.jsonl": TASKS, "mine.py": PLUGIN + "1 / 0\n"}
    ),
    "reward that is not a number": Case(
        ("reward 'mine'", "nan"), REWARDED, files={"tasks.jsonl": TASKS, "mine.py": PLUGIN + "float('nan')\n"}
    ),
    "runs in a file": Case(("no run can be kept", "--runs"), command=("train", "recipe.yaml", "--runs", "rows.jsonl")),
    "unknown run": Case(("no run 'yesterday'",), command=("train", "--resume", "yesterday")),
    "chat with nothing": Case(("no run in runs",), command=("chat", "last")),
    "unknown stage of a run": Case(
        ("no finished stage 'grpo'",),
        files={"runs/r/recipe.yaml": SFT, "runs/r/sft/final/config.json": "{}"},
        command=("chat", "r:grpo"),
    ),
    "chat with a reward model": Case(
        ("reward model", "cannot write"),
        files={"rm/config.json": json.dumps({"architectures": ["LlamaForSequenceClassification"]})},
        command=("chat", "rm"),
    ),
    "nothing to evaluate on": Case(("--task",), command=("eval", "random:tiny")),
    "empty prompt": Case(("prompt is empty",), command=("sample", "random:tiny", "")),
    "impossible sampling": Case(("top_p", "2.0"), command=("sample", "random:tiny", "hi", "--top-p", "2")),
}


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """The plugins of the cases all register a reward of one name."""
    monkeypatch.setattr(registry, "ENTRIES", {kind: dict(entries) for kind, entries in registry.ENTRIES.items()})


def run(*command: str) -> Any:
    return CliRunner().invoke(app, list(command), env={"HF_HUB_OFFLINE": "1"})


def complaint(result: Any) -> str:
    """The one line on stderr, checked for its form."""
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("error: ")


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_paragraph_with_the_mend(name, tmp_path, monkeypatch):
    case = CASES[name]
    monkeypatch.chdir(tmp_path)
    files = {"recipe.yaml": case.recipe, **case.files} | ({"rows.jsonl": case.rows} if case.rows is not None else {})
    for path, text in files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    said = complaint(run(*case.command))
    assert [part for part in case.says if part not in said] == [], said
    assert len(said) < 600


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A run of one step that lost its result: resuming it reads the checkpoint."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(SFT.replace("steps: 1", "steps: 1, checkpoint_every: 1"))
    Path("rows.jsonl").write_text(CHAT)
    assert run("train", "recipe.yaml").exit_code == 0
    [final] = Path("runs").glob("*/sft/final")
    final.rename("final")
    return final.parent


def test_a_run_without_its_result_goes_on_from_the_checkpoint(finished):
    assert run("train", "--resume", "last").exit_code == 0
    assert (finished / "final" / "model.safetensors").read_bytes() == Path("final/model.safetensors").read_bytes()


def test_a_damaged_checkpoint_is_named(finished):
    [file] = finished.glob("checkpoints/*/engine.pt")
    file.write_bytes(file.read_bytes()[:1000])
    said = complaint(run("train", "--resume", "last"))
    assert "engine.pt: the checkpoint is damaged" in said
    assert "Remove the folder" in said


def test_a_run_goes_on_with_the_options_it_began_with(finished):
    said = complaint(run("train", "--resume", "last", "stages.sft.batch_size=2"))
    assert "stages.sft.batch_size: 1 -> 2 is another recipe than runs/" in said and "without --resume" in said


def test_a_run_goes_on_with_the_rows_it_began_with(finished):
    Path("rows.jsonl").write_text(CHAT.replace("2+2", "1+3"))
    assert "belongs to other options or other data" in complaint(run("train", "--resume", "last"))


def test_a_model_that_was_cut_off_is_named(finished):
    file = Path("final/model.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    said = complaint(run("sample", "./final", "hi"))
    assert "model 'final' cannot be loaded" in said


def test_a_mistake_leaves_no_run_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(SFT)
    complaint(run("train", "recipe.yaml"))
    assert not Path("runs").exists()
