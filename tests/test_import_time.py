"""What is imported when. Times differ between machines, so no test measures one."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "numpy", "omegaconf", "huggingface_hub")


def imported_by(code: str) -> set[str]:
    """Runs `code` in a fresh interpreter; returns the heavy modules that are loaded at its end."""
    program = f"{code}\nimport sys; print('\\nloaded', *[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "code",
    [
        "import aurify",
        "from aurify import task, reward, UserError, SamplingParams, Trajectory",
        "import aurify.registry, aurify.config, aurify.samplers.sampler, aurify.environments.env",
        "from aurify.cli.main import app\ntry:\n    app(['--help'])\nexcept SystemExit:\n    pass",
        "from aurify.cli.main import app\ntry:\n    app(['train', '--help'])\nexcept SystemExit:\n    pass",
    ],
)
def test_loads_nothing_heavy(code):
    assert imported_by(code) == set()


def test_the_measure_sees_torch():
    assert "torch" in imported_by("from aurify import Engine")
