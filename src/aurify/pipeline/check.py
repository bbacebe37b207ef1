"""Checks a whole recipe before anything runs, and says what it would do (`--dry-run`).

A run of hours must not end in its third stage over a mistake that could be seen at the start: references to stages,
files, methods, their options, tasks and models are all looked at here. What only the data can tell (an over-long row)
is seen when a stage begins.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from aurify.algorithms.effects import check_effects, stage_has
from aurify.config import suggest_neighbour
from aurify.data.reading import check_part, read_part
from aurify.data.sources import is_hub_id
from aurify.data.tally import Tally
from aurify.errors import UserError
from aurify.hardware import choose_device
from aurify.loops.replay import num_replayed
from aurify.models.names import resolve_model
from aurify.pipeline.recipe import OfflineStage, OnlineStage, Recipe, build_algorithm, data_files, references

if TYPE_CHECKING:
    from aurify.tasks.taskset import TaskSet


log = logging.getLogger("aurify")


def validate(recipe: Recipe) -> None:
    """Raises a UserError for the first thing that cannot work."""
    for name, stage in recipe.stages.items():
        where = f"stages.{name}"
        try:
            check_references(recipe, name, stage)
            algorithm = build_algorithm(stage, where)
            check_files(stage)
            teachers = [stage.teacher] if isinstance(stage, OnlineStage) and stage.teacher else []
            for model in (stage.model.name, *judges(stage), *teachers):
                if not model.startswith("@"):
                    resolve_model(model)
            choose_device(stage.model.device)
            taskset = resolve_taskset(stage)
            if isinstance(stage, OnlineStage):
                check_online(stage, algorithm, taskset)
            else:
                check_offline(stage, algorithm, taskset)
        except UserError as error:
            raise error if str(error).startswith(where) else UserError(f"{where}: {error}") from None


def check_references(recipe: Recipe, name: str, stage: OfflineStage | OnlineStage) -> None:
    earlier = list(recipe.stages)[: list(recipe.stages).index(name)]
    for place, target in references(stage).items():
        if target not in earlier:
            reason = "comes later" if target in recipe.stages else "does not exist"
            known = ", ".join(f"@{other}" for other in earlier) or "none: this is the first"
            raise UserError(f"{place}: '@{target}' {reason}; the stages before {name!r} are {known}")
        scores = "scores" in build_algorithm(recipe.stages[target], f"stages.{target}").needs
        if place in ("reward", "data.sample.reward") and not scores:
            raise UserError(
                f"{place}: '@{target}' trains no reward model (its method is {recipe.stages[target].method})"
            )
        if place in ("model", "teacher") and scores and "scores" not in build_algorithm(stage, f"stages.{name}").needs:
            raise UserError(
                f"{place}: '@{target}' is a reward model: it has a scalar head and cannot write; name a stage before it"
            )
        if place == "data.stage" and not makes_pairs(recipe.stages[target]):
            raise UserError(f"{place}: '@{target}' has no preference pairs to take over")


def judges(stage: OfflineStage | OnlineStage) -> list[str]:
    """The reward models that the stage uses."""
    if isinstance(stage, OnlineStage):
        return [stage.reward.model] if stage.reward else []
    return [stage.data.sample.reward] if stage.data.sample and stage.data.sample.reward else []


def makes_pairs(stage: OfflineStage | OnlineStage) -> bool:
    return isinstance(stage, OfflineStage) and build_algorithm(stage, stage.method).per == "unit"


def check_files(stage: OfflineStage | OnlineStage) -> None:
    for place, path in data_files(stage).items():
        if not path.is_file():
            raise UserError(f"{place}: there is no file {str(path)!r}{suggest_neighbour(path)}")
    if isinstance(stage, OfflineStage):
        for part in stage.data.parts:
            check_part(part)
            if part.path and not is_hub_id(part.path):
                read_part(part, Tally(), skip_bad=stage.data.on_bad_row == "skip")


def check_online(stage: OnlineStage, algorithm: Any, taskset: TaskSet | None) -> None:
    if taskset is None:
        raise UserError(
            f"{stage.method} samples answers to tasks: set `task:` in the stage or at the top of the recipe"
        )
    if stage.sampling.temperature <= 0:
        raise UserError(
            "sampling.temperature: 0 is greedy: all completions of a group are the same and nothing can be learnt; "
            "use 1.0"
        )
    limit = stage.sampler.max_context
    if limit is not None and stage.sampling.max_tokens >= limit:
        raise UserError(
            f"sampling.max_tokens: {stage.sampling.max_tokens} leaves no room for a prompt in max_context {limit}"
        )
    if stage.num_minibatches > stage.prompts_per_step:
        raise UserError(
            f"num_minibatches: {stage.num_minibatches} is more than the {stage.prompts_per_step} groups of a step"
        )
    check_sources(stage, algorithm, taskset)
    check_learns(stage, algorithm)
    check_idle(stage, algorithm)
    for caution in getattr(algorithm, "cautions", ()):
        log.warning("%s: %s", stage.method, caution)


def check_learns(stage: OnlineStage, algorithm: Any) -> None:
    """A stage whose every step would leave the weights as they are, or that lacks what its method is for."""
    smallest = getattr(algorithm, "min_group", 1)
    if stage.completions_per_prompt < smallest:
        raise UserError(
            f"completions_per_prompt: {stage.completions_per_prompt}; {stage.method} compares the answers to a prompt "
            f"with each other, so that nothing can be learnt; set it to at least {smallest} (8 is usual)"
        )
    for need in getattr(algorithm, "stage_needs", ()):
        if not stage_has(stage, need):
            raise UserError(f"{stage.method} without {need} is GRPO: set {need}, or take the method grpo or dr_grpo")
    if stage.replay and num_replayed(stage.replay.share, stage.prompts_per_step) < 1:
        raise UserError(
            f"replay.share: {stage.replay.share} of {stage.prompts_per_step} prompts is less than one, so nothing "
            f"would ever be replayed; set it to at least {1 / stage.prompts_per_step:.3g}, or raise prompts_per_step"
        )


def check_idle(stage: OnlineStage, algorithm: Any) -> None:
    """Options that would be accepted and ignored."""
    check_effects(algorithm, stage)
    if getattr(algorithm, "covariance", None) == "kl" and not stage_has(stage, "updates"):
        raise UserError(
            "covariance: kl holds on to the policy before the update, which with one update a rollout is that of now; "
            "raise num_minibatches or num_epochs, or take covariance: clip"
        )
    advantages = stage.dynamic_sampling_by == "advantage"
    if stage.dynamic_sampling and advantages and not getattr(algorithm, "flattens", True):
        raise UserError(
            f"dynamic_sampling: with {stage.method} every group teaches, so none is drawn again; leave it out, or set "
            "dynamic_sampling_by: accuracy"
        )
    ignored = {
        "dynamic_sampling_by": (not advantages and not stage.dynamic_sampling, "without dynamic_sampling"),
        "truncated": (
            stage.truncated == "penalise" and not getattr(algorithm, "needs_reward", True),
            f"with {stage.method}, which asks for no reward",
        ),
        "truncation_penalty": (
            stage.truncation_penalty != 1.0 and stage.truncated != "penalise",
            "without truncated: penalise",
        ),
        "combine_rewards": (
            stage.combine_rewards != "sum" and not getattr(algorithm, "sums_rewards", True),
            f"with {stage.method}, which takes the rewards one by one",
        ),
    }
    for name, (idle, reason) in ignored.items():
        if idle:
            raise UserError(f"{name}: {getattr(stage, name)} has no effect {reason}; leave it out")


def check_sources(stage: OnlineStage, algorithm: Any, taskset: TaskSet) -> None:
    """What a group holds beside the policy's own answers, and what an algorithm learns from beside the reward."""
    guidance, size = stage.guidance, stage.completions_per_prompt
    num_ready = (guidance.num_off if guidance else 0) + (1 if stage.replay else 0)
    if num_ready >= size:
        raise UserError(
            f"completions_per_prompt: {size} leaves none for the policy's own answers, for a guide and the replay "
            f"buffer take {num_ready}; raise it"
        )
    if guidance and guidance.demonstrations and taskset.demonstration(taskset.heldout[0]) is None:
        raise UserError(
            f"guidance.demonstrations: the task {taskset.name!r} cannot write its own answers; give guidance.path"
        )
    if guidance and guidance.prefix and getattr(algorithm, "sft_coef", 0.0) > 0:
        raise UserError("guidance.prefix: sft_coef imitates whole traces; set one of the two")
    learns = algorithm.needs & {"teacher_logprobs", "teacher_divergence"}
    if learns and not stage.teacher:
        raise UserError(f"{stage.method} learns from a teacher: set teacher, a model or an earlier '@stage'")
    if stage.teacher and not learns:
        raise UserError(f"teacher: {stage.method} asks no teacher; leave it out, or choose a method that distils")
    if "teacher_logprobs" in algorithm.needs and (stage.guidance or stage.replay):
        raise UserError(
            f"{stage.method} with vocabulary: sampled learns from what the student wrote just now; with guidance or "
            "replay choose vocabulary: full"
        )
    if learns and "ref_logprobs" in algorithm.needs:
        raise UserError(f"{stage.method} cannot keep near a reference and follow a teacher at once; set kl_coef to 0")


def check_offline(stage: OfflineStage, algorithm: Any, taskset: TaskSet | None) -> None:
    data, pairs = stage.data, algorithm.per == "unit"
    if taskset is None and (data.demonstrations or data.sample):
        raise UserError(
            "data: demonstrations and samples come from a task: set `task:` in the stage or at the top of the recipe"
        )
    if pairs and data.demonstrations:
        raise UserError(
            f"data.demonstrations: {stage.method} learns from preference pairs; use data.sample or data.path"
        )
    if not pairs and (data.sample or data.stage):
        raise UserError(
            f"data: {stage.method} learns from single answers, not from preference pairs; use demonstrations or path"
        )
    if algorithm.learns_from == "labels" and data.demonstrations:
        raise UserError(
            f"data.demonstrations: {stage.method} learns from desirable and undesirable answers, and these would all "
            "be desirable; give data.path"
        )
    if data.demonstrations and taskset is not None and taskset.demonstration(taskset.heldout[0]) is None:
        raise UserError(f"data.demonstrations: the task {taskset.name!r} cannot write its own answers; give data.path")


def resolve_taskset(stage: OfflineStage | OnlineStage) -> TaskSet | None:
    """The task set that the stage names, made anew."""
    from aurify import tasks

    if stage.task is None:
        return None
    options = dict(stage.task)
    if "name" not in options:
        raise UserError(f"task: no name in {options}; write for example `task: {{name: largest_number}}`")
    return tasks.make(options.pop("name"), **options)


def describe(recipe: Recipe) -> list[dict[str, str]]:
    """One row a stage, for a table: what it starts from, what it learns from, how long."""
    return [
        {
            "stage": name,
            "method": stage.method,
            "model": stage.model.name,
            "weights": "all" if stage.lora is None else f"LoRA rank {stage.lora.rank}",
            "learns from": source(stage),
            "length": duration(stage),
        }
        for name, stage in recipe.stages.items()
    ]


def source(stage: OfflineStage | OnlineStage) -> str:
    task = (stage.task or {}).get("name", "")
    if isinstance(stage, OnlineStage):
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
    data = stage.data
    if data.mix:
        return ", ".join(f"{part.weight:g} x {part.name}" for part in data.parts)
    if data.path and not is_hub_id(data.path):
        return f"{data.path} ({len(read_part(data.parts[0], Tally(), skip_bad=data.on_bad_row == 'skip'))} rows)"
    if data.parts:
        return data.parts[0].name
    if data.demonstrations:
        return f"{data.demonstrations} demonstrations of {task}"
    if data.sample:
        judge = f", judged by {data.sample.reward}" if data.sample.reward else ""
        return f"pairs from its own answers to {data.sample.num_tasks} x {task}{judge}"
    return f"the pairs of {data.stage}"


def duration(stage: OfflineStage | OnlineStage) -> str:
    if stage.steps is not None:
        size = (
            stage.prompts_per_step * stage.completions_per_prompt
            if isinstance(stage, OnlineStage)
            else stage.batch_size
        )
        return f"{stage.steps} steps of {size}"
    return f"{stage.epochs or 1:g} epochs, {stage.batch_size} a step"
