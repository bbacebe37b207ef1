"""Where a stage stands: checkpoints from which a killed run goes on as if nothing had happened.

A checkpoint holds the engine (weights, optimiser), the state of every random number generator, the number of finished steps and
a fingerprint of the data. Nothing else decides the future: which rows or tasks a step takes, and the seed of every sampled
completion, are functions of the recipe's seed and the step.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from aurify.engine import checkpoint
from aurify.errors import UserError

if TYPE_CHECKING:
    from aurify.engine.engine import Engine

PROGRESS_FILE, RNG_FILE = "progress.json", "rng.pt"


def derive_seed(*parts: object) -> int:
    """A seed that depends on all parts and on nothing else: the same in every process, whatever was drawn before."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big")  # 56 bits: exact in every format it may pass through


def seed_everything(seed: int) -> None:
    """The global generators. Ours are all explicit; these are for the code of others: a user's reward, a model's dropout."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def fingerprint(items: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(repr(item).encode())
    return digest.hexdigest()[:16]
