"""Issue 13, held-out truth: one GSM8K file is one thing, by data.path, as a task, as traces and held out."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers_in_code as made

from aurify import tasks
from aurify.data.sources import Part, read_data_source
from aurify.data.traces import load_traces
from aurify.renderer import Renderer
from aurify.rewards.math import number_match
from aurify.rewards.rubric import Rubric
from aurify.rows.gsm8k import ANNOTATION, TIDIED
from aurify.rows.row import Tally
from aurify.rows.sources import load_rows

REAL = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "train.jsonl"
ROWS = [
    {"question": "Clips in May?", "answer": "She sold 48/2 = <<48/2=24>>24.\nIn all $<<48+24=72.0>>72.\n#### 72 \n"},
    {"question": "Eggs?", "answer": "A dozen.\n####  1,200"},
    {"question": "Rent?", "answer": "It is -<<3*-1=-3>>3.\n#### -3"},
]
FORMS = [
    "She sold 48/2 = 24.\nIn all $72.\n#### 72",
    "A dozen.\n#### 1,200",
    "It is -3.\n#### -3",
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_one_form_by_data_path_task_traces_and_held_out_file(tmp_path):
    path = write(tmp_path / "g.jsonl", ROWS)
    other = write(tmp_path / "other.jsonl", [{"question": "Other?", "answer": "<<1+1=2>>2\n#### 2"}])
    tally = Tally()
    assert [row["answer"] for row in read_data_source(Part(path=path), tally)] == FORMS
    assert tally.lines() == [f"2 rows changed: {TIDIED}"]

    taskset = tasks.make("gsm8k", path=path, heldout_path=other)
    trained = {task.prompt[0]["content"]: task for task in taskset.train(0)}
    assert [taskset.demonstration(trained[row["question"]]) for row in ROWS] == FORMS
    assert [trained[row["question"]].answer for row in ROWS] == ["72", "1,200", "-3"]
    assert taskset.demonstration(taskset.heldout[0]) == "2\n#### 2" and taskset.heldout[0].answer == "2"
    assert taskset.notes == (f"task gsm8k: 3 of 4 rows changed: {TIDIED}",)

    renderer = Renderer(made.byte_level())
    traces = asyncio.run(load_traces(path, renderer, Rubric([number_match])))
    texts = [renderer.parse(list(traces.of([{"role": "user", "content": row["question"]}])[0])) for row in ROWS]
    assert [message["content"] for message in texts] == FORMS
    assert f"(2 rows changed: {TIDIED})" in traces.report()

    asked = tasks.make("jsonl", path=path, prompt_column="question", reward="number_match", num_heldout=1)
    assert {task.answer for task in (*asked.train(0), *asked.heldout)} == set(FORMS)
    assert asked.notes == (f"task {path}: 2 of 3 rows changed: {TIDIED}",)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "How do I print?", "answer": "cout << x >> y; std::cout <<1+1=2>> z;"},
        {"question": "Shift?", "answer": "a <<2=b>> c\n#### see above"},
        {"prompt": "Clips?", "answer": "48/2=<<48/2=24>>24\n#### 24"},
        {"question": "Clips?", "answer": "#### 24\nwhich is 48/2=<<48/2=24>>24"},
        {"question": ["Clips?"], "answer": "<<1+1=2>>2\n#### 2"},
    ],
)
def test_other_files_that_hold_such_brackets_are_not_touched(tmp_path, row):
    [read] = load_rows(write(tmp_path / "r.jsonl", [row]))
    assert read == row and not read.changes


def test_shifts_in_a_gsm8k_answer_stay(tmp_path):
    row = {"question": "q", "answer": "print(1 << n >> 2) gives <<2*4=8>>8\n#### 8"}
    [read] = load_rows(write(tmp_path / "r.jsonl", [row]))
    assert read["answer"] == "print(1 << n >> 2) gives 8\n#### 8"


@pytest.mark.skipif(not REAL.is_file(), reason="the GSM8K file is not on this machine (shared/data/gsm8k/train.jsonl)")
def test_the_real_file_has_no_annotation_left_and_is_counted():
    tally = Tally()
    rows = read_data_source(Part(path=str(REAL)), tally)
    assert len(rows) == 7473 and tally.changed == {TIDIED: 7378}
    assert not any("<<" in row["answer"] or ANNOTATION.search(row["answer"]) for row in rows)
    taskset = tasks.make("gsm8k", path=str(REAL))
    shown = {task.prompt[0]["content"]: taskset.demonstration(task) for task in (*taskset.train(0), *taskset.heldout)}
    assert all(shown[row["question"]] == row["answer"] for row in rows)
