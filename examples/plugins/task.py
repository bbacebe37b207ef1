"""A task set of one's own: problems, those that are held out, and the reward that judges an answer.

    task: {name: odd_or_even, digits: 2, num_heldout: 20}

The function's parameters are the options of a recipe; their names and types are checked. `listed` holds a share of the
tasks out and shuffles the others for each epoch; `generated` makes endless ones by a function of a random generator."""

from __future__ import annotations

import aurify
from aurify.rewards.text import exact_match
from aurify.tasks.taskset import listed, question


@aurify.task
def odd_or_even(digits: int = 3, num_heldout: int = 50) -> aurify.TaskSet:
    """Whether a number is odd or even."""
    tasks = [
        aurify.Task(id=f"odd_or_even/{number}", prompt=question(f"{number}?"), answer="odd" if number % 2 else "even")
        for number in range(10 ** (digits - 1), 10**digits)
    ]
    return listed("odd_or_even", tasks, aurify.Rubric([exact_match]), num_heldout=num_heldout)
