"""examples/memory.py from its first line to its last, with an embedder that needs no model."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "knowledge"))
from words import WordEmbedder

pytest.importorskip("lancedb")
EXAMPLE = Path(__file__).parents[2] / "examples" / "memory.py"


def test_it_builds_searches_explains_and_puts_a_procedure_into_a_prompt(monkeypatch, capsys):
    monkeypatch.setattr("aurify.knowledge.knowledge_base.load_embedder", lambda name: WordEmbedder())
    runpy.run_path(str(EXAMPLE))
    printed = capsys.readouterr().out
    assert "rewards.md, line" in printed
    assert "dense 0." in printed and "(rank 1)" in printed
    assert "You are a friendly clerk.\n\n" in printed and "## Procedure: refund" in printed


def test_it_keeps_to_twenty_lines():
    code = EXAMPLE.read_text().rpartition('"""')[2].splitlines()
    assert len([line for line in code if line.strip() and not line.startswith(("import", "from"))]) <= 20
