"""What a stage computes at the same time, at most: the largest micro-batch of its heaviest step, and the sequences that
it samples together. Rows are packed as the engine packs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, islice

import numpy as np

from aurify.data.mixing import Mixture
from aurify.engine.cpu.gathered import count_gathered
from aurify.engine.cpu.rows import side_by_side
from aurify.engine.packing import PART_TOKENS, Row, pack_rows
from aurify.loops.batches import gather_batch, indices_at, num_steps
from aurify.pipeline.recipe import OfflineStage, OnlineStage, PairSampling
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
    of_trained: bool = True  # by the model that is trained, beside its optimiser


def heaviest_step(units: Sequence[tuple[Datum, ...]], stage: OfflineStage, seed: int, mixture: Mixture | None) -> list[Datum]:
    """The data of the step with the most tokens."""
    num = len(units) if mixture is None else mixture.num_rows
    sizes = [sum(len(datum.tokens) for datum in unit) for unit in units]
    steps = (indices_at(step, stage, num, seed, mixture) for step in range(min(num_steps(stage, num), MOST_STEPS)))
    return gather_batch(units, max(steps, key=lambda indices: sum(sizes[index] for index in indices)))


def imagine_step(groups: int, answers: int, prompt: int, answer: int, most: int, *, pairs: bool) -> list[list[Datum]]:
    """Groups of answers that do not exist yet, all of full length. most: tokens in all; more than a few micro-batches
    show nothing new. pairs: the answers of a group stay together."""
    fresh = count()
    data: list[list[Datum]] = []
    for group in range(max(1, min(groups, most // (prompt + answers * answer)))):
        asked, weights, unit = list(islice(fresh, prompt)), [0.0] * prompt + [1.0] * answer, group if pairs else -1
        data.append([Datum(asked + list(islice(fresh, answer)), weights, unit=unit) for _ in range(answers)])
    return data


def measure_load(data: Sequence[Datum], max_tokens: int, abreast: int, *, exact: bool = True) -> Load:
    """data: of a step. abreast: rows that may be computed side by side."""
    parts = max(1, min(abreast, max_tokens // PART_TOKENS)) if abreast > 1 else 1
    rows = pack_rows(data, max_tokens, True, parts)
    together = [1] * len(rows)
    if parts > 1:
        together = [most for run, most in side_by_side(rows, max_tokens, parts) for _ in run]
    loads = []
    for index, most in enumerate(together):
        chosen = sorted(rows[index:], key=lambda row: -len(row.tokens))[: max(1, most)]
        counted = [count_gathered(row) for row in chosen]
        loads.append(
            Load(
                sum(len(row.tokens) for row in chosen), sum(count_predicted(row, data) for row in chosen),
                sum(keys for keys, _ in counted), sum(entries for _, entries in counted), len(chosen),
                len(rows), exact,
            )
        )  # fmt: skip
    return max(loads, key=lambda load: load.nodes)


def count_predicted(row: Row, data: Sequence[Datum]) -> int:
    trained = [path[np.flatnonzero(data[k].weights)] for k, path in zip(row.data, row.nodes, strict=True)]
    return len(np.unique(np.concatenate(trained)))


def train_load(
    stage: OfflineStage | OnlineStage, heaviest: Sequence[Datum], prompt: int, max_tokens: int, abreast: int
) -> Load:
    """heaviest: the data of the heaviest step, where they exist. prompt: tokens of the longest one, where they do
    not."""
    if heaviest:
        return measure_load(heaviest, max_tokens, abreast)
    if isinstance(stage, OnlineStage):
        groups, answers, params = stage.prompts_per_step, stage.completions_per_prompt, stage.sampling
        groups = -(-groups // stage.num_minibatches)
    else:
        groups, answers = stage.batch_size, 2
        params = (stage.data.sample or PairSampling()).sampling
    answer = limit_answer(stage, prompt, params)
    pairs = isinstance(stage, OfflineStage)
    made = imagine_step(groups, answers, prompt, answer, FOLD * max_tokens, pairs=pairs)
    load = measure_load([datum for group in made for datum in group], max_tokens, abreast, exact=False)
    return replace(load, micro_batches=-(-load.micro_batches * groups // len(made)))


def limit_answer(stage: OfflineStage | OnlineStage, prompt: int, params: SamplingParams) -> int:
    limit = stage.sampler.max_context
    return max(1, params.max_tokens if limit is None else min(params.max_tokens, limit - prompt))


def list_asked(
    stage: OfflineStage | OnlineStage, prompt: int, evaluated: int, evaluation: SamplingParams
) -> list[Asked]:
    """All that the stage samples. evaluated: held-out tasks that are answered."""
    asked = []
    if isinstance(stage, OnlineStage):
        num = stage.prompts_per_step * stage.completions_per_prompt
        asked.append(Asked(num, prompt, limit_answer(stage, prompt, stage.sampling)))
    elif stage.data.sample is not None:
        sample = stage.data.sample
        num = sample.num_tasks * sample.group_size
        asked.append(Asked(num, prompt, limit_answer(stage, prompt, sample.sampling), of_trained=False))
    if evaluated:
        asked.append(Asked(evaluated, prompt, limit_answer(stage, prompt, evaluation)))
    return asked
