"""A task set: problems, the environment they are played in, and the rubric that judges them, in one object. Training and evaluation
use the same one, so that what is measured is what was trained."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from aurify.environments.env import Environment
from aurify.environments.single_turn import SingleTurn
from aurify.errors import UserError
from aurify.rewards.math import number_match
from aurify.rewards.rubric import Rubric
from aurify.types import Message, Task

Demonstrate = Callable[[Task], str | None]


@dataclass
class TaskSet:
    """`train(seed)` gives training tasks (endless, or one epoch), `heldout` is fixed and disjoint from them."""

    name: str
    train: Callable[[int], Iterator[Task]]
    heldout: Sequence[Task]
    rubric: Rubric
    environment: Callable[[Task], Environment] = SingleTurn
    demonstration: Demonstrate = field(default=lambda task: task.answer)  # the reply that SFT should learn; None: unknown


def question(text: str, system: str | None = None) -> list[Message]:
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": text}]


@dataclass(frozen=True)
class Problem:
    question: str
    answer: str


def generated(
    name: str,
    make: Callable[[random.Random], Problem],
    *,
    num_heldout: int = 200,
    rubric: Rubric | None = None,
    system: str | None = None,
) -> TaskSet:
    """A task set made by a function of a random generator: endless training tasks, none of which is a held-out one."""
    if num_heldout < 1:
        raise UserError(f"task {name}: num_heldout is {num_heldout}; at least 1 is needed to evaluate")
    generator, problems = random.Random(f"{name}/heldout"), {}
    for _ in range(1000 * num_heldout):
        problem = make(generator)
        problems[problem.question] = problem
        if len(problems) == num_heldout:
            break
    else:
        raise UserError(
            f"task {name}: only {len(problems)} different problems exist with these options, and {num_heldout} are to be held out; "
            "widen the options or lower num_heldout"
        )

    def task(problem: Problem, key: str) -> Task:
        return Task(f"{name}/{key}", question(problem.question, system), problem.answer)

    def train(seed: int) -> Iterator[Task]:
        generator, misses = random.Random(f"{name}/train/{seed}"), 0
        while True:
            problem = make(generator)
            if problem.question not in problems:
                misses = 0
                yield task(problem, problem.question)
            elif (misses := misses + 1) > 10_000:
                raise UserError(f"task {name}: all problems are held out; lower num_heldout or widen the options")

    heldout = [task(problem, f"heldout/{k}") for k, problem in enumerate(problems.values())]
    return TaskSet(name, train, heldout, rubric or Rubric([number_match]))


def listed(
    name: str,
    tasks: Sequence[Task],
    rubric: Rubric,
    *,
    num_heldout: int,
    demonstration: Demonstrate = lambda task: task.answer,
) -> TaskSet:
    """A task set out of a fixed list: a seeded share is held out, the rest is shuffled for each epoch."""
    if not 0 < num_heldout < len(tasks):
        raise UserError(f"task {name}: {num_heldout} of {len(tasks)} tasks are to be held out; leave at least one on each side")
    order = list(range(len(tasks)))
    random.Random(f"{name}/split").shuffle(order)
    held, rest = sorted(order[:num_heldout]), sorted(order[num_heldout:])

    def train(seed: int) -> Iterator[Task]:
        shuffled = list(rest)
        random.Random(f"{name}/train/{seed}").shuffle(shuffled)
        return (tasks[k] for k in shuffled)

    return TaskSet(name, train, [tasks[k] for k in held], rubric, demonstration=demonstration)
