"""These tests also run on a machine that has little more than torch and transformers: see benchmarks/gpu_check.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
if importlib.util.find_spec("aurify") is None:
    sys.path.insert(0, str(ROOT / "src"))
