"""The commands of docs/export.md on a small run: folders, model cards, pushes to a hub on this machine, refusals."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from small_recipe import RECIPE
from typer.testing import CliRunner

from aurify.cli.main import app
from aurify.config import load_config

ROOT = Path(__file__).parents[2]
SCORER = "  scorer: {method: reward_model, data: {path: pairs.jsonl}, steps: 1, batch_size: 2}\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    (folder / "small.yaml").write_text(RECIPE + SCORER)
    pairs = [{"prompt": f"{n} or 1?", "chosen": str(n), "rejected": "1"} for n in range(2, 9)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        output("train", "small.yaml")
    return folder


@pytest.fixture(autouse=True)
def inside(finished, monkeypatch):
    monkeypatch.chdir(finished)


@pytest.fixture
def hub(monkeypatch):
    from fake_hub import Hub
    from huggingface_hub import constants

    server = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    yield server
    server.shutdown()
    server.server_close()


def output(*command: str) -> str:
    result = CliRunner().invoke(app, list(command))
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def refusal(*command: str) -> str:
    result = CliRunner().invoke(app, list(command))
    assert result.exit_code == 2, (result.output, result.exception)
    return " ".join(result.output.split())


def last_run() -> Path:
    return sorted(Path("runs").iterdir())[-1]


def test_a_run_is_exported_as_a_plain_folder_with_a_card(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = output("export", "folder", "last", str(tmp_path / "out"))
    assert re.search(r"safetensors: log-probs differ by .* nats", text) and f"exported to {tmp_path / 'out'}" in text
    module = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")("1 or 2?", return_tensors="pt").input_ids
    assert torch.isfinite(module(tokens).logits).all()

    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "transformers" and front["tags"] == ["aurify"]
    assert re.search(r"\| grpo \| grpo \| number_match \| \d\.\d{3}.* \| \d\.\d{3}.* \| 4 \|", card)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1])
    assert load_config(recipe) == load_config(last_run() / "recipe.yaml"), "the card is enough to run it again"
    assert "aurify train recipe.yaml" in card and "demonstrations: 16" in card and "torch 2" in card


def test_the_place_is_chosen_by_the_name_of_the_run():
    output("export", "folder", "last:sft", "--max-shard-size", "100KB")
    folder = Path("exports") / f"{last_run().name}-sft-folder"
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert "is there already; name a new folder" in refusal("export", "folder", "last:sft")


def test_merge_compares_as_well(tmp_path):
    text = output("merge", str(last_run() / "grpo" / "final"), str(tmp_path / "merged"))
    assert "log-probs differ by" in text and (tmp_path / "merged" / "model.safetensors").is_file()
    assert not (tmp_path / "merged" / "README.md").exists()
    assert "is no adapter folder" in refusal("merge", str(last_run() / "sft" / "final"), str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["foldr", "last"], "there is no format 'foldr'; did you mean 'folder'"),
        (["folder", "last", "--type", "q8_0"], "--type: the format folder does not read it; leave it out"),
        (["gguf", "last", "--system", "x"], "--system: the format gguf does not read it; leave it out"),
        (["gguf", "last", "--type", ","], "--type ',': give at least one, such as q8_0"),
        (["gguf", "last", "--type", "q3"], "--type q3: known are f32, f16, bf16, q8_0, q4_k_m"),
        (["ollama", "last", "--type", "f32,q8_0"], "--type 'f32,q8_0': give one type, such as q8_0"),
        (["ollama", "last", "--parameter", "heat"], "--parameter heat: write NAME=VALUE, such as temperature=0.7"),
        (["adapter", "last:sft"], "has no adapter, its weights are whole; `aurify export folder"),
        (["folder", "last:scorer"], "is a reward model: it scores answers and cannot write any"),
        (["folder", "last", "--push", "nobody"], "'nobody' names no owner: write OWNER/nobody"),
        (["folder", "last", "--push", "a b/c"], "'a b/c' is no name of a hub: write OWNER/NAME"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(command, said, tmp_path):
    before = sorted(Path("exports").rglob("*"))
    assert said in refusal("export", *command)
    assert sorted(Path("exports").rglob("*")) == before


def test_a_push_shows_what_it_would_send_and_sends_nothing(tmp_path, hub):
    text = output("export", "folder", "last:sft", str(tmp_path / "out"), "--push", "someone/tiny")
    assert f"{hub.address}/someone/tiny, private if it is new" in text
    for file in (tmp_path / "out").iterdir():
        assert re.search(rf"{re.escape(file.name)} +{file.stat().st_size:,}", text)
    assert f"nothing was sent; this sends it: aurify push {tmp_path / 'out'} someone/tiny --yes" in text
    assert hub.requests == []


def test_a_push_with_yes_sends_each_file(tmp_path, hub):
    output("export", "folder", "last:sft", str(tmp_path / "out"))
    text = output("push", str(tmp_path / "out"), "someone/tiny", "--yes")
    assert f"pushed: {hub.address}/someone/tiny/commit/abc" in text
    [created] = hub.created
    assert (created["name"], created["organization"], created.get("visibility", created.get("private"))) in [
        ("tiny", "someone", "private"),
        ("tiny", "someone", True),
    ]
    assert hub.files == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}


def test_a_push_that_the_hub_refuses_is_told(tmp_path, hub):
    output("export", "folder", "last:sft", str(tmp_path / "out"))
    hub.refuses = True
    said = refusal("push", str(tmp_path / "out"), "someone/tiny", "--yes")
    assert "someone/tiny was not pushed:" in said and "You have no right to do this" in said
    assert "is no exported folder: it has no README.md" in refusal("push", str(last_run()), "someone/tiny")


def test_the_commands_of_the_page_are_read(monkeypatch):
    """Each line of docs/export.md that begins with aurify has options and formats that there are."""
    seen: list[str] = []

    def export_model(format, origin, folder, **options):
        seen.append(format)
        return {}

    monkeypatch.setattr("aurify.export.export.export_model", export_model)
    monkeypatch.setattr("aurify.export.push.describe_push", lambda folder, repo, public: seen.append("push") or [])
    monkeypatch.setattr("aurify.export.push.push_export", lambda folder, repo, public: "there")
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    commands = re.findall(r"^aurify ((?:export|push) .*)$", text, re.MULTILINE)
    for command in commands:
        output(*shlex.split(command, comments=True))
    assert {*seen} == {"folder", "adapter", "gguf", "ollama", "push"} and len(commands) >= 6
