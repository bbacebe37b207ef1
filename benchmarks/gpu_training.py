"""An SFT step, ours beside plain Hugging Face on the same token ids; and what the other speed parts need as well."""

from __future__ import annotations

import importlib
import importlib.util
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from gpu_finding import Skipped
from gpu_models import Card, Work, make_rows, make_shape

from aurify.algorithms.sft import SFT
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.types import Datum

RANK, ALPHA, LR = 16, 32.0, 1e-5
WEIGHTS = {"qwen3-0.6b": 0.6e9, "llama-3.2-1b": 1.24e9, "qwen2.5-7b": 7.6e9}
REPEATS = 4
PADDED_TOKENS = 8192  # of a micro-batch of Hugging Face's side; halved where they do not fit, as our engine does
LEAST_PADDED_TOKENS = 512
LAUNCHES = re.compile(r"^(cudaLaunchKernel|cuLaunchKernel|cudaLaunchCooperativeKernel)")
GRAPHS = re.compile(r"^(cudaGraphLaunch|cuGraphLaunch)")
SYNCS = re.compile(r"^(cudaStreamSynchronize|cudaEventSynchronize)")
READS = re.compile(r"^aten::_local_scalar_dense$")


@dataclass
class Peaks:
    """What the device reaches, measured once."""

    product: float  # FLOP/s of large matrix products in bf16
    copy: float  # bytes/s, read and written


@dataclass
class Side:
    """Someone who does the same step as the others."""

    name: str
    step: Callable[[], Any]
    about: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    held_bytes: int = 0  # between steps
    peak_bytes: int = 0  # in a step, without what the others hold


Maker = Callable[[], Side]


def take_turns(makers: dict[str, Maker], card: Card, repeats: int, profile: bool = True) -> dict[str, dict[str, Any]]:
    """Results by side. All are loaded and warm before the first is measured; then A B A B ... Where the memory has no
    room for all of them at once, one after the other."""
    try:
        return measure_together(makers, card, repeats, profile)
    except torch.OutOfMemoryError:
        if len(makers) == 1:
            return {name: {"error": "out of memory"} for name in makers}
    card.free()
    results: dict[str, dict[str, Any]] = {}
    for name, maker in makers.items():  # outside of `except`: its traceback holds on to memory
        results |= take_turns({name: maker}, card, repeats, profile)
        card.free()
    return results


def measure_together(makers: dict[str, Maker], card: Card, repeats: int, profile: bool) -> dict[str, dict[str, Any]]:
    sides: list[Side] = []
    results: dict[str, dict[str, Any]] = {}
    for name, maker in makers.items():
        try:
            card.free()
            before = card.allocated()
            side = maker()
            first = card.seconds(side.step)  # checks, compilation, the optimiser's state
            side.held_bytes = card.allocated() - before
            side.about["first_step_seconds"] = first
            card.seconds(side.step)
            sides.append(side)
        except Skipped as reason:
            results[name] = {"skipped": str(reason)}
    for _ in range(repeats):
        for side in sides:
            others = card.allocated() - side.held_bytes
            card.reset_peak()
            side.seconds.append(card.seconds(side.step))
            side.peak_bytes = max(side.peak_bytes, card.peak() - others)
    for side in sides:
        results[side.name] = {
            "seconds": statistics.median(side.seconds),
            "all_seconds": side.seconds,
            "peak_bytes": side.peak_bytes,
            "held_bytes": side.held_bytes,
            **side.about,
            **(count_launches(side.step, card) if profile else {}),
        }
    return results


def measure_training(
    shape: str, kind: str, rows: str, checkpointing: bool | str, peaks: Peaks, card: Card, compiled: bool = False
) -> dict[str, dict[str, Any]]:
    """An SFT step with AdamW and clipping, ours beside plain Hugging Face: padded batch, SDPA, fused AdamW (in bf16, as
    its weights are; ours keeps fp32 masters), peft for LoRA."""
    need_memory(card, shape, kind)
    model = make_shape(shape, card)
    work = Work.of(model.module)
    data = make_rows(rows, model.module.config.vocab_size, card)
    del model
    lora = kind == "lora"
    numbers: dict[str, int | None] = {"adapter_weights": None}

    def ours(name: str = "aurify", compile_layers: bool = False) -> Side:
        config = LoraConfig(rank=RANK, alpha=ALPHA) if lora else None
        engine = Engine(make_shape(shape, card), lora=config, checkpointing=checkpointing)  # type: ignore[arg-type]
        if compile_layers:
            if not hasattr(engine.body, "compile_layers"):
                raise Skipped("this version does not compile layers")
            engine.body.compile_layers()
        if lora:
            numbers["adapter_weights"] = sum(p.numel() for p in engine.trainable)

        def step() -> None:
            engine.forward_backward(data, SFT())
            engine.optim_step(LR)

        about = {
            "path": str(getattr(engine.body, "path", engine.body.packs)),
            "micro_batch_tokens": engine.micro_batch_tokens,
            "checkpointing": getattr(engine, "checkpointing", checkpointing),
        }
        return Side(name, step, about)

    def plain(liger: bool = False) -> Side:
        return plain_side(shape, lora, checkpointing is True, data, card, liger)

    makers: dict[str, Maker] = {"aurify": ours, "hugging face": plain}
    if compiled:
        makers["aurify, compiled layers"] = lambda: ours("aurify, compiled layers", True)
    if importlib.util.find_spec("liger_kernel"):
        makers["hugging face + liger"] = lambda: plain(liger=True)
    results = take_turns(makers, card, REPEATS)
    flops = work.step_flops(data, numbers["adapter_weights"])
    tokens = sum(len(datum.tokens) for datum in data)
    for result in results.values():
        if "seconds" in result:
            result["tokens_per_second"] = tokens / result["seconds"]
            result["flops"], result["mfu"] = flops, flops / result["seconds"] / peaks.product
    return results


def plain_side(
    shape: str, lora: bool, checkpointing: bool, data: Sequence[Datum], card: Card, liger: bool = False
) -> Side:
    module = make_shape(shape, card).module
    module.train()
    if liger:
        importlib.import_module("liger_kernel.transformers")._apply_liger_kernel_to_instance(model=module)
    if checkpointing:
        new = getattr(module, "activation_checkpointing_enable", None)  # its name from transformers 5.20 on
        (new or module.gradient_checkpointing_enable)({"use_reentrant": False})
    if lora:
        if not importlib.util.find_spec("peft"):
            raise Skipped("peft is not installed")
        import peft

        module = peft.get_peft_model(
            module, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0, fused=True)
    about: dict[str, Any] = {"micro_batch_tokens": PADDED_TOKENS}
    batches = pad_rows(data, PADDED_TOKENS, card)
    total = sum(weight != 0 for datum in data for weight in datum.weights)

    def attempt() -> bool:
        """False: out of memory."""
        try:
            with usual_attention():
                for tokens, mask, labels, num_trained in batches:
                    output = module(input_ids=tokens, attention_mask=mask, labels=labels, use_cache=False)
                    (output.loss * (num_trained / total)).backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
        except torch.OutOfMemoryError:
            if about["micro_batch_tokens"] <= LEAST_PADDED_TOKENS:
                raise
            return False
        finally:
            optimizer.zero_grad(set_to_none=True)
        return True

    def step() -> None:
        nonlocal batches
        while not attempt():
            about["micro_batch_tokens"] //= 2
            batches = pad_rows(data, about["micro_batch_tokens"], card)
            card.free()

    return Side("hugging face + liger" if liger else "hugging face", step, about)


def pad_rows(
    data: Sequence[Datum], max_tokens: int, card: Card
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]]:
    """Micro-batches of padded rows: tokens, mask, labels, and how many tokens are trained. Rows stay in their order, as
    a trainer's sampler gives them."""
    groups: list[list[Datum]] = []
    for datum in data:
        together = [*(groups[-1] if groups else []), datum]
        if groups and len(together) * max(len(one.tokens) for one in together) <= max_tokens:
            groups[-1] = together
        else:
            groups.append([datum])
    batches = []
    for group in groups:
        longest = max(len(datum.tokens) for datum in group)
        tokens = torch.zeros(len(group), longest, dtype=torch.int64)
        mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, -100)
        for row, datum in enumerate(group):
            length = len(datum.tokens)
            values, trained = torch.tensor(datum.tokens), torch.tensor(datum.weights) != 0
            tokens[row, :length], mask[row, :length] = values, 1
            labels[row, :length] = torch.where(trained, values, -100)
        num_trained = int((labels != -100).sum())
        batches.append((tokens.to(card.device), mask.to(card.device), labels.to(card.device), num_trained))
    return batches


@contextmanager
def usual_attention() -> Iterator[None]:
    """torch's own choice of SDPA kernels, which our sampler narrows for the process."""
    held = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(held)


def need_memory(card: Card, shape: str, kind: str) -> None:
    """Weights twice (two sides), and what an optimiser needs."""
    if not card.cuda:
        return
    weights = WEIGHTS[shape]
    needed = weights * (18 if kind == "full" else 2.4)
    if card.usable() < needed:
        raise Skipped(f"needs about {needed / 2**30:.0f} GiB, {card.usable() / 2**30:.0f} are free")


def profile_events(function: Callable[[], Any], card: Card) -> list[Any]:
    """What ran, by name. Kernels and calls of the CUDA runtime are those of all threads."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if card.cuda else [])]
    card.synchronise()
    with profile(activities=activities) as profiler:
        function()
        card.synchronise()
    return list(profiler.key_averages())


def count_launches(step: Callable[[], Any], card: Card) -> dict[str, Any]:
    """Kernels launched and waits of the host in one step. A read is one number fetched from a tensor."""
    try:
        events = profile_events(step, card)
    except Exception as error:  # no rights to profile, say: the times are worth having all the same
        return {"profiler": f"{type(error).__name__}: {error}"}
    kinds = {"launches": LAUNCHES, "graph_launches": GRAPHS, "host_syncs": SYNCS, "scalar_reads": READS}
    return {name: sum(event.count for event in events if kind.match(event.key)) for name, kind in kinds.items()}
