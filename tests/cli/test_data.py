"""`aurify data inspect`: what it says about files of every form, and recipes that train on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aurify.cli.main import app
from aurify.data.forms import detect_row_form
from aurify.rows.sources import load_rows

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"
RECIPE = """
name: mixed
model: random:tiny
stages:
  {method}: {{method: {method}, data: {data}, steps: 2, batch_size: 4{more}}}
"""


def inspect(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["data", "inspect", *arguments, "--model", "random:tiny"])


def train(method: str, data: str, more: str = "") -> tuple[Any, str]:
    """The result, and the event log."""
    Path("recipe.yaml").write_text(RECIPE.format(method=method, data=data, more=more))
    result = CliRunner().invoke(app, ["train", "recipe.yaml"], env={"HF_HUB_OFFLINE": "1"})
    return result, "".join(path.read_text() for path in Path("runs").glob(f"*/{method}/events.log"))


@pytest.mark.parametrize("file", sorted(path.name for path in FIXTURES.iterdir()))
def test_every_form_is_named_and_shown(file):
    result = inspect(str(FIXTURES / file))
    assert result.exit_code == 0, result.output
    rows = load_rows(FIXTURES / file)
    assert f"recognised as {detect_row_form(rows).form.name!r}" in result.output
    assert "[[" in result.output and "tokens of a sequence: shortest" in result.output
    assert "rejected: 0" in result.output


def test_it_tells_what_is_trained_cut_and_rejected(tmp_path):
    path = tmp_path / "rows"
    good = [{"question": f"number {n}?", "answer": f"it is {n}" + "!" * 10 * n} for n in range(6)]
    lines = [json.dumps(row) for row in good] + ['{"question": "x"}', "{broken", "7"]
    path.write_text("\n".join(lines))
    result = inspect(str(path), "--max-length", "60")
    assert result.exit_code == 0, result.output
    for part in (
        "9 rows",
        "'prompt and answer' (columns question, answer)",
        "6 usable",
        "[[it is 0",
        "1 x no column 'answer'",
        f"{path}:7: no column 'answer'",
        "1 x not JSON",
        "1 x a row is a JSON object; this is int",
        "rejected: 3",
        "overlong: drop: 0 cut,",
    ):
        assert part in result.output or part.replace("[[it", "[[ it") in result.output, (part, result.output)


def test_each_finding_names_the_first_row_and_what_mends_all_of_them(tmp_path):
    pair = {"prompt": "Name a prime.", "chosen": "Seven.", "rejected": "Eight."}
    rows = [
        pair,
        {**pair, "chosen": "Name a prime. Seven.", "rejected": "Name a prime. Eight."},
        {**pair, "chosen": "Seven.<|im_end|>"},
        {**pair, "prompt": "What is <|im_start|> in a template?"},
        {**pair, "chosen": "Seven \ud83d"},
        {**pair, "images": ["a.png"]},
        {"prompt": "Name a prime.", "chosen": "Seven."},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = inspect(str(path))
    assert result.exit_code == 0, result.output
    for part in (
        "7 rows", "4 usable", "(columns prompt, chosen, rejected)", "changed: 2", "noted: 1", "rejected: 3",
        "the prompt stood at the beginning of both answers too", f"the first: {path}:2",
        "an end token after an answer", f"the first: {path}:3",
        "control tokens of the model in a text", f"the first: {path}:4",
        f"{path}:5: column 'chosen' holds half of a character",
        "for all of them: data.on_bad_row: skip leaves such rows out and counts them",
        f"{path}:6: column 'images'", "for all of them: maps: [{name: drop, columns: [images]}] trains the text alone",
        f"{path}:7: no column 'rejected'", "for all of them: maps: [{name: rename, columns: {OLD: rejected}}]",
    ):  # fmt: skip
        assert part in result.output, (part, result.output)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        ("{}\n", "no known form of data"),
        ("{broken\n", "no row can be read"),
    ],
)
def test_mistakes(content, says, tmp_path):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_text(content)
    result = inspect(str(path))
    assert result.exit_code == 2 and says in result.stderr and "Traceback" not in result.output


def test_a_recipe_mixes_files_of_different_forms(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts = [f"{{path: {FIXTURES / name}, weight: {w}}}" for name, w in (("sharegpt.jsonl", 3), ("alpaca.jsonl", 1))]
    result, events = train("sft", f"{{mix: [{', '.join(parts)}], mix_stop: cycle}}")
    assert result.exit_code == 0, result.output
    assert "recognised as 'sharegpt'" in events and "recognised as 'alpaca'" in events


def test_a_recipe_skips_and_counts_bad_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"instruction": f"say {n}", "output": str(n)}) for n in range(8)]
    Path("rows.jsonl").write_text("\n".join([*rows, "{broken", '{"instruction": "x", "output": ""}']))
    result, _ = train("sft", "{path: rows.jsonl}")
    assert result.exit_code == 2 and "rows.jsonl:9: not JSON" in result.stderr
    result, events = train("sft", "{path: rows.jsonl, on_bad_row: skip}")
    assert result.exit_code == 0, result.output
    assert "1 row rejected: not JSON" in events and "1 row rejected: column 'output' is empty" in events


@pytest.mark.parametrize(("method", "file"), [("dpo", "hh_rlhf.jsonl"), ("kto", "trl_kto.jsonl")])
def test_recipes_of_preferences(method, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result, _ = train(method, f"{{path: {FIXTURES / file}}}")
    assert result.exit_code == 0, result.output
