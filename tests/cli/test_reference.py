"""Every key of a recipe is explained, in docs/reference.md and by `aurify help`; `aurify list` has every name."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from click import unstyle
from typer.testing import CliRunner

from aurify import registry
from aurify.cli.list import REGISTERED, print_columns
from aurify.cli.main import app
from aurify.cli.reference import explain_entry, explain_entry_briefly, list_recipe_keys, read_option_comments
from aurify.config import load_config, read_field_hints
from aurify.pipeline.recipe import OfflineStage, OnlineStage, Recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
INHERITED = ("model", "task", "lora", "engine", "sampler", "rollouts", "limits", "tools_as_text", "template_options")


def invoke(*command: str):
    return CliRunner().invoke(app, list(command))


def keys_in(cls: type, prefix: str = "") -> Iterator[str]:
    """Found by another way than the code takes: every dataclass in every annotation, whatever stands around it."""
    for name, hint in read_field_hints(cls).items():
        yield prefix + name
        for inner in dataclasses_in(hint):
            many = "list" in str(hint)
            yield from keys_in(inner, f"{prefix}{name}." + ("N." if many else ""))


def dataclasses_in(hint: Any) -> list[type]:
    if dataclasses.is_dataclass(hint):
        return [hint]
    return [found for part in get_args(hint) for found in dataclasses_in(part)]


def recipe_keys() -> set[str]:
    top = {key for key in keys_in(Recipe) if not key.startswith("stages.")}
    stages = {key for cls in (OfflineStage, OnlineStage) for key in keys_in(cls)}
    return top | {f"stages.NAME.{key}" for key in stages if key.partition(".")[0] not in INHERITED}


def test_every_key_of_a_recipe_is_listed_and_explained():
    listed = [option for part in list_recipe_keys().values() for option in part]
    assert {option.key for option in listed} == recipe_keys() and len(recipe_keys()) > 120
    assert [option.key for option in listed if not option.text] == []
    assert [option.key for option in listed if f"| `{option.key}` |" not in PAGE] == []


def test_every_name_and_every_option_of_a_method_is_explained():
    for kind in registry.ENTRIES:
        for name in registry.list_registered(kind):
            if (kind, name) in registry.REGISTERED_AT:  # by the plugin of another test
                continue
            text, options = explain_entry(kind, name)
            assert text and f"### {name}\n" in PAGE, (kind, name)
            assert all(f"| `{option.key}` |" in PAGE for option in options)
            if kind == "algorithm":
                assert [option.key for option in options if not option.text] == [], name


def test_the_page_is_the_one_that_the_code_gives(monkeypatch):
    known = registry.REGISTERED_AT  # by plugins of other tests
    ours = {
        kind: {n: e for n, e in entries.items() if (kind, n) not in known} for kind, entries in registry.ENTRIES.items()
    }
    monkeypatch.setattr(registry, "ENTRIES", ours)
    spec = importlib.util.spec_from_file_location("reference_script", ROOT / "scripts" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.build_page() == PAGE, "run `python scripts/reference.py`"


def test_the_shipped_recipes_use_known_keys():
    """Guards the guard: a key that the recipes set is in the page."""
    values = load_config(ROOT / "recipes" / "quickstart.yaml")
    for stage in values["stages"].values():
        for key in stage:
            assert f"| `stages.NAME.{key}` |" in PAGE or f"| `{key}` |" in PAGE


@dataclasses.dataclass
class Commented:
    """For the test below."""

    plain: int = 1
    beside: int = 2  # stands beside
    # stands above,
    # in two lines
    above: int = 3
    text: str = "# no comment"  # but this is


def test_comments_are_read_from_beside_and_from_above():
    assert read_option_comments(Commented) == {
        "beside": "stands beside",
        "above": "stands above, in two lines",
        "text": "but this is",
    }


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("stages.mine.optim.lr", ["stages.NAME.optim.lr", "above 0; default 0.0001", "learning rate"]),
        ("lr", ["stages.NAME.optim.lr"]),
        ("stages.mine.lora.rank", ["lora.rank", "at least 1; default 16"]),
        ("lora", ["lora.rank", "lora.dropout", "lora.alpha"]),
        ("temperature", ["evaluation.sampling.temperature", "default 0.0", "stages.NAME.sampling.temperature"]),
        ("stages.rl.algorithm.kl_coef", ["weight of the KL", "grpo"]),
        ("jsonl", ["task jsonl", "prompt_column", "default 'answer'", "answer_column"]),
        ("grpo", ["algorithm grpo", "clip_high"]),
        ("single_turn", ["environment single_turn"]),
    ],
)
def test_help_explains_a_key_or_a_name(key, told):
    result = invoke("help", key)
    assert result.exit_code == 0, result.output
    assert [part for part in told if part not in result.stdout] == []


def test_help_of_nothing_suggests():
    result = invoke("help", "completions_per_promt")
    assert result.exit_code == 2 and "did you mean 'completions_per_prompt'" in result.stderr
    assert "docs/reference.md" in invoke("help", "qqqq").stderr


@pytest.mark.parametrize(("kind", "registered"), REGISTERED.items())
def test_list_has_every_name_with_a_sentence(kind, registered):
    lines = invoke("list", kind).stdout.splitlines()
    assert [line.split()[0] for line in lines] == registry.list_registered(registered)
    ours = [line for line in lines if (registered, line.split()[0]) not in registry.REGISTERED_AT]
    assert ours and all(len(line.split()) > 2 for line in ours)


def test_list_has_recipes_and_models_and_own_names(tmp_path, monkeypatch):
    assert "quickstart " in invoke("list", "recipes").stdout and "base/" not in invoke("list", "recipes").stdout
    assert "random:tiny" in invoke("list", "models").stdout
    assert invoke("list", "task").stdout == invoke("list", "tasks").stdout
    monkeypatch.setattr(registry, "ENTRIES", {kind: dict(entries) for kind, entries in registry.ENTRIES.items()})
    (tmp_path / "mine.py").write_text(
        'import aurify\n@aurify.reward\ndef mine(task, trajectory):\n    """Mine."""\n    return 1'
    )
    assert "mine " in invoke("list", "rewards", "--plugin", str(tmp_path / "mine.py")).stdout
    result = invoke("list", "recips")
    assert result.exit_code == 2 and "did you mean 'recipes'" in result.stderr


def test_a_misspelt_recipe_has_a_suggestion():
    result = invoke("train", "quikstart")
    assert result.exit_code == 2 and "no recipe 'quikstart'" in result.stderr
    assert "did you mean 'quickstart'?" in result.stderr


def test_list_and_help_without_a_word_say_what_can_be_asked():
    result = invoke("list")
    assert result.exit_code == 2 and "recipes, models, tasks" in result.stderr
    result = invoke("help")
    assert result.exit_code == 2 and "stages.sft.optim.lr" in result.stderr and "aurify --help" in result.stderr


@pytest.mark.parametrize(
    ("key", "told"),
    [("learning_rate", "here that is optim.lr"), ("stages.sft.learning_rate", "optim.lr"), ("train", "is a command")],
)
def test_help_knows_words_of_other_libraries_and_commands(key, told):
    result = invoke("help", key)
    assert result.exit_code == 2 and told in result.stderr


def test_help_of_a_stage_shows_the_keys_of_stages_alone():
    shown = invoke("help", "stages.mine").stdout
    assert "stages.NAME.optim.lr" in shown and "evaluation.num_tasks" not in shown


def test_what_is_listed_is_whole_sentences():
    """A description is cut where a sentence ends, and begins with words, not with the name of an option."""
    for registered in REGISTERED.values():
        for name in registry.list_registered(registered):
            if (registered, name) not in registry.REGISTERED_AT:
                text = explain_entry_briefly(registered, name)
                assert not re.match(r"\w+: |[\w, ]+: see ", text) and not text.endswith((",", " of", ":")), (name, text)
    for line in invoke("list", "recipes").stdout.splitlines():
        assert line.endswith((".", ")")), line


def test_on_a_terminal_long_descriptions_go_on_below_themselves(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    print_columns([("short", "word " * 30), ("a-longer-name", "text")])
    lines = unstyle(capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 60 and lines[1].startswith(" " * 15 + "word") and lines[-1] == "a-longer-name  text"
