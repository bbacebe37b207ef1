"""A task set of one's own: problems, those that are held out, and the reward that judges an answer.

    task: {name: next_number, largest: 60}

The function's parameters are the options of a recipe; their names and types are checked. `listed` holds a share of the
tasks out and shuffles the others for each epoch; `generated` makes endless ones by a function of a random generator."""

from __future__ import annotations

import aurify
from aurify.rewards.text import exact_match
from aurify.tasks.taskset import listed, question


@aurify.task
def next_number(smallest: int = 10, largest: int = 98, num_heldout: int = 20) -> aurify.TaskSet:
    """The number after another one."""
    tasks = [
        aurify.Task(id=f"next_number/{number}", prompt=question(f"After {number}?"), answer=str(number + 1))
        for number in range(smallest, largest + 1)
    ]
    return listed("next_number", tasks, aurify.Rubric([exact_match]), num_heldout=num_heldout)
