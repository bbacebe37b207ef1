"""Opens the sampler that a recipe names: `sampler: {kind: in_process, max_batch: 64}`.

A kind is a class or function in a file of its own. It is called with the engine and, by name, with `max_batch`,
`max_context`, `seed` and the options of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

from aurify.bounds import Checked, Ge, PositiveInt
from aurify.config import did_you_mean
from aurify.errors import UserError
from aurify.samplers.sampler import StreamingSampler
from aurify.signatures import convert_call_options

if TYPE_CHECKING:
    from aurify.engine.engine import Engine

KINDS = {
    "in_process": "aurify.samplers.inprocess:InProcessSampler",
    "vllm_server": "aurify.samplers.vllm_server:VllmServerSampler",
    "vllm_colocated": "aurify.samplers.vllm_colocated:VllmColocatedSampler",
}


@dataclass(frozen=True, kw_only=True)
class SamplerOptions(Checked):
    kind: str = "in_process"  # with the engine's weights and no server; or vllm_server, vllm_colocated: docs/vllm.md
    max_batch: PositiveInt = 64  # completions that are generated at the same time
    max_context: Annotated[int, Ge(2)] | None = None  # tokens of prompt and completion; None: what the model can take
    options: Mapping[str, Any] = field(default_factory=dict)  # of this kind alone, such as cache_bytes of in_process

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise UserError(f"kind: {self.kind!r} is no sampler{did_you_mean(self.kind, KINDS)}")
        if self.options:
            self.resolve(seed=0)

    def resolve(self, seed: int) -> tuple[Callable[..., StreamingSampler], dict[str, Any]]:
        """What opens the sampler, and its options, checked by its signature."""
        module, _, name = KINDS[self.kind].partition(":")
        kind = getattr(import_module(module), name)
        values = {"max_batch": self.max_batch, "max_context": self.max_context, "seed": seed, **self.options}
        return kind, convert_call_options(f"sampler {self.kind!r}", kind, values, num_given=1)


def open_sampler(options: SamplerOptions, engine: Engine, *, seed: int = 0) -> StreamingSampler:
    kind, values = options.resolve(seed)
    return kind(engine, **values)
