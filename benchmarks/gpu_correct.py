"""What must hold on every device, as functions that return what they measured and what was wrong. gpu_check.py and
tests/gpu run the same ones; those of the sampler are in gpu_sampling.py."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from gpu_finding import (
    FLOORS,
    LORA,
    WHOLE_ROW,
    Finding,
    Skipped,
    copy_model,
    distributions,
    expect_packed,
    force_path,
    plain_engines,
)
from gpu_models import (
    DTYPES,
    VARIANTS,
    VOCABULARY,
    Card,
    compare_distributions,
    compare_gradients,
    make_data,
    make_tree,
    make_variant,
    summarise,
)
from gpu_sampling import check_sampler, check_seeds
from torch import Tensor

from aurify.algorithms.sft import SFT
from aurify.engine import attention
from aurify.engine.engine import Engine
from aurify.types import Datum

LENGTHS = {"cuda": (63, 127, 128, 300, 1023, 4099), "cpu": (63, 127, 128, 300)}


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


# ---------------------------------------------------------------------- training


def check_checkpointing(name: str, dtype: str, card: Card, *, lora: bool) -> Finding:
    """Recomputing activations changes no gradient and takes less memory (seen on a GPU), with layer inputs in host
    memory too."""
    finding = Finding()
    model = make_variant(name, DTYPES[dtype], card.device)
    data = make_data(make_tree(4000 if card.cuda else 900, VOCABULARY))
    gradients, peaks = [], []
    settings: list[bool | Literal["offload"]] = [False, True, "offload"]
    for checkpointing in settings:
        engine = Engine(
            copy_model(model), lora=LORA if lora else None, micro_batch_tokens=WHOLE_ROW, checkpointing=checkpointing
        )
        take_gradients(engine, data)  # the first call checks, compiles and warms up
        card.reset_peak()
        before = card.allocated()
        gradients.append(take_gradients(engine, data))
        peaks.append(card.peak() - before)
    both = [compare_gradients(gradients[0], other) for other in gradients[1:]]
    errors = max(both, key=lambda found: found["gradient_max"])
    finding.measured = {**errors, "peak_bytes": peaks}
    # the same kernels on the same numbers; only sums whose order is free may differ
    finding.expect(errors["gradient_max"] <= FLOORS[dtype] / 2, f"gradients differ by {errors['gradient_max']:.2g}")
    smaller = max(peaks[1:]) < peaks[0]
    finding.expect(not card.cuda or smaller, f"peak bytes {peaks}: kept, recomputed, and with inputs in host memory")
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
    finding.measured = {
        "changed": changed,
        "gap": gap,
        "gap_after_a_step": later,
        "versions": [one.version, two.version],
    }
    finding.expect(changed > 0.1, f"three steps changed log-probs by {changed:.2g} only: the comparison says nothing")
    finding.expect(gap <= 1e-6, f"log-probs differ by {gap:.2g} after loading")
    finding.expect(later <= 0.1, f"log-probs differ by {later:.2g} a step after loading")
    finding.expect(one.version == two.version == 4, f"versions {one.version} and {two.version} instead of 4")
    finding.told = f"gap {gap:.1e}, a step later {later:.1e}"
    return finding


def retreating(
    card: Card, name: str, dtype: str
) -> tuple[Engine, list[Datum], list[Tensor | None], list[Tensor | None]]:
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
