"""The memory plan of a stage: what it will hold, when, and its peak, before any weight is loaded.

Each line has its bytes and the formula that they come from (engine/footprint.py). A stage goes through four phases, and
its peak is that of the fullest: sampling; the loss, where all activations of a micro-batch are there and the head is at
work; backward; the update. Not counted: what Python keeps of rows and texts, and what an allocator cannot use again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from aurify.engine import footprint
from aurify.engine.budget import MemoryPlan, choose_micro_batch
from aurify.engine.cpu.rows import most_abreast
from aurify.engine.footprint import Activations, Shape, Training
from aurify.pipeline.card import GIB, Card
from aurify.pipeline.load import Asked, Load, list_stage_requests, predict_training_load
from aurify.pipeline.plan import Bulk, Plan, PlannedStage
from aurify.pipeline.recipe import OnlineStage
from aurify.samplers.cache import CACHE_SHARE, KEPT_SHARE, ROUND, round_up_cache
from aurify.samplers.continuous import PREFILL_TOKENS
from aurify.samplers.executors import decode_batch_bucket

Phase = Literal["sampling", "loss", "backward", "update"]
ALWAYS: tuple[Phase, ...] = ("sampling", "loss", "backward", "update")
TRAINING = ALWAYS[1:]


@dataclass(frozen=True, slots=True)
class Held:
    """What is held in some phases."""

    name: str
    size: int  # bytes
    formula: str
    phases: tuple[Phase, ...] = ALWAYS


@dataclass(frozen=True)
class StageMemory:
    card: Card
    parts: list[Held]
    micro_batch_tokens: int
    activations: Activations

    def during(self, phase: Phase) -> int:
        return sum(part.size for part in self.parts if phase in part.phases)

    @property
    def fullest(self) -> Phase:
        return max(ALWAYS, key=self.during)

    @property
    def peak(self) -> int:
        return self.during(self.fullest)

    @property
    def fits(self) -> bool:
        return self.peak <= self.card.size

    def describe(self) -> dict[str, Any]:
        """For results.json."""
        parts = {part.name: part.size for part in self.parts}
        return {"peak": self.peak, "phase": self.fullest, "parts": parts, "card": self.card.name}


def format_memory(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def plan_stage_memory(plan: Plan, stage: PlannedStage, card: Card) -> StageMemory:
    """stage: one that `Contents` has been through."""
    bulk, options, width = stage.bulk, stage.options, card.width
    assert bulk is not None, "Contents goes through a stage first"
    sizes = bulk.sizes
    shape, merges = sizes.shape, card.device_type == "cpu" and width == 4
    training = sizes.training(bulk.rank, merges=merges)
    quantize = stage.quantized
    weights = footprint.weight_bytes(shape, width, quantize)
    adapter = footprint.adapter_bytes(training, width)
    optimizer = footprint.optimizer_bytes(training, width, options.optim.kind)
    gradients = footprint.gradient_bytes(training)
    chosen = choose_micro_batch(
        shape, training, width, card.device_type, card.room(weights + adapter, optimizer + gradients),
        options.engine.micro_batch_tokens, options.engine.checkpointing,
    )  # fmt: skip
    dropout = options.lora is not None and options.lora.dropout > 0
    most = most_abreast(card.device_type, training.parameters, dropout=dropout)
    load = predict_training_load(options, bulk, chosen.micro_batch_tokens, most)
    bits = footprint.QUANTISED_BITS.get(quantize or "")
    few = f", {shape.linear:,} of them in {bits:g} bits" if bits else ""
    dequantised = footprint.dequantised_bytes(shape, width, quantize)
    held = [
        Held("weights", weights, f"{shape.parameters:,} x {width} B{few}"),
        Held("dequantised layer", dequantised, "the largest, one at a time"),
        *plan_adapter_memory(training, adapter, width),
        *plan_other_models(stage, bulk, training, card),
        *plan_optimizer_memory(stage, bulk, training, optimizer, gradients, width, load),
        *plan_activation_memory(stage, shape, training, width, card, chosen, load),
    ]
    base = sum(part.size for part in held if part.phases == ALWAYS or part.name == "optimiser")
    held += plan_sampling_memory(plan, stage, bulk, card, base)
    return StageMemory(card, [part for part in held if part.size], chosen.micro_batch_tokens, chosen.activations)


def plan_adapter_memory(training: Training, size: int, width: int) -> list[Held]:
    rounded = f" + {width} B rounded" if width < 4 and training.ranks else ""
    merged = f" + {training.merged:,} merged weights x {width} B" if training.merged else ""
    return [Held("adapter", size, f"{training.adapter:,} x 4 B{rounded}{merged}")]


def plan_other_models(stage: PlannedStage, bulk: Bulk, training: Training, card: Card) -> list[Held]:
    """Further models: a reference where no adapter can be switched off, a judge, a teacher."""
    held = []
    kept = "ref_logprobs" if isinstance(stage.options, OnlineStage) else "reference"  # others are computed beforehand
    if training.whole and kept in stage.algorithm.needs:
        size = training.parameters * card.width
        held.append(Held("reference", size, f"a copy of {training.parameters:,} weights x {card.width} B"))
    elif bulk.goes_on and not training.whole:
        held.append(
            Held("reference", 4 * training.adapter, f"a copy of the adapter it begins with: {training.adapter:,} x 4 B")
        )
    phases: tuple[Phase, ...] = ALWAYS if isinstance(stage.options, OnlineStage) else ("sampling",)
    for name, sizes in bulk.others.items():
        size = footprint.weight_bytes(sizes.shape, card.width)
        held.append(Held(name, size, f"{sizes.shape.parameters:,} x {card.width} B", phases))
    return held


def plan_optimizer_memory(
    stage: PlannedStage, bulk: Bulk, training: Training, optimizer: int, gradients: int, width: int, load: Load
) -> list[Held]:
    """Gradients are complete before the update; while activations are there they exist if the step has further
    micro-batches."""
    masters = training.parameters - training.adapter if width < 4 else 0
    moments = footprint.MOMENTS_8BIT if stage.options.optim.kind.endswith("8bit") else footprint.MOMENTS
    text = f"{training.parameters:,} x {moments} B" + (f" + masters {masters:,} x 4 B" if masters else "")
    samples_before = not isinstance(stage.options, OnlineStage) and not bulk.evaluated
    several = load.micro_batches > load.abreast
    held = [
        Held("optimiser", optimizer, text, TRAINING if samples_before else ALWAYS),
        Held("gradients", gradients, f"{training.parameters:,} x 4 B", TRAINING if several else ("update",)),
    ]
    if load.abreast > 1:
        own = width * (training.parameters - training.adapter) + 4 * training.adapter
        formula = f"{load.abreast} rows side by side have their own"
        held.append(Held("gradients of rows", load.abreast * own, formula, ("update",)))
    return held


def plan_activation_memory(
    stage: PlannedStage, shape: Shape, training: Training, width: int, card: Card, chosen: MemoryPlan, load: Load
) -> list[Held]:
    blocks = card.device_type == "cpu"
    keys = load.gathered / load.nodes if blocks else 1.0
    token = footprint.token_activation_bytes(shape, width, training, chosen.activations, keys)
    layer = footprint.layer_activation_bytes(shape, width, training, keys)
    masks = load.masked * width if blocks else 0
    how = f"{shape.layers} layers"
    if chosen.activations != "kept":
        inputs = "two inputs" if chosen.activations == "offloaded" else f"inputs of {shape.layers} layers"
        how = f"{inputs} and one layer"
    known = "" if load.exact else ", if all answers are as long as they may be"
    formula = f"{load.nodes:,} tokens x {token / 1024:,.0f} KiB ({how} of {layer / 1024:.1f} KiB){known}"
    held = [
        Held("activations", load.nodes * token + masks, formula, ("loss", "backward")),
        Held(
            "gradients of activations", load.nodes * footprint.backward_bytes(shape, width),
            f"{load.nodes:,} tokens x {footprint.backward_bytes(shape, width) / 1024:.1f} KiB", ("backward",),
        ),
    ]  # fmt: skip
    if not stage.scores:
        trained, entropy = training.whole, "entropy" in stage.algorithm.needs
        positions = -(-load.positions // load.abreast)
        size = footprint.head_activation_bytes(
            shape, width, card.device_type, positions, trained=trained, entropy=entropy
        )
        text = f"logits of a chunk of {footprint.count_chunk_positions(shape, card.device_type, positions):,} positions"
        text += f" x {shape.vocabulary:,}" + (", gradient of the head" if trained else "")
        held.append(Held("head", load.abreast * size, text, ("loss",)))
    return held


def plan_sampling_memory(plan: Plan, stage: PlannedStage, bulk: Bulk, card: Card, held: int) -> list[Held]:
    """The cache and what a step of the sampler needs, for the largest of what the stage samples. held: by the model
    and its optimiser."""
    options, width, shape = stage.options, card.width, bulk.sizes.shape
    cases = list_stage_requests(options, bulk, plan.recipe.evaluation)
    given = options.sampler.options.get("cache_bytes")
    budget = int(given if given is not None else CACHE_SHARE * max(0, card.cache_room(held)))
    found: list[Held] = []
    for asked in cases:
        length = round_up_cache(asked.prompt + asked.answer, ROUND)
        slots = min(decode_batch_bucket(min(asked.num, options.sampler.max_batch)), options.sampler.max_batch)
        one = footprint.kv_cache_bytes(shape, width, 1, length)
        slots = max(1, min(slots, budget // one))
        cache = Held(
            "keys and values", slots * one,
            f"{slots} sequences x {length:,} tokens x {shape.cached * width / 1024:.1f} KiB", ("sampling",),
        )  # fmt: skip
        found = max(
            found,
            [cache, plan_step_memory(shape, card, asked, slots, length)],
            key=lambda both: sum(h.size for h in both),
        )
    kept = card.device_type == "cuda" and found and found[0].size <= KEPT_SHARE * card.size
    return [Held(found[0].name, found[0].size, found[0].formula), *found[1:]] if kept else found


def plan_step_memory(shape: Shape, card: Card, asked: Asked, slots: int, length: int) -> Held:
    """A prefill, or a step of decoding: on a CPU its attention reads a layer's keys in fp32."""
    width = card.width
    prompts = min(PREFILL_TOKENS, slots * asked.prompt)
    prefill = prompts * footprint.forward_bytes(shape, width)
    logits = slots * shape.vocabulary * (4 + (width if width < 4 else 0))
    scores = slots * length * (4 * shape.keys + 8 * shape.heads) if card.device_type == "cpu" else 0
    size, text = max(
        (prefill, f"prefill of {prompts:,} tokens"), (logits + scores, f"logits of {slots} x {shape.vocabulary:,}")
    )
    return Held("sampler", size, text, ("sampling",))
