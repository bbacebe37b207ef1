"""Whether packed rows give what plain rows give, measured on a model before their first use.

A fast path may be wrong without an error: a mask may be off by one, a model's attention may do more than we know, a
kernel may have a fault. But right numbers are never the same bits either, and in bf16 the difference looks large:
single log-probs differ by half a nat between two right ways. So nothing is compared with a constant. The same tree of
tokens is computed in three ways:

    a  plain rows, padded to one batch
    b  plain rows, one at a time, by the model's simplest attention ("eager")
    c  the packed row

The difference of b and a is what rounding alone does to this model in this dtype. That of c and a may be a small
multiple of it. Two things are compared: the distributions over the whole vocabulary at every position (KL and
log-probs), and the gradients of a weighted sum of the tokens' log-probs by the embedding of every node. The last node
of a branch predicts nothing, and no other node may see it, so it has no gradient. If it has one, no rounding explains
that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aurify.engine.attention import IMPLEMENTATION, Forest, Path
from aurify.engine.backbone import Backbone
from aurify.engine.logprobs import Head, linear_logprobs
from aurify.engine.packing import Row, pack_row

# Tokens of the tree: a prompt with two branches, one of which branches again, and a text of its own. The 308 nodes
# reach over three blocks of 128, and one branch is longer than a block.
PROMPT, LONG, FORK, TWIGS, ALONE = 16, 132, 10, (70, 24), 56
WINDOW = 32  # longer windows are shortened to this: the tree has to be longer than the window
TREES = 2  # with different tokens; a path is refused if it fails on both
FACTOR = 2.0  # an error may be so many times as large as between two plain ways (for KL: the square of it)
# Statistics of the error between two plain ways count for at most so many medians. Some tokens (the massive activations
# of arXiv 2402.17762) change a thousandfold with any rounding: they would let every fault pass. If packed rows meet
# such a token, the other tree decides.
CAPS = {"mean": 2.0, "median": 1.0, "p90": 3.0, "p99": 6.0, "max": 8.0}
# Errors up to these count as rounding, relative to the deviation of the logits: two plain ways can agree by chance.
ROUNDING = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 8e-3}
GRADIENT_SCALE = 1 / 64  # keeps gradients in the range of fp16; errors are relative
SAMPLES = 1 << 20  # of |difference| that quantiles are taken from
CHUNK_BYTES = 64 * 2**20  # of one distribution


@dataclass(frozen=True, slots=True)
class Summary:
    mean: float
    median: float
    p90: float
    p99: float
    max: float

    @staticmethod
    def of(values: Tensor, mean: float | None = None, largest: float | None = None) -> Summary:
        """mean, largest: of all values, where `values` are a sample."""
        median, p90, p99 = np.quantile(values.float().cpu().numpy(), [0.5, 0.9, 0.99]).tolist()
        mean = float(values.double().mean()) if mean is None else mean
        return Summary(mean, median, p90, p99, float(values.max()) if largest is None else largest)


@dataclass(frozen=True, slots=True)
class Check:
    """What was measured. Of a language model: "kl" a position, "logprob" (|difference|, over the vocabulary) and
    "gradient" (relative, a node). Of a model with a scalar head: "hidden" (relative, a position) and "gradient"."""

    path: Path
    accepted: bool
    reason: str = ""  # if it was refused
    packed: dict[str, Summary] = field(default_factory=dict)  # packed rows against plain rows
    plain: dict[str, Summary] = field(default_factory=dict)  # plain rows against plain rows, the other way
    floor: dict[str, float] = field(default_factory=dict)  # what is rounding in any case
    leaks: int = 0  # nodes that have a gradient here and none in plain rows: another node saw them

    def describe(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Computed:
    hidden: Tensor  # [positions, hidden], the sequences one after the other
    gradients: Tensor  # [nodes, hidden] fp32


class Comparison:
    """Plain rows computed in two ways, for packed rows to be compared with."""

    def __init__(self, body: Backbone, seed: int = 0) -> None:
        """seed: of the tokens."""
        self.body, self.module = body, body.module
        self.head = None if body.head is None else freeze_lm_head(body.head)
        self.embedding: Any = self.module.get_input_embeddings()
        self.device, self.dtype = self.embedding.weight.device, self.embedding.weight.dtype
        context = getattr(self.module.config.get_text_config(), "max_position_embeddings", None)
        sequences = build_check_sequences(self.embedding.weight.shape[0], context or 1 << 20, seed)
        data = range(len(sequences))
        self.tree, rows = pack_row(sequences, data), pack_row(sequences, data, share=False)
        self.nodes = torch.from_numpy(np.concatenate(self.tree.nodes)).to(self.device)
        starts = np.cumsum([0, *map(len, sequences[:-1])])
        after = np.setdiff1d(np.arange(len(self.nodes)), starts)
        self.after = torch.from_numpy(after).to(self.device)  # positions whose token is predicted
        self.tokens = torch.from_numpy(np.concatenate([rows.tokens[path] for path in rows.nodes])).to(self.device)
        ends = torch.from_numpy(np.append(starts[1:], len(self.nodes)) - 1)
        self.weights = torch.randn(len(self.nodes), generator=torch.Generator().manual_seed(0))
        self.weights = self.weights.index_fill_(0, ends, 0.0).to(self.device)  # as where the last token predicts none
        with self._measuring(body.fallback):
            self.first = self._run(lambda: body.plain(rows)[torch.from_numpy(np.concatenate(rows.nodes))])
        self.second = self._one_by_one(rows)
        # the least exact dtype decides: the model's, or that of its hidden states
        self.rounding = max(ROUNDING.get(d, 1e-5) for d in (self.dtype, self.first.hidden.dtype))
        self.plain, deviation = self._differences(self.second)
        self.floor = {
            "kl": 0.5 * (self.rounding * deviation) ** 2,
            "logprob": self.rounding * deviation,
            "hidden": self.rounding,
            "gradient": self.rounding,
        }

    def measure(self, path: Path) -> Check:
        """Raises what the path raises."""
        with self._measuring(IMPLEMENTATION):
            layout = Forest(self.tree, self.device, self.dtype, path)
            found = self._run(lambda: self.body.run(layout)[self.nodes], packed=True)
        packed, _ = self._differences(found)
        leaks = self._count_leaks(found)
        reason = self._refusal(packed, leaks)
        floor = {name: self.floor[name] for name in packed}
        return Check(path, not reason, reason, packed, self.plain, floor, leaks)

    def _count_leaks(self, other: Computed) -> int:
        return int(((self.first.gradients == 0).all(1) & (other.gradients != 0).any(1)).sum())

    def _refusal(self, packed: dict[str, Summary], leaks: int) -> str:
        if leaks > self._count_leaks(self.second):
            return f"{leaks} nodes that no other node may see have a gradient: its forward differs from plain rows"
        for name, found in packed.items():
            factor = FACTOR**2 if name == "kl" else FACTOR
            for statistic, value in asdict(found).items():
                if name == "logprob" and statistic == "max":
                    continue  # that of the least probable token says more about chance than about faults
                plain = min(getattr(self.plain[name], statistic), CAPS[statistic] * self.plain[name].median)
                if not value <= factor * plain + self.floor[name]:
                    return (
                        f"{name} differs from plain rows by {value:.2g} ({statistic}), where two ways of computing "
                        f"plain rows differ by {plain:.2g}"
                    )
        return ""

    @contextmanager
    def _measuring(self, implementation: str) -> Iterator[None]:
        """With gradients, also where the caller has none; with short windows; by this kind of attention."""
        config = self.module.config
        held = config._attn_implementation
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(shorten_attention_windows(self.module))
            config._attn_implementation = implementation
            try:
                yield
            finally:
                config._attn_implementation = held

    def _one_by_one(self, rows: Row) -> Computed:
        def forward() -> Tensor:
            tokens = [torch.from_numpy(rows.tokens[path])[None].to(self.device) for path in rows.nodes]
            decoder = self.body.decoder
            return torch.cat([decoder(input_ids=each, use_cache=False).last_hidden_state[0] for each in tokens])

        try:
            with self._measuring("eager"):
                return self._run(forward)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # not every model has it
            with self._measuring(self.body.fallback):
                return self._run(forward)

    def _run(self, forward: Callable[[], Tensor], packed: bool = False) -> Computed:
        """forward: gives the hidden states of all positions."""
        leaves: list[Tensor] = []

        def hold(module: Any, inputs: Any, output: Tensor) -> Tensor:
            leaves.append(output.detach().requires_grad_())
            return leaves[-1]

        handle = self.embedding.register_forward_hook(hold)
        try:
            hidden = forward()
        finally:
            handle.remove()
        gradients = torch.autograd.grad(self._objective(hidden), leaves)
        if packed:
            [gradient] = gradients
            return Computed(hidden.detach(), gradient[0, : len(self.tree.tokens)].float())
        lengths = [len(path) for path in self.tree.nodes]
        flat = [gradient[k] for gradient in gradients for k in range(len(gradient))]
        each = torch.cat([gradient[:length].float() for gradient, length in zip(flat, lengths, strict=True)])
        total = each.new_zeros(len(self.tree.tokens), each.shape[1])
        return Computed(hidden.detach(), total.index_add_(0, self.nodes, each))

    def _objective(self, hidden: Tensor) -> Tensor:
        """A sum over all positions with weights of either sign, so that errors cannot cancel."""
        weights = self.weights
        if self.head is None:
            values = hidden.float()
            weights = weights[:, None] * torch.randn(values.shape, generator=torch.Generator().manual_seed(1)).to(
                weights
            )
        else:
            values, _ = linear_logprobs(hidden[self.after - 1], self.head, self.tokens[self.after])
            weights = weights[self.after - 1]
        return (values * weights).sum() * GRADIENT_SCALE

    def _differences(self, other: Computed) -> tuple[dict[str, Summary], float]:
        """Of `other` from the first plain way; and the deviation of the logits."""
        first, second = self.first.gradients, other.gradients
        norms = first.norm(dim=1)
        errors = (second - first).norm(dim=1) / norms.clamp_min(max(0.1 * float(norms.median()), 1e-30))
        gradient = {"gradient": Summary.of(errors)}
        with torch.no_grad():
            if self.head is None:
                one, two = self.first.hidden.float(), other.hidden.float()
                return {"hidden": Summary.of((two - one).norm(dim=1) / one.norm(dim=1))} | gradient, 1.0
            values, deviation = compare_logit_distributions(self.first.hidden, other.hidden, self.head)
        return values | gradient, deviation


class Checker:
    """Comparisons on up to TREES trees, each made when it is needed."""

    def __init__(self, body: Backbone) -> None:
        self.body = body
        self.comparisons: list[Comparison] = []

    def measure(self, path: Path) -> Check:
        """Raises what the path raises."""
        with torch.inference_mode(False):  # tensors made in a sampler's inference mode could have no gradient
            for seed in range(TREES):
                if len(self.comparisons) == seed:
                    self.comparisons.append(Comparison(self.body, seed))
                check = self.comparisons[seed].measure(path)
                if check.accepted:
                    break
        return check


def freeze_lm_head(head: Head) -> Head:
    return replace(head, weight=head.weight.detach(), bias=None if head.bias is None else head.bias.detach())


def compare_logit_distributions(one: Tensor, two: Tensor, head: Head) -> tuple[dict[str, Summary], float]:
    """Hidden states [positions, hidden] of the same positions -> KL a position, |difference| of log-probs, and the
    deviation of the logits. All in fp32: what that rounds is far below the floor of an fp32 model."""
    vocabulary = head.weight.shape[0]
    stride = max(1, len(one) * vocabulary // SAMPLES)
    kl, samples, totals, largest, deviations = [], [], [], [], []
    chunk = max(1, CHUNK_BYTES // (8 * vocabulary))
    for first, second in zip(one.split(chunk), two.split(chunk), strict=True):
        logits = head.logits(first)
        deviations.append(logits.std(-1))
        expected = logits.log_softmax(-1)
        change = head.logits(second).log_softmax(-1).sub_(expected)  # log q - log p
        # KL(p, q) = sum p (q/p - 1 - log q/p): no term is negative, so nothing is lost in the sum
        kl.append((expected.exp_() * (change.expm1() - change)).sum(-1))
        change = change.abs_()
        samples.append(change[:, ::stride].reshape(-1))
        totals.append(change.mean(-1))
        largest.append(change.max())
    mean, most = float(torch.cat(totals).mean()), float(torch.stack(largest).max())
    summaries = {"kl": Summary.of(torch.cat(kl)), "logprob": Summary.of(torch.cat(samples), mean, most)}
    return summaries, float(torch.cat(deviations).mean())


def build_check_sequences(vocabulary: int, context: int, seed: int) -> list[list[int]]:
    """Random tokens; shorter where the model's context is."""
    share = min(1.0, context / (PROMPT + LONG))
    generator = np.random.default_rng(seed)
    lengths = [max(1, int(share * num)) for num in (PROMPT, LONG, FORK, *TWIGS, ALONE)]
    prompt, long, fork, one, other, alone = (generator.integers(0, vocabulary, num).tolist() for num in lengths)
    return [prompt + long, prompt + fork + one, prompt + fork + other, alone]


@contextmanager
def shorten_attention_windows(module: Any) -> Iterator[None]:
    """Sliding windows of at most WINDOW tokens, for all ways of computing. The layers read the number where they always
    do, in the config and in themselves, so the same code is checked."""
    owners = {id(part): part for part in module.modules()}
    owners |= {id(part.config): part.config for part in module.modules() if hasattr(part, "config")}
    held: list[tuple[Any, int]] = []
    for owner in owners.values():
        window = getattr(owner, "sliding_window", None)
        if isinstance(window, int) and window > WINDOW:
            held.append((owner, window))
            owner.sliding_window = WINDOW
    try:
        yield
    finally:
        for owner, window in held:
            owner.sliding_window = window
