"""From files, demonstrations and samples to units."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from aurify import tasks
from aurify.data.reading import Part
from aurify.data.sources import Row, load_rows
from aurify.errors import UserError
from aurify.loops.examples import (
    Examples,
    Rows,
    encode_examples,
    rows_of_demonstrations,
    rows_of_file,
    save_pairs,
    saved_pairs,
    split,
)
from aurify.loops.offline import indices_at
from aurify.models.model import ModelConfig
from aurify.models.tiny import byte_tokenizer
from aurify.pipeline.recipe import DataOptions, OfflineStage
from aurify.renderer import Renderer

PAIRS = [{"prompt": f"q{k // 2}", "chosen": "yes" * k + "!", "rejected": "no"} for k in range(20)]


def stage(**options: Any) -> OfflineStage:
    return OfflineStage(method="sft", model=ModelConfig("random:tiny"), data=DataOptions(path="x"), **options)


def write(path: Any, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_held_out_prompts_are_never_trained(tmp_path):
    rows = load_rows(write(tmp_path / "pairs.jsonl", PAIRS))
    parts = split(rows, 0.3, seed=0)
    trained, heldout = ({row["prompt"] for row in part} for part in (parts.train, parts.heldout))
    assert len(parts.heldout) == 6 and len(parts.train) == 14
    assert not trained & heldout
    assert {row["prompt"] for row in split(rows, 0.3, seed=1).heldout} != heldout
    chats = [
        Row({"messages": [{"role": "user", "content": str(k % 4)}, {"role": "assistant", "content": f"{k}"}]}, "")
        for k in range(12)
    ]
    parts = split(chats, 0.25, seed=0)
    assert len(parts.heldout) == 3 and len({row["messages"][0]["content"] for row in parts.heldout}) == 1


def test_a_file_with_a_file_to_evaluate_on(tmp_path):
    path, other = write(tmp_path / "a.jsonl", PAIRS[:4]), write(tmp_path / "b.jsonl", PAIRS[4:6])
    rows = rows_of_file(DataOptions(path=path, heldout_path=other), 0, hold_out=True)
    assert (len(rows.train), len(rows.heldout)) == (4, 2)
    assert len(rows_of_file(DataOptions(path=path), 0, hold_out=False).train) == 4
    assert len(rows_of_file(DataOptions(path=path, heldout_share=0.5), 0, hold_out=True).heldout) == 2


def test_pairs_become_units_of_two_that_share_their_prompt():
    renderer = Renderer(byte_tokenizer())
    examples = encode_examples(Rows([Row(row, "") for row in PAIRS]), stage(), renderer, lesson="pairs", limit=500)
    assert len(examples.train) == 20 and examples.num_dropped == 0
    for chosen, rejected in examples.train:
        start = chosen.weights.index(1.0)
        assert chosen.tokens[:start] == rejected.tokens[:start] and rejected.weights.index(1.0) == start


def test_rows_that_are_too_long_are_named_or_counted(tmp_path):
    renderer = Renderer(byte_tokenizer())
    rows = Rows(load_rows(write(tmp_path / "pairs.jsonl", PAIRS)))
    with pytest.raises(UserError, match=r"pairs.jsonl:1[0-9]: the row has \d+ tokens; at most 60 fit.*overlong: drop"):
        encode_examples(rows, stage(max_length=60), renderer, lesson="pairs", limit=500)
    examples = encode_examples(rows, stage(overlong="drop"), renderer, lesson="pairs", limit=60)
    assert 0 < examples.num_dropped < 20 and len(examples.train) == 20 - examples.num_dropped
    assert max(len(datum.tokens) for unit in examples.train for datum in unit) <= 60
    with pytest.raises(UserError, match="none of the 20 rows fits"):
        encode_examples(rows, stage(overlong="drop", max_length=5), renderer, lesson="pairs", limit=60)


def test_demonstrations_are_training_tasks_with_their_answers():
    taskset = tasks.make("largest_number", count=3)
    rows = rows_of_demonstrations(taskset, 20, seed=4).train
    heldout = {task.prompt[0]["content"] for task in taskset.heldout}
    for row in rows:
        asked, said = row["messages"]
        assert asked["content"] not in heldout
        numbers = [int(word.strip("?,")) for word in asked["content"].split() if word.strip("?,").isdigit()]
        assert int(said["content"]) == max(numbers)
    assert (
        rows == rows_of_demonstrations(taskset, 20, seed=4).train != rows_of_demonstrations(taskset, 20, seed=5).train
    )


def test_saved_pairs_come_back_as_they_were(tmp_path):
    assert saved_pairs(tmp_path) is None
    odd = {"prompt": "line\u2028break", "chosen": "é\n", "rejected": "{"}
    save_pairs(tmp_path, Rows([Row(odd, "")], [Row(PAIRS[0], "")]))
    rows = saved_pairs(tmp_path)
    assert rows is not None and (list(rows.train), list(rows.heldout)) == ([odd], [PAIRS[0]])
    (tmp_path / "pairs.jsonl").unlink()  # killed between the two files
    assert saved_pairs(tmp_path) is None


def test_a_mixture_goes_on_where_its_step_says(tmp_path):
    chats = write(tmp_path / "a", [{"instruction": f"say {k}", "output": "x" * 30} for k in range(20)])
    pairs = write(tmp_path / "b", PAIRS)
    parts = [Part(path=chats, weight=3), Part(path=pairs)]
    options = replace(stage(steps=12, batch_size=4), data=DataOptions(mix=parts, heldout_share=0.0))
    rows = rows_of_file(options.data, 0, hold_out=True)

    def units() -> Examples:
        return encode_examples(rows, options, Renderer(byte_tokenizer()), lesson="answers", limit=500, seed=5)

    first, resumed = units(), units()
    assert first.mixture is not None and len(first.train) == 40
    assert "'alpaca'" in first.tally.recognised[0] and "'pairs'" in first.tally.recognised[1]
    assert "taken as answers" in first.tally.recognised[1]
    steps = [indices_at(step, options, first.mixture.num_rows, 0, first.mixture) for step in range(12)]
    assert all(sum(index < 20 for index in step) == 3 for step in steps)
    assert resumed.mixture is not None
    assert [indices_at(step, options, 99, 0, resumed.mixture) for step in range(7, 12)] == steps[7:]
    assert len({index for step in steps[:6] for index in step}) == 24  # no row twice in the first pass


def test_pairs_and_labels_for_kto():
    rows = Rows([Row({"prompt": "a", "completion": "b", "label": value}, f"{k}") for k, value in enumerate("10")])
    examples = encode_examples(rows, stage(), Renderer(byte_tokenizer()), lesson="labels", limit=500)
    assert [[datum.label for datum in unit] for unit in examples.train] == [[1.0], [-1.0]]
    pairs = encode_examples(Rows([Row(PAIRS[1], "")]), stage(), Renderer(byte_tokenizer()), lesson="labels", limit=500)
    assert [[datum.label for datum in unit] for unit in pairs.train] == [[1.0], [-1.0]]
