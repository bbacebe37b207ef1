"""A recipe with everything that its options name: algorithms, task sets, examples. Each is made once, by the check; the
dry run shows it and the run trains on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aurify.engine.footprint import Shape, Training
from aurify.pipeline.recipe import DataOptions, OfflineStage, OnlineStage, PairSampling, Recipe
from aurify.rows.sources import is_hub_rows_id

if TYPE_CHECKING:
    from aurify.data.heldout import HeldOut
    from aurify.data.traces import Traces
    from aurify.pipeline.examples import Examples, Units
    from aurify.tasks.taskset import TaskSet
    from aurify.types import Datum


@dataclass(frozen=True)
class KeptUnits:
    """The rows of a stage in tokens, as a model takes them with this context and this many rows of its embedding."""

    units: Units
    max_context: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a model, read off a skeleton. edges: inputs and outputs of the layers that an adapter of the stage is on, or
    would be on, added up."""

    shape: Shape
    edges: int
    num_adapted: int
    adapted: int  # weights of those layers
    score: int = 0  # parameters of a scalar head

    def training(self, rank: int | None, *, merges: bool) -> Training:
        """rank: of the adapter; None: all weights are trained. merges: adapted layers keep merged weights."""
        if rank is None:
            return Training(self.shape.parameters, whole=True)
        adapter, ranks = rank * self.edges, 0 if merges else rank * self.num_adapted
        return Training(adapter + self.score, False, ranks, adapter, self.adapted if merges else 0)


@dataclass(frozen=True, slots=True)
class Bulk:
    """How large all is that a stage computes with. See pipeline/memory.py."""

    sizes: Sizes
    others: Mapping[str, Sizes]  # models that judge or teach, by the option that names them
    rank: int | None  # of the adapter that is trained
    goes_on: bool  # with an adapter that was there before
    heaviest: Sequence[Datum]  # the rows of the step with the most tokens, where they exist
    prompts: Sequence[list[int]]  # in tokens, the longest first; as many as a step may have
    context: int  # tokens that the model can read
    converses: bool  # with an environment that answers
    evaluated: int  # held-out tasks that are answered before and after
    sampled: PairSampling | None = None  # how the pairs are made that it learns from

    @property
    def prompt(self) -> int:
        """Tokens of the longest one."""
        return len(self.prompts[0]) if self.prompts else 0


@dataclass
class PlannedStage:
    name: str
    options: OfflineStage | OnlineStage
    algorithm: Any
    quantized: str | None = None  # how the base is
    taskset: TaskSet | None = None  # stages of the same task share it
    holder: str = ""  # what the task set is called among those that hold questions out
    examples: Examples | None = None  # of a stage that reads files or functions, less what is held out
    num_rows: int = 0  # that it reads and can use, held-out ones included
    kept: KeptUnits | None = None  # the same in tokens, as far as they are kept
    traces: Traces | None = None  # of guidance.path, judged
    lines: list[str] = field(default_factory=list)  # what became of its rows and prompts
    example: Datum | None = None  # the first, to be looked at
    notes: Sequence[str] = ()  # on it
    bulk: Bulk | None = None  # what its memory plan is made of

    @property
    def scores(self) -> bool:
        """Whether it trains a reward model: one with a scalar head, which cannot write."""
        return "scores" in self.algorithm.needs

    @property
    def offline(self) -> OfflineStage:
        assert isinstance(self.options, OfflineStage)
        return self.options

    @property
    def online(self) -> OnlineStage:
        assert isinstance(self.options, OnlineStage)
        return self.options


@dataclass
class Plan:
    recipe: Recipe
    stages: dict[str, PlannedStage]
    heldout: HeldOut  # what all stages together are measured on
    cautions: list[str] = field(default_factory=list)  # what may go wrong
    fitted: list[str] = field(default_factory=list)  # the overrides that `memory: auto` has made


def describe_stage(stage: PlannedStage) -> dict[str, str]:
    """A row of a table: what a stage starts from, what it learns from, how long."""
    options, on_codes = stage.options, f" on {stage.quantized}" if stage.quantized else ""
    return {
        "stage": stage.name,
        "method": options.method,
        "model": options.model.name,
        "weights": "all" if options.lora is None else f"LoRA rank {options.lora.rank}{on_codes}",
        "learns from": describe_stage_answers(options)
        if isinstance(options, OnlineStage)
        else describe_stage_data(stage),
        "length": describe_stage_length(options),
    }


def name_stage_task(task: Mapping[str, Any]) -> str:
    """Its name, or those of several that are mixed, with their ratios."""
    parts = [part if isinstance(part, Mapping) else {"name": part} for part in task.get("tasks", ())]
    if task.get("name") != "mix" or not parts:
        return str(task.get("name", ""))
    return " + ".join(f"{part.get('ratio', 1)} x {part.get('label', part.get('name'))}" for part in parts)


def describe_stage_answers(stage: OnlineStage) -> str:
    task = name_stage_task(stage.task or {})
    parts = [f"its own answers to {task}: {stage.prompts_per_step} x {stage.completions_per_prompt} a step"]
    if stage.guidance:
        traces = stage.guidance.path or "the task's own demonstrations"
        parts.append(f"{stage.guidance.num_off} of them from {traces}")
    if stage.replay:
        parts.append(f"{stage.replay.share:.0%} of the prompts with a past success")
    if stage.teacher:
        parts.append(f"taught by {stage.teacher}")
    if stage.reward:
        parts.append(f"judged by {stage.reward.model}")
    return ", ".join(parts)


def describe_stage_data(stage: PlannedStage) -> str:
    data: DataOptions = stage.offline.data
    task = name_stage_task(stage.options.task or {})
    if data.mix:
        return ", ".join(f"{part.weight:g} x {part.name}" for part in data.parts)
    if data.path and not is_hub_rows_id(data.path):
        return f"{data.path} ({stage.num_rows} rows)"
    if data.parts:
        return data.parts[0].name
    if data.demonstrations:
        return f"{data.demonstrations} demonstrations of {task}"
    if data.sample:
        judge = f", judged by {data.sample.reward}" if data.sample.reward else ""
        return f"pairs from its own answers to {data.sample.num_tasks} x {task}{judge}"
    return f"the pairs of {data.stage}"


def describe_stage_length(stage: OfflineStage | OnlineStage) -> str:
    if isinstance(stage, OnlineStage):
        return f"{stage.steps} steps of {stage.prompts_per_step * stage.completions_per_prompt}"
    if stage.steps is not None:
        return f"{stage.steps} steps of {stage.batch_size}"
    return f"{stage.epochs or 1:g} epochs, {stage.batch_size} a step"
