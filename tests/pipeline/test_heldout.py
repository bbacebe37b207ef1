"""Issue 13, held-out truth: no source of training rows holds what any stage of the recipe is measured on."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole

import aurify
from aurify.data.example import Example, Text
from aurify.data.forms import detect_row_form
from aurify.errors import UserError
from aurify.pipeline.check import check_recipe
from aurify.pipeline.examples import Examples, read_stage_examples, save_stage_pairs, split_stage_examples
from aurify.pipeline.heldout import Guard
from aurify.pipeline.recipe import Recipe, build_recipe
from aurify.pipeline.stage import gather_stage_examples
from aurify.pipeline.start import StageRun, start_stage
from aurify.rows.row import Row, Tally
from aurify.tasks.taskset import TaskSet, question
from aurify.tracking.run_folder import RunFolder
from aurify.tracking.trackers.console import Console
from aurify.types import Task

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "train.jsonl"
FACTS = [
    {"question": f"How many in box {k}?", "answer": f"Count: <<{k}+1={k + 1}>>{k + 1}.\n#### {k + 1}"}
    for k in range(40)
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recipe(path: str, data: dict[str, Any], method: str = "sft", **more: Any) -> Recipe:
    stages = {"first": {"method": method, "data": data, "overlong": "drop"}, **more}
    return build_recipe({"model": "random:tiny", "task": {"name": "gsm8k", "path": path}, "stages": stages})


def text_asked(example: Example) -> str:
    return example.text if isinstance(example, Text) else example.prompt[0]["content"]


def questions(rows: Examples) -> set[str]:
    return set(map(text_asked, rows.train))


def run_of(recipe: Recipe, folder: Path, name: str = "first") -> StageRun:
    folder.mkdir(exist_ok=True)
    run = start_stage(check_recipe(recipe), name, RunFolder(folder), Console(RichConsole(file=StringIO())))
    run.tracker.finish()  # nothing is run here, so its files are closed at once
    return run


def heldout_questions(recipe: Recipe, folder: Path) -> set[str]:
    taskset = run_of(recipe, folder).taskset
    assert taskset is not None
    return {task.prompt[0]["content"] for task in taskset.heldout}


@pytest.mark.skipif(not GSM8K.is_file(), reason="the GSM8K file is not on this machine (shared/data/gsm8k/train.jsonl)")
def test_no_held_out_gsm8k_question_is_among_the_rows_of_the_same_file(tmp_path):
    whole = recipe(str(GSM8K), {"path": str(GSM8K)})
    heldout = heldout_questions(whole, tmp_path)
    stage = whole.stages["first"]
    before = read_stage_examples(stage.data, "answers", whole.seed, hold_out=False)  # type: ignore[union-attr]
    assert len(heldout) == 747 == len(heldout & questions(before))
    after = check_recipe(whole).stages["first"].examples
    assert after is not None
    assert not heldout & questions(after) and len(after.train) == 7473 - 747
    assert after.tally.held_out == {"task 'gsm8k' of stages.first": 747}


@pytest.mark.parametrize("source", ["path", "pattern", "dataset", "mix", "heldout_path", "chat", "pairs", "text"])
def test_rows_of_every_source_are_left_out_and_counted(tmp_path, source):
    path = write(tmp_path / "facts.jsonl", FACTS)
    chats = [
        {
            "messages": [
                {"role": "user", "content": f" {row['question'].upper()}"},
                {"role": "assistant", "content": "1"},
            ]
        }
        for row in FACTS
    ]
    pairs = [{"prompt": row["question"], "chosen": "1", "rejected": "2"} for row in FACTS]
    texts = [{"text": f"Question: {row['question']}\nAnswer: 1"} for row in FACTS]
    other = [{"question": f"Other {k}?", "answer": "1"} for k in range(10)]

    @aurify.dataset("held_out_facts")
    def facts() -> list[dict[str, Any]]:
        return FACTS

    data: dict[str, Any] = {
        "path": {"path": path},
        "pattern": {"path": str(tmp_path / "fac*.jsonl")},
        "dataset": {"dataset": "held_out_facts"},
        "mix": {"mix": [{"path": path}, {"path": write(tmp_path / "other.jsonl", other)}]},
        "heldout_path": {"path": path, "heldout_path": write(tmp_path / "h.jsonl", FACTS[:8])},
        "chat": {"path": write(tmp_path / "chats.jsonl", chats)},
        "pairs": {"path": write(tmp_path / "pairs.jsonl", pairs)},
        "text": {"path": write(tmp_path / "texts.jsonl", texts)},
    }[source]
    method = "dpo" if source == "pairs" else "sft"
    values = recipe(path, data, method)
    heldout = {text.casefold() for text in heldout_questions(values, tmp_path / "run")}
    assert len(heldout) == 4
    run = run_of(values, tmp_path / "run")
    rows = gather_stage_examples(run)
    asked = questions(rows)
    assert not any(text in one.casefold() for text in heldout for one in asked)
    assert rows.tally.held_out["task 'gsm8k' of stages.first"] == 4
    left = {"mix": 46, "heldout_path": None}.get(source, 36)
    if left is None:
        assert not asked & {row["question"] for row in FACTS[:8]}, "the rows to evaluate on are held out as well"
        left = 40 - len(heldout | {row["question"].casefold() for row in FACTS[:8]})
    assert len(rows.train) == left


def test_another_stage_s_held_out_tasks_are_not_demonstrated_sampled_or_asked(tmp_path):
    """Stage `first` would hold out one question by itself; stage `later` holds out ten others of the same file."""
    path = write(tmp_path / "facts.jsonl", FACTS)
    later = {"method": "grpo", "task": {"name": "gsm8k", "path": path, "num_heldout": 10}}
    own = {"name": "gsm8k", "path": path, "num_heldout": 1}
    stages = {"first": {"method": "sft", "data": {"demonstrations": 1000}, "task": own}, "later": later}
    both = build_recipe({"model": "random:tiny", "stages": stages})
    alone = build_recipe({"model": "random:tiny", "stages": {"first": stages["first"]}})
    heldout = heldout_questions(build_recipe({"model": "random:tiny", "stages": {"first": later}}), tmp_path / "a")
    run = run_of(alone, tmp_path / "a")
    assert heldout & questions(gather_stage_examples(run)), "before: trained by stage first, measured by stage later"
    run = run_of(both, tmp_path / "b")
    rows = gather_stage_examples(run)
    assert len(heldout) == 10 and not heldout & questions(rows)
    assert run.guard.num in (9, 10)
    [line] = run.guard.lines()
    assert line.endswith("task 'gsm8k' of stages.later")
    assert run.taskset is not None
    asked = {task.prompt[0]["content"] for task in run.taskset.train(3)}  # what pairs are sampled for, and GRPO asks
    assert asked and not asked & heldout


def test_traces_for_another_stage_s_held_out_tasks_are_refused(tmp_path):
    path = write(tmp_path / "facts.jsonl", FACTS)
    later = {"method": "grpo", "task": {"name": "gsm8k", "path": path, "num_heldout": 10}}
    luffy = {"method": "luffy", "guidance": {"path": path}, "task": {"name": "gsm8k", "path": path, "num_heldout": 1}}
    values = build_recipe({"model": "random:tiny", "stages": {"first": luffy, "later": later}})
    heldout = heldout_questions(build_recipe({"model": "random:tiny", "stages": {"first": later}}), tmp_path / "run")
    run = run_of(values, tmp_path / "run")
    traces = run.stage.traces
    assert traces is not None
    own = {task.prompt[0]["content"] for task in run.taskset.heldout} if run.taskset else set()
    assert set(traces.by_question) == {row["question"] for row in FACTS} - heldout - own
    assert traces.tally.rejected == {"for a held-out task": len(heldout | own)}


def test_saved_pairs_of_another_stage_are_filtered(tmp_path):
    path = write(tmp_path / "facts.jsonl", FACTS)
    later = {"method": "grpo", "task": {"name": "gsm8k", "path": path, "num_heldout": 10}}
    pairs = {"method": "dpo", "data": {"sample": {"num_tasks": 4}}}
    taken = {"method": "dpo", "data": {"stage": "@first"}}
    values = recipe(path, pairs["data"], "dpo", taken=taken, later=later)  # type: ignore[arg-type]
    run = run_of(values, tmp_path / "run", "taken")
    heldout = heldout_questions(build_recipe({"model": "random:tiny", "stages": {"first": later}}), tmp_path / "run")
    rows = [Row({"prompt": question(row["question"]), "chosen": "1", "rejected": "2"}, "") for row in FACTS]
    save_stage_pairs(run.run_folder.stage("first").path, rows, [])  # as an older run may have left them
    kept = gather_stage_examples(run)
    trained = questions(kept)
    own = run.taskset.heldout if run.taskset else []
    assert len(trained) == 40 - len(heldout - {task.prompt[0]["content"] for task in own})
    assert kept.tally.held_out.total() == 40 - len(trained)


def test_rows_that_one_stage_is_evaluated_on_are_trained_by_none(tmp_path):
    path = write(tmp_path / "pairs.jsonl", [{"prompt": f"q{k}", "chosen": "a", "rejected": "b"} for k in range(50)])
    other = write(tmp_path / "more.jsonl", [{"prompt": f"Q{k} ", "completion": "a"} for k in range(60)])
    stages = {
        "sft": {"method": "sft", "data": {"path": other}},
        "reward": {"method": "reward_model", "data": {"path": path, "heldout_share": 0.2}},
        "dpo": {"method": "dpo", "data": {"path": path}},
    }
    values = build_recipe({"model": "random:tiny", "stages": stages})
    rows = {name: stage.examples for name, stage in check_recipe(values).stages.items() if stage.examples}
    measured = {text_asked(example).strip().lower() for part in rows.values() for example in part.heldout}
    trained = {text_asked(example).strip().lower() for part in rows.values() for example in part.train}
    assert len(rows["reward"].heldout) == 10 and not measured & trained
    shared = set(map(text_asked, rows["dpo"].heldout))
    assert shared <= set(map(text_asked, rows["reward"].heldout)), "one seed, so the same file is split alike"


def test_a_split_keeps_spellings_of_one_question_together():
    rows = [Row({"prompt": text, "completion": "x"}) for k in range(20) for text in (f"is {k}?", f" IS  {k}?")]
    parts = split_stage_examples(detect_row_form(rows, "answers").read_all(rows, Tally()), 0.3, seed=1)
    sides = [{text_asked(example).lower().split()[1] for example in part} for part in (parts.train, parts.heldout)]
    assert len(parts.heldout) == 12 and not sides[0] & sides[1]


def test_nothing_left_is_an_error_that_says_so(tmp_path):
    path = write(tmp_path / "facts.jsonl", FACTS)
    heldout = heldout_questions(recipe(path, {"path": path}), tmp_path / "run")
    only = write(tmp_path / "only.jsonl", [row for row in FACTS if row["question"] in heldout])
    expected = (
        r"stages.first.data: nothing is left to train on: the questions of all 4 rows of .*only.jsonl are held out, "
        r"by task 'gsm8k' of stages.first. Give rows of other questions"
    )
    with pytest.raises(UserError, match=expected):
        check_recipe(recipe(path, {"path": only}))
    with pytest.raises(UserError, match=r"all 4 rows of .*only.jsonl"):
        check_recipe(recipe(path, {"mix": [{"path": path}, {"path": only}]}))


def test_a_task_set_without_any_other_task_is_an_error():
    tasks = [Task(f"{k}", question(f"{k}?"), "1") for k in range(6)]
    values = {"model": "random:tiny", "task": {"name": "arithmetic"}, "stages": {"a": {"method": "grpo"}}}
    heldout = check_recipe(build_recipe(values)).heldout
    heldout.add([task.prompt for task in tasks], "stages.b")
    guard = Guard(heldout)
    taskset = guard.guard(TaskSet("few", lambda seed: iter(tasks), tasks[:1], aurify.Rubric([])))
    with pytest.raises(UserError, match=r"task 'few': all of its training tasks .* held out, by stages.b; hold fewer"):
        list(taskset.train(0))


def test_tasks_of_an_environment_that_share_a_prompt_hold_nothing_out(tmp_path):
    """A game: what is to be guessed is hidden in the environment, and every prompt is the same."""
    plugin = tmp_path / "game.py"
    plugin.write_text(
        "import aurify\nfrom aurify.tasks.taskset import question\nfrom aurify.types import Task\n"
        "class Game:\n"
        "    def __init__(self, task):\n        self.prompt = task.prompt\n"
        "    async def start(self):\n        return aurify.Observation(self.prompt)\n"
        "    async def step(self, message):\n        return aurify.Step(done=True)\n"
        "    async def close(self):\n        pass\n"
        "@aurify.task('hidden_game')\ndef game(level: int = 1):\n"
        "    tasks = [Task(f'{k}', question('Guess my number.'), str(k)) for k in range(6)]\n"
        "    rubric = aurify.Rubric([])\n"
        "    return aurify.TaskSet('game', lambda seed: iter(tasks[2:]), tasks[:2], rubric, environment=Game)\n"
    )
    stages = {
        name: {"method": "grpo", "task": {"name": "hidden_game", "level": k}} for k, name in enumerate(("a", "b"))
    }
    values = build_recipe({"model": "random:tiny", "plugins": [str(plugin)], "stages": stages})
    plan = check_recipe(values)
    assert not plan.heldout
    assert plan.stages["b"].holder == "task 'hidden_game' of stages.b"
