"""`aurify sample`, `chat` and `eval` write prompts as the stage did that trained the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers_in_code as made
import yaml
from typer.testing import CliRunner

from aurify.cli.main import app
from aurify.cli.names import NamedModel, resolve_model_argument
from aurify.cli.writer import open_writer
from aurify.models.model import tiny_model
from aurify.renderer import Renderer

TOOLS = [{"type": "function", "function": {"name": "search", "description": "Finds.", "parameters": {}}}]
CHAT = [{"role": "user", "content": "hi"}]
RECIPE = {
    "model": "random:tiny",
    "template_options": {"enable_thinking": False},
    "task": "largest_number",
    "stages": {
        "plain": {"method": "grpo", "template_options": {}},
        "tools": {"method": "grpo", "tools_as_text": True},
    },
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two stages whose models read a template with thoughts."""
    loaded = tiny_model()
    loaded.tokenizer.chat_template = made.family("qwen3").chat_template
    monkeypatch.setattr("aurify.models.model.load_model", lambda config: loaded)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "results.json").write_text('{"plain": {}, "tools": {}}')
    for stage in ("plain", "tools"):
        (tmp_path / stage / "final").mkdir(parents=True)
    return tmp_path


def test_tools_and_the_variables_of_the_template_are_those_of_the_stage(run):
    prompts = {}
    for stage in ("plain", "tools"):
        with open_writer(resolve_model_argument(f"{run}:{stage}")) as writer:
            tokens = writer.renderer.prompt(CHAT)
            prompts[stage] = writer.renderer.tokenizer.decode(tokens)
            assert writer.renderer.tools_as_text == (stage == "tools")
    assert "<think>" not in prompts["plain"], "the stage says otherwise than the recipe"
    assert "<think>\n\n</think>" in prompts["tools"], "thinking is off, so the opening closes the thought"


def test_a_model_that_is_of_no_run_has_no_options():
    with open_writer(NamedModel("random:tiny")) as writer:
        assert not writer.renderer.tools_as_text


@pytest.mark.parametrize(
    "arguments",
    [["sample", "MODEL", "hi", "--max-tokens", "2"], ["eval", "MODEL", "--num-tasks", "1"], ["chat", "MODEL"]],
)
def test_every_command_that_writes_takes_them(run, monkeypatch, arguments):
    seen = []
    plain = Renderer.prompt

    def prompt(self, messages, tools=()):
        seen.append((self.tools_as_text, self.template.options))
        return plain(self, messages, tools)

    monkeypatch.setattr(Renderer, "prompt", prompt)
    command = [f"{run}:tools" if word == "MODEL" else word for word in arguments]
    result = CliRunner().invoke(app, command, input="hi\n/quit\n")
    assert result.exit_code == 0, result.output
    assert seen and set(map(str, seen)) == {str((True, {"enable_thinking": False}))}


def test_a_model_is_not_loaded_in_silence():
    result = CliRunner().invoke(app, ["sample", "random:tiny", "hi", "--max-tokens", "2"])
    assert result.exit_code == 0 and "loading random:tiny ..." in result.stderr
