"""Linux system calls of the sandbox: namespaces, mounts, capabilities, Landlock, seccomp.

Runs inside the sandbox, before any script does; needs the standard library only. x86_64 and aarch64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable

libc = ctypes.CDLL(None, use_errno=True)

# sched.h
NEW_NAMESPACES = 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000  # mounts, processes, network, ...
NEW_USERS = 0x10000000
CLONE_THREAD = 0x00010000
# mount.h
NO_SUID, NO_DEVICES, REMOUNT, BIND, RECURSIVE, PRIVATE, DETACH = 2, 4, 32, 4096, 16384, 1 << 18, 2
READ_ONLY = 1
MOUNT_SETATTR, PIVOT_ROOT, CAPSET = 442, {"x86_64": 155, "aarch64": 41}, {"x86_64": 126, "aarch64": 91}
AT_RECURSIVE, EMPTY_PATH = 0x8000, 0x1000
# prctl.h
SET_DEATH_SIGNAL, SET_SECCOMP, DROP_BOUND, NO_NEW_PRIVILEGES = 1, 22, 24, 38
# landlock.h
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
EXECUTE, READ_FILE, READ_FOLDER, WRITE_FILE, TRUNCATE = 1, 4, 8, 2, 1 << 14
ACCESSES = {1: 13, 2: 14, 3: 15, 4: 15}  # version: number of access rights; 16 from version 5 on

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # audit.h
NEWEST = 451  # newer calls return "not implemented", so that libraries fall back to older ones
# Calls that no script needs, as (x86_64, aarch64): sockets; other processes; namespaces and mounts; memory that
# RLIMIT_AS does not count; ways around a filter; owners and modes, which Landlock does not restrict; administration.
DENIED = {
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "kcmp": (312, 272), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "sched_setattr": (314, 274),
    "sched_setparam": (142, 118), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "personality": (135, 92),
    "modify_ldt": (154, None), "iopl": (172, None), "ioperm": (173, None),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None), "fchown": (93, 55),
    "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "syslog": (103, 116), "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266), "fanotify_init": (300, 262),
    "inotify_init": (253, None), "inotify_init1": (294, 26),
}  # fmt: skip
CLONE, CLONE3, TGKILL, PRLIMIT, FCNTL = (56, 220), (435, 435), (234, 131), (302, 261), (72, 25)
SET_OWNER, SET_SIGNAL, SET_OWNER_EX = 8, 10, 15  # of fcntl: a file's events as signals to any process of the user
# filter.h: load a word, jump if equal / at least / any bit set, return
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000


def machine() -> str:
    """Return the architecture of this process, a key of the tables.

    Raises:
        OSError: the architecture is not supported.
    """
    name = platform.machine() if struct.calcsize("P") == 8 else "32-bit"
    if name not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"the sandbox supports {', '.join(ARCHITECTURES)}, not {name}")
    return name


def _checked(what: str, value: int) -> int:
    if value < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return value


def _call(what: str, *arguments: int | bytes | ctypes.Array | None) -> int:
    wide = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    return _checked(what, libc.syscall(*wide))


def _prctl(what: str, *arguments: int) -> None:
    _checked(what, libc.prctl(*(ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:5])))


def unshare(flags: int) -> None:
    """Move this process, and for process ids its next child, into new namespaces."""
    _checked("unshare", libc.unshare(flags))


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """Call mount(2)."""
    names = [name.encode() if name is not None else None for name in (source, target, kind)]
    _checked(f"mount {target}", libc.mount(*names, ctypes.c_ulong(flags), data.encode()))


def seal(path: str, *, recursive: bool = True) -> None:
    """Make a mount, and by default all below it, read-only, without devices and set-user-id programs."""
    attributes = struct.pack("QQQQ", READ_ONLY | NO_SUID | NO_DEVICES, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    _call(f"mount_setattr {path}", MOUNT_SETATTR, -100, path.encode(), flags, attributes, len(attributes))


def pivot(new: str, old: str) -> None:
    """Make `new` the root; the old root is then at `old`."""
    _call("pivot_root", PIVOT_ROOT[machine()], new.encode(), old.encode())


def detach(path: str) -> None:
    """Detach a mount."""
    _checked(f"umount {path}", libc.umount2(path.encode(), DETACH))


def map_own_user(uid: int, gid: int) -> None:
    """Map only this user, to itself, in a new user namespace."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def drop_capabilities() -> None:
    """Drop all capabilities permanently."""
    for capability in range(64):
        libc.prctl(
            DROP_BOUND, ctypes.c_ulong(capability), 0, 0, 0
        )  # fails for unknown capabilities, and without CAP_SETPCAP
    _call("capset", CAPSET[machine()], struct.pack("Ii", 0x20080522, 0), bytes(24))
    _prctl("no_new_privs", NO_NEW_PRIVILEGES, 1)


def die_with_parent() -> None:
    """Kill this process when its parent exits. Changing the user id resets this."""
    _prctl("death signal", SET_DEATH_SIGNAL, 9)


def landlock_version() -> int:
    """Return the version of the kernel's Landlock; 0 without it."""
    return max(0, libc.syscall(ctypes.c_long(LANDLOCK_CREATE), None, ctypes.c_long(0), ctypes.c_long(1)))


def allow_only(readable: Iterable[str], writable: Iterable[str]) -> None:
    """Restrict this process to these files and folders from now on (Landlock)."""
    version = landlock_version()
    every = (1 << ACCESSES.get(version, 16)) - 1
    rules = _call("landlock", LANDLOCK_CREATE, struct.pack("Q", every), 8, 0)
    groups = ((readable, EXECUTE | READ_FILE | READ_FOLDER), (writable, every & ~EXECUTE))
    for paths, access in groups:
        for path in paths:
            if not os.path.isdir(path):
                access &= READ_FILE | WRITE_FILE | (TRUNCATE if version > 2 else 0)
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            _call(f"landlock {path}", LANDLOCK_ADD, rules, 1, struct.pack("=Qi", access, place), 0)
            os.close(place)
    _call("landlock", LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


def filter_calls() -> None:
    """Deny calls that no script needs: sockets, processes, programs, signals, mounts, uncounted memory (seccomp).

    Denied calls fail with EPERM; threads are allowed. Needs no_new_privs, which `drop_capabilities` sets.
    """
    code = b"".join(struct.pack("HBBI", *step) for step in _filter(machine(), os.getpid()))
    steps = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(steps)), 16)
    _prctl("seccomp", SET_SECCOMP, 2, ctypes.addressof(program))


Step = tuple[int, int, int, int]


def _filter(name: str, process: int) -> list[Step]:
    column = list(ARCHITECTURES).index(name)
    steps = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, ARCHITECTURES[name]), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    steps += [(AT_LEAST, 0, 1, NEWEST + 1), (RETURN, 0, 0, REFUSE | errno.ENOSYS)]
    steps += [(EQUAL, 0, 1, CLONE3[column]), (RETURN, 0, 0, REFUSE | errno.ENOSYS)]  # libraries fall back to clone
    steps += _only(CLONE[column], 0, [(ANY_BIT, 0, 1, CLONE_THREAD)])
    steps += _only(TGKILL[column], 0, [(EQUAL, 0, 1, process)])  # abort
    steps += _only(PRLIMIT[column], 0, [(EQUAL, 0, 1, 0)])  # of the process itself
    owners = [(EQUAL, 0, 1, command) for command in (SET_OWNER, SET_SIGNAL, SET_OWNER_EX)]
    steps += _only(FCNTL[column], 1, owners, is_allowed=False)
    for numbers in DENIED.values():
        number = numbers[column]
        if number is not None:
            steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE | errno.EPERM)]
    return [*steps, (RETURN, 0, 0, ALLOW)]


def _only(number: int, argument: int, tests: list[Step], *, is_allowed: bool = True) -> list[Step]:
    """Return steps that allow a call if a test of its argument holds, or if none does with `is_allowed=False`."""
    on_match, else_ = (ALLOW, REFUSE | errno.EPERM) if is_allowed else (REFUSE | errno.EPERM, ALLOW)
    body: list[Step] = [(LOAD, 0, 0, 16 + 8 * argument)]
    for test in tests:
        body += [test, (RETURN, 0, 0, on_match)]
    body.append((RETURN, 0, 0, else_))
    return [(EQUAL, 0, len(body), number), *body]
