"""What the device reaches, decoding and GRPO steps on the shapes of real models, and the kernels that take most time;
training steps are in gpu_training.py. On a CPU the same code runs on small shapes, to try the code; its numbers say
nothing there."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from gpu_models import Card, Work, make_rows, make_shape
from gpu_training import ALPHA, LR, RANK, Peaks, need_memory, profile_events, usual_attention

from aurify.algorithms.grpo import GRPO
from aurify.algorithms.sft import SFT
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.samplers.inprocess import InProcessSampler
from aurify.types import Completion, Datum, Group, SamplingParams, Segment, Task, Trajectory

PROMPT = ANSWER = 128  # tokens, in decoding and GRPO


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


# ---------------------------------------------------------------------- decoding


def measure_decoding(
    shape: str, batches: Sequence[int], peaks: Peaks, card: Card, compile_for: Sequence[int] = ()
) -> dict[str, Any]:
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
    lengths = {len(one.tokens) for one in completions}
    if lengths != {num}:
        raise RuntimeError(f"completions have {sorted(lengths)} tokens instead of {num}")
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
    draw = np.random.default_rng(0).integers
    prompts = draw(0, engine.vocabulary, (num_prompts, PROMPT if card.cuda else 16)).tolist()
    records = []
    for step in range(steps):
        record: dict[str, float] = {}

        def timed(name: str, function: Callable[[], Any], record: dict[str, float] = record) -> Any:
            held = []
            card.reset_peak()
            record[f"{name}_seconds"] = card.seconds(lambda: held.append(function()))
            record[f"{name}_peak_bytes"] = card.peak()
            return held[0]

        groups = timed("sample", partial(asyncio.run, play(sampler, prompts, num, length, step)))
        data = rollout_data(groups, algorithm)
        metrics = timed("forward_backward", partial(engine.forward_backward, data, algorithm))
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
