"""The system calls that sandboxed code may not make, as a program for the kernel's filter (seccomp, classic BPF).

A refused call gives an error, which Python turns into an exception, so honest code goes on. No new processes: that
ends fork bombs and daemons for any user (RLIMIT_NPROC does nothing for root), and makes the limits of one process those
of the whole run. No sockets: some families (vsock, for one) belong to no network namespace."""

from __future__ import annotations

import errno
import platform
import struct

THIS_PROCESS = 0x7ABCDEF0  # stands for the number of the filtered process, which is not known before it runs
EVEN_WITH_NAMESPACES = """
fork=57,- vfork=58,- socket=41,198 ptrace=101,117 process_vm_readv=310,270 process_vm_writev=311,271
process_madvise=440,440 kcmp=312,272 pidfd_open=434,434 pidfd_getfd=438,438 pidfd_send_signal=424,424
unshare=272,97 setns=308,268 mount=165,40 umount2=166,39 move_mount=429,429 fsopen=430,430 fsconfig=431,431
fsmount=432,432 fspick=433,433 open_tree=428,428 mount_setattr=442,442 pivot_root=155,41 chroot=161,51
bpf=321,280 perf_event_open=298,241 userfaultfd=323,282 io_uring_setup=425,425 io_uring_enter=426,426
io_uring_register=427,427 add_key=248,217 request_key=249,218 keyctl=250,219 memfd_create=319,279
memfd_secret=447,447 shmget=29,194 shmat=30,196 shmctl=31,195 semget=64,190 semop=65,193 semctl=66,191
msgget=68,186 msgsnd=69,189 msgrcv=70,188 msgctl=71,187 mq_open=240,180 mq_unlink=241,181 init_module=175,105
finit_module=313,273 delete_module=176,106 kexec_load=246,104 kexec_file_load=320,294 reboot=169,142
swapon=167,224 swapoff=168,225 acct=163,89 quotactl=179,60 syslog=103,116 sethostname=170,161
setdomainname=171,162 settimeofday=164,170 clock_settime=227,112 adjtimex=159,171 clock_adjtime=305,266
iopl=172,- ioperm=173,- vhangup=153,58 personality=135,92 name_to_handle_at=303,264 open_by_handle_at=304,265
fanotify_init=300,262 lookup_dcookie=212,18 migrate_pages=256,238 move_pages=279,239 sched_setaffinity=203,122
sched_setscheduler=144,119 sched_setparam=142,118 sched_setattr=314,274 setpriority=141,140 ioprio_set=251,30
"""
# what a process could do to the host's files and processes where it sees those of the host
WITHOUT_NAMESPACES = """
chmod=90,- fchmod=91,52 fchmodat=268,53 fchmodat2=452,452 chown=92,- fchown=93,55 lchown=94,- fchownat=260,54
utime=132,- utimes=235,- utimensat=280,88 futimesat=261,- setxattr=188,5 lsetxattr=189,6 fsetxattr=190,7
removexattr=197,14 lremovexattr=198,15 fremovexattr=199,16 setxattrat=463,463 removexattrat=466,466
file_setattr=469,469 truncate=76,45 inotify_add_watch=254,27 tkill=200,130 rt_sigqueueinfo=129,138
rt_tgsigqueueinfo=297,240
"""
CLONE, CLONE3, PRLIMIT, KILL, TGKILL, FCNTL, IOCTL = (
    (56, 220),
    (435, 435),
    (302, 261),
    (62, 129),
    (234, 131),
    (72, 25),
    (16, 29),
)
CLONE_THREAD = 0x10000
OWNERS = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX make the kernel send a signal to anyone
TERMINAL = (0x5412, 0x541C, 0x8901, 0x8902)  # TIOCSTI, TIOCLINUX type into a terminal; FIOSETOWN, SIOCSPGRP as above

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1), "arm64": (0xC00000B7, 1)}  # AUDIT_ARCH, column
LOAD, EQUAL, AT_LEAST, HAS_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF_LD|W|ABS, BPF_JMP|..., BPF_RET
ALLOW, ERROR, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data


def is_seccomp_supported() -> bool:
    return platform.machine() in ARCHITECTURES


def seccomp_filter(*, namespaces: bool) -> bytes:
    """An array of struct sock_filter. namespaces: the process has its own view of files and processes. Without them
    more is refused, and the process replaces THIS_PROCESS by its own number."""
    architecture, column = ARCHITECTURES[platform.machine()]
    program = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL_PROCESS)]
    program.append((LOAD, 0, 0, NUMBER))
    if column == 0:
        program += [
            (AT_LEAST, 0, 1, 0x40000000),
            refuse_system_call(errno.EPERM),
        ]  # x32 has other numbers for the same calls
    for number in read_system_call_numbers(EVEN_WITH_NAMESPACES + ("" if namespaces else WITHOUT_NAMESPACES), column):
        program += [(EQUAL, 0, 1, number), refuse_system_call(errno.EPERM)]
    program += [
        (EQUAL, 0, 1, CLONE3[column]),
        refuse_system_call(errno.ENOSYS),
    ]  # its flags cannot be read; libc then uses clone
    program += filter_call_argument(CLONE[column], 0, [(HAS_BIT, 1, 0, CLONE_THREAD), refuse_system_call(errno.EPERM)])
    program += filter_call_argument(
        PRLIMIT[column], 0, [(EQUAL, 1, 0, 0), refuse_system_call(errno.EPERM)]
    )  # of itself alone
    program += filter_call_argument(IOCTL[column], 1, unless_any_of(TERMINAL))
    if not namespaces:
        for number in (KILL[column], TGKILL[column]):
            program += filter_call_argument(number, 0, [(EQUAL, 1, 0, THIS_PROCESS), refuse_system_call(errno.EPERM)])
        program += filter_call_argument(FCNTL[column], 1, unless_any_of(OWNERS))
    program.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def read_system_call_numbers(table: str, column: int) -> list[int]:
    """The numbers of the system calls in a table, for one architecture."""
    entries = [entry.partition("=")[2].split(",")[column] for entry in table.split()]
    return [int(entry) for entry in entries if entry != "-"]


def refuse_system_call(error: int) -> tuple[int, int, int, int]:
    return RETURN, 0, 0, ERROR | error


def unless_any_of(values: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    return [line for value in values for line in ((EQUAL, 0, 1, value), refuse_system_call(errno.EPERM))]


def filter_call_argument(
    number: int, argument: int, body: list[tuple[int, int, int, int]]
) -> list[tuple[int, int, int, int]]:
    """For one system call: loads the low half of an argument, runs `body`, and allows what that has not refused."""
    lines = [(LOAD, 0, 0, ARGUMENTS + 8 * argument), *body, (RETURN, 0, 0, ALLOW)]
    return [(EQUAL, 0, len(lines), number), *lines]
