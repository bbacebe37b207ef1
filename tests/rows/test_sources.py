"""A file is opened once, whoever asks for its rows, and nobody can change what another reads."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from aurify.data.sources import Part, read_data_source
from aurify.errors import UserError
from aurify.pipeline.check import check_recipe
from aurify.pipeline.recipe import build_recipe
from aurify.rows import sources
from aurify.rows.row import BadRow, Tally
from aurify.rows.sources import forget_rows, load_hub_rows, load_rows, open_file_rows


@pytest.fixture
def opened(monkeypatch):
    """How often each file was opened, by its name."""
    counts: Counter[str] = Counter()
    real = io.open

    def counting(file: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, str | Path):
            counts[Path(file).name] += 1
        return real(file, *args, **kwargs)

    monkeypatch.setattr(io, "open", counting)
    forget_rows()
    return counts


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_recipe_of_three_stages_opens_a_file_once(tmp_path, opened):
    rows = [{"question": f"How many in {k}?", "answer": f"It is {k}.\n#### {k}"} for k in range(40)]
    path = write(tmp_path / "facts.jsonl", rows)
    task = {"name": "gsm8k", "path": path}
    stages = {
        "sft": {"method": "sft", "data": {"path": path}},
        "more": {"method": "sft", "data": {"path": path, "max_rows": 30}, "task": {**task, "num_heldout": 3}},
        "rl": {"method": "luffy", "guidance": {"path": path}},
    }
    recipe = build_recipe({"model": "random:tiny", "task": task, "stages": stages})
    opened.clear()
    plan = check_recipe(recipe)
    assert all(plan.stages[name].examples for name in ("sft", "more"))
    assert plan.stages["rl"].taskset is not None and len(list(open_file_rows(path))) == 40
    assert opened["facts.jsonl"] == 1


def test_a_zipped_file_is_opened_once(tmp_path, opened):
    (tmp_path / "rows.gz").write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 3))
    opened.clear()
    assert len(load_rows(tmp_path / "rows.gz")) == len(load_rows(str(tmp_path / "rows.gz"))) == 3
    assert opened["rows.gz"] == 1


def test_a_file_that_changed_is_read_again(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"prompt": "a"}])
    assert load_rows(path) == [{"prompt": "a"}]
    write(tmp_path / "rows.jsonl", [{"prompt": "another"}])
    assert load_rows(path) == [{"prompt": "another"}]


def test_no_reader_changes_what_another_reads(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"messages": [{"role": "user", "content": "a"}]}])
    [row] = load_rows(path)
    row["messages"][0]["content"] = "b"
    row.changes.append("changed")
    [again] = load_rows(path)
    assert again["messages"][0]["content"] == "a" and not again.changes and again.location == f"{path}:1"


def test_what_cannot_be_read_is_told_to_every_reader(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    noise = random.Random(0).randbytes(200_000).hex()
    path.write_bytes(gzip.compress(b'{"a": 1}\n{"b"\n{"a": "\xff"}\n' + f'{{"a": "{noise}"}}'.encode())[:-100_000])
    for _ in range(2):
        entries = iter(open_file_rows(path))
        assert next(entries) == {"a": 1} and isinstance(next(entries), BadRow)
        assert isinstance(error := next(entries), BadRow) and ":3: column 'a' holds bytes that are not" in str(error)
        with pytest.raises(UserError, match="the gzip file is damaged"):
            next(entries)


def test_readers_side_by_side_and_of_a_part(tmp_path, opened):
    path = write(tmp_path / "rows.jsonl", [{"n": k} for k in range(5)])
    opened.clear()
    first, second = iter(open_file_rows(path)), iter(open_file_rows(path))
    pairs = [(next(first)["n"], next(second)["n"]) for _ in range(3)]  # type: ignore[index, call-overload]
    assert pairs == [(0, 0), (1, 1), (2, 2)]
    [kept] = [kept for name, kept in sources.KEPT.items() if name == path]
    assert len(kept.known) == 3, "no further than somebody has asked"
    assert len(read_data_source(Part(path=path, max_rows=4), Tally())) == 4 and len(load_rows(path)) == 5
    assert opened["rows.jsonl"] == 1


def test_a_damaged_gzip_file_is_named(tmp_path):
    whole = gzip.compress(json.dumps({"prompt": "a" * 5000}).encode())
    for damaged in (whole[:-9], whole[:20] + b"\0" * 20 + whole[40:]):
        (tmp_path / "rows.gz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"rows.gz: the gzip file is damaged .* fetch it again"):
            load_rows(tmp_path / "rows.gz")


def test_numbers_that_are_too_long_for_python_are_no_traceback(tmp_path):
    (tmp_path / "rows.json").write_text('[{"a": ' + "1" * 5000 + "}]")
    with pytest.raises(UserError, match=r"rows.json: not JSON"):
        load_rows(tmp_path / "rows.json")


def test_an_unreachable_hub_is_asked_once(monkeypatch):
    datasets = pytest.importorskip("datasets")
    import huggingface_hub

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no network")

    seen = []

    def load(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        seen.append((datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE))
        return [{"prompt": "from the cache", "extra": {"a": 1, "b": None}}]

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(datasets, "load_dataset", load)
    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    forget_rows()
    [row] = load_hub_rows("someone/rows", None, "train")
    assert row == {"prompt": "from the cache", "extra": {"a": 1}} and row.location == "someone/rows/train: row 0"
    assert seen == [(True, True)] and before == (
        datasets.config.HF_HUB_OFFLINE,
        huggingface_hub.constants.HF_HUB_OFFLINE,
    )
    assert load_hub_rows("someone/rows", None, "train") == [row] and len(seen) == 1
