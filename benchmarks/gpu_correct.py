"""What must hold on every device, as functions that return what they measured and what was wrong. gpu_check.py and
tests/gpu run the same ones.

In bf16 nothing is compared with a constant alone: two right ways of computing differ as well. Plain rows are computed
in two ways (a padded batch by SDPA; one by one by the model's eager attention), and what is tested may lie FACTOR times
as far from the first way as the second does, plus what is rounding in any case."""

from __future__ import annotations

import asyncio
import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_models import DTYPES, VARIANTS, VOCABULARY, Card, compare_distributions, compare_gradients
from gpu_models import make_data, make_tree, make_variant, summarise
from torch import Tensor

from aurify.algorithms.sft import SFT
from aurify.engine import attention
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.engine.model import LoadedModel
from aurify.engine.packing import build_row
from aurify.samplers.inprocess import InProcessSampler
from aurify.types import Completion, Datum, SamplingParams

FACTOR = 3.0  # of KL, which grows with the square: FACTOR**2
FLOORS = {"float32": 2e-5, "bfloat16": 1e-2}  # of log-probs, and of gradients relative to their norm
WHOLE_ROW = 1 << 20  # tokens of a micro-batch that holds everything
LENGTHS = {"cuda": (63, 127, 128, 300, 1023, 4099), "cpu": (63, 127, 128, 300)}
LORA = LoraConfig(rank=8, alpha=16.0)


class Skipped(Exception):
    """The case cannot be run here; the text says why."""


@dataclass
class Finding:
    """What a case measured, as JSON values, and every statement that does not hold."""

    measured: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    told: str = ""  # in a line of the table

    def expect(self, holds: bool, fault: str) -> None:
        if not holds:
            self.faults.append(fault)

    def expect_close(self, where: str, found: dict[str, float], usual: dict[str, float], dtype: str) -> None:
        """found: how far from the first plain way; usual: how far the second one is."""
        for name, value in found.items():
            square = name.startswith("kl")
            floor = FLOORS[dtype] ** 2 if square else FLOORS[dtype]
            bound = (FACTOR**2 if square else FACTOR) * usual[name] + floor
            self.expect(value <= bound, f"{where}: {name} {value:.2g} is above {bound:.2g} (two plain ways: {usual[name]:.2g})")


@dataclass(frozen=True)
class Case:
    part: str
    name: str
    run: Callable[[Card], Finding]
    seconds: float = 5.0  # a guess for a GPU, compilation included
    cpu: bool = True

    @property
    def title(self) -> str:
        return f"{self.part} {self.name}"


def cases(dtypes: Sequence[str], card: Card) -> list[Case]:
    """The most telling ones first: what the time has no room for is left out at the end."""
    first, rest = list(VARIANTS)[:2], list(VARIANTS)[2:]
    found: list[Case] = []

    def add(part: str, run: Callable[..., Finding], names: Sequence[str], seconds: float, **options: Any) -> None:
        for name in names:
            for dtype in dtypes:
                label = " ".join([name, dtype, *(f"{key}={value}" for key, value in options.items())])
                bound = lambda card, name=name, dtype=dtype: run(name, dtype, card, **options)  # noqa: E731
                found.append(Case(part, label, bound, seconds))

    add("packed", check_packed, first, 20)
    add("sampler", check_sampler, first, 15, lora=False)
    add("sampler", check_sampler, first[:1], 15, lora=True)
    add("seeds", check_seeds, first[:1], 8)
    add("checkpointing", check_checkpointing, first[:1], 8, lora=False)
    add("checkpointing", check_checkpointing, first[:1], 8, lora=True)
    add("step", check_step, first[:1], 8, lora=False)
    add("step", check_step, first[:1], 8, lora=True)
    add("save", check_save, first[:1], 5, lora=True)
    add("save", check_save, first[:1], 5, lora=False)
    add("retreat", check_retreat, first[:1], 5)
    if card.cuda:
        add("retreat", check_memory_limit, first[:1], 8)
    for path in other_paths(card):
        add("packed", check_packed, first, 5, path=path)
    add("packed", check_packed, rest, 15)
    for path in other_paths(card):
        add("packed", check_packed, rest, 4, path=path)
    add("sampler", check_sampler, ["qwen3-gqa4-128"], 15, lora=True)
    if card.cuda:
        add("sampler", check_sampler, first[:1], 10, lora=False, vocabulary=151936)
    return found


# ---------------------------------------------------------------------- packed rows


def other_paths(card: Card) -> tuple[str, ...]:
    """Attention paths for packed rows beside the one that is taken first."""
    ladders: dict[str, tuple[str, ...]] = getattr(attention, "LADDERS", {})
    return tuple(path for path in ladders.get(card.device.type, ())[1:] if path != "plain")


def copy_model(model: LoadedModel, implementation: str | None = None) -> LoadedModel:
    module = copy.deepcopy(model.module)
    if implementation is not None:
        module.config._attn_implementation = implementation
    return replace(model, module=module)


def plain_engines(model: LoadedModel, **options: Any) -> tuple[Engine, Engine]:
    """Two ways to compute plain rows: all in one padded batch; one after the other, by eager attention."""
    padded = Engine(copy_model(model), packing=False, micro_batch_tokens=WHOLE_ROW, checkpointing=False, **options)
    single = copy_model(model, "eager")
    return padded, Engine(single, packing=False, micro_batch_tokens=1, checkpointing=False, **options)


def force_path(engine: Engine, path: str) -> None:
    settle = getattr(engine.body, "_settle", None)
    if settle is None:
        raise Skipped(f"this version has no way to force the attention path {path!r}")
    settle(path, "")


def path_of(engine: Engine) -> str:
    return str(getattr(engine.body, "path", "packed" if engine.body.packs else "plain"))


def expect_packed(finding: Finding, engine: Engine, card: Card, forced: str | None = None) -> None:
    """Whether rows are packed at all, after the engine's own check at first use."""
    path = path_of(engine)
    reason = getattr(engine.body, "reason", "") or "see the warning above"
    finding.measured["path"], finding.measured["reason"] = path, getattr(engine.body, "reason", "")
    finding.told = path
    finding.expect(engine.body.packs, f"packed rows refused: {reason}")
    best = getattr(attention, "LADDERS", {}).get(card.device.type, (path,))[0]
    if path not in (best, "plain", forced):
        finding.told += f" (not {best}: {reason})"


def check_packed(name: str, dtype: str, card: Card, path: str | None = None) -> Finding:
    """Trees of documents in one packed row give the distributions and the gradients that plain rows give."""
    finding = Finding()
    model = make_variant(name, DTYPES[dtype], card.device)
    padded, single = plain_engines(model)
    packed = Engine(copy_model(model), micro_batch_tokens=WHOLE_ROW, checkpointing=False)
    if path is not None:
        force_path(packed, path)
    expect_packed(finding, packed, card, path)
    if finding.faults:
        return finding
    lengths = LENGTHS[card.device.type]
    window = getattr(model.module.config, "sliding_window", None) or 0
    if 3 * window > max(lengths):  # the longest text has about half of the nodes, and the window has to be shorter
        lengths = (*lengths, 3 * window)
    for length in lengths:
        sequences = make_tree(length, VOCABULARY, seed=length)
        expected = distributions(padded, sequences, share=False)
        usual = compare_distributions(expected, torch.cat([distributions(single, [s], share=False) for s in sequences]))
        found = compare_distributions(expected, distributions(packed, sequences, share=True))
        data = make_data(sequences)
        gradients = take_gradients(padded, data)
        usual |= compare_gradients(gradients, take_gradients(single, data))
        found |= compare_gradients(gradients, take_gradients(packed, data))
        finding.measured[str(length)] = {"found": found, "usual": usual}
        finding.expect_close(f"{length} nodes", found, usual, dtype)
    data = make_data(make_tree(300, VOCABULARY, seed=1))
    values, others, third = (flatten(engine.logprobs(data)) for engine in (padded, single, packed))
    found, usual = summarise(third - values), summarise(others - values)
    finding.measured["logprobs"] = {"found": found, "usual": usual}
    finding.expect_close("logprobs without gradients", found, usual, dtype)
    worst = max((finding.measured[str(length)] for length in lengths), key=lambda one: one["found"]["mean"])
    finding.told += (
        f": |d| {worst['found']['mean']:.1e} ({worst['usual']['mean']:.1e}), KL {worst['found']['kl']:.1e} "
        f"({worst['usual']['kl']:.1e}), grad {worst['found']['gradient']:.1e} ({worst['usual']['gradient']:.1e})"
    )
    return finding


def distributions(engine: Engine, sequences: list[list[int]], *, share: bool) -> Tensor:
    """Log-probs [tokens, vocabulary] of all sequences, one after the other; by the kernels of training."""
    row = build_row(sequences, range(len(sequences)), share=share)
    hidden = engine.body.hidden(row).detach()
    assert engine.head is not None
    nodes = torch.from_numpy(np.concatenate(row.nodes)).to(hidden.device)
    with torch.no_grad():
        return engine.head.logits(hidden.index_select(0, nodes)).log_softmax(-1)


def take_gradients(engine: Engine, data: list[Datum]) -> list[Tensor | None]:
    """Of all trained weights, in fp32; the engine forgets them."""
    engine.forward_backward(data, SFT())
    assert engine.optimizer is not None
    gradients = [None if master.grad is None else master.grad.clone() for master in engine.optimizer.masters]
    engine.optimizer.zero_grad()
    engine.calls = 0
    return gradients


def flatten(values: list[list[float]]) -> Tensor:
    return torch.tensor([value for row in values for value in row], dtype=torch.float64)


# ---------------------------------------------------------------------- sampler


def check_sampler(name: str, dtype: str, card: Card, *, lora: bool, vocabulary: int = VOCABULARY) -> Finding:
    """The sampler's log-probs are the trainer's, greedy and at temperatures, alone and among many, while sequences
    come and go; and what it draws is as likely as it says."""
    finding = Finding()
    model = make_variant(name, DTYPES[dtype], card.device, vocabulary=vocabulary)
    engine = Engine(copy_model(model), lora=LORA if lora else None, micro_batch_tokens=4096)
    if lora:  # a fresh adapter changes nothing
        data = make_data(make_tree(200, vocabulary))
        for _ in range(2):
            engine.forward_backward(data, SFT())
            engine.optim_step(0.02)
    with tempfile.TemporaryDirectory() as folder:
        if lora:
            engine.export(folder)
            model = replace(model, adapter=Path(folder))
        padded, single = plain_engines(model, lora=LORA if lora else None, trainable=False)
    expect_packed(finding, engine, card)
    requests = make_requests(vocabulary)
    for label, max_batch, chosen in (("alone", 1, requests[:3]), ("many", 32, requests)):
        completions = asyncio.run(sample_all(engine, chosen, max_batch))
        compare_sampled(finding, label, dtype, (engine, padded, single), chosen, completions)
    return finding


Request = tuple[list[int], SamplingParams]


def make_requests(vocabulary: int, num: int = 48) -> list[Request]:
    """Prompts of which some begin alike, and completions of many lengths, so that slots become free at any time."""
    generator = np.random.default_rng(0)
    system = list(map(int, generator.integers(0, vocabulary, 20)))
    found: list[Request] = []
    for k in range(num):
        prompt = list(map(int, generator.integers(0, vocabulary, 5 + 3 * k)))
        params = SamplingParams(max_tokens=(7, 33, 19)[k % 3], temperature=(1.0, 0.0, 1.0, 0.7)[k % 4], seed=k)
        found.append((system + prompt if k % 2 else prompt, params))
    return found


async def sample_all(engine: Engine, requests: Sequence[Request], max_batch: int) -> list[Completion]:
    sampler = InProcessSampler(engine, max_batch=max_batch)
    sampler.stop_tokens = frozenset()  # every sequence gets all its tokens
    try:
        results = await asyncio.gather(*(sampler.sample(prompt, params) for prompt, params in requests))
    finally:
        await sampler.close()
    return [completion for [completion] in results]


def compare_sampled(
    finding: Finding,
    label: str,
    dtype: str,
    engines: tuple[Engine, Engine, Engine],
    requests: Sequence[Request],
    completions: Sequence[Completion],
) -> None:
    """engines: the trainer, and two plain ones with the same weights."""
    gaps: list[Tensor] = []
    usual: list[Tensor] = []
    for temperature in sorted({params.temperature for _, params in requests}):
        kept = [k for k, (_, params) in enumerate(requests) if params.temperature == temperature]
        data = [make_answer(requests[k][0], completions[k].tokens) for k in kept]
        for k in kept:
            wanted, got = requests[k][1].max_tokens, len(completions[k].tokens)
            finding.expect(got == wanted, f"{label}: a completion has {got} tokens instead of {wanted}")
        trainer, padded, single = (
            chosen_logprobs(engine, data, temperature or 1.0) for engine in engines
        )
        sampled = torch.tensor([value for k in kept for value in completions[k].logprobs], dtype=torch.float64)
        gaps += [trainer - sampled]
        usual += [single - padded]
        if temperature == 1.0 and len(sampled) >= 200:
            expect_likely(finding, label, engines[1], data)
        if temperature == 0.0:
            lag = behind_best(engines[1], data)
            bound = FACTOR * float(summarise(single - padded)["p99"]) + 10 * FLOORS[dtype]
            finding.expect(lag <= bound, f"{label}: a greedy token is {lag:.2g} less likely than the best one")
    gap, spread = torch.cat(gaps), torch.cat(usual)
    found = {"gap": float(gap.abs().mean()), "ratio_squared": float((2 * gap).exp().mean())}
    plain = {"gap": float(spread.abs().mean()), "ratio_squared": float((2 * spread).exp().mean())}
    finding.measured[label] = {"found": found, "usual": plain, "tokens": len(gap)}
    finding.expect_close(f"sampler against trainer, {label}", {"gap": found["gap"]}, plain, dtype)
    excess, bound = abs(found["ratio_squared"] - 1), FACTOR**2 * abs(plain["ratio_squared"] - 1) + 2 * FLOORS[dtype]
    finding.expect(excess <= bound, f"{label}: mean ratio squared is {found['ratio_squared']:.4f}, {bound:.2g} allowed")
    finding.told += f"; {label}: gap {found['gap']:.1e} ({plain['gap']:.1e}), ratio^2 {found['ratio_squared']:.5f}"


def make_answer(prompt: list[int], answer: list[int]) -> Datum:
    return Datum(prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer))


def chosen_logprobs(engine: Engine, data: Sequence[Datum], temperature: float) -> Tensor:
    return select_trained(engine.logprobs(data, temperature=temperature), data)


def select_trained(values: list[list[float]], data: Sequence[Datum]) -> Tensor:
    chosen = [value for row, one in zip(values, data, strict=True) for value, w in zip(row, one.weights, strict=True) if w]
    return torch.tensor(chosen, dtype=torch.float64)


def expect_likely(finding: Finding, label: str, engine: Engine, data: Sequence[Datum]) -> None:
    """Tokens drawn from a distribution have a log-prob of minus its entropy on average, and the probability of all
    tokens before them in the vocabulary, with half of their own, is a half on average."""
    surplus: list[Tensor] = []
    ranks: list[Tensor] = []
    for predicted, answer in answers(engine, data):
        chosen = predicted.gather(1, answer[:, None])
        probabilities = predicted.exp()
        surplus.append(chosen.squeeze(1) - (probabilities * predicted).sum(1))
        below = (probabilities.cumsum(1) - probabilities / 2).gather(1, answer[:, None])
        ranks.append(below.squeeze(1) - 0.5)
    for name, values in (("log-prob", torch.cat(surplus)), ("rank", torch.cat(ranks))):
        deviations = float(values.mean() / (values.std() / len(values) ** 0.5))
        finding.measured[f"{label}_{name}_deviations"] = deviations
        finding.expect(
            abs(deviations) < 5, f"{label}: the {name} of drawn tokens is {deviations:.1f} standard errors off"
        )


def answers(engine: Engine, data: Sequence[Datum]) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each sequence the distributions [tokens, vocabulary] that predict its trained end, and those tokens."""
    for datum in data:
        logprobs = distributions(engine, [datum.tokens], share=False).double()
        start = next(k for k, weight in enumerate(datum.weights) if weight)
        yield logprobs[start - 1 : -1], torch.tensor(datum.tokens[start:], device=logprobs.device)


def behind_best(engine: Engine, data: Sequence[Datum]) -> float:
    """How much less likely, at most, a trained token is than the likeliest one, in nats."""
    worst = 0.0
    for predicted, answer in answers(engine, data):
        chosen = predicted.gather(1, answer[:, None]).squeeze(1)
        worst = max(worst, float((predicted.max(1).values - chosen).max()))
    return worst


def check_seeds(name: str, dtype: str, card: Card) -> Finding:
    """The same request and seed give the same tokens, whatever else is in the batch. In bf16 rounding depends on the
    batch and may decide between two tokens; there the same batch must give the same tokens again."""
    finding = Finding()
    engine = Engine(make_variant(name, DTYPES[dtype], card.device), trainable=False)
    requests = make_requests(VOCABULARY, 24)
    many = asyncio.run(sample_all(engine, requests, 32))
    if dtype == "float32":
        few = asyncio.run(sample_all(engine, requests, 5))
        alone = [asyncio.run(sample_all(engine, [request], 1))[0] for request in requests[:6]]
        differing = sum(one.tokens != two.tokens for one, two in zip(many + many[:6], few + alone, strict=True))
        finding.expect(differing == 0, f"{differing} of 30 completions depend on the batch")
    again = asyncio.run(sample_all(engine, requests, 32))
    differing = sum(one.tokens != two.tokens for one, two in zip(many, again, strict=True))
    finding.expect(differing == 0, f"{differing} of 24 completions differ when they are sampled again")
    prompt, params = requests[2]
    others = asyncio.run(sample_all(engine, [(prompt, replace(params, seed=seed)) for seed in range(8)], 8))
    distinct = len({tuple(one.tokens) for one in others})
    finding.expect(distinct >= 7, f"8 seeds gave {distinct} different completions")
    finding.told = f"{distinct} different completions of 8 seeds"
    return finding


# ---------------------------------------------------------------------- training


def check_checkpointing(name: str, dtype: str, card: Card, *, lora: bool) -> Finding:
    """Recomputing activations changes no gradient, and takes less memory (seen on a GPU)."""
    finding = Finding()
    model = make_variant(name, DTYPES[dtype], card.device)
    data = make_data(make_tree(900, VOCABULARY))
    gradients, peaks = [], []
    for checkpointing in (False, True):
        engine = Engine(
            copy_model(model), lora=LORA if lora else None, micro_batch_tokens=WHOLE_ROW, checkpointing=checkpointing
        )
        take_gradients(engine, data)  # the first call checks, compiles and warms up
        card.reset_peak()
        before = card.allocated()
        gradients.append(take_gradients(engine, data))
        peaks.append(card.peak() - before)
    errors = compare_gradients(*gradients)
    finding.measured = {**errors, "peak_bytes": peaks}
    # the same kernels on the same numbers; only sums whose order is free may differ
    finding.expect(errors["gradient_max"] <= FLOORS[dtype] / 2, f"gradients differ by {errors['gradient_max']:.2g}")
    finding.expect(not card.cuda or peaks[1] < peaks[0], f"peak memory {peaks[1]} instead of {peaks[0]} bytes")
    finding.told = f"gradients differ by {errors['gradient_max']:.1e}"
    return finding


def check_step(name: str, dtype: str, card: Card, *, lora: bool) -> Finding:
    """Steps on one batch move its loss down."""
    finding = Finding()
    engine = Engine(make_variant(name, DTYPES[dtype], card.device), lora=LORA if lora else None)
    data = make_data(make_tree(300, VOCABULARY))
    losses = []
    for _ in range(12):
        losses.append(engine.forward_backward(data, SFT())["loss"])
        engine.optim_step(1e-2 if lora else 2e-3)
    finding.measured["losses"] = losses
    finding.expect(losses[-1] < 0.7 * losses[0], f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f} in 12 steps")
    finding.told = f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in 12 steps"
    return finding


def check_save(name: str, dtype: str, card: Card, *, lora: bool) -> Finding:
    """An engine that loads what another saved gives its log-probs, and takes the same next step."""
    finding = Finding()
    model = make_variant(name, DTYPES[dtype], card.device)
    options: dict[str, Any] = {"lora": LORA if lora else None}
    one, two = (Engine(copy_model(model), seed=seed, **options) for seed in (0, 1))
    data = make_data(make_tree(300, VOCABULARY))
    for _ in range(3):
        one.forward_backward(data, SFT())
        one.optim_step(1e-2)
    changed = float((flatten(one.logprobs(data)) - flatten(two.logprobs(data))).abs().mean())
    with tempfile.TemporaryDirectory() as folder:
        one.save(folder)
        two.load(folder)
        gap = float((flatten(one.logprobs(data)) - flatten(two.logprobs(data))).abs().max())
    for engine in (one, two):
        engine.forward_backward(data, SFT())
        engine.optim_step(1e-2)
    later = float((flatten(one.logprobs(data)) - flatten(two.logprobs(data))).abs().mean())
    finding.measured = {"changed": changed, "gap": gap, "gap_after_a_step": later, "versions": [one.version, two.version]}
    finding.expect(changed > 0.1, f"three steps changed log-probs by {changed:.2g} only: the comparison says nothing")
    finding.expect(gap <= 1e-6, f"log-probs differ by {gap:.2g} after loading")
    finding.expect(later <= 10 * FLOORS[dtype], f"log-probs differ by {later:.2g} a step after loading")
    finding.expect(one.version == two.version == 4, f"versions {one.version} and {two.version} instead of 4")
    finding.told = f"gap {gap:.1e}, a step later {later:.1e}"
    return finding


def retreating(card: Card, name: str, dtype: str) -> tuple[Engine, list[Datum], list[Tensor | None], list[Tensor | None]]:
    """An engine with a large micro-batch, data, its gradients, and those of small micro-batches."""
    model = make_variant(name, DTYPES[dtype], card.device)
    engine = Engine(copy_model(model), micro_batch_tokens=4096, checkpointing=False)
    if not hasattr(engine, "retreats"):
        raise Skipped("this version of the engine does not retreat when memory runs out")
    data = make_data([sequence for seed in range(24) for sequence in make_tree(240, VOCABULARY, seed)])
    expected = take_gradients(engine, data)
    smaller = Engine(copy_model(model), micro_batch_tokens=1024, checkpointing=False)
    return engine, data, expected, take_gradients(smaller, data)


def compare_retreat(finding: Finding, dtype: str, sides: Sequence[list[Tensor | None]]) -> None:
    """sides: gradients of a large micro-batch, of small ones, and of the retreat."""
    usual, found = (compare_gradients(sides[0], side) for side in sides[1:])
    finding.measured |= {"found": found, "usual": usual}
    finding.expect_close("gradients after the retreat", found, usual, dtype)
    finding.told = f"gradients differ by {found['gradient_max']:.1e} ({usual['gradient_max']:.1e})"


def check_retreat(name: str, dtype: str, card: Card) -> Finding:
    """Out of memory, planted: the micro-batch is halved until it fits, and the gradients are the same."""
    finding = Finding()
    engine, data, large, small = retreating(card, name, dtype)
    hidden, largest, calls = engine.body.hidden, 1100, list[int]()

    def limited(row: Any) -> Tensor:
        calls.append(len(row.tokens))
        if len(row.tokens) > largest and len(calls) > 1:  # the first row has left its gradients already
            raise torch.OutOfMemoryError("planted by gpu_check")
        return hidden(row)

    engine.body.hidden = limited  # type: ignore[method-assign]
    found = take_gradients(engine, data)
    finding.measured["retreats"] = engine.retreats
    finding.expect(engine.retreats > 0, "the engine did not retreat")
    compare_retreat(finding, dtype, (large, small, found))
    return finding


def check_memory_limit(name: str, dtype: str, card: Card) -> Finding:
    """Out of memory for real: torch may allocate only half of what the large micro-batch took."""
    finding = Finding()
    engine, data, large, small = retreating(card, name, dtype)
    card.free()
    card.reset_peak()
    before = torch.cuda.memory_reserved()
    take_gradients(engine, data)
    needed = torch.cuda.max_memory_reserved() - before
    card.free()
    total = torch.cuda.get_device_properties(card.device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 0.6 * needed) / total)
    try:
        found = take_gradients(engine, data)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    finding.measured |= {"retreats": engine.retreats, "needed_bytes": needed}
    if engine.retreats == 0:
        raise Skipped(f"memory did not run out under a limit of 60% of {needed / 2**20:.0f} MiB")
    compare_retreat(finding, dtype, (large, small, found))
    return finding
