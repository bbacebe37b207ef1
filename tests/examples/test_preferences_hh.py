"""The example on transcripts made in code, with the random model."""

from __future__ import annotations

import gzip
import importlib.util
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

from aurify.errors import UserError

FILE = Path(__file__).parents[2] / "examples" / "preferences_hh.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("preferences_hh", FILE)
    assert spec is not None and spec.loader is not None
    module = sys.modules["preferences_hh"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def transcripts(tmp_path) -> Path:
    """People prefer "aaaa" to "zzzz", whatever was asked."""
    path = tmp_path / "pairs.jsonl.gz"
    start = "\n\nHuman: number {}?\n\nAssistant: yes\n\nHuman: and?\n\nAssistant: "
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for k in range(60):
            pair = {"chosen": start.format(k) + "aaaa", "rejected": start.format(k) + "zzzz"}
            file.write(json.dumps(pair) + "\n")
    return path


def test_transcript(example):
    text = "\n\nHuman: one\n\ntwo: three\n\nAssistant:\n\nHuman: four\n\nAssistant: five "
    assert [(m["role"], m["content"]) for m in example.transcript(text)] == [
        ("user", "one\n\ntwo: three"),
        ("assistant", ""),
        ("user", "four"),
        ("assistant", "five"),
    ]


def test_rows_that_differ_before_the_last_answer_are_left_out(example, tmp_path):
    one, other = "\n\nHuman: a\n\nAssistant: b", "\n\nHuman: x\n\nAssistant: c"
    pairs = [(one, one[:-1] + "c"), (one, other), (one, one), (one, "\n\nHuman: a\n\nAssistant: ")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"chosen": c, "rejected": r}) + "\n" for c, r in pairs))
    assert example.rows_of(path) == [{"prompt": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"}]


def test_every_method_raises_the_margin_of_held_out_pairs(example, transcripts, capsys):
    options = ["--model", "random:tiny", "--steps", "6", "--pairs", "4", "--heldout", "8", "--lr", "5e-3"]
    results = example.main([str(transcripts), *options])
    assert list(results) == ["dpo", "ipo", "simpo", "orpo", "kto"]
    for name, (before, after) in results.items():
        assert len(before.per_token) == len(after.per_token) == 8
        assert statistics.fmean(after.per_token) > statistics.fmean(before.per_token) + 0.1, name
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[-5:]] == [f"| {name}" for name in results]


def test_too_few_short_pairs_are_an_error(example, transcripts):
    with pytest.raises(UserError, match="only 0 pairs have at most 10 tokens"):
        example.main([str(transcripts), "--model", "random:tiny", "--max-tokens", "10", "--methods", "dpo"])
