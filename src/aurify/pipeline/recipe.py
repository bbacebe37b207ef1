"""What a run is told to do: a recipe and its stages.

A recipe names a model, a task and stages in order. A stage trains one model by one method, and later stages take its
result by name: `model: "@sft"`, `reward: "@reward"`, `data: {stage: "@reward"}`. What stands at the top of a recipe
(`model`, `task`, `lora`, `engine`, `sampler`, `rollouts`, `limits`, `tools_as_text`, `template_options`) holds for
every stage that does not say otherwise. Which options a stage has follows from its method: one that learns from
rollouts is trained online, every other one on static data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from aurify import config, registry
from aurify.bounds import Checked, Ge, Interval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from aurify.data.encode import OnBadRow, Overlong
from aurify.data.mixing import By, Stop
from aurify.data.sources import Part
from aurify.engine.lora import LoraConfig
from aurify.engine.optim import OptimConfig
from aurify.environments.player import RolloutOptions
from aurify.environments.rollout import NO_LIMITS, Limits
from aurify.errors import UserError
from aurify.models.model import ModelConfig
from aurify.renderer import Renderer, TrainOn
from aurify.rewards.combine import Combination
from aurify.samplers.open import SamplerOptions
from aurify.types import SamplingParams

# what a stage takes over from the recipe unless it says otherwise; `model` is merged
INHERITED = ("task", "lora", "engine", "sampler", "rollouts", "limits", "tools_as_text", "template_options")
SHORT = {"model": "name", "task": "name", "reward": "model"}  # an option, and its key that may stand for all of it


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Checked):
    micro_batch_tokens: PositiveInt | None = None  # tokens in one forward and backward; None: the engine chooses
    # recompute activations in the backward pass: less memory, a third more time; auto: where they would not fit;
    # offload: and keep the inputs of layers in the memory of the host (on a CPU the same as true)
    checkpointing: bool | Literal["auto", "offload"] = "auto"


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(Checked):
    """Held-out numbers before and after each stage. Greedy by default: the same model always gets the same number."""

    num_tasks: NonNegativeInt = 64  # 0 = no evaluation
    sampling: SamplingParams = SamplingParams(temperature=0.0)  # how the held-out answers are sampled
    limits: Limits | None = None  # of a conversation; None: those of the stage
    every: NonNegativeInt = 0  # steps between held-out numbers while a stage trains; 0: before and after alone
    keep_best: bool = True  # with `every`: a stage leaves the model of its best number, not of its last step
    stop_after: PositiveInt | None = None  # with `every`: a stage ends after so many numbers that are not the best

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.every and (self.stop_after is not None or not self.keep_best):
            raise UserError("stop_after and keep_best have no effect without every; set evaluation.every, in steps")
        if self.every and not self.num_tasks:
            raise UserError(f"every: {self.every}, but num_tasks is 0, so nothing is evaluated")


@dataclass(frozen=True, kw_only=True)
class PairSampling(Checked):
    """Preference pairs out of the model's own answers: the best against the worst of each group."""

    num_tasks: PositiveInt = 64  # training tasks that are answered
    num_heldout: NonNegativeInt = 32  # tasks of the held-out split, for the pair accuracy
    group_size: Annotated[int, Ge(2)] = 8  # answers to each task
    sampling: SamplingParams = SamplingParams()  # how the answers are sampled
    reward: str | None = None  # "@stage": a reward model judges; None: the task's own reward


OF_ONE_SOURCE: tuple[str, ...] = ("split", "subset", "max_rows", "form")
OF_ROWS = (*OF_ONE_SOURCE, "maps", "filters")


@dataclass(frozen=True, kw_only=True)
class DataOptions(Checked):
    """Where an offline stage takes its rows from: one of path, dataset, mix, demonstrations, sample and stage."""

    path: str | None = None  # a file, a pattern such as data/*.jsonl, a folder, or owner/name of the hub, in any form
    dataset: str | dict[str, Any] | None = None  # registered by @aurify.dataset: a name, or {name: ..., options of it}
    mix: list[Part] | None = None  # several sources with weights
    demonstrations: PositiveInt | None = None  # so many training tasks with the answer that the task itself would give
    sample: PairSampling | None = None  # preference pairs out of the model's own answers
    stage: str | None = None  # "@stage": the pairs that stage was trained on
    split: str = "train"  # of a data set of the hub, and of the files in a folder
    subset: str | None = None  # of a data set of the hub: what it calls its configuration
    max_rows: int | None = None  # the first so many; those of the hub are then streamed
    form: str | None = None  # what `aurify data inspect` calls it; None: found by what is in the rows
    maps: list[str | dict[str, Any]] = field(default_factory=list)  # of every source, before its own
    filters: list[str | dict[str, Any]] = field(default_factory=list)  # of every source, before its own
    mix_by: By = "rows"  # what the weights of `mix` count
    mix_stop: Stop = "exhaust"  # an epoch of `mix` ends when the first source is used up, or (cycle) when all are
    on_bad_row: OnBadRow = "error"  # rows that cannot be used; skipped ones are counted by their reason
    heldout_path: str | None = None  # rows to evaluate on
    # of the rows, where neither a task nor heldout_path gives something to evaluate on
    heldout_share: Annotated[float, Interval(ge=0, lt=1)] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        sources = ("path", "dataset", "mix", "demonstrations", "sample", "stage")
        given = [name for name in sources if getattr(self, name) is not None]
        if len(given) != 1:
            raise UserError(
                f"{' and '.join(given) or 'no source'} given; set exactly one of path (a file), dataset (a name), mix "
                "(several of them), demonstrations (a number of the task's own answers), sample (pairs from the "
                'model\'s answers) and stage ("@name": the pairs of that stage)'
            )
        if self.mix is not None and len(self.mix) < 2:
            raise UserError(f"mix: {len(self.mix)} sources; it needs two or more")
        if self.mix is not None:
            idle, reason = OF_ONE_SOURCE, "it stands in each source of mix"
        else:
            idle, reason = () if self.path or self.dataset else OF_ROWS, "it needs path, dataset or mix"
        for spec in fields(self):
            if spec.name in idle and getattr(self, spec.name) not in (spec.default, []):
                raise UserError(f"{spec.name}: it has no effect here; {reason}")
        _ = self.parts  # makes their own checks

    @property
    def parts(self) -> list[Part]:
        """The sources that rows are read from; none where they are made."""
        steps = {"maps": self.maps, "filters": self.filters}
        if self.mix is not None:
            return [replace(part, **{name: steps[name] + getattr(part, name) for name in steps}) for part in self.mix]
        if self.path is None and self.dataset is None:
            return []
        where = {"path": self.path, "dataset": self.dataset, "split": self.split, "subset": self.subset}
        return [Part(**where, max_rows=self.max_rows, form=self.form, **steps)]  # type: ignore[arg-type]

    @property
    def heldout_part(self) -> Part | None:
        if self.heldout_path is None:
            return None
        return Part(path=self.heldout_path, split="test", maps=self.maps, filters=self.filters)


@dataclass(frozen=True, kw_only=True)
class PrefixOptions:
    """How much of a trace is given."""

    # linear: the share falls from high to low over the stage; fixed: from low to high over a group
    schedule: Literal["fixed", "linear"] = "linear"
    low: float = 0.0  # the smallest share of a trace that is given
    high: float = 0.8  # the largest share

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise UserError(f"low {self.low} and high {self.high} must be in [0, 1], in this order")


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions(Checked):
    """A guide's answers in the groups of the policy's own; see loops/guidance.py."""

    path: str | None = None  # a file of traces (see aurify.data.traces) ...
    demonstrations: bool = False  # ... or the answers that the task itself would give
    num_off: PositiveInt = 1  # of the completions_per_prompt, so many are a guide's
    replace: Literal["always", "all_failed"] = "always"  # all_failed: only where none of the policy's own succeeds
    max_tokens: PositiveInt | None = None  # longer traces are refused; None: sampling.max_tokens
    prefix: PrefixOptions | None = None  # give only the beginning of a trace
    success: float = 1.0  # what the task's first reward gives a right answer

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.path is None) != self.demonstrations:
            raise UserError("set one of path (a file of traces) and demonstrations (true)")
        if self.prefix is not None and self.replace == "all_failed":
            raise UserError("prefix: it is given before the policy writes, so it does not go with all_failed")


@dataclass(frozen=True, kw_only=True)
class ReplayOptions(Checked):
    """Past successes of the policy in the groups of now; see loops/replay.py."""

    share: Annotated[float, Interval(gt=0, le=1)] = 0.5  # of a step's prompts, as far as the buffer has questions
    start: float = 0.35  # nothing is collected or replayed before a step's success rate is above this
    sigma: PositiveFloat = 1.0  # of the normal density over buckets, in successes
    buckets: Literal["successes", "spread"] = "successes"  # what a question's bucket says of its latest group
    select: Literal["entropy", "nll", "random"] = "entropy"  # which of a question's trajectories: the surest, or any
    per_question: PositiveInt = 16  # trajectories
    max_tokens: PositiveInt = 8_000_000  # of the whole buffer, prompts included; 8 bytes each
    success: float = 1.0  # what the task's first reward gives a right answer


@dataclass(frozen=True, kw_only=True)
class RewardModelUse:
    model: str  # "@stage" of a reward model, or a folder with one
    weight: float = 1.0  # beside the task's own rewards
    alone: bool = False  # leave the task's own rewards out


@dataclass(frozen=True, kw_only=True)
class Stage(Checked):
    """What all stages have."""

    method: str  # a name of `aurify list algorithms`
    model: ModelConfig  # a name, a folder, a GGUF file, a hub id or "@stage": the model of an earlier stage
    task: dict[str, Any] | None = None  # name, and the options of that task; a list of such, with ratios, mixes them
    lora: LoraConfig | None = None  # None: all weights are trained
    optim: OptimConfig = OptimConfig()  # learning rate and optimiser
    algorithm: dict[str, Any] = field(default_factory=dict)  # options of the method: `aurify help grpo`
    engine: EngineOptions = EngineOptions()
    sampler: SamplerOptions = SamplerOptions()
    rollouts: RolloutOptions = RolloutOptions()  # time limits, and when too much fails
    limits: Limits = NO_LIMITS  # what a conversation with an environment may use
    tools_as_text: bool = False  # tools, calls and results go into the text, for chat templates that leave them out
    template_options: dict[str, Any] = field(default_factory=dict)  # variables of the chat template
    checkpoint_every: NonNegativeInt = 20  # steps; 0: only when the run is interrupted
    keep_checkpoints: PositiveInt = 1  # the newest so many stay


@dataclass(frozen=True, kw_only=True)
class OfflineStage(Stage):
    """Static data: SFT, reward models, preferences."""

    data: DataOptions
    steps: PositiveInt | None = None  # None: `epochs` decides
    epochs: PositiveFloat | None = None  # passes over the rows; 1 if `steps` is not given either
    batch_size: PositiveInt = 8  # rows, or pairs, of one optimiser step
    max_length: Annotated[int, Ge(2)] | None = None  # tokens of a row; None: what the model can take
    overlong: Overlong = "error"  # rows above max_length: dropped, or cut where a message ends; all are counted
    train_on: TrainOn = "assistant"  # SFT: all assistant turns, the last one, or those marked by `train` or `weight`

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.epochs is not None:
            raise UserError(
                f"steps ({self.steps}) and epochs ({self.epochs}) both say how long to train; "
                "give one of them, and the other as null"
            )


@dataclass(frozen=True, kw_only=True)
class OnlineStage(Stage):
    """The model's own answers, scored: GRPO and its family."""

    steps: PositiveInt = 30  # rounds of sampling and training
    prompts_per_step: PositiveInt = 8  # questions, each with a group of answers
    completions_per_prompt: PositiveInt = 8  # answers to a question: a group
    sampling: SamplingParams = SamplingParams()  # how answers are sampled in training
    overlong: Literal["error", "drop"] = "error"  # tasks whose prompt leaves no room to answer
    reward: RewardModelUse | None = None  # a reward model, beside the task's own rewards
    combine_rewards: Combination = "sum"  # several rewards of a group into one; see rewards/combine.py
    guidance: GuidanceOptions | None = None  # a guide's answers, in the groups of the policy's own
    replay: ReplayOptions | None = None  # the policy's own past successes, in groups of now
    teacher: str | None = None  # "@stage" or a model, for methods that learn from another one's log-probs
    dynamic_sampling: NonNegativeInt = 0  # how often groups without spread are drawn again, at most, in a step
    dynamic_sampling_by: Literal["advantage", "accuracy"] = "advantage"  # what must differ; accuracy: the first reward
    consistent_only: bool = False  # train only answers with all rewards above their group's means, or all below
    truncated: Literal["keep", "mask", "penalise"] = "keep"  # completions that ran into a token limit
    truncation_penalty: NonNegativeFloat = 1.0  # what "penalise" takes off the reward
    num_minibatches: PositiveInt = 1  # optimiser steps that share out the groups of one round of sampling
    num_epochs: PositiveInt = 1  # passes over the samples of one round
    samples_every: NonNegativeInt = 10  # steps between samples that are written down; 0 = none


@dataclass(frozen=True, kw_only=True)
class Recipe:
    # by name, in order; a stage uses the result of an earlier one as "@name"
    stages: dict[str, OfflineStage | OnlineStage]
    name: str = "run"  # heads the report
    seed: int = 0  # of everything that is drawn
    plugins: list[str] = field(default_factory=list)  # Python files that register tasks, rewards, algorithms
    # auto: where a stage does not fit the card or the RAM, the options that `aurify plan` would change are changed
    memory: Literal["plan", "auto"] = "plan"
    evaluation: EvaluationOptions = EvaluationOptions()  # held-out numbers before and after each stage
    model: ModelConfig | None = None  # that stages start from; this and all below hold for stages that say nothing else
    task: dict[str, Any] | None = None  # name, and the options of that task; a list of such, with ratios, mixes them
    lora: LoraConfig | None = None  # None: all weights are trained
    engine: EngineOptions = EngineOptions()  # memory and speed of training
    sampler: SamplerOptions = SamplerOptions()  # memory and speed of sampling
    rollouts: RolloutOptions = RolloutOptions()  # time limits, and when too much fails
    limits: Limits = NO_LIMITS  # what a conversation with an environment may use
    tools_as_text: bool = False  # tools, calls and results go into the text, for chat templates that leave them out
    template_options: dict[str, Any] = field(default_factory=dict)  # variables of the chat template


def build_recipe(values: Mapping[str, Any]) -> Recipe:
    """Builds the recipe from what `config.load_config` read. Unknown keys and wrong types are errors that name the
    key."""
    values = expand_recipe_shorthands(values)
    registry.load_plugins(values.get("plugins") or ())
    stages = values.get("stages")
    if not isinstance(stages, Mapping) or not stages:
        problem = "is a list, and stages have names" if isinstance(stages, list) else "needs at least one stage"
        raise UserError(f"stages: it {problem}; write `stages: {{sft: {{method: sft, ...}}}}`")
    config.build_options(
        Recipe, {**values, "stages": {}}
    )  # names a mistake at the top before one that it causes in a stage
    shared = {name: values[name] for name in INHERITED if name in values}
    whole = [str(name) for name, stage in stages.items() if isinstance(stage, Mapping) and "method" in stage]
    values["stages"] = {
        str(name): build_stage_options(str(name), stage, values.get("model"), shared, whole)
        for name, stage in stages.items()
    }
    return config.build_options(Recipe, values)


def build_stage_options(
    name: str, values: Any, model: Mapping[str, Any] | None, shared: Mapping[str, Any], whole: Sequence[str]
) -> OfflineStage | OnlineStage:
    """One stage, with what it inherits from the recipe. whole: the stages that have a method, one of which may be
    meant."""
    where = f"stages.{name}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(f"{where}: a stage's name is a folder's name too; use letters, digits, '-', '_' and '.'")
    if not isinstance(values, Mapping) or "method" not in values:
        hint = config.did_you_mean(name, whole, listing=False)
        raise UserError(f"{where}: no method; write for example `method: sft`{hint}")
    if (reward := values.get("reward")) in registry.list_registered("reward"):
        raise UserError(
            f"{where}.reward: {reward!r} is no model; it belongs to the task: `task: {{name: ..., reward: {reward}}}`"
        )
    values = expand_recipe_shorthands({**shared, **values})
    values["model"] = {**(model or {}), **(values.get("model") or {})}
    if "name" not in values["model"]:
        raise UserError(f"{where}.model: no model; set `model:` at the top of the recipe or in the stage")
    with config.prefix_errors(f"{where}.method"):
        kind: type[OfflineStage | OnlineStage] = OnlineStage if is_online_method(values["method"]) else OfflineStage
    return config.build_options(kind, values, where)


def expand_recipe_shorthands(values: Mapping[str, Any]) -> dict[str, Any]:
    """`model: x` becomes `model: {name: x}`, and so on; a list of tasks becomes the task `mix`."""
    if isinstance(values.get("task"), list):
        values = {**values, "task": {"name": "mix", "tasks": values["task"]}}
    return {
        key: {SHORT[key]: value} if key in SHORT and not isinstance(value, Mapping | None) else value
        for key, value in values.items()
    }


def is_online_method(method: str) -> bool:
    return bool(registry.get_entry("algorithm", method).learns_from == "rollouts")


def build_stage_algorithm(stage: Stage, where: str) -> Any:
    """The stage's algorithm: the registered dataclass with the fields that the recipe sets. Where another engine than
    the trainer samples, the difference is corrected unless the recipe says otherwise."""
    kind, options = registry.get_entry("algorithm", stage.method), stage.algorithm
    if stage.sampler.kind != "in_process" and "correction" in {one.name for one in fields(kind)}:
        options = {"correction": {"kind": "token_tis"}, **options}
    return config.build_options(kind, options, f"{where}.algorithm")


def build_stage_renderer(stage: Stage, tokenizer: Any) -> Renderer:
    """What turns messages into tokens in this stage: for training, sampling and evaluation alike."""
    return Renderer(tokenizer, tools_as_text=stage.tools_as_text, template_options=stage.template_options)


def read_stage_reference(name: str | None) -> str | None:
    """`"@sft"` -> `"sft"`; anything else is no reference."""
    return name[1:] if name is not None and name.startswith("@") else None
