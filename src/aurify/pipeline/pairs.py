"""Preference pairs out of a model's own answers. A stage samples them once and keeps them in its folder; a resumed run
and a later stage take the very same."""

from __future__ import annotations

from itertools import islice

from aurify.data.preferences import sample_preferences
from aurify.errors import UserError
from aurify.loops.interrupt import run_loop_async
from aurify.loops.progress import derive_seed
from aurify.pipeline.examples import Examples, load_stage_pairs, save_stage_pairs
from aurify.pipeline.recipe import build_stage_renderer
from aurify.pipeline.start import StageRun, fit_stage_tasks, open_other_stage_engine, open_stage_engine
from aurify.rewards.model import ModelReward
from aurify.rewards.rubric import Rubric
from aurify.rows.row import Row
from aurify.samplers.open import open_sampler


def gather_stage_pairs(run: StageRun, owner: str) -> Examples:
    """The pairs of stage `owner`, which samples them if it is this one and has none yet."""
    folder = run.run_folder.stage(owner).path
    known = load_stage_pairs(folder)
    if known is None:
        save_stage_pairs(folder, *sample_stage_pairs(run))
        known = load_stage_pairs(folder)
        assert known is not None
    return known


def sample_stage_pairs(run: StageRun) -> tuple[list[Row], list[Row]]:
    """Best against worst of the starting model's own answers, for training tasks and for held-out ones."""
    engine = open_stage_engine(run, trainable=False)
    run = fit_stage_tasks(run, engine)
    sample, taskset, options = run.stage.offline.data.sample, run.taskset, run.stage.options.rollouts
    limits = run.stage.options.limits
    assert sample is not None and taskset is not None
    sampler = open_sampler(run.stage.options.sampler, engine, seed=run.seed)
    renderer = build_stage_renderer(run.stage.options, engine.tokenizer)
    judge = open_other_stage_engine(run, sample.reward, scalar_head=True) if sample.reward else None
    rubric = Rubric([ModelReward(judge)] if judge else taskset.rubric.rewards, options.reward_seconds)
    parts = (
        list(islice(taskset.train(derive_seed(run.seed, "pairs")), sample.num_tasks)),
        taskset.heldout[: sample.num_heldout],
    )

    async def sample_all() -> list[tuple[list[Row], int]]:
        try:
            return [
                await sample_preferences(
                    tasks, taskset.environment, rubric, sampler, renderer, sample.sampling, sample.group_size,
                    derive_seed(run.seed, "pairs", part), limits=limits, options=options,
                    tell=run.tracker.event,
                )
                for part, tasks in enumerate(parts)
            ]  # fmt: skip
        finally:
            await sampler.close()

    with run.show_waiting(f"sampling {sample.group_size} answers to each of {sum(map(len, parts))} tasks"):
        (train, num_flat), (heldout, num_flat_heldout) = run_loop_async(sample_all())
    for other in (engine, judge):
        if other is not None:
            other.close()
    run.tracker.event(
        f"{len(train)} preference pairs, {len(heldout)} held out; {num_flat + num_flat_heldout} tasks had no better "
        "and worse answer"
    )
    if not train:
        raise UserError(
            f"stages.{run.name}.data.sample: no preference pair: to each of {len(parts[0])} tasks all "
            f"{sample.group_size} answers earned the same reward. Take an easier or a harder task, a larger "
            "group_size, a higher sampling.temperature, or a model that is sometimes right (after a short sft)"
        )
    return train, heldout
