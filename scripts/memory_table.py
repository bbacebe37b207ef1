"""The table of docs/memory-plan.md: what known models take on a card, by the formulas of engine/footprint.py. Nothing
is loaded; the shapes are those of the models' configurations.

    python scripts/memory_table.py
"""

from __future__ import annotations

from aurify.engine import footprint
from aurify.engine.footprint import Shape, Training

GIB, KIB = 2**30, 2**10
RANK, WIDTH = 16, 2
# name: layers, hidden, intermediate, heads, key-value heads, head size, vocabulary, tied head, biases, norms of heads
FAMILIES = {
    "SmolLM2-135M": (30, 576, 1536, 9, 3, 64, 49152, True, False, False),
    "Qwen2.5-0.5B": (24, 896, 4864, 14, 2, 64, 151936, True, True, False),
    "Qwen2.5-1.5B": (28, 1536, 8960, 12, 2, 128, 151936, True, True, False),
    "Qwen3-4B": (36, 2560, 9728, 32, 8, 128, 151936, True, False, True),
    "Mistral-7B-v0.3": (32, 4096, 14336, 32, 8, 128, 32768, False, False, False),
    "Qwen2.5-7B": (28, 3584, 18944, 28, 4, 128, 152064, False, True, False),
    "Llama-3.1-8B": (32, 4096, 14336, 32, 8, 128, 128256, False, False, False),
    "Qwen3-8B": (36, 4096, 12288, 32, 8, 128, 151936, False, False, True),
}
HEADINGS = (
    "model", "parameters", "bf16", "nf4", "adapter", "KiB kept", "KiB recomputed", "KiB cached", "SFT, bf16",
    "SFT, nf4", "GRPO, nf4",
)  # fmt: skip


def make_shape(name: str) -> tuple[Shape, Training]:
    """With an adapter of RANK on all linear layers."""
    layers, hidden, inner, heads, kv_heads, size, vocabulary, tied, biased, normed = FAMILIES[name]
    queries, keys = heads * size, kv_heads * size
    pairs = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden), *[(hidden, inner)] * 3]
    linear = layers * sum(a * b for a, b in pairs)
    biases = layers * (queries + 2 * keys) if biased else 0
    norms = layers * (2 * hidden + (2 * size if normed else 0)) + hidden
    embeddings = vocabulary * hidden * (1 if tied else 2)
    width = 2 * hidden + (queries + keys if normed else 0)
    shape = Shape(
        layers, hidden, inner, heads, queries, keys, width, vocabulary, linear + biases + norms + embeddings, linear
    )
    adapter = RANK * layers * sum(a + b for a, b in pairs)
    return shape, Training(adapter, False, RANK * layers * len(pairs), adapter)


def peak(shape: Shape, training: Training, quantize: str | None, micro: int, sequences: int, length: int) -> float:
    """GiB. micro: tokens in a micro-batch, recomputed. sequences: that are sampled together, each of `length` tokens;
    0: nothing is sampled, and a step is one micro-batch."""
    held = footprint.weight_bytes(shape, WIDTH, quantize) + footprint.adapter_bytes(training, WIDTH)
    held += footprint.optimizer_bytes(training, WIDTH) + footprint.dequantised_bytes(shape, WIDTH, quantize)
    gradients = footprint.gradient_bytes(training)
    activations = micro * footprint.token_activation_bytes(shape, WIDTH, training, "recomputed")
    loss = activations + footprint.head_activation_bytes(shape, WIDTH, "cuda", micro, trained=False)
    backward = activations + micro * footprint.backward_bytes(shape, WIDTH)
    training_peak = max(loss, backward) + (gradients if sequences else 0)
    cache = footprint.kv_cache_bytes(shape, WIDTH, sequences, length)
    sampling = cache + sequences * shape.vocabulary * (4 + WIDTH)
    return (held + max(training_peak, gradients, sampling)) / GIB


def list_rows() -> list[tuple[str, ...]]:
    rows = []
    for name in FAMILIES:
        shape, training = make_shape(name)
        added = footprint.adapter_bytes(training, WIDTH) + footprint.optimizer_bytes(training, WIDTH)
        rows.append((
            name,
            f"{shape.parameters / 1e6:,.0f} M",
            f"{footprint.weight_bytes(shape, WIDTH) / GIB:.2f}",
            f"{footprint.weight_bytes(shape, WIDTH, 'nf4') / GIB:.2f}",
            f"{(added + footprint.gradient_bytes(training)) / GIB:.2f}",
            f"{footprint.token_activation_bytes(shape, WIDTH, training, 'kept') / KIB:,.0f}",
            f"{footprint.token_activation_bytes(shape, WIDTH, training, 'recomputed') / KIB:,.0f}",
            f"{shape.cached * WIDTH / KIB:,.1f}",
            f"{peak(shape, training, None, 1024, 0, 0):.2f}",
            f"{peak(shape, training, 'nf4', 1024, 0, 0):.2f}",
            f"{peak(shape, training, 'nf4', 4096, 8, 1280):.2f}",
        ))  # fmt: skip
    return rows


def make_table() -> str:
    lines = [HEADINGS, ("---", *["---:"] * (len(HEADINGS) - 1)), *list_rows()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    print(make_table(), end="")
