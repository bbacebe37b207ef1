"""One forward pass over a row: on the first path of a ladder (attention.LADDERS) that works on this machine and gives
what plain rows give. That is measured once, on first use (check.py)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aurify.engine.attention import IMPLEMENTATION, LADDERS, Forest, Path, Unsupported
from aurify.engine.backbone import Backbone
from aurify.engine.check import Check, Checker
from aurify.engine.logprobs import Head
from aurify.engine.packing import Row, pack_row
from aurify.models.quantized_linear import QuantizedLinear

log = logging.getLogger("aurify")

KNOWN_LAYERS = {"full_attention", "sliding_attention"}  # as transformers names them; packed rows know no others
accepted: dict[tuple[str, Path], Check] = {}  # in this process, by structure: each is checked once
COSTS: dict[Path, str] = {
    "dense": "Each row needs a mask of its length squared, which long rows feel",
    "plain": "Each sequence gets a padded row of its own, so shared prompts are computed again for each",
}


class CompilerFailed(RuntimeError):
    """The compiler failed on a row, and no path for packed rows is left."""


class Body(Backbone):
    """A decoder that chooses its path by itself."""

    def __init__(self, module: Any, head: Head | None, *, packing: bool = True, path: Path | None = None) -> None:
        """path: one that is known to be right, such as that of the model which this one is a copy of."""
        super().__init__(module, head)
        embedding = module.get_input_embeddings().weight
        products = sum(parameter.numel() for parameter in self.decoder.parameters() if parameter is not embedding)
        codes = [layer for layer in self.decoder.modules() if isinstance(layer, QuantizedLinear)]
        products += sum(layer.in_features * layer.out_features for layer in codes)
        self.head_cost = 0.0 if head is None else head.weight.numel() / products  # of a token, to that of its layers
        self.reason = ""  # why it is not the first path of the ladder
        self.checks: list[Check] = []
        self.windows: set[int | None] | None = None  # of the layers; known once they are compiled
        self.checking = threading.RLock()  # a check switches the attention of the whole model: one thread at a time
        self._path: Path | None = None
        if not packing:
            self._settle("plain", "packing is off")
        elif path is not None:
            self._settle(path, "")

    @property
    def path(self) -> Path:
        if self._path is None:
            with self.checking:
                if self._path is None:  # no other thread, such as a sampler's, was first
                    self._choose(LADDERS.get(self.device.type, ("dense", "plain")))
        assert self._path is not None
        return self._path

    @property
    def packs(self) -> bool:
        """Whether rows may hold several sequences, and trees of them."""
        return self.path != "plain"

    def describe(self) -> dict[str, Any]:
        """What was chosen, why, and what was measured, as plain values. `path` is None before the first use."""
        return {
            "path": self._path,
            "reason": self.reason,
            "layers_compiled": self.windows is not None,
            "checks": [check.describe() for check in self.checks],
        }

    def hidden(self, row: Row) -> Tensor:
        """[nodes, hidden], final norm included."""
        if self.packs:
            try:
                return self.packed(row)
            except CompilerFailed:
                pass  # plain rows remain
        return self.plain(row)

    def packed(self, row: Row, layout: Forest | None = None) -> Tensor:
        """[nodes, hidden]. layout: of `row`, for `path`; one that does more than attend, such as to fill a cache."""
        layout = layout or Forest(row, self.device, self.dtype, self.path)
        while True:
            try:
                if self.windows is not None:
                    layout.prepare(self.windows)
                return self.run(layout)[: len(row.tokens)]
            except Exception as error:
                if not is_compiler_error(error):
                    raise
                with self.checking:
                    if self._path == layout.path:  # no other thread was first
                        ladder = LADDERS[self.device.type]
                        self._choose(ladder[ladder.index(layout.path) + 1 :], describe_attention_failure(error))
                if self._path == "plain":
                    raise CompilerFailed(describe_attention_failure(error)) from error
                layout.lay_out(self.path)

    def compile_layers(self, backend: Any = "inductor") -> None:
        """Compiles each decoder layer, for rows of every length, so that a GPU has fewer kernels to start."""
        if self.path == "blocks":  # a list of blocks that differ in size: every row would compile anew
            with self.checking:
                self._choose(("dense", "plain"), "compiled layers need one mask a row")
        if not self.packs:
            raise ValueError(f"only layers of packed rows can be compiled, and they are off: {self.reason}")
        layout = Forest(pack_row([[0, 0]], [0]), self.device, self.dtype, self.path)
        with torch.no_grad():
            self.run(layout)  # the layers ask for a mask of each window that they have
        self.windows = set(layout.masks)
        for layer in self.layers:
            layer.compile(dynamic=True, backend=backend)

    def _choose(self, ladder: Sequence[Path], reason: str = "") -> None:
        """Takes the first path of `ladder` that gives what plain rows give, and says so if it is not the best."""
        reasons = [reason] if reason else []
        strange = set(getattr(self.module.config.get_text_config(), "layer_types", None) or ()) - KNOWN_LAYERS
        if strange:
            reason = f"{type(self.module).__name__} has layers of {', '.join(sorted(strange))}"
            self.checks.append(Check("plain", False, reason))
            return self._settle("plain", reason)
        checker, structure = Checker(self), self.describe_structure()
        for path in ladder[:-1]:
            try:
                check = accepted.get((structure, path)) or checker.measure(path)
            except Unsupported as error:
                self.checks.append(Check(path, False, str(error)))
                return self._settle("plain", str(error))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # no kernel, no compiler, not enough shared memory, ...
                check = Check(path, False, describe_attention_failure(error))
            self.checks.append(check)
            if check.accepted:
                accepted[structure, path] = check
                return self._settle(path, "; ".join(reasons))
            reasons.append(f"{path}: {check.reason}")
        self._settle("plain", "; ".join(reasons))

    def _settle(self, path: Path, reason: str) -> None:
        self.module.config._attn_implementation = self.fallback if path == "plain" else IMPLEMENTATION
        self._path, self.reason = path, reason
        if reason and path in COSTS and self.checks:
            name = type(self.module).__name__
            log.warning("%s: packed rows take the path %r, because %s. %s", name, path, reason, COSTS[path])


def is_compiler_error(error: Exception) -> bool:
    """Whether the compiler failed, or had to compile too often: another path may still work."""
    names = (kind.__module__ for kind in type(error).__mro__)
    return any(name.startswith(("torch._dynamo", "torch._inductor", "triton")) for name in names)


def describe_attention_failure(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
