"""What users brought (shared/cases, beside the checkout): every script runs, and no value is marked as wrong but those
that docs/rewards.md argues."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import aurify

CASES = Path(__file__).parents[3] / "shared" / "cases"
ARGUED = ("words before a bare call", "JSON with literal newline in a string")  # nobody says what is right there
SCRIPTS = sorted(CASES.glob("*.py"))


@pytest.mark.skipif(not SCRIPTS, reason="shared/cases is not beside this checkout")
@pytest.mark.parametrize("path", SCRIPTS or [None], ids=lambda path: path.stem if path else "none")
def test_what_users_brought_is_judged_right(path):
    environment = os.environ | {"PYTHONPATH": str(Path(aurify.__file__).parents[1])}
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, cwd=CASES, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) > 10
    assert not [line for line in lines if "<<<<" in line and not line.startswith(ARGUED)]
