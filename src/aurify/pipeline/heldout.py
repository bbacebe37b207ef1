"""The held-out tasks and rows of a whole recipe. Every source of training rows asks here: what one stage is measured on
is trained by no other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from aurify.data.heldout import HeldOut, whole_prompt
from aurify.environments.single_turn import SingleTurn
from aurify.errors import UserError
from aurify.loops.examples import Examples, read_examples
from aurify.pipeline.check import resolve_taskset
from aurify.pipeline.recipe import OfflineStage, OnlineStage, Recipe, build_algorithm
from aurify.rows.sources import is_hub_id
from aurify.types import Message, Task

if TYPE_CHECKING:
    from aurify.tasks.taskset import TaskSet

PATIENCE = 10_000  # training tasks in a row that ask a held-out question


def collect_heldout(recipe: Recipe) -> HeldOut:
    """Of all stages: the held-out tasks of their task sets, and the rows that they are evaluated on."""
    result = HeldOut()
    for name, stage in recipe.stages.items():
        holder = task_holder(recipe, stage)
        if holder is not None and holder.endswith(f" stages.{name}"):  # the same options are the same set
            taskset = resolve_taskset(stage)
            assert taskset is not None
            result.add(told_by_prompts(taskset), holder, last_turn=True)
        if isinstance(stage, OfflineStage) and stage.data.parts:
            if stage.data.heldout_path is None and len(recipe.stages) == 1:
                continue  # the split of its rows keeps both sides apart
            examples = read_stage(stage, recipe.seed)
            result.add_examples(examples.heldout, f"the rows that stages.{name} is evaluated on")
    return result


def checked_heldout(recipe: Recipe) -> HeldOut:
    """The same. Raises before anything is trained where a stage's files have nothing left to train on; those of the
    hub are not read for it."""
    heldout = collect_heldout(recipe)
    for name, stage in recipe.stages.items():
        parts = stage.data.parts if isinstance(stage, OfflineStage) else []
        if parts and not any(part.path is not None and is_hub_id(part.path) for part in parts):
            stage_rows(recipe, name, heldout)
    return heldout


def stage_rows(recipe: Recipe, name: str, heldout: HeldOut) -> Examples:
    """The examples of a stage that reads files or functions, as it will train on them."""
    stage = recipe.stages[name]
    assert isinstance(stage, OfflineStage)
    return without_heldout(read_stage(stage, recipe.seed), heldout, stage, f"stages.{name}")


def read_stage(stage: OfflineStage, seed: int) -> Examples:
    lesson = build_algorithm(stage, stage.method).learns_from
    return read_examples(stage.data, lesson, seed, hold_out=holds_rows_out(stage))


def task_holder(recipe: Recipe, stage: OfflineStage | OnlineStage) -> str | None:
    """How the task set of a stage is called among those who hold questions out: by the first stage that has it."""
    if stage.task is None:
        return None
    first = next(name for name, other in recipe.stages.items() if other.task == stage.task)
    return f"task {stage.task.get('name')!r} of stages.{first}"


def told_by_prompts(taskset: TaskSet) -> list[list[Message]]:
    """The held-out prompts, less those that several tasks of an environment share: what differs is hidden in it."""
    prompts = [task.prompt for task in taskset.heldout]
    if taskset.environment is SingleTurn:
        return prompts
    num = Counter(map(whole_prompt, prompts))
    return [prompt for prompt in prompts if num[whole_prompt(prompt)] == 1]


def holds_rows_out(stage: OfflineStage) -> bool:
    """A stage without a task, and a reward model, are measured on a share of their rows."""
    return stage.task is None or "scores" in build_algorithm(stage, stage.method).needs


def without_heldout(
    examples: Examples, heldout: HeldOut, stage: OfflineStage, where: str, but: Collection[str] = ()
) -> Examples:
    """The same examples, less those whose question is held out, which are counted. Raises where a source has none left.
    but: task sets that the examples were made of; they keep their own held-out tasks apart."""
    if not heldout:
        return examples
    parts, kept, total, left = stage.data.parts, [], Counter[int](), Counter[int]()
    for example in examples.train:
        total[example.part] += 1
        holder = heldout.holder_of_example(example, but)
        if holder is None:
            kept.append(example)
            left[example.part] += 1
        else:
            examples.tally.held_out[holder] += 1
    for part, num in total.items():
        if not left[part]:
            name = f" of {parts[part].name}" if part < len(parts) else ""
            reasons = ", ".join(examples.tally.held_out)
            raise UserError(
                f"{where}.data: nothing is left to train on: the questions of all {num} rows{name} are held out, by "
                f"{reasons}. Give rows of other questions, or hold others out (num_heldout, heldout_path, "
                "heldout_share)"
            )
    return replace(examples, train=kept)


@dataclass
class Guard:
    """Stands between a task set and training: tasks that any stage of the recipe holds out are not handed on."""

    heldout: HeldOut
    own: Collection[str] = ()  # the task set itself; that keeps its own tasks apart
    left_out: dict[str, set[str]] = field(default_factory=dict)  # holder -> ids of tasks

    def guarded(self, taskset: TaskSet) -> TaskSet:
        def train(seed: int) -> Iterator[Task]:
            num_misses, found = 0, False
            for task in taskset.train(seed):
                holder = self.heldout.holder(task.prompt, but=self.own)
                if holder is None:
                    num_misses, found = 0, True
                    yield task
                    continue
                self.left_out.setdefault(holder, set()).add(task.id)
                num_misses += 1
                if num_misses >= PATIENCE:
                    break
            if num_misses >= PATIENCE or (num_misses and not found):
                raise UserError(
                    f"task {taskset.name!r}: all of its training tasks that were looked at ({num_misses:,}) are held "
                    f"out, by {', '.join(self.left_out)}; hold fewer out (num_heldout) or widen the task's options"
                )

        return replace(taskset, train=train)

    def lines(self) -> list[str]:
        return [
            f"{len(ids):,} training tasks left out, their questions are held out: {holder}"
            for holder, ids in self.left_out.items()
        ]

    @property
    def num(self) -> int:
        return sum(map(len, self.left_out.values()))
