"""Inside the sandbox, a process takes its own rights away before it runs a line of somebody's code. Standard library
alone: nothing else is there."""

from __future__ import annotations

import contextlib
import os
import resource
import struct
from typing import Any

NOBODY = 65534
THIS_PROCESS = 0x7ABCDEF0  # the same as in `seccomp.py`


def confine_sandbox(options: dict[str, Any]) -> None:
    """Sets limits that cannot be raised again. Without bubblewrap, sets up Landlock and the filter too."""
    if options["landlock"]:
        forbid_sandbox_files(options["readable"])
    elif os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    megabyte = 1 << 20
    limits = {
        resource.RLIMIT_AS: options["memory_mb"] * megabyte,
        resource.RLIMIT_CPU: options["cpu_seconds"],
        resource.RLIMIT_FSIZE: options["disk_mb"] * megabyte,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    if options["landlock"]:
        refuse_system_calls(bytes.fromhex(options["filter"]))


def system_call(number: int, *arguments: Any) -> int:
    import ctypes  # takes a while, and bubblewrap does without

    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number} failed")
    return int(result)


def forbid_sandbox_files(readable: list[str]) -> None:
    """Landlock (system calls 444 to 446): files may only be read, and only below the given paths; no TCP; no signal to
    a process outside."""
    import ctypes

    abi = system_call(444, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    everything = (1 << {1: 13, 2: 14}.get(abi, 15 if abi < 5 else 16)) - 1
    attributes = struct.pack("<QQQ", everything, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = system_call(444, attributes, ctypes.c_size_t(size), ctypes.c_uint(0))
    for path in readable:
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            access = 0b1101 if os.path.isdir(path) else 0b101  # execute, read; list
            if path == "/dev/null":
                access = 0b110
            system_call(
                445, ctypes.c_int(ruleset), ctypes.c_int(1), struct.pack("<Qi", access, descriptor), ctypes.c_uint(0)
            )
            os.close(descriptor)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):  # NO_NEW_PRIVS
        raise OSError("the process could not give up new privileges")
    system_call(446, ctypes.c_int(ruleset), ctypes.c_uint(0))
    os.close(ruleset)


def refuse_system_calls(code: bytes) -> None:
    """Gives up all capabilities, and installs the filter of system calls."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, ctypes.c_ulong(9))  # PR_SET_PDEATHSIG: killed when the thread that waits for it ends
    if libc.capset(struct.pack("<Ii", 0x20080522, 0), bytes(24)):
        raise OSError("the process could not give up its capabilities")
    code = code.replace(struct.pack("<I", THIS_PROCESS), struct.pack("<I", os.getpid()))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("<HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    if libc.prctl(22, ctypes.c_ulong(2), ctypes.c_char_p(program), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        raise OSError("the process could not install its filter of system calls")
