"""What a stage starts with: its folder and reports, the models that it opens, who samples and who judges."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from aurify.engine.engine import Engine
from aurify.errors import UserError
from aurify.loops.progress import derive_seed
from aurify.models.model import ModelConfig, load_model
from aurify.pipeline.contents import fit_stage
from aurify.pipeline.heldout import Guard
from aurify.pipeline.plan import Plan, PlannedStage
from aurify.pipeline.recipe import make_renderer, reference
from aurify.rewards.model import ModelReward
from aurify.rewards.rubric import Reward, Rubric
from aurify.tasks.taskset import TaskSet
from aurify.tracking.run_folder import RunFolder, StageFolder
from aurify.tracking.tracker import StageTracker
from aurify.tracking.trackers.console import Console


@dataclass(frozen=True)
class StageRun:
    """A stage of a plan that is being run, and where it reports."""

    plan: Plan
    stage: PlannedStage
    run_folder: RunFolder
    folder: StageFolder
    tracker: StageTracker
    console: Console
    guard: Guard  # between the task set and training
    taskset: TaskSet | None  # guarded
    seed: int

    @property
    def name(self) -> str:
        return self.stage.name

    def record(self, **values: Any) -> None:
        """Adds to the stage's results."""
        self.run_folder.record(self.name, **values)

    def show_waiting(self, text: str) -> AbstractContextManager[Any]:
        """A sign of life while something takes seconds."""
        return self.console.show_waiting(f"{self.name}: {text} ...")


def start_stage(
    plan: Plan, name: str, run_folder: RunFolder, console: Console, *, show_samples: bool = False
) -> StageRun:
    stage, folder = plan.stages[name], run_folder.stage(name)
    guard = Guard(plan.heldout, [stage.holder])
    taskset = None if stage.taskset is None else guard.guard(stage.taskset)
    tracker = StageTracker(folder, console, show_samples=show_samples)
    seed = derive_seed(plan.recipe.seed, name)
    return StageRun(plan, stage, run_folder, folder, tracker, console, guard, taskset, seed)


# ---------------------------------------------------------------------- models


def resolve_reference(run: StageRun, model: ModelConfig) -> ModelConfig:
    """A reference becomes the folder of that stage's model: absolute, for an adapter writes down its base."""
    stage = reference(model.name)
    if stage is None:
        return model
    final = run.run_folder.stage(stage).final.resolve()
    if not final.is_dir():
        raise UserError(
            f"stages.{run.name}: stage '@{stage}' has left no model in {final}; resume the run to train it again"
        )
    return replace(model, name=str(final))


def open_engine(run: StageRun, *, trainable: bool = True) -> Engine:
    """The stage's own model."""
    options = run.stage.options
    with run.show_waiting(f"loading {options.model.name}"):
        loaded = load_model(resolve_reference(run, options.model), scalar_head=run.stage.scores and trainable)
    return Engine(
        loaded,
        lora=options.lora if trainable else None,
        optim=options.optim,
        micro_batch_tokens=options.engine.micro_batch_tokens,
        checkpointing=options.engine.checkpointing,
        trainable=trainable,
        seed=run.seed,
    )


def open_other(run: StageRun, name: str, *, scalar_head: bool = False) -> Engine:
    """A model that only judges or teaches: from an earlier stage, or by its name."""
    options = run.stage.options
    config = resolve_reference(run, replace(options.model, name=name))
    with run.show_waiting(f"loading {name}"):
        loaded = load_model(config, scalar_head=scalar_head)
    return Engine(loaded, trainable=False, micro_batch_tokens=options.engine.micro_batch_tokens)


def announce_engine(run: StageRun, engine: Engine) -> None:
    """Tells on what the stage runs, and why: on the console, and in run_info.json."""
    facts = engine.describe()
    run.run_folder.record_engine(run.name, facts)
    recomputed = ", activations recomputed" if facts["checkpointing"] else ""
    recomputed += ", layer inputs in host memory" if facts["checkpointing"] == "offload" else ""
    run.tracker.event(
        f"on {facts['device']} in {facts['dtype']} ({facts['dtype_reason']}), "
        f"{facts['micro_batch_tokens']} tokens a micro-batch{recomputed}"
    )


def fit_tasks(run: StageRun, engine: Engine) -> StageRun:
    """The run with the tasks whose prompts leave room to answer: told before the first step, not in the middle."""
    options = run.stage.options
    assert run.taskset is not None
    taskset = fit_stage(options, run.taskset, make_renderer(options, engine.tokenizer), engine.max_context)
    for note in taskset.notes:
        run.tracker.event(note)
    return replace(run, taskset=taskset)


def build_stage_rubric(run: StageRun, judge: Engine | None) -> Rubric:
    """The task's rewards, and a reward model's. Rewards that are left out still show up, with weight 0. The rubric is
    new, so that its failures are counted apart from those of evaluations."""
    assert run.taskset is not None
    stage, rewards = run.stage.online, list(run.taskset.rubric.rewards)
    if judge is not None:
        assert stage.reward is not None
        rewards = [replace(r, weight=0.0 if stage.reward.alone else r.weight) for r in rewards]
        rewards.append(Reward(ModelReward(judge), stage.reward.weight, "reward_model"))
    return Rubric(rewards, stage.rollouts.reward_seconds)
