"""One stage from its options to a finished model: gather data, measure, train, export, measure again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from aurify.data.heldout import HeldOut
from aurify.data.preferences import sample_preferences
from aurify.engine.engine import Engine
from aurify.environments.player import RolloutOptions
from aurify.errors import UserError
from aurify.evaluation.evaluate import (
    evaluate,
    heldout_loss,
    length_correlation,
    likelier_desirable,
    likelier_pair_accuracy,
    pair_accuracy,
    scores_of,
)
from aurify.files import replace_folder
from aurify.loops import examples as data
from aurify.loops.guidance import Guide, open_guide
from aurify.loops.interrupt import run_async
from aurify.loops.offline import train_offline
from aurify.loops.online import train_online
from aurify.loops.progress import Checkpoints, derive_seed, fingerprint, seed_everything
from aurify.loops.replay import Buffer
from aurify.loops.rollouts import Rollouts
from aurify.models.model import ModelConfig, load_model
from aurify.pipeline.check import resolve_taskset
from aurify.pipeline.heldout import Guard, collect_heldout, stage_rows, task_holder, without_heldout
from aurify.pipeline.recipe import OfflineStage, OnlineStage, Recipe, build_algorithm, make_renderer, reference
from aurify.rewards.model import ModelReward
from aurify.rewards.rubric import Reward, Rubric
from aurify.samplers.open import open_sampler
from aurify.samplers.sampler import Sampler
from aurify.tasks.taskset import TaskSet
from aurify.tracking.run_folder import RunFolder, StageFolder
from aurify.tracking.tracker import StageTracker
from aurify.tracking.trackers.console import Console
from aurify.types import Datum

Number = tuple[float, dict[str, Any]]  # a held-out number, and what belongs to it


@dataclass(frozen=True)
class Measure:
    """How a stage's model is judged on data that training never sees."""

    name: str
    take: Callable[[], Number]


@dataclass
class StageRun:
    """A stage of a run. `run` does all of it; what was done before a kill is not done again."""

    recipe: Recipe
    run_folder: RunFolder
    name: str
    console: Console
    show_samples: bool = False
    heldout: HeldOut | None = None  # of the whole recipe; None: found out here

    def __post_init__(self) -> None:
        self.stage: OfflineStage | OnlineStage = self.recipe.stages[self.name]
        self.seed = derive_seed(self.recipe.seed, self.name)
        self.folder: StageFolder = self.run_folder.stage(self.name)
        self.algorithm = build_algorithm(self.stage, f"stages.{self.name}")
        if self.heldout is None:
            self.heldout = collect_heldout(self.recipe)
        self.guard = Guard(self.heldout, self.makers(self.name))
        taskset = resolve_taskset(self.stage)
        self.taskset: TaskSet | None = None if taskset is None else self.guard.guarded(taskset)
        self.tracker = StageTracker(self.folder, self.console, show_samples=self.show_samples)

    def run(self) -> None:
        began = time.perf_counter()
        self.run_folder.record(
            self.name, status="running", method=self.stage.method, model=self.stage.model.name, task=self.stage.task
        )
        for note in self.taskset.notes if self.taskset else ():
            self.tracker.event(note)
        try:
            engine = self.online(self.stage) if isinstance(self.stage, OnlineStage) else self.offline(self.stage)
            self.run_folder.record_engine(self.name, engine.describe())
            engine.close()
            for line in self.guard.lines():
                self.tracker.event(line)
        except UserError as error:
            self.tracker.event(f"stopped: {error}")
            raise
        finally:
            self.tracker.finish()
        self.run_folder.record(self.name, status="finished", seconds=round(time.perf_counter() - began, 1))

    # ------------------------------------------------------------------ the two kinds of stage

    def offline(self, stage: OfflineStage) -> Engine:
        pairs, scores = self.algorithm.per == "unit", "scores" in self.algorithm.needs
        rows = self.rows(stage)
        engine = self.open(scalar_head=scores)
        self.tell(engine)
        lesson, renderer = self.algorithm.learns_from, make_renderer(stage, engine.tokenizer)
        examples = data.encode_examples(rows, stage, renderer, lesson=lesson, limit=engine.max_context, seed=self.seed)
        for line in examples.tally.lines():
            self.tracker.event(line)
        if num_held_out := examples.tally.held_out.total():
            self.run_folder.record(self.name, rows_held_out=num_held_out)
            self.tracker.also = lambda: {"ledger/rows_held_out": float(num_held_out)}
        measure = self.measure(engine, examples, pairs=pairs, scores=scores)
        self.before(measure)
        trained = ((d.tokens, d.weights, d.label, d.margin) for unit in examples.train for d in unit)
        checkpoints = self.checkpoints([len(examples.train), *trained])
        seed_everything(self.seed)
        train_offline(
            engine, self.algorithm, examples.train, stage, seed=self.seed, tracker=self.tracker,
            checkpoints=checkpoints, mixture=examples.mixture,
        )  # fmt: skip
        self.export(engine)
        self.after(measure)
        return engine

    def online(self, stage: OnlineStage) -> Engine:
        assert self.taskset is not None
        engine = self.open()
        self.tell(engine)
        measure = self.measure(engine)
        self.before(measure)
        rubric, judge = self.rubric(stage, self.taskset)
        guide = self.guide(stage, engine)
        teacher = self.teacher(stage.teacher) if stage.teacher else None
        if teacher is not None:
            engine.follow(teacher)
        rollouts = Rollouts(
            self.sampler(engine),
            make_renderer(stage, engine.tokenizer),
            self.taskset,
            rubric,
            stage,
            self.seed,
            guide=guide,
            buffer=Buffer(stage.replay, stage.completions_per_prompt) if stage.replay else None,
        )
        checkpoints = self.checkpoints([guide.traces.by_question] if guide and guide.traces else [])
        self.tracker.also = lambda: {"ledger/tasks_held_out": float(self.guard.num)} if self.guard.num else {}
        seed_everything(self.seed)
        train_online(engine, self.algorithm, rollouts, tracker=self.tracker, checkpoints=checkpoints)
        for other in (judge, teacher):
            if other is not None:
                other.close()
        self.export(engine)
        self.after(measure)
        return engine

    # ------------------------------------------------------------------ models

    def open(self, *, scalar_head: bool = False, trainable: bool = True) -> Engine:
        stage = self.stage
        return Engine(
            load_model(self.resolved(stage.model), scalar_head=scalar_head),
            lora=stage.lora if trainable else None,
            optim=stage.optim,
            micro_batch_tokens=stage.engine.micro_batch_tokens,
            checkpointing=stage.engine.checkpointing,
            trainable=trainable,
            seed=self.seed,
        )

    def tell(self, engine: Engine) -> None:
        """On what the stage runs, and why: on the console, and in run_info.json."""
        facts = engine.describe()
        self.run_folder.record_engine(self.name, facts)
        recomputed = ", activations recomputed" if facts["checkpointing"] else ""
        self.tracker.event(
            f"on {facts['device']} in {facts['dtype']} ({facts['dtype_reason']}), "
            f"{facts['micro_batch_tokens']} tokens a micro-batch{recomputed}"
        )

    def resolved(self, model: ModelConfig) -> ModelConfig:
        """A reference becomes the folder of that stage's model: absolute, for an adapter writes down its base."""
        stage = reference(model.name)
        if stage is None:
            return model
        final = self.run_folder.stage(stage).final.resolve()
        if not final.is_dir():
            raise UserError(
                f"stages.{self.name}: stage '@{stage}' has left no model in {final}; resume the run to train it again"
            )
        return replace(model, name=str(final))

    def sampler(self, engine: Engine) -> Sampler:
        return open_sampler(self.stage.sampler, engine, seed=self.seed)

    def judge(self, name: str) -> Engine:
        """A reward model, from an earlier stage or a folder."""
        config = self.resolved(replace(self.stage.model, name=name))
        return Engine(
            load_model(config, scalar_head=True),
            trainable=False,
            micro_batch_tokens=self.stage.engine.micro_batch_tokens,
        )

    def teacher(self, name: str) -> Engine:
        """A model to learn from."""
        config = self.resolved(replace(self.stage.model, name=name))
        return Engine(load_model(config), trainable=False, micro_batch_tokens=self.stage.engine.micro_batch_tokens)

    def guide(self, stage: OnlineStage, engine: Engine) -> Guide | None:
        """Who writes beside the policy. Traces of a file are judged here, once, by rewards of their own count."""
        if stage.guidance is None:
            return None
        assert self.taskset is not None
        limit = stage.sampler.max_context or engine.max_context
        with self.waiting("reading and judging traces"):
            guide = run_async(
                open_guide(stage, self.taskset, make_renderer(stage, engine.tokenizer), limit, self.heldout)
            )
        if guide.traces is not None:
            self.tracker.event(guide.traces.report())
        return guide

    def rubric(self, stage: OnlineStage, taskset: TaskSet) -> tuple[Rubric, Engine | None]:
        """The task's rewards, and a reward model's. Rewards that are left out still show up, with weight 0. Failures
        are counted apart from those of evaluations."""
        if stage.reward is None:
            return Rubric(taskset.rubric.rewards, stage.rollouts.reward_seconds), None
        judge = self.judge(stage.reward.model)
        own = [Reward(r.function, 0.0 if stage.reward.alone else r.weight, r.name) for r in taskset.rubric.rewards]
        judged = (ModelReward(judge), stage.reward.weight, "reward_model")
        return Rubric([*own, judged], stage.rollouts.reward_seconds), judge

    def export(self, engine: Engine) -> None:
        """`final/` is complete or not there."""
        scratch = self.folder.path / ".final.tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        engine.export(scratch)
        replace_folder(scratch, self.folder.final)

    def checkpoints(self, items: list[Any]) -> Checkpoints:
        stage = self.stage
        limits = RolloutOptions(in_rounds=stage.rollouts.in_rounds)
        # how often to save, and how long to wait for others, may change between two runs
        same = replace(stage, checkpoint_every=0, keep_checkpoints=1, rollouts=limits)
        identity = fingerprint([self.seed, same, *items])
        return Checkpoints(self.folder.checkpoints, stage.checkpoint_every, stage.keep_checkpoints, identity)

    # ------------------------------------------------------------------ data

    def rows(self, stage: OfflineStage) -> data.Rows:
        """What the stage trains on and what it is measured on. Whatever the source is, no row to train on asks a
        question that any stage of the recipe holds out."""
        source = stage.data
        assert self.heldout is not None
        if source.parts:
            return stage_rows(self.recipe, self.name, self.heldout)
        if source.demonstrations is not None:
            assert self.taskset is not None
            made_by = self.makers(self.name)
            rows = data.rows_of_demonstrations(self.taskset, source.demonstrations, self.seed)
        else:
            owner = self.name if source.stage is None else source.stage[1:]
            made_by, rows = self.makers(owner), self.pairs_of(owner, stage)
        return without_heldout(rows, self.heldout, stage, f"stages.{self.name}", made_by)

    def makers(self, name: str) -> list[str]:
        """The task set of a stage, as it is called among those who hold questions out."""
        holder = task_holder(self.recipe, self.recipe.stages[name])
        return [] if holder is None else [holder]

    def pairs_of(self, owner: str, stage: OfflineStage) -> data.Rows:
        folder = self.run_folder.stage(owner).path
        rows = data.saved_pairs(folder)
        if rows is None:
            rows = self.sample_pairs(stage)
            data.save_pairs(folder, rows)
        return rows

    def sample_pairs(self, stage: OfflineStage) -> data.Rows:
        """Best against worst of the starting model's own answers, for training tasks and for held-out ones."""
        sample, taskset = stage.data.sample, self.taskset
        assert sample is not None and taskset is not None
        engine = self.open(trainable=False)
        sampler, renderer = self.sampler(engine), make_renderer(stage, engine.tokenizer)
        judge = self.judge(sample.reward) if sample.reward else None
        rewards = [ModelReward(judge)] if judge else taskset.rubric.rewards
        rubric = Rubric(rewards, self.stage.rollouts.reward_seconds)
        parts = (
            list(islice(taskset.train(derive_seed(self.seed, "pairs")), sample.num_tasks)),
            taskset.heldout[: sample.num_heldout],
        )

        async def sample_all() -> list[tuple[list[data.Row], int]]:
            try:
                return [
                    await sample_preferences(
                        tasks, taskset.environment, rubric, sampler, renderer, sample.sampling, sample.group_size,
                        derive_seed(self.seed, "pairs", part), max_turns=sample.max_turns,
                        options=self.stage.rollouts, tell=self.tracker.event,
                    )
                    for part, tasks in enumerate(parts)
                ]  # fmt: skip
            finally:
                await sampler.close()

        with self.waiting(f"sampling {sample.group_size} answers to each of {sum(map(len, parts))} tasks"):
            (train, num_flat), (heldout, _) = run_async(sample_all())
        engine.close()
        if judge is not None:
            judge.close()
        self.tracker.event(
            f"{len(train)} preference pairs, {len(heldout)} held out; {num_flat} tasks had no better and worse answer"
        )
        if not train:
            raise UserError(
                f"stages.{self.name}.data.sample: no preference pair: to each of {len(parts[0])} tasks all "
                f"{sample.group_size} answers earned the same reward. Take an easier or a harder task, a larger "
                "group_size, a higher sampling.temperature, or a model that is sometimes right (after a short sft)"
            )
        return data.Rows(train, heldout)

    # ------------------------------------------------------------------ held-out numbers

    def measure(
        self, engine: Engine, examples: data.Examples | None = None, *, pairs: bool = False, scores: bool = False
    ) -> Measure | None:
        """A reward model is judged on pairs; a model with a task by its answers; any other one on held-out rows."""
        options = self.recipe.evaluation
        heldout = [datum for unit in examples.heldout for datum in unit] if examples else []
        if options.num_tasks == 0:
            return None
        if not scores and self.taskset is not None:
            return Measure("accuracy", lambda: self.accuracy(engine))
        if not heldout:
            self.tracker.event("nothing is held out to evaluate on")
            return None
        if scores:
            return Measure("pair accuracy", lambda: self.pair_accuracy(engine, heldout))
        if pairs:
            return Measure(
                "likelier pairs", lambda: (likelier_pair_accuracy(engine, heldout), {"num": len(heldout) // 2})
            )
        if self.algorithm.learns_from == "labels":
            if len({datum.label for datum in heldout}) < 2:
                self.tracker.event("the held-out answers all have one label: nothing to evaluate on")
                return None
            return Measure("likelier desirable", lambda: (likelier_desirable(engine, heldout), {"num": len(heldout)}))
        return Measure("held-out loss", lambda: (heldout_loss(engine, heldout), {"num": len(heldout)}))

    def pair_accuracy(self, engine: Engine, heldout: Sequence[Datum]) -> Number:
        scores = scores_of(engine, heldout)
        length = length_correlation(scores, heldout)
        self.tracker.event(f"correlation of score and length: {length:+.2f}")
        return pair_accuracy(scores), {"num": len(heldout) // 2, "length_correlation": length}

    def accuracy(self, engine: Engine) -> Number:
        assert self.taskset is not None
        options, taskset, sampler = self.recipe.evaluation, self.taskset, self.sampler(engine)

        async def answer() -> Any:
            try:
                return await evaluate(
                    taskset,
                    sampler,
                    make_renderer(self.stage, engine.tokenizer),
                    options.sampling,
                    num_tasks=options.num_tasks,
                    seed=self.recipe.seed,
                    max_turns=options.turns(self.stage),
                    options=self.stage.rollouts,
                )
            finally:
                await sampler.close()

        with self.waiting(f"evaluating {min(options.num_tasks, len(taskset.heldout))} held-out tasks"):
            result = run_async(answer())
        for note in result.notes:
            self.tracker.event(note)
        details = {key: value for key, value in result.record().items() if key != "accuracy"}
        return result.accuracy, details | {"max_turns": options.turns(self.stage)}

    def before(self, measure: Measure | None) -> None:
        """Measures the model that the stage starts from, unless this is known: from before a kill, or from another
        stage."""
        results = self.run_folder.results()
        if measure is None or results[self.name].get("before") is not None:
            return
        turns = self.recipe.evaluation.turns(self.stage)
        accuracy = measure.name == "accuracy"
        known = known_number(results, self.stage.model.name, self.stage.task, turns) if accuracy else None
        value, details = known or measure.take()
        self.run_folder.record(self.name, measure=measure.name, before=value, details_before=details)
        self.tracker.event(f"{measure.name} before: {value:.3f}" + (" (known)" if known else ""))

    def after(self, measure: Measure | None) -> None:
        if measure is None:
            return
        value, details = measure.take()
        self.run_folder.record(self.name, after=value, details_after=details)
        self.tracker.event(f"{measure.name} after: {value:.3f}")

    def waiting(self, text: str) -> Any:
        """A sign of life on a terminal while something takes seconds."""
        return self.console.rich.status(f"{self.name}: {text} ...")


def known_number(results: dict[str, dict[str, Any]], model: str, task: Any, turns: int) -> Number | None:
    """The accuracy of a model on a task, if another stage has measured it: as its result, or as its own start."""
    for stage, result in results.items():
        if result.get("measure") != "accuracy" or result.get("task") != task:
            continue
        for name, when in ((f"@{stage}", "after"), (result["model"], "before")):
            same = result.get(f"details_{when}", {}).get("max_turns", turns) == turns
            if name == model and result.get(when) is not None and same:
                return result[when], result[f"details_{when}"]
    return None


def is_finished(folder: RunFolder, stage: str) -> bool:
    return folder.results().get(stage, {}).get("status") == "finished" and Path(folder.stage(stage).final).is_dir()
