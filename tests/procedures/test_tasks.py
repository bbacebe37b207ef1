"""`sop:` of a task, from a recipe's words to the prompt and the reward."""

from __future__ import annotations

import asyncio
import json

import pytest
from said import said

from aurify import tasks
from aurify.errors import UserError


@pytest.fixture
def folder(tmp_path):
    sop = tmp_path / "sop"
    sop.mkdir()
    (sop / "sum.yaml").write_text(
        "name: sums\nwhen: Numbers are added, as in a sum\nsteps:\n- {do: Repeat the numbers, says: 'numbers are'}\n"
        "- {do: Give the sum, says: 'sum is'}"
    )
    (sop / "sort.yaml").write_text(
        "name: sorting\nwhen: A list is to be sorted\ntools: [sort]\nsteps: [{do: Sort it, tool: sort}]"
    )
    return {"folder": str(sop), "embedder": None}


def rows(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def made(path, folder, *given, **options):
    filler = [{"prompt": f"nothing {number}", "answer": "x"} for number in range(2)]
    taskset = tasks.make("jsonl", path=rows(path, *filler, *given), num_heldout=1, sop=folder, **options)
    known = [*taskset.heldout, *taskset.train(0)]
    return taskset, {task.prompt[-1]["content"]: task for task in known}


def test_a_prompt_gets_its_procedure_under_its_system_prompt(tmp_path, folder):
    question = {"prompt": "add these in a sum: 1 2", "answer": "3"}
    _, known = made(tmp_path / "rows.jsonl", folder, question, system="Be brief.")
    system, asked = known["add these in a sum: 1 2"].prompt
    assert system["role"] == "system"
    assert system["content"].startswith("Be brief.\n\nFollow this procedure.")
    assert "1. Repeat the numbers" in system["content"]
    assert asked == {"role": "user", "content": "add these in a sum: 1 2"}
    assert known["nothing 0"].prompt[0]["content"] == "Be brief."
    assert "procedure" not in known["nothing 0"].info


def test_following_it_is_rewarded(tmp_path, folder):
    question = {"prompt": "add these in a sum: 1 2", "answer": "3"}
    taskset, known = made(tmp_path / "rows.jsonl", folder, question, reward=["procedure", ["contains_answer", 0.5]])
    task = known["add these in a sum: 1 2"]
    trajectories = [said("The numbers are 1 and 2, so the sum is 3"), said("The sum is 3"), said("3")]
    asyncio.run(taskset.rubric.score(task, trajectories))
    assert [trajectory.rewards["procedure"] for trajectory in trajectories] == [1.0, 0.5, 0.0]
    assert trajectories[0].reward == 1.5


def test_a_row_may_name_the_procedure_that_counts(tmp_path, folder):
    named = {"prompt": "hm", "answer": "3", "procedure": "sorting"}
    _, known = made(tmp_path / "rows.jsonl", folder, named)
    assert known["hm"].info["procedure"] == {"name": "sorting", "signs": [{"tool": "sort"}]}
    assert len(known["hm"].prompt) == 1  # judged by it, but not told: nothing asked for it
    with pytest.raises(UserError, match="did you mean 'sorting'"):
        made(tmp_path / "wrong.jsonl", folder, named | {"procedure": "sortin"})


def test_tools_of_the_task_decide_what_can_be_followed(tmp_path, folder):
    def asked(*names):
        tools = [{"type": "function", "function": {"name": name}} for name in names]
        row = {"prompt": "sort the list", "answer": "x", "tools": tools}
        _, known = made(tmp_path / "rows.jsonl", folder, row)
        return len(known["sort the list"].prompt) == 2

    assert asked("sort", "print")
    assert not asked("print")


def test_generated_tasks_and_their_ids_stay_what_they_were(folder):
    plain, guided = tasks.make("sorting", num_heldout=3), tasks.make("sorting", num_heldout=3, sop=folder)
    assert [task.id for task in plain.heldout] == [task.id for task in guided.heldout]
    first, second = next(plain.train(1)), next(guided.train(1))
    assert (first.id, first.answer, first.prompt[-1]) == (second.id, second.answer, second.prompt[-1])
    assert "## Procedure: sorting" not in str(first.prompt)
