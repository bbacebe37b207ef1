"""`aurify train --dry-run` starts the environment for real, and shows or refuses what its messages become."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers_in_code as made
from typer.testing import CliRunner

from aurify import registry
from aurify.cli.main import app
from aurify.models.model import tiny_model

RECIPE = """
name: acting
model: random:tiny
plugins: [acting.py]
task: {name: largest_number, count: 2, maximum: 9, num_heldout: 4, environment: acting}
evaluation: {num_tasks: 0}
stages:
  grpo: {method: grpo, steps: 1, prompts_per_step: 1, completions_per_prompt: 2, sampling: {max_tokens: 4}}
"""
TOOLS = '[{"type": "function", "function": {"name": "search", "description": "Finds.", "parameters": {}}}]'
PLUGIN = """
import aurify

@aurify.environment("acting")
class Acting:
    opened = closed = 0

    def __init__(self, task: aurify.Task) -> None:
        self.task = task

    async def start(self):
        Acting.opened += 1
        return aurify.Observation(list(self.task.prompt), START)

    async def step(self, message):
        return STEP

    async def close(self):
        Acting.closed += 1
"""
RESULT = 'aurify.Step([{"role": "tool", "content": "it <|im_end|> rains"}])'
DONE = "aurify.Step(done=True)"
MEND = "tools_as_text: true"


@pytest.fixture
def dry_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "ENTRIES", {kind: dict(entries) for kind, entries in registry.ENTRIES.items()})

    def run(start, step, *overrides, template=None):
        (tmp_path / "acting.yaml").write_text(RECIPE)
        (tmp_path / "acting.py").write_text(PLUGIN.replace("START", start).replace("STEP", step))
        if template:
            model = tiny_model(vocab_size=600)
            model.tokenizer = made.family(template)
            monkeypatch.setattr("aurify.pipeline.contents.load_skeleton", lambda config, **_: model)
            monkeypatch.setattr("aurify.models.model.load_tokenizer", lambda name: model.tokenizer)
        result = CliRunner().invoke(app, ["train", "acting.yaml", "--dry-run", *overrides])
        assert not (tmp_path / "runs").exists()
        return result

    return run


def test_the_environment_is_started_and_its_replies_are_shown(dry_run):
    result = dry_run("()", RESULT)
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    assert shown.count("it <|im_end|> rains") == 3, "after each of three turns"
    assert shown.count("I do not know.<|im_end|>") == 3
    assert "the environment was started and played" in shown
    acting = registry.get("environment", "acting")
    assert acting.opened == acting.closed == 2, "once to look, once to play"


def refusal(result):
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result
    return " ".join(result.output.split())


def test_tools_that_the_template_ignores_are_refused_with_the_mend(dry_run):
    """random:tiny has no tools: they would vanish without a word."""
    message = refusal(dry_run(TOOLS, DONE))
    assert "stages.grpo: the model's chat template leaves out the tools of" in message and MEND in message


def test_with_the_mend_it_is_shown(dry_run):
    result = dry_run(TOOLS, RESULT, "tools_as_text=true")
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    assert '{"name": "search"' in shown and "<tool_response> it <|im_end|> rains </tool_response>" in shown
    assert "Note: tools, calls and results are written into the text (tools_as_text)" in shown


@pytest.mark.parametrize("family", ["gemma", "phi3", "deepseek"])
def test_each_family_without_tools_is_refused(dry_run, family):
    assert MEND in refusal(dry_run(TOOLS, RESULT, template=family))


@pytest.mark.parametrize("family", ["gemma", "phi3", "gpt-oss"])
def test_a_result_that_the_template_loses_is_refused_even_without_tools(dry_run, family):
    """Phi-3 dropped it, Gemma and gpt-oss raised in the middle of a run."""
    message = refusal(dry_run("()", RESULT, template=family))
    assert "stages.grpo: " in message and "(user, assistant, tool)" in message and MEND in message


def test_an_environment_that_ends_at_once_is_refused_for_the_results_that_its_tools_would_give(dry_run, monkeypatch):
    """Its first answer was none that calls a tool; later ones will."""
    source = (made.FOLDER / "phi3.jinja").read_text() + "{{ tools | tojson if tools else '' }}"
    tokenizer = made.family("phi3")
    tokenizer.chat_template = source
    monkeypatch.setattr(made, "family", lambda name: tokenizer)
    message = refusal(dry_run(TOOLS, DONE, template="phi3"))
    assert "loses the tool message after a sampled turn" in message and MEND in message


def test_dropped_thoughts_are_told(dry_run):
    result = dry_run("()", RESULT, "tools_as_text=true", template="qwen3")
    assert "drops the thoughts of earlier turns" in " ".join(result.stdout.split())


def test_folded_system_prompts_are_told(dry_run):
    result = dry_run(TOOLS, RESULT, "tools_as_text=true", template="gemma")
    assert "no place of its own for a system prompt" in " ".join(result.stdout.split())


def test_template_options_reach_the_template(dry_run):
    result = dry_run("()", RESULT, "template_options.enable_thinking=false", template="qwen3")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("<think>") == 4, "each of four openings closes its thought"
    result = dry_run("()", RESULT, template="qwen3")
    assert "<think>" not in result.stdout


def test_template_options_that_no_template_reads_are_refused(dry_run):
    message = refusal(dry_run("()", RESULT, "template_options.enable_thinkng=false", template="qwen3"))
    assert "stages.grpo: template_options: the chat template reads no 'enable_thinkng'" in message


def test_an_environment_that_cannot_start_is_named(dry_run):
    message = refusal(dry_run("1 / 0", DONE))
    assert "stages.grpo: environment 'Acting' raised ZeroDivisionError" in message and "acting.py:" in message


SLOW = "__import__('time').sleep(8)"


@pytest.mark.parametrize(
    ("start", "step", "call"), [(f"({SLOW}, ())[1]", DONE, "start()"), ("()", f"({SLOW}, {DONE})[1]", "step()")]
)
def test_an_environment_that_does_not_answer_is_given_up(dry_run, start, step, call):
    began = time.monotonic()
    message = refusal(dry_run(start, step, "rollouts.step_seconds=0.2"))
    assert f"stages.grpo: environment 'Acting': {call} took longer than 0.2 seconds" in message
    assert time.monotonic() - began < 8, "before it would have answered"


GUIDED = """
model: random:tiny
task: {name: gsm8k, path: facts.jsonl, num_heldout: 1}
evaluation: {num_tasks: 0}
stages:
  first: {method: sft, data: {demonstrations: 4}}
  luffy: {method: luffy, steps: 1, prompts_per_step: 1, completions_per_prompt: 2, guidance: {path: traces.jsonl}}
"""


@pytest.mark.parametrize("dry", [True, False])
def test_traces_are_read_before_the_first_stage(tmp_path, monkeypatch, dry):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aurify.pipeline.contents.TRIED_TRACES", 3)
    facts = [{"question": f"what is {k}?", "answer": f"#### {k}"} for k in range(9)]
    Path("facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    Path("guided.yaml").write_text(GUIDED)
    command = ["train", "guided.yaml", *(["--dry-run"] if dry else [])]

    def train(wrong: int) -> Any:
        rows = [{"prompt": f"{k}?", "trace": str(k + (k < wrong)), "answer": str(k)} for k in range(9)]
        Path("traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        result = CliRunner().invoke(app, command)
        return result.exit_code, " ".join(result.output.split())

    if not dry:
        code, said = train(wrong=9)
        assert code == 2 and "stages.luffy: traces.jsonl: 0 traces for 0 questions; refused: 9 judged wrong" in said
        assert not Path("runs").exists()
        return
    code, said = train(wrong=1)
    assert code == 0, said
    refused = "refused: 1 judged wrong (first: traces.jsonl:1); the first 3 were judged"
    assert f"traces.jsonl: 8 traces for 8 questions; {refused}" in said
