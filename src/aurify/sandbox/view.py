"""What a program in the sandbox can see of this machine: an interpreter, its library, and nothing of the user's."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path

NOBODY = "65534"
SYSTEM = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache", "/nix/store")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


@functools.cache
def find_sandbox_interpreter() -> str:
    """The interpreter below the virtual environment. The environment's own packages stay outside the sandbox."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    path = Path(sys.base_exec_prefix) / "bin" / version
    return os.path.realpath(path if path.exists() else sys.executable)


@functools.cache
def list_sandbox_paths() -> tuple[str, ...]:
    """The interpreter, its library, and the system's shared libraries."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    own = [find_sandbox_interpreter(), *(sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib"))]
    own += [str(library) for library in (Path(sys.base_exec_prefix) / "lib").glob("libpython*")]
    found: list[str] = []
    for path in (*SYSTEM, *own):
        covered = any(path == other or path.startswith(f"{other}/") for other in found)
        if os.path.lexists(path) and not covered:
            found.append(path)
    return tuple(found)


@functools.cache
def list_sandbox_packages() -> list[str]:
    """Where the packages of that interpreter are: NumPy, say, if it is installed there."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    found = [
        *(sysconfig.get_path(name, vars=base) for name in ("purelib", "platlib")),
        "/usr/lib/python3/dist-packages",
    ]
    return [path for path in dict.fromkeys(found) if any(path.startswith(f"{root}/") for root in list_sandbox_paths())]


@functools.cache
def sandbox_has_module(name: str) -> bool:
    """Whether the sandbox can import a top-level module of that name."""
    return name in sys.stdlib_module_names or PathFinder.find_spec(name, list_sandbox_packages()) is not None


@functools.cache
def find_bubblewrap() -> str | None:
    """The program of bubblewrap, from the system or from this environment."""
    return shutil.which("bwrap") or shutil.which("bwrap", path=os.path.join(sys.prefix, "bin"))


def bubblewrap_command(disk_mb: int) -> list[str]:
    """The command that builds the view and starts a program in it. It has no /proc, which shows the whole kernel."""
    unshared = ("pid", "net", "ipc", "uts", "cgroup-try")
    command = [find_bubblewrap() or "bwrap", *(f"--unshare-{kind}" for kind in unshared)]
    command += ["--die-with-parent", "--new-session", "--hostname", "sandbox", "--cap-drop", "ALL"]
    if os.geteuid() == 0:
        # A user namespace would leave root the owner of root's files, so `confine.py` changes the user instead.
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--uid", NOBODY, "--gid", NOBODY]
    for folder in sorted({str(parent) for path in list_sandbox_paths() for parent in Path(path).parents} - {"/"}):
        command += ["--perms", "0755", "--dir", folder]  # otherwise only root could enter the folder of root's home
    for path in list_sandbox_paths():
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        else:
            command += ["--ro-bind", path, path]
    command += ["--dev", "/dev", "--remount-ro", "/dev"]
    command += ["--perms", "1777", "--size", str(disk_mb << 20), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    return [*command, "--remount-ro", "/"]  # the root is in memory too, and has no size limit
