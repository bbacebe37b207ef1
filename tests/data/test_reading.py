"""Sources as a recipe names them: patterns, folders, data sets of the hub, filters and maps."""

from __future__ import annotations

import json

import pytest

from aurify import registry
from aurify.data.sources import Part, check_data_source, read_data_source
from aurify.errors import UserError
from aurify.rows import sources
from aurify.rows.row import Tally
from aurify.rows.sources import is_hub_rows_id, load_hub_rows


@pytest.fixture
def folder(tmp_path):
    for name, numbers in (("train-0.jsonl", (0, 1)), ("train-1.jsonl", (2, 3)), ("test.jsonl", (4,))):
        (tmp_path / name).write_text("".join(json.dumps({"prompt": "q", "completion": n}) + "\n" for n in numbers))
    return tmp_path


def numbers(part: Part) -> list[int]:
    return [row["completion"] for row in read_data_source(part, Tally())]


def test_patterns_folders_and_splits(folder):
    assert numbers(Part(path=f"{folder}/train-*.jsonl")) == [0, 1, 2, 3]
    assert numbers(Part(path=str(folder))) == [0, 1, 2, 3]
    assert numbers(Part(path=str(folder), split="test")) == [4]
    assert numbers(Part(path=str(folder), max_rows=3)) == [0, 1, 2]
    with pytest.raises(UserError, match="no file matches the pattern"):
        numbers(Part(path=f"{folder}/dev-*.jsonl"))


def test_streaming_reads_no_further_than_it_must(folder):
    (folder / "train-1.jsonl").write_text("{broken\n")
    assert numbers(Part(path=f"{folder}/train-*.jsonl", max_rows=2)) == [0, 1]
    with pytest.raises(UserError, match=r"train-1.jsonl:1: not JSON"):
        numbers(Part(path=f"{folder}/train-*.jsonl", max_rows=3))


def test_a_data_set_through_the_hubs_own_client(folder, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    rows = load_hub_rows(str(folder), None, "train")
    assert [row["completion"] for row in rows] == [0, 1, 2, 3] and "row 3" in rows[3].location


def test_a_hub_that_does_not_answer_is_told_at_once_and_in_one_line(monkeypatch, capfd):
    """Its own client asked for half a minute, with a line for each attempt."""
    pytest.importorskip("datasets")
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(sources, "hub_answers", lambda: False)
    monkeypatch.setattr(huggingface_hub.utils._http, "get_session", lambda: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match=r"'nobody/nothing': the hub does not answer, .*; give a JSONL"):
        load_hub_rows("nobody/nothing", None, "train")
    assert capfd.readouterr() == ("", "")


def test_what_is_a_hub_id(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert is_hub_rows_id("openai/gsm8k") and is_hub_rows_id("trl-lib/Capybara")
    (folder / "data").mkdir()
    for path in ("rows", "rows.jsonl", "data/rows", "other/rows.jsonl", "./a/b", "a/b/c", "data/*"):
        assert not is_hub_rows_id(path)


def test_filters_and_maps(folder, monkeypatch):
    monkeypatch.setattr(registry, "ENTRIES", {kind: dict(entries) for kind, entries in registry.ENTRIES.items()})

    @registry.register("dataset")
    def doubled(row, times: int = 2):
        return {**row, "completion": row["completion"] * times}

    part = Part(
        path=str(folder),
        maps=["doubled", {"name": "rename", "columns": {"prompt": "question"}}],
        filters=[{"name": "at_least", "column": "completion", "least": 3}],
    )
    tally = Tally()
    rows = read_data_source(part, tally)
    assert rows == [{"question": "q", "completion": 4}, {"question": "q", "completion": 6}]
    assert rows[0].location.endswith("train-1.jsonl:1")
    assert tally.filtered == {"at_least": 2}
    with pytest.raises(UserError, match="no option 'lest'; did you mean 'least'"):
        check_data_source(Part(path="x", filters=[{"name": "at_least", "column": "completion", "lest": 3}]))
    with pytest.raises(UserError, match=r"no column 'score', which a filter or map asks for"):
        read_data_source(Part(path=str(folder), filters=[{"name": "at_least", "column": "score", "least": 3}]), Tally())
    with pytest.raises(UserError, match=r"no row is left to train on \(4 rows left out by the filter: equals\)"):
        read_data_source(
            Part(path=str(folder), filters=[{"name": "equals", "column": "prompt", "value": "z"}]), Tally()
        )


def test_margins_from_scores(tmp_path):
    path = tmp_path / "x"
    path.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 9, "score_rejected": 2}))
    [row] = read_data_source(Part(path=str(path), maps=[{"name": "margin_from_scores", "scale": 0.5}]), Tally())
    assert row["margin"] == 3.5
