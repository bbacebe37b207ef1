"""A Python whose vLLM is the server of samplers/fake_vllm.py."""

from __future__ import annotations

import sys
from pathlib import Path

FAKE = Path(__file__).parent / "samplers" / "fake_vllm.py"


def write_stand_in(path: Path, arguments: str = "") -> str:
    """arguments: that its server gets beside those it is started with. `-c` asks whether vLLM is there: it is."""
    path.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit 0\nshift 2\nexec {sys.executable} {FAKE} "$@" {arguments}\n')
    path.chmod(0o755)
    return str(path)
