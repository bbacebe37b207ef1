"""`aurify ingest`, as typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("lancedb")
pytest.importorskip("lxml")
sys.path.insert(0, str(Path(__file__).parent))
from words import WordEmbedder

from aurify.cli.main import app
from aurify.errors import UserError
from aurify.knowledge import embedding
from aurify.knowledge import knowledge_base as knowledge
from aurify.knowledge.knowledge_base import KnowledgeBase

HEART = {"id": "h", "focus": "Heart", "answer": "It pumps blood.", "question": "What does the heart do?", "year": 2020}


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """What the command answers; notes/ holds two documents and a picture."""

    def load(name):
        if name == "broken":
            raise UserError("embedder 'broken' cannot be loaded")
        words = WordEmbedder()
        words.name = name
        return words

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedding, "load_embedder", load)
    monkeypatch.setattr(knowledge, "load_embedder", load)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "heart.md").write_text("# Heart\n\nIt has four chambers.")
    (tmp_path / "notes" / "lung.txt").write_text("It breathes.")
    (tmp_path / "notes" / "[bold]picture.png").write_bytes(b"\x89PNG\0\0")

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, ["ingest", *arguments], env={"COLUMNS": "200"})
        assert result.exit_code == code, result.output
        return result.output

    return run


def test_a_folder_and_what_is_told_of_it(typed):
    output = typed("notes", "--kb", "mine")
    assert "kb/mine: 2 new, 0 changed, 0 unchanged, 0 removed" in output
    assert "2 new passages, 7 tokens" in output and "documents/s" in output
    assert "refused: 1 x binary file (the first: [bold]picture.png)" in output
    assert "0 new, 0 changed, 2 unchanged, 0 removed" in typed("./notes/", "--kb", "./kb/mine")
    Path("notes/lung.txt").unlink()
    assert "0 new, 0 changed, 1 unchanged, 1 removed" in typed("notes", "--kb", "mine", "--prune")


def test_facts_for_programs(typed):
    facts = json.loads(typed("notes", "--kb", "mine", "--json", "--exclude", "*.md", "--max-mb", "1").splitlines()[-1])
    assert facts.pop("seconds") >= 0 and facts == {
        "documents": 1,
        "new": 1,
        "changed": 0,
        "unchanged": 0,
        "removed": 0,
        "renamed": 0,
        "empty": 0,
        "passages": 1,
        "tokens": 2,
        "refused": {"binary file": 1},
        "left_out": {"file that --exclude names": 1},
        "not_removed_because": "",
    }


def test_rows_with_named_columns(typed):
    Path("rows.jsonl").write_text(json.dumps(HEART) + "\n")
    typed("rows.jsonl", "--kb", "mine", "--text", "answer", "--title", "focus", "--metadata", "year, id")
    (hit,) = KnowledgeBase.open("kb/mine").search("blood", mode="bm25")
    assert (hit.chunk.document, hit.chunk.title, hit.chunk.text) == ("h", "Heart", "It pumps blood.")
    assert hit.metadata == {"year": 2020, "id": "h"}
    assert not KnowledgeBase.open("kb/mine").search("what does", mode="bm25")  # the question is not indexed
    output = typed("rows.jsonl", "--kb", "other", "--text", "body", code=2)
    assert "name the column with --text" in output and "'answer'" in output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nowhere", "--kb", "mine"), "nowhere: there is no such file or folder"),
        (("notes", "--kb", "mine", "--include", "*.pdf"), "notes: there is no document in it"),
        (("notes", "--kb", "mine", "--include", "*.png"), "nothing in it could be read: 1 x binary file"),
        (("notes", "--kb", "mine", "--max-mb", "0"), "max_bytes: 0"),
        (("notes", "--kb", "mine", "--depth", "-1"), "depth: -1"),
        (("notes", "--kb", "mine", "--max-tokens", "0"), "max_tokens: 0"),
        (("http://127.0.0.1:9/", "--kb", "mine"), "address that is not public (--allow-private reads it)"),
    ],
)
def test_mistakes_are_one_paragraph(typed, arguments, told):
    output = typed(*arguments, code=2)
    assert told in output and "Traceback" not in output


def test_an_embedder_that_does_not_load_leaves_nothing_behind(typed):
    assert "cannot be loaded" in typed("notes", "--kb", "mine", "--embedder", "broken", code=2)
    typed("notes", "--kb", "mine", "--embedder", "words")
    assert "was made with --embedder words, which cannot become other" in typed(
        "notes", "--kb", "mine", "--embedder", "other", code=2
    )
    assert "--max-tokens 256" in typed("notes", "--kb", "mine", "--max-tokens", "100", code=2)


def test_stopping_says_how_to_go_on(typed, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(WordEmbedder, "embed_documents", stop)
    output = typed("notes", "--kb", "mine", code=130)
    assert "what was stored stays; the same command goes on from there" in output
