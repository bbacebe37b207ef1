"""What the device can do, and what we make of it: training, decoding and GRPO steps on the shapes of real models, beside
plain Hugging Face on the same token ids. On a CPU the same code runs on small shapes, to try the code; its numbers say
nothing there."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import statistics
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from gpu_correct import Skipped
from gpu_models import SHAPES, Card, Work, make_rows, make_shape

from aurify.algorithms.grpo import GRPO
from aurify.algorithms.sft import SFT
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.samplers.inprocess import InProcessSampler
from aurify.types import Completion, Datum, Group, SamplingParams, Segment, Task, Trajectory

RANK, ALPHA, LR = 16, 32.0, 1e-5
REPEATS = 4
PADDED_TOKENS = 8192  # of a micro-batch of Hugging Face's side
PROMPT = ANSWER = 128  # tokens, in decoding and GRPO
LAUNCHES = re.compile(r"^(cudaLaunchKernel|cuLaunchKernel|cudaLaunchCooperativeKernel)")
GRAPHS = re.compile(r"^(cudaGraphLaunch|cuGraphLaunch)")
SYNCS = re.compile(r"^(cudaStreamSynchronize|cudaEventSynchronize)")
READS = re.compile(r"^aten::_local_scalar_dense$")


@dataclass
class Peaks:
    """What the device reaches, measured once."""

    product: float  # FLOP/s of large matrix products in bf16
    copy: float  # bytes/s, read and written


# ---------------------------------------------------------------------- facts


def tell_facts(card: Card) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "triton": version_of("triton"),
        "peft": version_of("peft"),
        "liger_kernel": version_of("liger_kernel"),
        "device": "cpu",
    }
    if card.cuda:
        properties = torch.cuda.get_device_properties(card.device)
        facts |= {
            "device": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "free_gib": round(card.usable() / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
            "cuda": torch.version.cuda,
            "driver": driver_version(),
        }
    return facts


def version_of(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def driver_version() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def measure_peaks(card: Card) -> tuple[Peaks, dict[str, float]]:
    """Large products in bf16, in fp32 and in fp32 rounded to TF32, and a copy within the device's memory."""
    size = 8192 if card.cuda else 512
    reached = {"bf16": product_peak(card, size, torch.bfloat16)}
    held = torch.get_float32_matmul_precision()
    for name, precision in (("fp32", "highest"), ("tf32", "high")):
        torch.set_float32_matmul_precision(precision)
        try:
            reached[name] = product_peak(card, size // 2, torch.float32)
        finally:
            torch.set_float32_matmul_precision(held)
    source = torch.ones(2**30 if card.cuda else 2**24, dtype=torch.uint8, device=card.device)
    target = torch.empty_like(source)
    best = min(card.seconds(lambda: [target.copy_(source) for _ in range(10)]) for _ in range(5))
    copied = 20 * source.numel() / best
    told = {f"{name}_tflops": value / 1e12 for name, value in reached.items()} | {"copy_gb_per_s": copied / 1e9}
    return Peaks(reached["bf16"], copied), told


def product_peak(card: Card, size: int, dtype: torch.dtype) -> float:
    """FLOP/s, the best of several rounds."""
    one, two = (torch.randn(size, size, device=card.device, dtype=dtype) for _ in range(2))
    result = one @ two
    rounds = 10 if card.cuda else 2
    best = min(card.seconds(lambda: [torch.mm(one, two, out=result) for _ in range(rounds)]) for _ in range(5))
    return rounds * 2 * size**3 / best


# ---------------------------------------------------------------------- training


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
    sides, results = [], {}
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


def measure_training(shape: str, kind: str, rows: str, checkpointing: bool | str, peaks: Peaks, card: Card,
                     compiled: bool = False) -> dict[str, dict[str, Any]]:  # fmt: skip
    """An SFT step with AdamW and clipping, ours beside plain Hugging Face: padded batch, SDPA, fused AdamW (in bf16, as
    its weights are; ours keeps fp32 masters), peft for LoRA."""
    need_memory(card, shape, kind)
    model = make_shape(shape, card)
    work = Work.of(model.module)
    data = make_rows(rows, model.module.config.vocab_size, card)
    del model
    lora = kind == "lora"
    numbers = {"adapter_weights": None}

    def ours(name: str = "aurify", compile_layers: bool = False) -> Side:
        config = LoraConfig(rank=RANK, alpha=ALPHA) if lora else None
        engine = Engine(make_shape(shape, card), lora=config, checkpointing=checkpointing)  # type: ignore[arg-type]
        if compile_layers:
            if not hasattr(engine.body, "compile_layers"):
                raise Skipped("this version does not compile layers")
            engine.body.compile_layers()
        if lora:
            numbers["adapter_weights"] = sum(p.numel() for p in engine.trainable)  # type: ignore[assignment]

        def step() -> None:
            engine.forward_backward(data, SFT())
            engine.optim_step(LR)

        about = {
            "path": str(getattr(engine.body, "path", engine.body.packs)),
            "micro_batch_tokens": engine.micro_batch_tokens,
            "checkpointing": getattr(engine, "checkpointing", checkpointing),
        }
        return Side(name, step, about)

    makers: dict[str, Maker] = {"aurify": ours, "hugging face": lambda: plain_side(shape, lora, checkpointing is True, data, card)}
    if compiled:
        makers["aurify, compiled layers"] = lambda: ours("aurify, compiled layers", True)
    if importlib.util.find_spec("liger_kernel"):
        makers["hugging face + liger"] = lambda: plain_side(shape, lora, checkpointing is True, data, card, liger=True)
    results = take_turns(makers, card, REPEATS)
    flops = work.step_flops(data, numbers["adapter_weights"])
    tokens = sum(len(datum.tokens) for datum in data)
    for result in results.values():
        if "seconds" in result:
            result["tokens_per_second"] = tokens / result["seconds"]
            result["flops"], result["mfu"] = flops, flops / result["seconds"] / peaks.product
    return results


def need_memory(card: Card, shape: str, kind: str) -> None:
    """Weights twice (two sides), and what an optimiser needs."""
    if not card.cuda:
        return
    weights = {"qwen3-0.6b": 0.6e9, "llama-3.2-1b": 1.24e9, "qwen2.5-7b": 7.6e9}[shape]
    needed = weights * (18 if kind == "full" else 2.4)
    if card.usable() < needed:
        raise Skipped(f"needs about {needed / 2**30:.0f} GiB, {card.usable() / 2**30:.0f} are free")


def plain_side(
    shape: str, lora: bool, checkpointing: bool, data: Sequence[Datum], card: Card, liger: bool = False
) -> Side:
    module = make_shape(shape, card).module
    module.train()
    if liger:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(model=module)
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
    batches = pad_rows(data, card)
    total = sum(int((labels != -100).sum()) for *_, labels in batches)

    def step() -> None:
        with usual_attention():
            for tokens, mask, labels, share in [(*batch, int((batch[2] != -100).sum()) / total) for batch in batches]:
                output = module(input_ids=tokens, attention_mask=mask, labels=labels, use_cache=False)
                (output.loss * share).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return Side("hugging face + liger" if liger else "hugging face", step)


def pad_rows(data: Sequence[Datum], card: Card) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Micro-batches of padded rows: tokens, mask, labels. Rows stay in their order, as a trainer's sampler gives them."""
    groups: list[list[Datum]] = []
    for datum in data:
        together = [*(groups[-1] if groups else []), datum]
        if groups and len(together) * max(len(one.tokens) for one in together) <= PADDED_TOKENS:
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
        batches.append((tokens.to(card.device), mask.to(card.device), labels.to(card.device)))
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


# ---------------------------------------------------------------------- decoding


def measure_decoding(shape: str, batches: Sequence[int], peaks: Peaks, card: Card, compile_for: Sequence[int] = ()) -> dict[str, Any]:
    """Prompts of 128 random tokens, 128 new ones at temperature 1, end tokens ignored. A step's time is what 127 of
    them take beyond the first token; the floor is reading every weight once at the speed of a copy.

    compile_for: batches for which `generate` is also compiled."""
    need_memory(card, shape, "sample")
    model = make_shape(shape, card)
    module, vocabulary = model.module, model.module.config.vocab_size
    floor = Work.of(module).decoding_bytes() / peaks.copy
    engine = Engine(model, trainable=False)
    answer = ANSWER if card.cuda else 12
    draw = np.random.default_rng(0).integers
    results: dict[str, Any] = {}

    def measure(name: str, batch: int, sample: Callable[[int], int]) -> None:
        usual = results.get(f"{batch} generate", {})
        try:
            # allocations, graphs; a compiled model would be compiled again for a cache of another length
            first = card.seconds(lambda: sample(4 if name == "generate" else answer))
            if name == "generate, compiled" and "prefill_seconds" in usual:
                short = usual["prefill_seconds"]
            else:
                short = min(card.seconds(lambda: sample(1)) for _ in range(2))
            whole = card.seconds(lambda: sample(answer))
            if whole < 2:
                whole = min(whole, card.seconds(lambda: sample(answer)))
        except torch.OutOfMemoryError:
            results[f"{batch} {name}"] = {"error": "out of memory"}
            return
        step = max(whole - short, 1e-9) / (answer - 1)
        results[f"{batch} {name}"] = {
            "batch": batch,
            "side": name,
            "seconds": whole,
            "first_seconds": first,
            "prefill_seconds": short,
            "tokens_per_second": batch * answer / whole,
            "step_seconds": step,
            "floor_seconds": floor,
            "share_of_floor": floor / step,
        }

    for batch in batches if card.cuda else batches[:2]:
        prompts = draw(0, vocabulary, (batch, PROMPT if card.cuda else 16)).tolist()
        sampler = InProcessSampler(engine, max_batch=batch)
        sampler.stop_tokens = frozenset()
        measure("aurify", batch, lambda num: sample_ours(sampler, prompts, num))  # noqa: B023
        asyncio.run(sampler.close())
        card.free()
        # static cache: the compiled side needs it, and it spares the other one growing tensors
        for compiled in (False, True) if batch in compile_for and card.cuda else (False,):
            name = "generate, compiled" if compiled else "generate"
            measure(name, batch, lambda num: sample_plainly(module, prompts, num, card, compiled))  # noqa: B023
        card.free()
    return results


def sample_ours(sampler: InProcessSampler, prompts: list[list[int]], num: int) -> int:
    async def collect() -> list[list[Completion]]:
        params = SamplingParams(max_tokens=num)
        return await asyncio.gather(*(sampler.sample(prompt, params) for prompt in prompts))

    completions = [one for row in asyncio.run(collect()) for one in row]
    if any(len(one.tokens) != num for one in completions):
        raise RuntimeError(f"completions have {sorted({len(one.tokens) for one in completions})} tokens instead of {num}")
    return num * len(completions)


def sample_plainly(module: Any, prompts: list[list[int]], num: int, card: Card, compiled: bool) -> int:
    """`generate` on the same module, by its usual attention."""
    tokens = torch.tensor(prompts, device=card.device)
    held, module.config._attn_implementation = module.config._attn_implementation, "sdpa"
    module.generation_config.eos_token_id = None  # every sequence gets all its tokens
    try:
        with usual_attention(), torch.no_grad():
            output = module.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=num,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                pad_token_id=0,
                cache_implementation="static",
                disable_compile=not compiled,
            )
    finally:
        module.config._attn_implementation = held
    return int(output[:, tokens.shape[1] :].numel())


# ---------------------------------------------------------------------- GRPO


def measure_grpo(shape: str, card: Card, steps: int = 5) -> dict[str, Any]:
    """8 prompts x 8 completions x 128 tokens, LoRA; the reward is a hash of the tokens, so that every group has
    spread. Seconds and peak memory of each phase, and how far the sampler's log-probs are from the trainer's."""
    engine = Engine(make_shape(shape, card), lora=LoraConfig(rank=RANK, alpha=ALPHA))
    sampler, algorithm = InProcessSampler(engine, max_batch=64), GRPO()
    sampler.stop_tokens = frozenset()
    num_prompts, num, length = (8, 8, ANSWER) if card.cuda else (2, 4, 12)
    prompts = np.random.default_rng(0).integers(0, engine.vocabulary, (num_prompts, PROMPT if card.cuda else 16)).tolist()
    records = []
    for step in range(steps):
        record: dict[str, float] = {}

        def timed(name: str, function: Callable[[], Any], record: dict[str, float] = record) -> Any:
            held = []
            card.reset_peak()
            record[f"{name}_seconds"] = card.seconds(lambda: held.append(function()))
            record[f"{name}_peak_bytes"] = card.peak()
            return held[0]

        groups = timed("sample", lambda step=step: asyncio.run(play(sampler, prompts, num, length, step)))
        data = rollout_data(groups, algorithm)
        metrics = timed("forward_backward", lambda data=data: engine.forward_backward(data, algorithm))
        timed("optim_step", lambda: engine.optim_step(1e-4))
        timed("sync", lambda: asyncio.run(sampler.load_weights(engine.weights(), engine.version)))
        record["tokens"] = metrics["ledger/tokens_trained"]
        for name in ("sampler_gap", "sampler_ratio", "sampler_ratio_squared"):
            record[name] = metrics[f"loss/{name}"]
        records.append(record)
    asyncio.run(sampler.close())
    warm = records[1:] or records
    summary = {name: statistics.median(record[name] for record in warm) for name in warm[0]}
    return {"steps": records, "median": summary, "first": records[0]}


async def play(sampler: InProcessSampler, prompts: list[list[int]], num: int, length: int, step: int) -> list[Group]:
    async def group(index: int) -> Group:
        params = SamplingParams(max_tokens=length, seed=step * len(prompts) + index)
        completions = await sampler.sample(prompts[index], params, num)
        return Group(Task(str(index), []), [score(prompts[index], one) for one in completions])

    return await asyncio.gather(*(group(index) for index in range(len(prompts))))


def score(prompt: list[int], completion: Completion) -> Trajectory:
    segments = [Segment(prompt, "prompt"), Segment(completion.tokens, "policy", completion.logprobs)]
    return Trajectory(segments, [], 0, reward=zlib.crc32(repr(completion.tokens).encode()) / 2**32)


def rollout_data(groups: Sequence[Group], algorithm: GRPO) -> list[Datum]:
    data = []
    for group, row in zip(groups, algorithm.advantages(groups), strict=True):
        for one, advantage in zip(group.trajectories, row, strict=True):
            before = [0.0] * len(one.segments[0].tokens)
            data.append(
                Datum(
                    one.tokens,
                    before + [1.0] * one.num_policy_tokens,
                    advantages=[advantage] * len(one.tokens),
                    logprobs=before + (one.segments[1].logprobs or []),
                )
            )
    return data


# ---------------------------------------------------------------------- profiler


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


def top_kernels(events: Sequence[Any], num: int = 15) -> list[dict[str, Any]]:
    """The kernels that took most time on the device. On a CPU, the operators."""
    on_device = [
        event
        for event in events
        if str(event.device_type).endswith("CUDA") and not getattr(event, "is_user_annotation", False)
    ]
    chosen = on_device or [event for event in events if event.key.startswith("aten::")]

    def micros(event: Any) -> float:
        return float(event.self_device_time_total if on_device else event.self_cpu_time_total)

    total = sum(map(micros, chosen)) or 1.0
    ordered = sorted(chosen, key=micros, reverse=True)[:num]
    return [
        {"kernel": event.key[:110], "count": event.count, "ms": micros(event) / 1e3, "share": micros(event) / total}
        for event in ordered
    ]


def profile_parts(shape: str, card: Card) -> dict[str, list[dict[str, Any]]]:
    """The kernels of one SFT step (all weights), and of 64 short prompts with 16 decoding steps."""
    engine = Engine(make_shape(shape, card))
    data = make_rows("short", engine.vocabulary, card)

    def step() -> None:
        engine.forward_backward(data, SFT())
        engine.optim_step(LR)

    step()
    step()
    found = {"SFT step": top_kernels(profile_events(step, card))}
    sampler = InProcessSampler(engine, max_batch=64)
    sampler.stop_tokens = frozenset()
    num = 64 if card.cuda else 4
    prompts = np.random.default_rng(0).integers(0, engine.vocabulary, (num, 8)).tolist()
    sample_ours(sampler, prompts, 17)
    found["16 decoding steps"] = top_kernels(profile_events(lambda: sample_ours(sampler, prompts, 17), card))
    asyncio.run(sampler.close())
    return found


assert set(SHAPES) == {"qwen3-0.6b", "llama-3.2-1b", "qwen2.5-7b"}, "need_memory knows these"
