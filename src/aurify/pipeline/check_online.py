"""Checks a stage of the online loop: that it can learn, that its sources fit together, and that no option would be
accepted and ignored."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from aurify.algorithms.effects import check_algorithm_options, stage_has
from aurify.algorithms.hooks import algorithm_hook
from aurify.errors import UserError
from aurify.loops.replay import num_replayed
from aurify.pipeline.recipe import OnlineStage

if TYPE_CHECKING:
    from aurify.tasks.taskset import TaskSet

log = logging.getLogger("aurify")


def check_online_stage(stage: OnlineStage, algorithm: Any, taskset: TaskSet | None) -> None:
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
    check_stage_sources(stage, taskset)
    check_stage_teacher(stage, algorithm)
    algorithm_hook(algorithm, "check_stage")(stage)
    check_stage_learns(stage, algorithm)
    check_idle_options(stage, algorithm)
    for caution in algorithm_hook(algorithm, "cautions"):
        log.warning("%s: %s", stage.method, caution)


def check_stage_sources(stage: OnlineStage, taskset: TaskSet) -> None:
    """What a group holds beside the policy's own answers."""
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


def check_stage_teacher(stage: OnlineStage, algorithm: Any) -> None:
    learns = algorithm.needs & {"teacher_logprobs", "teacher_divergence"}
    if learns and not stage.teacher:
        raise UserError(f"{stage.method} learns from a teacher: set teacher, a model or an earlier '@stage'")
    if stage.teacher and not learns:
        raise UserError(f"teacher: {stage.method} asks no teacher; leave it out, or choose a method that distils")
    if learns and "ref_logprobs" in algorithm.needs:
        raise UserError(f"{stage.method} cannot keep near a reference and follow a teacher at once; set kl_coef to 0")


def check_stage_learns(stage: OnlineStage, algorithm: Any) -> None:
    """Refuses a stage whose every step would leave the weights as they are, or that lacks what its method is for."""
    smallest = algorithm_hook(algorithm, "min_group")
    if stage.completions_per_prompt < smallest:
        raise UserError(
            f"completions_per_prompt: {stage.completions_per_prompt}; {stage.method} compares the answers to a prompt "
            f"with each other, so that nothing can be learnt; set it to at least {smallest} (8 is usual)"
        )
    for need in algorithm_hook(algorithm, "stage_needs"):
        if not stage_has(stage, need):
            raise UserError(f"{stage.method} without {need} is GRPO: set {need}, or take the method grpo or dr_grpo")
    if stage.replay and num_replayed(stage.replay.share, stage.prompts_per_step) < 1:
        raise UserError(
            f"replay.share: {stage.replay.share} of {stage.prompts_per_step} prompts is less than one, so nothing "
            f"would ever be replayed; set it to at least {1 / stage.prompts_per_step:.3g}, or raise prompts_per_step"
        )


def check_idle_options(stage: OnlineStage, algorithm: Any) -> None:
    """Refuses options that would be accepted and ignored."""
    check_algorithm_options(algorithm, stage)
    by_advantage = stage.dynamic_sampling_by == "advantage"
    if stage.dynamic_sampling and by_advantage and not algorithm_hook(algorithm, "flattens"):
        raise UserError(
            f"dynamic_sampling: with {stage.method} every group teaches, so none is drawn again; leave it out, or set "
            "dynamic_sampling_by: accuracy"
        )
    penalised = stage.truncated == "penalise"
    ignored = {
        "dynamic_sampling_by": (not by_advantage and not stage.dynamic_sampling, "without dynamic_sampling"),
        "truncated": (
            penalised and not algorithm_hook(algorithm, "needs_reward"),
            f"with {stage.method}, which asks for no reward",
        ),
        "truncation_penalty": (stage.truncation_penalty != 1.0 and not penalised, "without truncated: penalise"),
        "combine_rewards": (
            stage.combine_rewards != "sum" and not algorithm_hook(algorithm, "sums_rewards"),
            f"with {stage.method}, which takes the rewards one by one",
        ),
    }
    for name, (idle, reason) in ignored.items():
        if idle:
            raise UserError(f"{name}: {getattr(stage, name)} has no effect {reason}; leave it out")
