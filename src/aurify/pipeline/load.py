"""What a stage computes at the same time, at most: the largest micro-batch of its heaviest step, and the sequences that
it samples together. Rows are packed as the engine packs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, islice

import numpy as np

from aurify.data.mixing import Mixture
from aurify.engine.cpu.gathered import count_gathered_rows
from aurify.engine.cpu.rows import run_rows_side_by_side
from aurify.engine.packing import PART_TOKENS, Row, pack_rows
from aurify.environments.rollout import Limits
from aurify.loops.batches import batch_indices_at, gather_step_batch, num_stage_steps
from aurify.pipeline.plan import Bulk
from aurify.pipeline.recipe import EvaluationOptions, OfflineStage, OnlineStage, PairSampling
from aurify.types import Datum, SamplingParams

MOST_STEPS = 20_000  # that are looked at
FOLD = 4  # times a micro-batch: of answers that do not exist yet, so much is packed


@dataclass(frozen=True, slots=True)
class Load:
    """Of training. nodes, positions, gathered and masked are those of the rows that are computed side by side."""

    nodes: int
    positions: int  # nodes that the head predicts a trained token for
    gathered: int  # keys that blocks of queries gather, on a CPU
    masked: int  # entries of their masks
    abreast: int  # rows side by side
    micro_batches: int  # rows of the step
    exact: bool  # counted on the rows themselves; else answers of full length are assumed


@dataclass(frozen=True, slots=True)
class Asked:
    """Sequences that are sampled, each of a prompt and an answer of so many tokens."""

    num: int
    prompt: int
    answer: int


def find_heaviest_step(
    units: Sequence[tuple[Datum, ...]], stage: OfflineStage, seed: int, mixture: Mixture | None
) -> list[Datum]:
    """The data of the step with the most tokens."""
    num = len(units) if mixture is None else mixture.num_rows
    sizes = [sum(len(datum.tokens) for datum in unit) for unit in units]
    steps = (
        batch_indices_at(step, stage, num, seed, mixture)
        for step in range(min(num_stage_steps(stage, num), MOST_STEPS))
    )
    return gather_step_batch(units, max(steps, key=lambda indices: sum(sizes[index] for index in indices)))


def imagine_stage_step(
    prompts: Sequence[list[int]], groups: int, answers: int, answer: int, most: int, *, pairs: bool
) -> list[list[Datum]]:
    """Groups of answers that do not exist yet, all of full length. prompts: the longest ones first. most: tokens in
    all; more than a few micro-batches show nothing new. pairs: the answers of a group stay together."""
    fresh = count(1 << 40)  # no token twice: answers share nothing
    data: list[list[Datum]] = []
    longest = len(prompts[0])
    for group in range(max(1, min(groups, most // (longest + answers * answer)))):
        asked = prompts[group] if group < len(prompts) else list(islice(fresh, longest))
        weights, unit = [0.0] * len(asked) + [1.0] * answer, group if pairs else -1
        data.append([Datum(asked + list(islice(fresh, answer)), weights, unit=unit) for _ in range(answers)])
    return data


def measure_load(data: Sequence[Datum], max_tokens: int, abreast: int, *, exact: bool = True) -> Load:
    """data: of a step. abreast: rows that may be computed side by side."""
    parts = max(1, min(abreast, max_tokens // PART_TOKENS))
    rows = pack_rows(data, max_tokens, True, parts)
    runs = run_rows_side_by_side(rows, max_tokens, parts) if parts > 1 else [(rows, 1)]
    largest = [sorted(run, key=lambda row: -len(row.tokens))[: max(1, most)] for run, most in runs]
    chosen = max(largest, key=lambda together: sum(len(row.tokens) for row in together))
    counted = [count_gathered_rows(row) for row in chosen]
    return Load(
        nodes=sum(len(row.tokens) for row in chosen),
        positions=sum(count_predicted(row, data) for row in chosen),
        gathered=sum(keys for keys, _ in counted),
        masked=sum(entries for _, entries in counted),
        abreast=len(chosen),
        micro_batches=len(rows),
        exact=exact,
    )


def count_predicted(row: Row, data: Sequence[Datum]) -> int:
    trained = [path[np.flatnonzero(data[k].weights)] for k, path in zip(row.data, row.nodes, strict=True)]
    return len(np.unique(np.concatenate(trained)))


def predict_training_load(stage: OfflineStage | OnlineStage, bulk: Bulk, max_tokens: int, abreast: int) -> Load:
    if bulk.heaviest:
        return measure_load(bulk.heaviest, max_tokens, abreast)
    if isinstance(stage, OnlineStage):
        groups, answers, params = stage.prompts_per_step, stage.completions_per_prompt, stage.sampling
        groups = -(-groups // stage.num_minibatches)
    else:
        groups, answers = stage.batch_size, 2
        params = (bulk.sampled or PairSampling()).sampling
    pairs = isinstance(stage, OfflineStage)
    answer = limit_stage_answer(stage, bulk, params, stage.limits)
    made = imagine_stage_step(bulk.prompts or [[0]], groups, answers, answer, FOLD * max_tokens, pairs=pairs)
    load = measure_load([datum for group in made for datum in group], max_tokens, abreast, exact=False)
    return replace(load, micro_batches=-(-load.micro_batches * groups // len(made)))


def limit_stage_answer(stage: OfflineStage | OnlineStage, bulk: Bulk, params: SamplingParams, limits: Limits) -> int:
    """Tokens of the longest answer. A conversation may fill the context: what an environment says is not known."""
    room = max(1, min(stage.sampler.max_context or bulk.context, bulk.context) - bulk.prompt)
    if bulk.converses:
        return room
    return min(room, params.max_tokens, limits.turn_tokens or room, limits.tokens or room)


def list_stage_requests(stage: OfflineStage | OnlineStage, bulk: Bulk, evaluation: EvaluationOptions) -> list[Asked]:
    """All that the stage samples."""
    asked = []
    if isinstance(stage, OnlineStage):
        num = stage.prompts_per_step * stage.completions_per_prompt
        asked.append(Asked(num, bulk.prompt, limit_stage_answer(stage, bulk, stage.sampling, stage.limits)))
    elif (sample := stage.data.sample) is not None:
        num = sample.num_tasks * sample.group_size
        asked.append(Asked(num, bulk.prompt, limit_stage_answer(stage, bulk, sample.sampling, stage.limits)))
    if bulk.evaluated:
        limits = evaluation.limits or stage.limits
        asked.append(Asked(bulk.evaluated, bulk.prompt, limit_stage_answer(stage, bulk, evaluation.sampling, limits)))
    return asked
