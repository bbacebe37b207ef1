"""`aurify search`, as typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aurify.cli.main import app
from aurify.cli.search import parse_where_flags
from aurify.errors import UserError
from aurify.knowledge import knowledge_base as knowledge
from aurify.knowledge.knowledge_base import KnowledgeBase

sys.path.insert(0, str(Path(__file__).parent))
from words import WordEmbedder, some_documents


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """What the command answers; the base is kb/notes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(knowledge, "load_embedder", lambda name: WordEmbedder())
    KnowledgeBase.create("kb/notes", WordEmbedder()).add(some_documents(12))

    def run(*arguments):
        result = CliRunner().invoke(app, ["search", *arguments], env={"COLUMNS": "120"})
        return result.exit_code, result.output

    return run


def test_hits_are_shown_with_their_place_and_text(typed):
    code, output = typed("word1 word2", "--kb", "notes", "-n", "3")
    assert code == 0 and [line[:2] for line in output.splitlines() if ". folder/" in line] == ["1.", "2.", "3."]
    assert "Number " in output and "word1" in output and "dense (rank)" not in output


def test_explain_shows_every_stage(typed):
    code, output = typed("word1 word2", "--kb", "./kb/notes", "--explain")
    assert code == 0 and all(f"{stage} (rank)" in output for stage in ("dense", "bm25", "fused"))
    assert "embed " in output and " ms" in output
    assert "bm25 (rank)" not in typed("word1", "--kb", "notes", "--explain", "--mode", "dense")[1]


def test_lines_for_programs_and_conditions(typed):
    code, output = typed("word1", "--kb", "notes", "--json", "--where", "parity=odd", "--where", "number<6")
    hits = [json.loads(line) for line in output.splitlines()]
    assert code == 0 and {hit["metadata"]["number"] for hit in hits} == {1, 3, 5}
    assert hits[0]["scores"].keys() >= {"dense", "fused"} and hits[0]["text"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("x", "--kb", "note"), "there is no knowledge base at kb/note"),
        (("x", "--kb", "notes", "--mode", "word"), "mode is 'word'; expected one of dense, bm25, hybrid"),
        (("x", "--kb", "notes", "--where", "odd"), "--where 'odd': expected KEY=VALUE"),
        (("x", "--kb", "notes", "-n", "0"), "limit is 0"),
        (("", "--kb", "notes"), "the question is empty"),
        ((" ", "--kb", "notes"), "the question is empty"),
        (("x", "--kb", "notes", "--rerank", "magic"), "reranker 'magic'"),
    ],
)
def test_mistakes_end_in_one_paragraph(typed, arguments, told):
    code, output = typed(*arguments)
    assert code == 2 and told in " ".join(output.split())


def test_nothing_found_is_said(typed):
    assert "nothing found among" in typed("zzz", "--kb", "notes", "--mode", "bm25")[1]
    KnowledgeBase.create("kb/new", WordEmbedder())
    assert "the knowledge base is empty" in typed("x", "--kb", "new")[1]


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("format=text", "no metadata is called 'format'; did you mean 'document.format'? It is text ("),
        ("kind=code", "did you mean 'chunk.kind'? It is prose ("),
        ("parity=none", "parity is even ("),
        ("parity=none", "odd ("),
        ("number>100", "and 2 more"),
        ("pairity=odd", "no metadata is called 'pairity'; did you mean 'parity'?"),
        ("zzz=1", "known: chunk.kind, document.format, document.id, document.source, number, parity"),
    ],
)
def test_a_condition_that_matches_nothing_names_what_could_match(typed, where, told):
    code, output = typed("word1", "--kb", "notes", "--where", where, "--where", "document.source=folder")
    assert code == 0 and "nothing found among" in output
    assert told in " ".join(output.split()) and "document.source is" not in output


def test_lines_for_programs_stay_lines_where_nothing_is_found(typed):
    code, output = typed("word1", "--kb", "notes", "--where", "parity=none", "--json")
    assert code == 0 and not [line for line in output.splitlines() if line.startswith("{")]


def test_conditions_from_the_command_line():
    assert parse_where_flags(["a=1", "a=x", "b>=2.5", "b<4", "c=true", "d != e=f"]) == {
        "a": [1, "x"],
        "b": {">=": 2.5, "<": 4},
        "c": [True],
        "d": {"!=": "e=f"},
    }
    for wrong in (["a=1", "a>2"], ["a>1", "a>2"], ["=1"]):
        with pytest.raises(UserError, match="--where"):
            parse_where_flags(wrong)
