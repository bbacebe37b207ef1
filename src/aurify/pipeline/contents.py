"""Checks what needs the model's tokenizer and layers: every row and every prompt in tokens, the layers that an adapter
names, and one task played for real. The weights are not loaded. Rows are encoded once, for the check and for training.

Tokens of the first stage with data are kept for it, and those of later stages as long as all together are at most
MAX_KEPT; the rest is encoded again when its stage begins. A dry run keeps none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

from aurify.config import prefix_errors
from aurify.data.example import Chat, Example
from aurify.engine.adapter import choose_adapted_layers
from aurify.engine.adapter_files import read_adapter
from aurify.engine.divergence import check_teacher_head
from aurify.engine.restore import check_same_adapter
from aurify.loops.guidance import open_guide
from aurify.loops.interrupt import run_loop_async
from aurify.loops.offline import check_batch_size
from aurify.loops.progress import derive_seed
from aurify.models.model import LoadedModel, ModelConfig, load_skeleton
from aurify.pipeline.bulk import find_longest_prompts, read_row_sizes, stage_converses
from aurify.pipeline.examples import Examples, choose_stage_encoding, demonstrate_stage_tasks, encode_stage_examples
from aurify.pipeline.heldout import Guard, describe_stage_split, drop_heldout_examples
from aurify.pipeline.load import find_heaviest_step
from aurify.pipeline.plan import Bulk, KeptUnits, Plan, PlannedStage
from aurify.pipeline.recipe import OfflineStage, OnlineStage, build_stage_renderer, read_stage_reference
from aurify.pipeline.trial import MAX_TRIED, Trial, try_stage_tasks
from aurify.renderer import Renderer
from aurify.tasks.taskset import TaskSet, fit_task_prompts
from aurify.types import Task

MAX_KEPT = 20_000_000  # tokens, of 45 bytes each
TOLD_EVERY = 200  # rows
TRIED_TRACES = 64
Tell = Callable[[str], None]


@dataclass
class Contents:
    """Goes through the stages of a plan."""

    plan: Plan
    tell: Tell = lambda line: None  # how far it is, many times a second
    keep: bool = True  # encoded rows, for training
    skeletons: dict[tuple[ModelConfig, bool], LoadedModel] = field(default_factory=dict)
    trials: list[tuple[tuple[Any, ...], Trial]] = field(default_factory=list)
    num_kept: int = 0  # tokens

    def check(self, done: Collection[str] = ()) -> None:
        """done: stages that are finished, and are not run again."""
        for name, stage in self.plan.stages.items():
            if name not in done:
                with prefix_errors(f"stages.{name}"):
                    self.check_stage(stage)

    def check_stage(self, stage: PlannedStage) -> None:
        self.tell(f"{stage.name}: its tokenizer and layers")
        model = self.open_skeleton(stage.options.model, scalar_head=stage.scores)
        self.check_teacher_tokens(stage, model)
        adapter = find_stage_adapter(self.plan, stage, model)
        stage.bulk = self.size_up(stage, model, adapter)
        renderer = build_stage_renderer(stage.options, model.tokenizer)
        if isinstance(stage.options, OfflineStage) and stage.offline.data.sample is None:
            self.check_rows(stage, model, renderer)
        if stage.taskset is not None and stage_judges_answers(self.plan, stage):
            self.check_tasks(stage, model, renderer)
        if isinstance(stage.options, OfflineStage):
            self.take_over_pairs(stage)

    def take_over_pairs(self, stage: PlannedStage) -> None:
        """For its memory plan: how the pairs are made, by this stage or by the one that it has them from."""
        owner = self.plan.stages[read_stage_reference(stage.offline.data.stage) or stage.name]
        assert stage.bulk is not None
        given = owner.bulk or stage.bulk  # a stage that is finished has none
        stage.bulk = replace(
            stage.bulk,
            heaviest=stage.bulk.heaviest or given.heaviest,
            prompts=stage.bulk.prompts or given.prompts,
            sampled=owner.offline.data.sample,
        )

    def open_skeleton(self, model: ModelConfig, *, scalar_head: bool = False) -> LoadedModel:
        """Of the model which the chain of stages begins with: training does not change its layers and its tokenizer."""
        key = find_origin_model(self.plan, model), scalar_head
        if key not in self.skeletons:
            self.skeletons[key] = load_skeleton(key[0], scalar_head=scalar_head)
        return self.skeletons[key]

    def size_up(self, stage: PlannedStage, model: LoadedModel, adapter: AdapterForm | None) -> Bulk:
        """For its memory plan; rows and prompts come later."""
        options, judge = stage.options, None
        others = {"teacher": options.teacher} if isinstance(options, OnlineStage) else {}
        if isinstance(options, OnlineStage):
            judge = options.reward.model if options.reward else None
        elif options.data.sample is not None:
            judge = options.data.sample.reward
        opened = {"reward model": judge, **others}
        return Bulk(
            read_row_sizes(model, options.lora, adapter.layers if adapter else ()),
            {
                key: read_row_sizes(self.open_skeleton(replace(options.model, name=name), scalar_head=name == judge))
                for key, name in opened.items()
                if name is not None
            },
            rank=adapter.rank if adapter else None,
            goes_on=adapter is not None and adapter.owner != f"stages.{stage.name}",
            heaviest=(),
            prompts=(),
            context=model.max_context,
            converses=stage_converses(stage.taskset),
            evaluated=0,
        )

    def check_teacher_tokens(self, stage: PlannedStage, model: LoadedModel) -> None:
        name = stage.options.teacher if isinstance(stage.options, OnlineStage) else None
        if name is not None:
            teacher = self.open_skeleton(replace(stage.options.model, name=name))
            tokens, taught = model.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
            check_teacher_head(stage.options.model.name, tokens, name, taught, teacher.vocabulary)

    def check_rows(self, stage: PlannedStage, model: LoadedModel, renderer: Renderer) -> None:
        examples = find_stage_examples(self.plan, stage)
        if examples is None:
            return
        limits = model.max_context, model.vocabulary

        def watch(given: Sequence[Example]) -> Iterator[Example]:
            for number, example in enumerate(given):
                if number % TOLD_EVERY == 0:
                    self.tell(f"{stage.name}: {number:,} of {len(given):,} rows in tokens")
                yield example

        seed = derive_seed(self.plan.recipe.seed, stage.name)
        units = encode_stage_examples(
            examples, stage.offline, renderer, limit=limits[0], vocabulary=limits[1], seed=seed, watch=watch
        )
        if "reference" in stage.algorithm.needs:
            check_batch_size(stage.offline, len(units.train) if units.mixture is None else units.mixture.num_rows)
        lengths = [len(datum.tokens) for part in (units.train, units.heldout) for unit in part for datum in unit]
        limit = choose_stage_encoding(stage.offline, limits[0]).limit
        stage.lines += [*units.tally.lines(), describe_stage_lengths(lengths, limit)]
        if split := describe_stage_split(stage, len(units.train), len(units.heldout)):
            stage.lines.append(split)
        said = [message for example in examples.train[:1] if isinstance(example, Chat) for message in example.messages]
        stage.example, stage.notes = units.train[0][0], renderer.notes(said)
        assert stage.bulk is not None
        stage.bulk = replace(stage.bulk, heaviest=find_heaviest_step(units.train, stage.offline, seed, units.mixture))
        if self.keep and (not self.num_kept or self.num_kept + sum(lengths) <= MAX_KEPT):
            self.num_kept += sum(lengths)
            stage.kept = KeptUnits(units, *limits)

    def check_tasks(self, stage: PlannedStage, model: LoadedModel, renderer: Renderer) -> None:
        """Every prompt of a set that has an end, and one task played. Tasks that several stages share are played
        once."""
        assert stage.taskset is not None
        options, seed = stage.options, derive_seed(self.plan.recipe.seed, stage.name)
        self.tell(f"{stage.name}: the prompts of {stage.taskset.name}")
        guarded = Guard(self.plan.heldout, [stage.holder]).guard(stage.taskset)
        looked_at: list[Task] = []
        if stage_samples_answers(stage):
            guarded = fit_stage_prompts(options, guarded, renderer, model.max_context)
            looked_at = list(islice(guarded.train(seed), MAX_TRIED if guarded.tasks is None else None))
        assert stage.bulk is not None
        prompts = find_longest_prompts([*guarded.heldout, *looked_at], guarded, renderer)
        num = 0 if stage.scores else min(self.plan.recipe.evaluation.num_tasks, len(guarded.heldout))
        stage.bulk = replace(stage.bulk, prompts=prompts, evaluated=num)
        if stage_samples_answers(stage):
            stage.lines += [*guarded.notes, describe_stage_prompts(guarded, looked_at, stage.bulk.prompt)]
        written = options.tools_as_text, options.template_options, options.rollouts.history
        key = (id(stage.taskset), id(model), *written, options.limits)
        trial = next((trial for known, trial in self.trials if known == key), None)
        if trial is None:
            self.tell(f"{stage.name}: a task of {stage.taskset.name} is played and judged")
            trial = try_stage_tasks(guarded, options, renderer, limit_stage_context(options, model.max_context), seed)
            self.trials.append((key, trial))
            self.plan.cautions += trial.cautions
        if stage_samples_answers(stage):
            stage.example, stage.notes = trial.datum, trial.notes
        if isinstance(options, OnlineStage) and options.guidance and options.guidance.path:
            self.check_traces(stage, renderer, limit_stage_context(options, model.max_context))

    def check_traces(self, stage: PlannedStage, renderer: Renderer, max_context: int) -> None:
        """Reads the guide's file. Rewards may be slow, so a dry run has only the first traces judged."""
        assert stage.taskset is not None
        self.tell(f"{stage.name}: the traces are read and judged")
        num = None if self.keep else TRIED_TRACES
        guide = run_loop_async(open_guide(stage.online, stage.taskset, renderer, max_context, self.plan.heldout, num))
        assert guide.traces is not None
        partly = f"; the first {num} were judged" if guide.traces.num_judged == num else ""
        stage.lines.append(guide.traces.report() + partly)
        if self.keep:
            stage.traces = guide.traces


# ---------------------------------------------------------------------- what a stage has


def find_origin_model(plan: Plan, model: ModelConfig) -> ModelConfig:
    """The model which the chain of stages begins with that leads to this one."""
    while (earlier := read_stage_reference(model.name)) is not None:
        model = plan.stages[earlier].options.model
    return model


def stage_samples_answers(stage: PlannedStage) -> bool:
    """Whether its model answers training tasks."""
    return isinstance(stage.options, OnlineStage) or stage.offline.data.sample is not None


def stage_judges_answers(plan: Plan, stage: PlannedStage) -> bool:
    """Whether answers to its tasks are sampled at all, in training or to evaluate."""
    return stage_samples_answers(stage) or (plan.recipe.evaluation.num_tasks > 0 and not stage.scores)


def find_stage_examples(plan: Plan, stage: PlannedStage) -> Examples | None:
    """None where they do not exist yet: another stage's pairs."""
    if stage.examples is not None or stage.offline.data.demonstrations is None:
        return stage.examples
    assert stage.taskset is not None
    taskset = Guard(plan.heldout, [stage.holder]).guard(stage.taskset)
    shown = demonstrate_stage_tasks(
        taskset, stage.offline.data.demonstrations, derive_seed(plan.recipe.seed, stage.name)
    )
    return drop_heldout_examples(shown, plan.heldout, stage, but=[stage.holder])


@dataclass(frozen=True)
class AdapterForm:
    rank: int
    alpha: float
    layers: Collection[str]
    owner: str  # the folder or the stage that it is from


def find_stage_adapter(plan: Plan, stage: PlannedStage, model: LoadedModel) -> AdapterForm | None:
    """The adapter that a stage trains. Raises where the model lacks a layer that it names, or where it is to be another
    one than that of the model which it goes on with."""
    lora, earlier = stage.options.lora, read_stage_reference(stage.options.model.name)
    if lora is None:
        return None
    if earlier is not None:
        begun = find_stage_adapter(plan, plan.stages[earlier], model)
    elif model.adapter is not None:
        saved = read_adapter(model.adapter, header=True)
        begun = AdapterForm(saved.rank, saved.alpha, saved.layers(), str(model.adapter))
    else:
        begun = None
    if begun is None:
        return AdapterForm(lora.rank, lora.alpha, choose_adapted_layers(model.module, lora), f"stages.{stage.name}")
    check_same_adapter(lora, begun.rank, begun.alpha, begun.layers, begun.owner)
    return begun


# ---------------------------------------------------------------------- prompts and lengths


def limit_stage_context(options: OfflineStage | OnlineStage, max_context: int) -> int:
    """Tokens of prompt and answer. max_context: what the model can read."""
    return min(options.sampler.max_context or max_context, max_context)


def fit_stage_prompts(
    options: OfflineStage | OnlineStage, taskset: TaskSet, renderer: Renderer, max_context: int
) -> TaskSet:
    """The tasks whose prompts leave room to answer; one that leaves none is an error, or is left out."""
    overlong: Literal["error", "drop"] = "error" if options.overlong == "error" else "drop"
    return fit_task_prompts(taskset, renderer, limit_stage_context(options, max_context), overlong)


def describe_stage_lengths(lengths: Sequence[int], limit: int | None) -> str:
    total, longest = sum(lengths), max(lengths)
    return f"{len(lengths):,} sequences of {total:,} tokens; the longest has {longest:,}, and {limit:,} would fit"


def describe_stage_prompts(taskset: TaskSet, tasks: Sequence[Task], longest: int) -> str:
    endless = "" if taskset.tasks is not None else " of a set without end"
    count = f"{len(tasks):,} tasks{endless} looked at"
    return f"{count}; {len(taskset.heldout):,} held out; the longest prompt has {longest:,} tokens"
