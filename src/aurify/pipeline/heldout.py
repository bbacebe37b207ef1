"""The held-out tasks and rows of a whole recipe: what one stage is measured on is trained by no other. Every source of
training data passes here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from aurify.data.heldout import HeldOut, normalise_prompt
from aurify.environments.single_turn import SingleTurn
from aurify.errors import UserError
from aurify.pipeline.examples import Examples
from aurify.pipeline.plan import PlannedStage
from aurify.pipeline.recipe import OfflineStage
from aurify.types import Message, Task

if TYPE_CHECKING:
    from aurify.tasks.taskset import TaskSet

PATIENCE = 10_000  # training tasks in a row that ask a held-out question


def collect_recipe_heldout(stages: Mapping[str, PlannedStage]) -> HeldOut:
    """The held-out tasks of all task sets, and the rows that stages are evaluated on."""
    result, seen = HeldOut(), set[str]()
    for stage in stages.values():
        if stage.taskset is not None and stage.holder not in seen:
            result.add(told_by_prompts(stage.taskset), stage.holder, last_turn=True)
            seen.add(stage.holder)
        if stage.examples is None or (len(stages) == 1 and stage.offline.data.heldout_path is None):
            continue  # a split of its own rows keeps both sides apart
        result.add_examples(stage.examples.heldout, f"the rows that stages.{stage.name} is evaluated on")
    return result


def told_by_prompts(taskset: TaskSet) -> list[list[Message]]:
    """The held-out prompts, less those that several tasks of an environment share: what differs is hidden in it."""
    prompts = [task.prompt for task in taskset.heldout]
    if taskset.environment is SingleTurn:
        return prompts
    num = Counter(map(normalise_prompt, prompts))
    return [prompt for prompt in prompts if num[normalise_prompt(prompt)] == 1]


def stage_holds_rows_out(stage: PlannedStage) -> bool:
    """A stage without a task, and a reward model, are measured on a share of their rows."""
    return stage.options.task is None or stage.scores


def describe_stage_split(stage: PlannedStage, num_train: int, num_heldout: int) -> str:
    """How the rows of a stage are shared out; empty where none is held out."""
    data = stage.offline.data
    if not num_heldout:
        return ""
    if data.heldout_path is not None:
        reason = f"the rows of {data.heldout_path}"
    elif data.parts:
        reason = f"a share of {data.heldout_share:g}, see data.heldout_share"
    else:
        reason = "from held-out tasks"
    return f"{num_train:,} to train on; {num_heldout:,} held out to evaluate on ({reason})"


def drop_heldout_examples(
    examples: Examples, heldout: HeldOut, stage: PlannedStage, but: Collection[str] = ()
) -> Examples:
    """The same examples, less those whose question is held out, which are counted. Raises where a source has none left.
    but: task sets that the examples were made of; they keep their own held-out tasks apart."""
    if not heldout:
        return examples
    kept, total, left = [], Counter[int](), Counter[int]()
    holders = Counter[str]()
    for example in examples.train:
        total[example.part] += 1
        holder = heldout.holder_of_example(example, but)
        if holder is None:
            kept.append(example)
            left[example.part] += 1
        else:
            holders[holder] += 1
    for part, num in total.items():
        if not left[part]:
            parts = stage.offline.data.parts
            name = f" of {parts[part].name}" if part < len(parts) else ""
            raise UserError(
                f"stages.{stage.name}.data: nothing is left to train on: the questions of all {num} rows{name} are "
                f"held out, by {', '.join(holders)}. Give rows of other questions, or hold others out (num_heldout, "
                "heldout_path, heldout_share)"
            )
    return replace(examples, train=kept, tally=replace(examples.tally, held_out=examples.tally.held_out + holders))


@dataclass
class Guard:
    """Stands between a task set and training: tasks that any stage of the recipe holds out are not handed on."""

    heldout: HeldOut
    own: Collection[str] = ()  # the task set itself; that keeps its own tasks apart
    left_out: dict[str, set[str]] = field(default_factory=dict)  # holder -> ids of tasks

    def guard(self, taskset: TaskSet) -> TaskSet:
        """The same task set, whose training tasks pass here."""

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


def count_usable_rows(examples: Examples, stage: OfflineStage) -> int:
    """The usable rows of `path`, `dataset` or `mix`. One row may be several examples."""
    own = [*examples.train, *(examples.heldout if stage.data.heldout_path is None else ())]
    return len({(example.part, example.location) for example in own})
