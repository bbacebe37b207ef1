"""How far one row of GSM8K travels to the gradient, as docs/architecture.md tells it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SFT = ["row.Row", "example.Chat", "types.Datum", "packing.Row"]
GRPO = ["row.Row", "types.Task", "types.Trajectory", "types.Datum", "packing.Row"]


@pytest.mark.parametrize(("method", "types", "most_files"), [("sft", SFT, 33), ("grpo", GRPO, 47)])
def test_a_row_becomes_few_things_on_its_way_to_the_gradient(method, types, most_files):
    spec = importlib.util.spec_from_file_location("trace_row", ROOT / "scripts" / "trace_row.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    trace = script.trace_row(method)
    assert trace.ended, "no loss was computed"
    converters = {where.split()[0] for where in trace.conversions.values()}
    assert set(types) <= set(trace.types) and len(trace.types) <= 6
    assert {"rows/files.py", "renderer/renderer.py", "engine/packing.py"} <= converters and len(converters) <= 10
    assert converters < set(trace.files) and len(trace.files) <= most_files
    section = (ROOT / "docs" / "architecture.md").read_text().partition("## One row of GSM8K")[2].partition("\n## ")[0]
    told = set(re.findall(r"`([a-z_]+/[a-z0-9_]+\.py)`", section))
    assert converters <= told, "docs/architecture.md names every file that converts the row"
