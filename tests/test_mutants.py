"""The faults of `make mutants` can be planted: their text is in the code, and their tests are there."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts_of_ours import load_script

ROOT = Path(__file__).resolve().parents[1]
FAULTS = load_script("mutants_list").FAULTS


@pytest.mark.parametrize("path", sorted({fault.path for fault in FAULTS}))
def test_faults_can_be_planted(path):
    text = (ROOT / path).read_text()
    own = [fault for fault in FAULTS if fault.path == path]
    assert not [fault.name for fault in own if fault.old not in text or fault.old == fault.new]
    assert all((ROOT / "tests" / name).exists() for fault in own for name in fault.tests)
