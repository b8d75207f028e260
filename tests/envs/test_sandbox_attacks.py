"""Every attack that a script can try, on every way to hold it that this kernel has."""

from __future__ import annotations

import base64
import io
import os
import socket
import struct
import subprocess
import sys
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from tests.envs.sandboxes import GIVEN, SECRET, SETTINGS
from vlm_grpo.envs.sandbox import Sandbox, SandboxResult
from vlm_grpo.envs.sandbox.kernel import ARCHITECTURES, DENIED
from vlm_grpo.envs.sandbox.process import readable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")

ENDLESS = (
    "while True: pass",
    "import time\ntime.sleep(1000)",
    "x = 3 ** (10 ** 9)",  # never returns to Python
    "import signal\nfor n in (1, 2, 13, 14, 15, 24): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
    "import threading\nthreading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()\nwhile True: pass",
    "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "class X(Image.Image):\n def __init__(self): 0\n def __getattr__(self, n):\n  while True: pass\nresult = X()",
)


def test_endless_scripts_are_stopped_at_the_time_limit(sandbox: Sandbox):
    def run(code: str) -> SandboxResult:
        return sandbox.run(f"import os\nprint(os.getuid(), flush=True)\n{code}", GIVEN)

    with ThreadPoolExecutor(len(ENDLESS)) as executor:
        results = list(executor.map(run, ENDLESS))
    for result in results:
        assert result.status == "timeout" and "more than 4 s" in result.stderr
        assert result.seconds < 9
        user = int(result.stdout)
        if user != os.getuid():  # its own
            assert [path for path in Path("/proc").glob("[0-9]*") if owner(path) == user] == []


def owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except OSError:
        return None


def says(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def test_fork_bomb_makes_no_process(sandbox: Sandbox):
    code = """
import ctypes, os, subprocess
try: import multiprocessing
except ImportError: multiprocessing = None
count = 0
def attempt(action):
    global count
    try:
        if action() is not None: count += 1
    except (OSError, ValueError): pass
libc = ctypes.CDLL(None, use_errno=True)
def spawned():
    if multiprocessing is None: return None
    process = multiprocessing.get_context("fork").Process(target=print)
    process.start()
    return process
for _ in range(100):
    attempt(os.fork)
    attempt(lambda: os.posix_spawn("/bin/true", ["true"], {}))
    attempt(lambda: subprocess.Popen(["true"]))
    attempt(spawned)
    attempt(lambda: True if libc.fork() > 0 else None)
print("made", count)
"""

    result = sandbox.run(code)
    assert result.stdout == "made 0\n", result


def test_threads_are_counted(sandbox: Sandbox):
    if sandbox.backend == "process" and os.geteuid() != 0:
        pytest.skip("threads of a plain process without a user id of its own are limited by memory alone")
    code = """
import threading, time
threading.stack_size(65536)
count = 1
try:
    for _ in range(200):
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        count += 1
except RuntimeError: pass
print(count)
"""
    assert 2 <= int(sandbox.run(code).stdout) <= SETTINGS.threads


def peak_while(sandbox: Sandbox, code: str) -> tuple[SandboxResult, int]:
    """The result, and how many bytes of Python's memory this process took for it at most."""
    tracemalloc.start()
    try:
        return sandbox.run(code), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "code",
    [
        "x = bytearray(10 * 2**30)",
        "x = np.ones(10 * 2**27)",
        "x = []\nwhile True: x.append(bytes([1]) * 2**20)",
        "import mmap\nx = mmap.mmap(-1, 10 * 2**30)\nraise MemoryError",
        "x = Image.new('RGB', (60000, 60000), 'red')",
    ],
)
def test_ten_gigabytes_are_refused(sandbox: Sandbox, code: str):
    result, peak = peak_while(sandbox, code)
    assert result.status == "memory" or "Cannot allocate memory" in result.stderr, result
    assert "300 MiB" in result.stderr or "Cannot allocate memory" in result.stderr
    assert peak < 2**20


def test_memory_that_no_limit_of_addresses_counts_is_refused(sandbox: Sandbox):
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
try: print(os.memfd_create("x"))
except OSError as error: print("refused", error.errno)
print(libc.shmget(0, 2**20, 0o1600))
"""
    assert sandbox.run(code).stdout == "refused 1\n-1\n"


def test_files_outside_cannot_be_read(sandbox: Sandbox, outside: Path):
    own = [f"/proc/{os.getpid()}/{name}" for name in ("environ", "maps", "root/etc/passwd")]
    paths = [str(outside / "secret.txt"), "/etc/shadow", "/etc/passwd", str(Path(__file__)), *own, "/proc/1/environ"]
    code = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for path in {paths!r}:
    try: print("READ", path, open(path, "rb").read(200))
    except OSError: pass
    if libc.open(path.encode(), 0) >= 0: print("OPENED", path)
    try: os.symlink(path, "link"); print("READ", open("link", "rb").read(200))
    except OSError: pass
    finally: os.path.lexists("link") and os.remove("link")
for folder in ({str(outside)!r}, {str(Path(__file__).parent)!r}, "/home", "/var"):
    try: print("LISTED", folder, os.listdir(folder))
    except OSError: pass
for number in range(3, 100):
    try: print("INHERITED", os.readlink(f"/proc/self/fd/{{number}}")) if os.fstat(number).st_mode & 0o100000 else None
    except OSError: pass
print("end")
"""
    result = sandbox.run(code, GIVEN)
    assert (result.stdout, result.stderr) == ("end\n", "")


def test_nothing_outside_can_be_written_or_changed(sandbox: Sandbox, outside: Path):
    secret = outside / "secret.txt"
    modes = secret.stat().st_mode, outside.stat().st_mode
    packages = [path for path in readable() if os.path.isdir(path)]
    code = f"""
import os, shutil
def attempt(action, *arguments):
    try: action(*arguments)
    except OSError: return
    print("DID", action, arguments)
for folder in ({str(outside)!r}, "/", "/tmp", "/var/tmp", "/dev/shm", "/etc", "/script-work/..", *{packages!r}):
    attempt(open, folder + "/new_file_of_a_script", "w")
    attempt(os.mkdir, folder + "/new_folder_of_a_script")
for path in ({str(secret)!r}, {str(outside)!r}):
    attempt(os.chmod, path, 0); attempt(os.remove, path); attempt(os.truncate, path, 0)
    attempt(os.rename, path, path + "2"); attempt(os.utime, path, (1, 1)); attempt(open, path, "a")
    attempt(os.link, path, "linked")
print("end")
"""
    result = sandbox.run(code, GIVEN)
    assert (result.stdout, result.stderr) == ("end\n", "")
    assert secret.read_text() == SECRET and [path.name for path in outside.iterdir()] == ["secret.txt"]
    assert (secret.stat().st_mode, outside.stat().st_mode) == modes


def test_no_socket_reaches_anything(sandbox: Sandbox, outside: Path):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(outside / "socket"))
        (outside / "socket").chmod(0o777)
        local.listen()
        port = server.getsockname()[1]
        code = f"""
import ctypes, socket
def attempt(action):
    try: print("DID", action())
    except (OSError, LookupError): pass  # the codec of host names is a file of Python's
attempt(lambda: socket.create_connection(("127.0.0.1", {port}), 1))
try:
    import urllib.request
    attempt(lambda: urllib.request.urlopen("http://127.0.0.1:{port}/", timeout=1))
except ImportError: pass
attempt(lambda: socket.socket(socket.AF_UNIX).connect({str(outside / "socket")!r}))
attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", {port})))
attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
attempt(lambda: socket.create_server(("127.0.0.1", 0)))
libc = ctypes.CDLL(None, use_errno=True)
for family in range(60):
    if libc.socket(family, 1, 0) >= 0 or libc.socket(family, 2, 0) >= 0: print("OPENED", family)
print("end")
"""
        result = sandbox.run(code)
        assert (result.stdout, result.stderr) == ("end\n", "")
        for listening in (server, local):
            listening.settimeout(0.2)
            with pytest.raises(TimeoutError):
                listening.accept()


def test_nobody_else_can_be_killed(sandbox: Sandbox):
    victim = subprocess.Popen(["sleep", "60"], user=65534 if os.geteuid() == 0 else None)
    numbers = [os.getpid(), os.getppid(), victim.pid, -1, 0]
    code = f"""
import ctypes, fcntl, os, resource, signal
def attempt(action, *arguments):
    try: action(*arguments)
    except OSError: return
    print("DID", action, arguments)
libc = ctypes.CDLL(None, use_errno=True)
reading, writing = os.pipe()
for process in (os.getppid(), *{numbers}):
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP):
        attempt(os.kill, process, number)
        attempt(os.killpg, process, number)
    attempt(resource.prlimit, process or 1, resource.RLIMIT_CPU, (0, 0)) if process > 0 else None
    attempt(os.pidfd_open, process) if process > 0 else None
    attempt(fcntl.fcntl, reading, 8, process)  # F_SETOWN: SIGIO to it
    if libc.ptrace(16, process, 0, 0) == 0: print("TRACED", process)
print("end")
"""
    result = sandbox.run(code)
    assert (result.stdout, result.stderr) == ("end\n", "")
    assert victim.poll() is None
    victim.kill()
    victim.wait()
    assert sandbox.run("print('next')").stdout == "next\n"


def test_what_permissions_would_allow_to_the_same_user_is_denied(sandbox: Sandbox):
    """Not as root a script in a plain process is the same user as the trainer: modes of files, limits of processes."""
    code = """
import os, resource
open("own", "w").close()
for action in (lambda: os.chmod("own", 0o600), lambda: os.utime("own"), lambda: os.setxattr("own", "user.a", b"b"),
               lambda: resource.prlimit(os.getpid(), resource.RLIMIT_CPU, (3, 3))):
    try: print("DID", action())
    except PermissionError as error: print(error.errno, end=" ")
"""
    assert sandbox.run(code).stdout == "1 1 1 1 "


LEADING_OUT = (  # calls of the kernel, by what they would lead to
    ("unshare", 0x10000000),  # a user namespace with all capabilities
    ("setns", 0, 0),
    ("mount", b"none", b"/tmp", b"tmpfs", 0, 0),
    ("chroot", b"/"),
    ("pivot_root", b"/", b"/tmp"),
    ("open_tree", -100, b"/", 1),
    ("io_uring_setup", 8, bytes(120)),  # calls that no filter sees
    ("bpf", 0, bytes(64), 64),
    ("perf_event_open", bytes(112), 0, -1, -1, 0),
    ("userfaultfd", 0),
    ("personality", 0x0040000),  # no random addresses
    ("process_vm_readv", 1, 0, 0, 0, 0, 0),
    ("pidfd_getfd", 0, 0, 0),
    ("name_to_handle_at", -100, b"/", bytes(128), bytes(8), 0),
    ("open_by_handle_at", -100, bytes(128), 0),
    ("keyctl", 0, -3, 1),  # the user's key ring
    ("init_module", b"", 0, b""),
    ("sethostname", b"x", 1),
    ("clock_settime", 0, bytes(16)),
    ("fanotify_init", 0, 0),
    ("inotify_init1", 0),
    ("sched_setaffinity", 0, 8, bytes(8)),
    ("kexec_load", 0, 0, 0, 0),
    ("syslog", 3, bytes(64), 64),
)


def test_calls_that_lead_out_are_refused(sandbox: Sandbox):
    column = list(ARCHITECTURES).index(os.uname().machine)
    calls = [(name, DENIED[name][column], *rest) for name, *rest in LEADING_OUT]
    code = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
for name, number, *rest in {calls!r}:
    words = [ctypes.c_long(word) if isinstance(word, int) else ctypes.create_string_buffer(word) for word in rest]
    ctypes.set_errno(0)
    if libc.syscall(ctypes.c_long(number), *words) != -1 or ctypes.get_errno() not in (1, 38):  # EPERM, ENOSYS
        print("DID", name, ctypes.get_errno())
print("end")
"""
    result = sandbox.run(code)
    assert (result.stdout, result.stderr) == ("end\n", "")


@pytest.mark.parametrize(
    "lie",
    [
        "size = (10**6, 10**6)",
        "def __reduce__(self): return (exec, ('import os; os._exit(7)',))",
        "__array_interface__ = {'shape': (9, 9, 3), 'typestr': '|u1', 'data': (8, True)}",
        "def convert(self, *rest): return self\n    def tobytes(self, *rest): return bytes(10**7)",
    ],
    ids=["size", "pickle", "address", "bytes"],
)
def test_a_result_that_only_says_that_it_is_an_image_is_none(sandbox: Sandbox, lie: str):
    code = f"class Liar(Image.Image):\n    def __init__(self): pass\n    {lie}\nresult = Liar()"
    result, peak = peak_while(sandbox, code)
    assert result.image is None and result.status in ("ok", "error", "timeout", "memory")
    assert peak < 4 * 2**20
    assert sandbox.run("print('next')").stdout == "next\n"


def png_bomb(side: int) -> bytes:
    """A PNG of side x side black pixels in some kilobytes."""
    packer = zlib.compressobj(9)
    rows = (packer.compress(bytes(1 + side // 8) * 100) for _ in range(side // 100))
    data = b"".join(rows) + packer.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    body = (
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part)) for kind, part in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.mark.parametrize("remark", ["", "Image.MAX_IMAGE_PIXELS = None"])
def test_bomb_of_an_image_stays_inside(sandbox: Sandbox, remark: str):
    bomb = png_bomb(40_000)  # 1.6 billion pixels
    assert len(bomb) < 400_000 and Image.open(io.BytesIO(png_bomb(800))).getpixel((799, 799)) == 0
    code = f"import base64, io\n{remark}\nresult = Image.open(io.BytesIO(base64.b64decode({base64.b64encode(bomb)!r})))"
    result, peak = peak_while(sandbox, code)
    assert result.status in ("error", "memory") and result.image is None
    assert "DecompressionBomb" in result.stderr or "40000 x 40000" in result.stderr
    assert peak < 4 * 2**20  # the script itself, in base64


def test_answer_that_a_script_forges_is_no_image(sandbox: Sandbox):
    forge = """
import os, struct
while True:
    for number in range(3, 20):
        try: os.write(number, {})
        except OSError: pass
    {}
"""
    for answer in ("b'D' + struct.pack('II', 60000, 60000) + bytes(100)", "b'D' + bytes(8)", "b'D' + b'x'"):
        result = sandbox.run(forge.format(answer, "os._exit(0)"))
        assert (result.status, result.image) == ("error", None) and "image is invalid" in result.stderr
    flood = forge.format("bytes(2**20)", "")
    result, peak = peak_while(sandbox, flood)
    assert result.image is None and result.status in ("output", "error", "timeout")
    assert peak < 4 * 3 * SETTINGS.max_pixels


def test_gigabyte_of_output_is_stopped_and_not_kept(sandbox: Sandbox):
    for stream in ("stdout", "stderr"):
        code = f"import sys\nfor _ in range(1024): sys.{stream}.write('x' * 2**20)"
        result, peak = peak_while(sandbox, code)
        assert result.status == "output" and len(getattr(result, stream)) < SETTINGS.output_bytes + 200
        assert result.stdout.startswith("x" * 1000) or result.stderr.startswith("x" * 1000)
        assert peak < 8 * 2**20
    result = sandbox.run("print('y' * 100_000)")
    assert result.status == "ok" and result.stdout.endswith(f"y\n[cut after {SETTINGS.output_bytes:,} bytes]")


def test_script_is_in_namespaces_of_its_own(sandbox: Sandbox):
    """The filter of system calls would hide that one is missing."""
    if sandbox.backend == "process" or os.geteuid() != 0:
        pytest.skip("a plain process has none, and only root can look at another user's")
    name = f"only-{os.getpid()}"
    code = f"import ctypes, time\nctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0)\ntime.sleep(3)"
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(sandbox.run, code)
        while not (found := [path for path in Path("/proc").glob("[0-9]*") if says(path / "comm") == f"{name}\n"]):
            assert not running.done()
        path = found[0]
        for kind in ("net", "pid", "mnt", "ipc", "uts"):
            assert os.readlink(path / "ns" / kind) != os.readlink(f"/proc/self/ns/{kind}"), kind
        status = says(path / "status")
        assert "CapEff:\t0000000000000000" in status and "Seccomp:\t2" in status
        assert running.result().status == "ok"
