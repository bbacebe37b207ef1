"""Where a stage stands: checkpoints from which a killed run goes on as if nothing had happened, and the seeds that
make it so.

A checkpoint holds the engine (weights, optimiser), the global random number generators, the number of finished steps,
a fingerprint of what the stage was told and what its loop remembers (the tasks that were taken, a replay buffer).
Nothing else decides the future: which rows a step takes, and the seed of every sampled completion, are functions of the
recipe's seed and the step.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from aurify.engine import checkpoint
from aurify.errors import UserError
from aurify.loops.interrupt import Interrupt, Interrupted
from aurify.loops.schedule import Schedule

if TYPE_CHECKING:
    from aurify.engine.engine import Engine


MEMORY_FILE = "loop.pt"


class Stateful(Protocol):
    """Something that a loop remembers from step to step. Its state is plain values and tensors."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def derive_seed(*parts: object) -> int:
    """A seed that depends on all parts and on nothing else: the same in every process, whatever was drawn before."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big")  # 56 bits


def seed_everything(seed: int) -> None:
    """The global generators. Ours are all explicit; these are for the code of others: a user's reward, a model's
    dropout."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def fingerprint_items(items: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(repr(item).encode())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one stage. `identity` is a fingerprint of everything that a resumed run must have in common
    with the first one."""

    folder: Path
    every: int
    keep: int
    identity: str
    memory: Mapping[str, Stateful] = field(default_factory=dict)  # saved beside the engine
    schedule: Schedule | None = None  # of evaluations

    def restore(self, engine: Engine, total: int | None = None) -> int:
        """Loads the newest checkpoint and returns its number of finished steps; 0 where there is none. total: the steps
        of the stage; raises where more are done already."""
        path = checkpoint.latest_checkpoint(self.folder)
        if path is None:
            return 0
        found = checkpoint.load_checkpoint(path)
        if found.state["identity"] != self.identity:
            raise UserError(
                f"{path}: this checkpoint belongs to other options or other data than the stage has now; going on "
                f"would mix the two. Undo the change, or remove {self.folder} to train the stage from its start"
            )
        if total is not None and found.step > total:
            raise UserError(f"steps: {found.step} steps are done already, and the stage is to have {total}; give more")
        engine.load(path)
        if self.memory:
            if not (path / MEMORY_FILE).is_file():
                raise UserError(
                    f"{path}: no {MEMORY_FILE}: an older Aurify wrote this; remove {self.folder} to start again"
                )
            state = torch.load(path / MEMORY_FILE, weights_only=True)
            for name, part in self.memory.items():
                part.load_state_dict(state[name])
        if self.schedule is not None:
            self.schedule.load(found.state.get("evaluations", ()))
        checkpoint.set_rng_state(found.rng)
        return found.step

    def count_steps(self, start: int, total: int, engine: Engine) -> Iterator[int]:
        """The steps from `start` to `total`, or until an evaluation ends the stage. One that an interrupt cut short is
        made first."""
        if self.schedule is None:
            yield from range(start, total)
            return
        self.schedule.total = total
        if start and self.schedule.is_due(start):
            self.evaluate(self.schedule, start, engine)
        for step in range(start, total):
            if self.schedule.is_over:
                return
            yield step

    def evaluate(self, schedule: Schedule, step: int, engine: Engine) -> None:
        """The best step so far gets a checkpoint, whose history names its model. The one before is dropped then."""
        if schedule.evaluate(step, engine):
            self.save(step, engine)
            schedule.drop_worse_exports()

    def save(self, step: int, engine: Engine, rng: dict[str, Any] | None = None) -> None:
        def write(folder: Path) -> None:
            engine.save(folder)
            if self.memory:
                state = {name: part.state_dict() for name, part in self.memory.items()}
                torch.save(state, folder / MEMORY_FILE)

        told = {"identity": self.identity}
        known = {} if self.schedule is None else {"evaluations": self.schedule.to_record()}
        checkpoint.save_checkpoint(self.folder, step, write, {**told, **known}, rng=rng, keep=self.keep)

    def after(self, step: int, engine: Engine, interrupt: Interrupt) -> None:
        """Is called after every step: evaluates and saves when it is time to; saves and raises when the run was asked
        to stop."""
        if self.schedule is not None and self.schedule.is_due(step) and not interrupt.requested:
            rng = checkpoint.rng_state()
            try:
                self.evaluate(self.schedule, step, engine)
            except KeyboardInterrupt:
                self.save(step, engine, rng)
                raise Interrupted(step) from None
        due = self.every and step % self.every == 0
        if due or interrupt.requested:
            self.save(step, engine)
        if interrupt.requested:
            raise Interrupted(step)
