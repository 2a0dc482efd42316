"""Executes one program that nobody has read, in a process of its own that it has confined before: run as a script.

    python -P -s confined.py VERDICT_FD LIMITS

Standard input has a secret in its first line and the program after it. What comes out of VERDICT_FD is the secret
where the program ran to its end, else the name of what it raised. Linux on x86-64 or ARM alone: the kernel refuses each
system call that is not in `ALLOWED`, so that the program opens no socket, starts no process, signals none and writes to
no file.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys

# What a Python program needs that computes and imports: numbers on x86-64 and on ARM (None: it has no such call).
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "poll": (7, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "access": (21, None),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "dup": (32, 23),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "exit": (60, 93),
    "uname": (63, 160),
    "getcwd": (79, 17),
    "readlink": (89, None),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "getdents64": (217, 61),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "newfstatat": (262, 79),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "ppoll": (271, 73),
    "getrandom": (318, 278),
    "statx": (332, 291),
    "faccessat2": (439, 439),
}
# Allowed to read alone: the number, and which argument has the flags.
OPENS: dict[str, tuple[tuple[int | None, int | None], int]] = {"open": ((2, None), 1), "openat": ((257, 56), 2)}
WRITES = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC if sys.platform == "linux" else 0
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the tables, the kernel's name for it

# Classic BPF as the kernel takes it (linux/bpf_common.h, linux/seccomp.h).
LOAD, EQUAL, AND, RETURN = 0x20, 0x15, 0x54, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; an argument has 8 bytes, low half first
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # REFUSE: the call fails with EPERM
SET_PARENT_DEATH_SIGNAL, SET_SECCOMP, SET_NO_NEW_PRIVILEGES, FILTER, SIGKILL = 1, 22, 38, 2, 9


def filter_program(machine: str) -> bytes:
    """The filter of system calls, an instruction 8 bytes: code, steps when true, steps when false, operand."""
    column, architecture = MACHINES[machine]
    steps = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER)]
    for numbers in ALLOWED.values():
        if (number := numbers[column]) is not None:
            steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    for numbers, argument in OPENS.values():
        if (number := numbers[column]) is not None:
            steps += [
                (EQUAL, 0, 5, number),
                (LOAD, 0, 0, ARGUMENTS + 8 * argument),
                (AND, 0, 0, WRITES),
                (EQUAL, 0, 1, 0),
                (RETURN, 0, 0, ALLOW),
                (RETURN, 0, 0, REFUSE),
            ]
    steps.append((RETURN, 0, 0, REFUSE))
    return b"".join(struct.pack("HBBI", *step) for step in steps)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def confine(limits: dict[str, int]) -> None:
    """Give up what the program must not do, for good. Raises OSError where the kernel cannot see to it."""
    libc = ctypes.CDLL(None, use_errno=True)
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, name), (most, most))
    steps = filter_program(platform.machine())
    program = _Program(len(steps) // 8, steps)
    for call in (
        (SET_PARENT_DEATH_SIGNAL, SIGKILL, 0, 0, 0),
        (SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0),
        (SET_SECCOMP, FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*call) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"prctl({call[0]}): {os.strerror(number)}")


def main() -> None:
    given, limits = int(sys.argv[1]), json.loads(sys.argv[2])
    verdict = os.dup(given)  # a low number, within the limit of open files, whatever the parent had open
    os.close(given)
    secret, _, program = sys.stdin.buffer.read().partition(b"\n")
    confine(limits)
    try:
        exec(compile(program, "program", "exec"), {"__name__": "program"})
        os.write(verdict, secret)
    except BaseException as error:  # also SystemExit: a program that leaves early has not passed
        os.write(verdict, type(error).__name__.encode()[:100])
    os._exit(0)


if __name__ == "__main__":
    main()
