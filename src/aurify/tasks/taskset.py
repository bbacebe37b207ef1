"""A task set: problems, the environment they are played in, and the rubric that judges them, in one object. Training
and evaluation use the same one, so that what is measured is what was trained."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from aurify.config import prefix_errors
from aurify.data.heldout import question_keys
from aurify.data.prompts import question
from aurify.environments.env import Environment
from aurify.environments.single_turn import SingleTurn
from aurify.errors import UserError
from aurify.rewards.math import number_match
from aurify.rewards.rubric import Rubric
from aurify.types import Message, Task

if TYPE_CHECKING:
    from aurify.renderer import Renderer

ROOM = 1024  # tokens that a chat template may write around a prompt
Tools = Sequence[dict[str, Any]]  # schemas in the OpenAI form
Demonstrate = Callable[[Task], "str | list[Message] | None"]  # an answer, or a conversation with tools that leads to it


@dataclass
class TaskSet:
    """`train(seed)` gives training tasks (endless, or one epoch); `heldout` is fixed and disjoint from them."""

    name: str
    train: Callable[[int], Iterator[Task]]
    heldout: Sequence[Task]
    rubric: Rubric
    environment: Callable[[Task], Environment] = SingleTurn
    demonstration: Demonstrate = field(default=lambda task: task.answer)  # what SFT should learn; None: unknown
    tools: Tools = ()  # that the environment offers, for demonstrations
    # (task, tools) -> a conversation that uses them; for task sets that can show it, whatever the tools are called
    tool_demonstration: Callable[[Task, Tools], list[Message] | None] | None = None
    notes: Sequence[str] = ()  # what a run should be told of how the tasks were made
    tasks: Sequence[Task] | None = None  # all training tasks, where there is an end of them


def digest_task_prompt(prompt: Sequence[Message]) -> str:
    """Ids made of it agree only for equal prompts, whatever sets are merged, and are the same in every run."""
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()[:16]


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
        raise UserError(f"task {name!r}: num_heldout is {num_heldout}; at least 1 is needed to evaluate")
    generator = random.Random(f"{name}/heldout")
    problems: dict[str, Problem] = {}
    num_misses = 0
    while len(problems) < num_heldout:
        problem = make(generator)
        num_misses = num_misses + 1 if problem.question in problems else 0
        problems[problem.question] = problem
        if num_misses > 1000 + 20 * num_heldout:
            raise UserError(
                f"task {name!r}: {num_heldout} problems are to be held out, and only {len(problems)} different ones "
                "exist with these options; widen the options or lower num_heldout"
            )

    def task(problem: Problem) -> Task:
        prompt = question(problem.question, system)
        return Task(f"{name}/{digest_task_prompt(prompt)}", prompt, problem.answer)

    def train(seed: int) -> Iterator[Task]:
        generator, num_misses = random.Random(f"{name}/train/{seed}"), 0
        while True:
            problem = make(generator)
            if problem.question not in problems:
                num_misses = 0
                yield task(problem)
            elif (num_misses := num_misses + 1) > 10_000:
                raise UserError(f"task {name!r}: all problems are held out; lower num_heldout or widen the options")

    return TaskSet(name, train, [task(problem) for problem in problems.values()], rubric or Rubric([number_match]))


def listed(
    name: str,
    tasks: Sequence[Task],
    rubric: Rubric,
    *,
    num_heldout: int | None = None,
    heldout: Sequence[Task] | None = None,
    demonstration: Demonstrate = lambda task: task.answer,
) -> TaskSet:
    """A task set out of a fixed list, shuffled anew for each epoch. Either `heldout` comes with it, or a share of the
    list is held out (num_heldout; None: a tenth). Tasks that ask what a held-out one asks are not trained (see
    aurify.data.heldout for what counts as the same question)."""
    questions = [key for key, _ in question_keys([task.prompt for task in (*tasks, *(heldout or ()))])]
    if heldout is None:
        digests: dict[str, str] = {}  # of the first prompt of each question
        for task, key in zip(tasks, questions, strict=True):
            digests.setdefault(key, digest_task_prompt(task.prompt))
        prompts = sorted(digests.values())
        num_heldout = max(1, len(prompts) // 10) if num_heldout is None else num_heldout
        if not 0 < num_heldout < len(prompts):
            raise UserError(
                f"task {name!r}: {num_heldout} of {len(prompts)} different prompts are to be held out; "
                "leave at least one on each side, or give held-out tasks of their own"
            )
        chosen = set(random.Random("heldout").sample(prompts, num_heldout))
        known = {key for key, first in digests.items() if first in chosen}
        heldout = [task for task, key in zip(tasks, questions, strict=True) if key in known]
    else:
        known = set(questions[len(tasks) :])
    kept = [task for task, key in zip(tasks, questions, strict=False) if key not in known]
    if not kept:
        raise UserError(f"task {name!r}: every task is a held-out one too, so there is nothing to train on")

    def train(seed: int) -> Iterator[Task]:
        shuffled = list(kept)
        random.Random(f"train/{seed}").shuffle(shuffled)
        return iter(shuffled)

    return TaskSet(name, train, list(heldout), rubric, demonstration=demonstration, tasks=kept)


def fit_task_prompts(
    taskset: TaskSet, renderer: Renderer, max_context: int, overlong: Literal["error", "drop"] = "error"
) -> TaskSet:
    """The same tasks, less those whose prompt leaves no room to answer; with "error" the first of them is an error.
    Tasks without end are looked at as they come."""
    first = next(iter(taskset.heldout), None)
    tools = 0 if first is None or not taskset.tools else len(renderer.prompt(first.prompt, taskset.tools))
    short = max_context - ROOM - tools  # bytes: a token has at least one

    def count(task: Task) -> int | None:
        """Tokens of a prompt that is too long; None: it fits. Raises where the template leaves a message out."""
        with prefix_errors(f"task {task.id!r}"):
            renderer.survey.check_messages(task.prompt, taskset.tools)
        if sum(len(message["content"].encode()) for message in task.prompt) < short:
            return None
        num_tokens = len(renderer.prompt(task.prompt, taskset.tools))
        return num_tokens if num_tokens >= max_context else None

    def fit(tasks: Iterable[Task], left_out: list[str]) -> Iterator[Task]:
        for task in tasks:
            num_tokens = count(task)
            if num_tokens is None:
                yield task
            elif overlong == "error":
                raise UserError(
                    f"task {task.id!r}: its prompt has {num_tokens} tokens and the context {max_context}, so there is "
                    "no room to answer; shorten the prompt, raise sampler.max_context if the model allows more, or set "
                    "overlong: drop to leave such tasks out"
                )
            else:
                left_out.append(task.id)

    left_out: list[str] = []
    heldout = list(fit(taskset.heldout, left_out))
    kept = None if taskset.tasks is None else {task.id for task in fit(taskset.tasks, left_out)}
    if not heldout or kept == set():
        raise UserError(f"task {taskset.name!r}: no prompt leaves room to answer in a context of {max_context} tokens")

    def train(seed: int) -> Iterator[Task]:
        tasks = taskset.train(seed)
        return fit(tasks, []) if kept is None else (task for task in tasks if task.id in kept)

    note = f"tasks left out whose prompts leave no room to answer: {len(left_out):,} (the first: {left_out[:1]})"
    return replace(taskset, train=train, heldout=heldout, notes=[note] if left_out else [])
