"""Tasks out of files."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from aurify import tasks
from aurify.errors import UserError
from aurify.types import Segment, Trajectory

SOLUTION = "She has 48/2=<<48/2=24>>24 eggs.\nSo 1,000 in all.\n#### 1,000"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def sums(tmp_path):
    return write(tmp_path / "sums.jsonl", [{"prompt": f"{n} + 1?", "answer": n + 1, "level": n % 3} for n in range(40)])


def score(taskset, task, text):
    messages = [*task.prompt, {"role": "assistant", "content": text}]
    trajectory = Trajectory([Segment([1], "prompt")], messages, len(task.prompt))
    asyncio.run(taskset.rubric.score(task, [trajectory]))
    return trajectory


def test_gsm8k_from_a_file(tmp_path):
    path = write(tmp_path / "g.jsonl", [{"question": f"How many in {n}?", "answer": SOLUTION} for n in range(20)])
    taskset = tasks.make("gsm8k", path=path, num_heldout=4)
    task = next(taskset.train(0))
    assert (len(taskset.heldout), len(list(taskset.train(0)))) == (4, 16)
    assert task.answer == "1,000"
    shown = taskset.demonstration(task)
    assert shown == "She has 48/2=24 eggs.\nSo 1,000 in all.\n#### 1,000"
    assert score(taskset, task, shown).reward == 1.0
    assert score(taskset, task, "It is 1000.").reward == 1.0
    assert score(taskset, task, "24").reward == 0.0


def test_gsm8k_with_a_test_file(tmp_path):
    train = write(tmp_path / "train.jsonl", [{"question": f"{n}?", "answer": SOLUTION} for n in range(5)])
    test = write(tmp_path / "test.jsonl", [{"question": f"{n}?", "answer": SOLUTION} for n in range(4, 9)])
    taskset = tasks.make("gsm8k", path=train, heldout_path=test)
    assert len(taskset.heldout) == 5
    assert len(list(taskset.train(0))) == 4  # the question that both files have is not trained


def test_gsm8k_without_an_answer_mark(tmp_path):
    path = write(tmp_path / "g.jsonl", [{"question": "a", "answer": "#### 1"}, {"question": "b", "answer": "so 7"}])
    with pytest.raises(UserError, match=r"g.jsonl:2: 'answer' ends in 'so 7'; expected '#### number'"):
        tasks.make("gsm8k", path=path)


def test_gsm8k_of_the_hub_without_its_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'aurify\[hub\]'"):
        tasks.make("gsm8k")


def test_jsonl(sums):
    taskset = tasks.make("jsonl", path=sums, reward=["number_match", ["exact_match", 0.5]], system="Be brief.")
    train = list(taskset.train(1))
    assert (len(train), len(taskset.heldout)) == (36, 4)
    assert not {t.id for t in train} & {t.id for t in taskset.heldout}
    assert [t.id for t in train] != [t.id for t in taskset.train(2)]
    task = train[0]
    assert [m["role"] for m in task.prompt] == ["system", "user"]
    assert set(task.info) == {"level"}
    assert score(taskset, task, task.answer).reward == 1.5
    assert score(taskset, task, "It is " + task.answer).rewards == {"number_match": 1.0, "exact_match": 0.0}


def test_rewards_in_trls_form_see_every_column_by_its_own_name_and_the_prompt_in_its_form(tmp_path):
    """A text gives texts, a list of messages gives lists, and a system prompt of ours makes messages of a text."""
    (tmp_path / "rewards.py").write_text(
        "def right(completions, question, solution, level, **kwargs):\n"
        "    said = [c if isinstance(c, str) else c[0]['content'] for c in completions]\n"
        "    return [float(s == r) + 2 * isinstance(c, str) for s, r, c in zip(said, solution, completions)]\n"
    )
    row = {"solution": "2", "level": 1}
    rows = {
        "texts": [{"question": f"1 + 1? {n}", **row} for n in range(2)],
        "chats": [{"question": [{"role": "user", "content": f"1 + 1? {n}"}], **row} for n in range(2)],
    }
    for name, system, earned in (("texts", None, 3.0), ("chats", None, 1.0), ("texts", "Be brief.", 1.0)):
        path = write(tmp_path / f"{name}.jsonl", rows[name])
        options = {"prompt_column": "question", "answer_column": "solution", "reward": f"{tmp_path}/rewards.py:right"}
        taskset = tasks.make("jsonl", path=path, system=system, **options)
        assert score(taskset, next(taskset.train(0)), "2").reward == earned


def test_jsonl_with_messages_other_columns_and_no_answer(tmp_path):
    rows = [{"chat": [{"role": "user", "content": f"hi {n}"}]} for n in range(3)]
    path = write(tmp_path / "c.jsonl", rows)
    reward = {"name": "format", "pattern": ".*!"}
    taskset = tasks.make("jsonl", path=path, prompt_column="chat", answer_column=None, reward=reward)
    task = next(taskset.train(0))
    assert task.prompt in [row["chat"] for row in rows]
    assert task.answer is None is taskset.demonstration(task)
    assert score(taskset, task, "hello!").reward == 1.0


def test_rows_that_repeat_a_prompt_stay_on_one_side(tmp_path):
    path = write(tmp_path / "r.jsonl", [{"prompt": f"{n % 10}?", "answer": str(n)} for n in range(100)])
    taskset = tasks.make("jsonl", path=path, num_heldout=3)
    held, trained = ({t.prompt[0]["content"] for t in side} for side in (taskset.heldout, taskset.train(0)))
    assert not held & trained
    assert (len(held), len(taskset.heldout), len(trained)) == (3, 30, 7)


def test_ids_are_unique_over_merged_files(tmp_path, sums):
    """T6: the same row numbers in two files are two tasks."""
    other = write(tmp_path / "other.jsonl", [{"prompt": f"{n} + 1?", "answer": n} for n in range(40)])
    tasksets = [tasks.make("jsonl", path=path) for path in (sums, other)]
    merged = [task for taskset in tasksets for task in (*taskset.heldout, *taskset.train(0))]
    assert len({task.id for task in merged}) == len(merged) == 80


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2?", "answer": "4"},
        {"question": "2+2?", "ground_truth": 4},
        {"problem": "2+2?", "final_answer": "4", "level": 1},
        {"prompt": [{"role": "user", "content": "2+2?"}], "reward_model": {"style": "rule", "ground_truth": "4"}},
        {"prompt": json.dumps([{"role": "user", "content": "2+2?"}]), "expected_answer": "4"},
        {"prompt": "\n\nHuman: 2+2?\n\nAssistant:", "gold": "4"},
    ],
)
def test_columns_with_usual_names(tmp_path, row):
    taskset = tasks.make(
        "jsonl",
        path=write(tmp_path / "x.jsonl", [row, {**row, "extra": 1}]),
        heldout_path=write(
            tmp_path / "h.jsonl",
            [{**row, **{name: "3+3?" for name in ("prompt", "question", "problem") if name in row}}],
        ),
    )
    for task in taskset.train(0):
        assert (task.prompt, task.answer) == ([{"role": "user", "content": "2+2?"}], "4")


@pytest.mark.parametrize(
    ("row", "options", "expected"),
    [
        ({"prompt": "a"}, {}, "bad.jsonl:3: no column 'answer'"),
        ({"prompt": "a", "answr": "b"}, {}, "no column 'answer'; did you mean 'answr'"),
        ({"prompt": "", "answer": "b"}, {}, "bad.jsonl:3: column 'prompt' is empty"),
        ({"prompt": {"a": 1}, "answer": "b"}, {}, "column 'prompt' holds dict; expected text"),
        (
            {"prompt": [{"role": "usr", "content": "x"}], "answer": "b"},
            {},
            "a message of the role 'usr'",
        ),
        ({"prompt": "a", "answer": "b"}, {"reward": "nope"}, "unknown reward 'nope'"),
        ({"prompt": "a", "answer": "b"}, {"num_heldout": 3}, "3 of 3 different prompts are to be held out"),
        ({"prompt": "a", "answer": "b"}, {"prompt": "q"}, "no option 'prompt'; did you mean 'prompt_column'"),
    ],
)
def test_mistakes(tmp_path, row, options, expected):
    path = write(tmp_path / "bad.jsonl", [{"prompt": "1", "answer": "1"}, {"prompt": "2", "answer": "2"}, row])
    with pytest.raises(UserError, match=expected):
        tasks.make("jsonl", path=path, **options)
