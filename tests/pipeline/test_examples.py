"""From files, demonstrations and samples to units."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from aurify import tasks
from aurify.data.example import Chat, Example, Pair, Text
from aurify.data.forms import detect_row_form
from aurify.data.sources import Part
from aurify.errors import UserError
from aurify.loops.batches import batch_indices_at
from aurify.models.model import ModelConfig
from aurify.models.tiny import byte_tokenizer
from aurify.pipeline.examples import (
    Examples,
    Units,
    demonstrate_stage_tasks,
    encode_stage_examples,
    load_stage_pairs,
    read_stage_examples,
    save_stage_pairs,
    split_stage_examples,
)
from aurify.pipeline.recipe import DataOptions, OfflineStage
from aurify.renderer import Renderer
from aurify.rows.row import Row, Tally
from aurify.rows.sources import load_rows
from aurify.types import Lesson

PAIRS = [{"prompt": f"q{k // 2}", "chosen": "yes" * k + "!", "rejected": "no"} for k in range(20)]


def stage(**options: Any) -> OfflineStage:
    return OfflineStage(method="sft", model=ModelConfig("random:tiny"), data=DataOptions(path="x"), **options)


def write(path: Any, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(rows: Sequence[dict[str, Any]], lesson: Lesson = "pairs") -> list[Example]:
    located = [row if isinstance(row, Row) else Row(row, str(number)) for number, row in enumerate(rows)]
    return detect_row_form(located, lesson).read_all(located, Tally())


def asked(examples: Sequence[Example]) -> set[str]:
    return {example.prompt[0]["content"] for example in examples if not isinstance(example, Text)}


def test_held_out_prompts_are_never_trained(tmp_path):
    rows = read(load_rows(write(tmp_path / "pairs.jsonl", PAIRS)))
    parts = split_stage_examples(rows, 0.3, seed=0)
    trained, heldout = asked(parts.train), asked(parts.heldout)
    assert len(parts.heldout) == 6 and len(parts.train) == 14
    assert not trained & heldout
    assert asked(split_stage_examples(rows, 0.3, seed=1).heldout) != heldout
    chats = [
        Row({"messages": [{"role": "user", "content": str(k % 4)}, {"role": "assistant", "content": f"{k}"}]}, "")
        for k in range(12)
    ]
    parts = split_stage_examples(read(chats, "answers"), 0.25, seed=0)
    assert len(parts.heldout) == 3 and len(asked(parts.heldout)) == 1


def test_a_file_with_a_file_to_evaluate_on(tmp_path):
    path, other = write(tmp_path / "a.jsonl", PAIRS[:4]), write(tmp_path / "b.jsonl", PAIRS[4:6])
    rows = read_stage_examples(DataOptions(path=path, heldout_path=other), "answers", 0, hold_out=True)
    assert (len(rows.train), len(rows.heldout)) == (4, 2)
    assert len(read_stage_examples(DataOptions(path=path), "answers", 0, hold_out=False).train) == 4
    half = DataOptions(path=path, heldout_share=0.5)
    assert len(read_stage_examples(half, "answers", 0, hold_out=True).heldout) == 2


def test_pairs_become_units_of_two_that_share_their_prompt():
    renderer = Renderer(byte_tokenizer())
    examples = encode_stage_examples(Examples(read(PAIRS)), stage(), renderer, limit=500)
    assert len(examples.train) == 20 and examples.num_dropped == 0
    for chosen, rejected in examples.train:
        start = chosen.weights.index(1.0)
        assert chosen.tokens[:start] == rejected.tokens[:start] and rejected.weights.index(1.0) == start


def test_rows_that_are_too_long_are_named_or_counted(tmp_path):
    renderer = Renderer(byte_tokenizer())
    rows = Examples(read(load_rows(write(tmp_path / "pairs.jsonl", PAIRS))))
    with pytest.raises(UserError, match=r"pairs.jsonl:1[0-9]: the row has \d+ tokens; at most 60 fit.*overlong: drop"):
        encode_stage_examples(rows, stage(max_length=60), renderer, limit=500)
    examples = encode_stage_examples(rows, stage(overlong="drop"), renderer, limit=60)
    assert 0 < examples.num_dropped < 20 and len(examples.train) == 20 - examples.num_dropped
    assert max(len(datum.tokens) for unit in examples.train for datum in unit) <= 60
    with pytest.raises(UserError, match="none of the 20 rows fits"):
        encode_stage_examples(rows, stage(overlong="drop", max_length=5), renderer, limit=60)


def test_demonstrations_are_training_tasks_with_their_answers():
    taskset = tasks.make("largest_number", count=3)
    examples = demonstrate_stage_tasks(taskset, 20, seed=4).train
    heldout = {task.prompt[0]["content"] for task in taskset.heldout}
    for example in examples:
        assert isinstance(example, Chat)
        question, said = example.messages
        assert question["content"] not in heldout
        numbers = [int(word.strip("?,")) for word in question["content"].split() if word.strip("?,").isdigit()]
        assert int(said["content"]) == max(numbers)
    assert (
        examples
        == demonstrate_stage_tasks(taskset, 20, seed=4).train
        != demonstrate_stage_tasks(taskset, 20, seed=5).train
    )


def test_saved_pairs_come_back_as_they_were(tmp_path):
    assert load_stage_pairs(tmp_path) is None
    odd = {"prompt": "line\u2028break", "chosen": "é\n", "rejected": "{"}
    save_stage_pairs(tmp_path, [Row(odd)], [Row(PAIRS[0])])
    saved = load_stage_pairs(tmp_path)
    assert saved is not None
    for examples, row in ((saved.train, odd), (saved.heldout, PAIRS[0])):
        [pair] = examples
        assert isinstance(pair, Pair)
        texts = [messages[0]["content"] for messages in (pair.prompt, pair.chosen, pair.rejected)]
        assert texts == [row["prompt"], row["chosen"], row["rejected"]]
    (tmp_path / "pairs.jsonl").unlink()  # killed between the two files
    assert load_stage_pairs(tmp_path) is None


def test_a_mixture_goes_on_where_its_step_says(tmp_path):
    chats = write(tmp_path / "a", [{"instruction": f"say {k}", "output": "x" * 30} for k in range(20)])
    pairs = write(tmp_path / "b", PAIRS)
    parts = [Part(path=chats, weight=3), Part(path=pairs)]
    options = replace(stage(steps=12, batch_size=4), data=DataOptions(mix=parts, heldout_share=0.0))
    rows = read_stage_examples(options.data, "answers", 0, hold_out=True)

    def units() -> Units:
        return encode_stage_examples(rows, options, Renderer(byte_tokenizer()), limit=500, seed=5)

    first, resumed = units(), units()
    assert first.mixture is not None and len(first.train) == 40
    assert "'alpaca'" in first.tally.recognised[0] and "'pairs'" in first.tally.recognised[1]
    assert "taken as answers" in first.tally.recognised[1]
    steps = [batch_indices_at(step, options, first.mixture.num_rows, 0, first.mixture) for step in range(12)]
    assert all(sum(index < 20 for index in step) == 3 for step in steps)
    assert resumed.mixture is not None
    assert [batch_indices_at(step, options, 99, 0, resumed.mixture) for step in range(7, 12)] == steps[7:]
    assert len({index for step in steps[:6] for index in step}) == 24  # no row twice in the first pass


def test_pairs_and_labels_for_kto():
    rows = [{"prompt": "a", "completion": "b", "label": value} for value in "10"]
    examples = encode_stage_examples(Examples(read(rows, "labels")), stage(), Renderer(byte_tokenizer()), limit=500)
    assert [[datum.label for datum in unit] for unit in examples.train] == [[1.0], [-1.0]]
    pairs = encode_stage_examples(Examples(read(PAIRS[1:2], "labels")), stage(), Renderer(byte_tokenizer()), limit=500)
    assert [[datum.label for datum in unit] for unit in pairs.train] == [[1.0], [-1.0]]
