"""How far it is from a row of GSM8K to the gradient, and from the command to the loss, as docs/architecture.md says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scripts_of_ours import load_script

ROOT = Path(__file__).parents[1]
SFT = ["row.Row", "example.Chat", "types.Datum", "packing.Row"]
GRPO = ["row.Row", "types.Task", "types.Trajectory", "types.Datum", "packing.Row"]


@pytest.mark.parametrize(("method", "types", "most_files"), [("sft", SFT, 40), ("grpo", GRPO, 56)])
def test_a_row_becomes_few_things_on_its_way_to_the_gradient(method, types, most_files):
    trace = load_script("trace_row").trace_row(method)
    assert trace.ended, "no loss was computed"
    converters = {where.split()[0] for where in trace.conversions.values()}
    assert set(types) <= set(trace.types) and len(trace.types) <= 6
    assert {"rows/files.py", "renderer/renderer.py", "engine/packing.py"} <= converters and len(converters) <= 10
    assert converters < set(trace.files) and len(trace.files) <= most_files
    section = (ROOT / "docs" / "architecture.md").read_text().partition("## One row of GSM8K")[2].partition("\n## ")[0]
    told = set(re.findall(r"`([a-z0-9_/]+\.py)`", section))
    assert converters <= told, "docs/architecture.md names every file that converts the row"


def test_the_way_to_the_loss_stays_short():
    script = load_script("write_architecture")
    num_lines = sum(script.count_lines(script.SOURCE / file) for file in script.TO_THE_LOSS)
    assert len(script.TO_THE_LOSS) <= 10 and num_lines <= 2000
    section = script.PAGE.read_text().partition("## From `aurify train` to the GRPO loss")[2].partition("\n## ")[0]
    assert all(f"`{file}`" in section for file in script.TO_THE_LOSS)
