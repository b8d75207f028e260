"""What scripts can do, what comes back, and the processes behind them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.envs.sandboxes import GIVEN, SETTINGS, new_sandbox
from vlm_grpo.envs import sandbox as module
from vlm_grpo.envs.sandbox import Sandbox, SandboxError, SandboxSettings, decode_image, decode_output, shared_sandbox
from vlm_grpo.envs.sandbox.process import BACKENDS
from vlm_grpo.envs.sandbox.script_run import ScriptLimits, ScriptOutcome

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")


def test_script_sees_the_image_and_gives_one_back(sandbox: Sandbox):
    code = """
print(image.size, Image.open('input.png').getpixel((0, 0)), np.ones(2).sum())
result = image.rotate(90, expand=True)
"""
    result = sandbox.run(code, GIVEN)
    assert (result.status, result.stdout, result.stderr) == ("ok", "(20, 10) (200, 30, 30) 2.0\n", "")
    assert result.image.size == (10, 20) and result.image.getpixel((3, 3)) == (200, 30, 30)


def test_script_may_import_use_files_and_threads(sandbox: Sandbox):
    code = """
import io, json, threading, tempfile
from PIL import ImageEnhance, ImageFilter, ImageOps
with tempfile.TemporaryFile() as file:
    file.write(b"12")
image.save("out.jpg")
thread = threading.Thread(target=print, args=("from a thread",))
thread.start()
thread.join()
result = ImageOps.autocontrast(ImageEnhance.Brightness(Image.open("out.jpg")).enhance(2).filter(ImageFilter.SHARPEN))
"""
    result = sandbox.run(code, GIVEN)
    assert (result.status, result.stdout, result.stderr) == ("ok", "from a thread\n", "")
    assert result.image.size == (20, 10)


def test_result_may_be_an_array_and_transparency_is_over_white(sandbox: Sandbox):
    result = sandbox.run("result = np.array([[0.0, 300.0]])")
    assert [result.image.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]
    result = sandbox.run("result = Image.new('RGBA', (1, 1), (0, 0, 0, 0))")
    assert result.image.getpixel((0, 0)) == (255, 255, 255)


def test_error_names_the_line_and_nothing_of_the_sandbox(sandbox: Sandbox):
    result = sandbox.run("print('before')\nvalue = 1 / 0\n", GIVEN)
    assert (result.status, result.stdout, result.image) == ("error", "before\n", None)
    assert 'File "script.py", line 2' in result.stderr and result.stderr.endswith("ZeroDivisionError: division by zero")
    assert "value = 1 / 0" in result.stderr and "sandbox" not in result.stderr
    assert "SyntaxError" in sandbox.run("if").stderr
    assert "result: TypeError: must be a PIL image, got str" in sandbox.run("result = 'picture'").stderr
    assert sandbox.run("raise RecursionError(chr(0xd800))").status == "error"


def test_exit_of_a_script_is_its_end_and_no_more(sandbox: Sandbox):
    result = sandbox.run("result = image\nimport sys\nsys.exit()", GIVEN)
    assert result.status == "ok" and result.image.size == (20, 10)
    result = sandbox.run("print('before')\nimport os\nos._exit(0)", GIVEN)
    assert (result.status, result.stdout) == ("error", "before\n")
    assert result.stderr == "the script exited its own process"
    assert sandbox.run("import ctypes\nctypes.string_at(0)").stderr.endswith("killed by SIGSEGV")


def test_memory_limit_lets_normal_scripts_run(sandbox: Sandbox):
    result = sandbox.run("x = np.ones(150 * 2**17)\nprint(x.nbytes // 2**20)")
    assert (result.status, result.stdout) == ("ok", "150\n")


def test_files_are_limited(sandbox: Sandbox):
    result = sandbox.run("open('large', 'wb').write(bytes(20 * 2**20))")
    assert result.status == "error" and "OSError" in result.stderr
    assert sandbox.run("open('large', 'wb').write(bytes(10 * 2**20))").status == "ok"
    if sandbox.backend != "process":
        result = sandbox.run("for n in range(9): open(str(n), 'wb').write(bytes(4 * 2**20))")
        assert "No space left" in result.stderr


def test_no_file_of_a_script_is_left(sandbox: Sandbox):
    deep = "for _ in range(1100):\n    os.mkdir('d'); os.chdir('d')\nopen('f', 'w').write('x')"
    result = sandbox.run(f"import os\nprint(os.getcwd())\n{deep}")
    assert result.status == "ok"
    place = Path(result.stdout.strip())
    until = time.monotonic() + 10
    while place.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not place.exists()


def test_script_can_abort_itself(sandbox: Sandbox):
    result = sandbox.run("import os\nos.abort()")
    assert result.status == "error" and "killed by SIG" in result.stderr


def test_modules_of_the_parent_and_of_the_next_script_stay(sandbox: Sandbox):
    code = """
import builtins, sys, os, struct
import PIL.Image
PIL.Image.Image.rotate = lambda *a, **k: "patched"
PIL.Image.Image.tobytes = lambda *a: b"patched"
builtins.print = lambda *a: None
builtins.open = None
struct.pack = os.write = os._exit = None
sys.modules.clear()
"""
    sandbox.run(code, GIVEN)
    assert GIVEN.rotate(90).size == (20, 10)
    result = sandbox.run("print(open, image.rotate(180).size)\nresult = image", GIVEN)
    assert result.stdout == "<built-in function open> (20, 10)\n" and result.image.tobytes() == GIVEN.tobytes()


def test_environment_is_empty(sandbox: Sandbox):
    code = """
import ctypes, os
print(dict(os.environ))
try: print(open("/proc/self/environ").read())
except OSError: pass
"""
    assert sandbox.run(code).stdout == "{}\n"


def test_privileges_are_gone(sandbox: Sandbox):
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for call in (lambda: libc.unshare(0x10000000), lambda: libc.unshare(0x00020000), lambda: libc.chroot(b"."),
             lambda: libc.mount(b"none", b".", b"tmpfs", 0, None), lambda: libc.setuid(0) if os.getuid() else -1,
             lambda: libc.umount2(b"/", 2), lambda: libc.syscall(425, 1, 0)):
    print(call(), end=" ")
"""
    assert sandbox.run(code).stdout == "-1 " * 7


def test_image_of_checks_every_number():
    assert decode_image(struct.pack("II", 1, 2) + bytes(6), 2).size == (1, 2)
    assert decode_image(struct.pack("II", 1, 2) + bytes(6), 1) is None
    assert decode_image(struct.pack("II", 1, 2) + bytes(5), 2) is None
    assert decode_image(struct.pack("II", 2**31, 2**31) + bytes(6), 2**24) is None
    assert decode_image(bytes(8), 2) is None and decode_image(b"", 2) is None


def test_slow_script_does_not_hold_others(sandbox: Sandbox):
    nap, count = (10, 2) if sandbox.backend == "bubblewrap_each" else (4, 8)  # which starts a Python for each
    own = new_sandbox(sandbox.backend, replace(SETTINGS, time_limit=60.0, workers=count + 1))
    with ThreadPoolExecutor(9) as executor:
        slow = executor.submit(own.run, f"import time\ntime.sleep({nap})")
        quick = list(executor.map(lambda _: own.run("result = image", GIVEN), range(count)))
        assert not slow.done()
        assert [result.status for result in (*quick, slow.result())] == ["ok"] * (count + 1)
    own.close()


def test_time_waiting_for_a_place_does_not_count():
    settings = SandboxSettings(time_limit=1.5, workers=1)
    sandbox = new_sandbox("process", settings)
    with ThreadPoolExecutor(4) as executor:
        results = list(executor.map(sandbox.run, ["import time\ntime.sleep(0.8)"] * 4))
    sandbox.close()
    assert [result.status for result in results] == ["ok"] * 4


def test_fork_of_this_process_does_not_keep_a_script_alive(sandbox: Sandbox):
    """A child of a trainer has copies of every pipe; a script is stopped all the same."""
    children = []

    def fork() -> None:
        time.sleep(0.5)
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        children.append(child)

    thread = threading.Thread(target=fork)
    thread.start()
    began = time.monotonic()
    assert sandbox.run("while True: pass").status == "timeout"
    assert time.monotonic() - began < 9
    thread.join()
    os.kill(children[0], signal.SIGKILL)
    os.waitpid(children[0], 0)


def test_fork_of_this_process_cannot_close_a_sandbox():
    sandbox = new_sandbox("process")
    child = os.fork()
    if child == 0:
        sandbox.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert sandbox._pool.starter.process.poll() is None
    assert sandbox.run("print(1)").stdout == "1\n"
    sandbox.close()


def test_starter_that_was_killed_is_replaced():
    sandbox = new_sandbox("process")
    sandbox._pool.starter.process.kill()
    sandbox._pool.starter.process.wait()
    results = [sandbox.run("print(1)") for _ in range(2 * sandbox.workers)]
    sandbox.close()
    assert [result.stdout for result in results] == ["1\n"] * len(results)


def test_everything_ends_with_the_parent(sandbox: Sandbox, outside: Path):
    mark = f"mark-of-{os.getpid()}-{sandbox.backend}"
    code = f"""
import dataclasses, sys
from vlm_grpo.envs import sandbox
from vlm_grpo.envs.sandbox import process
process.BOOT += "\\n# {mark}"
made = sandbox.Sandbox(sandbox.SandboxSettings(time_limit=300, workers=2), {sandbox.backend!r})
print("ready", flush=True)
made.run("while True: pass")
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "ready\n"
    time.sleep(0.5)
    assert len(marked(mark)) >= 3
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 15
    while marked(mark) and time.monotonic() < until:
        time.sleep(0.1)
    assert marked(mark) == []


def marked(mark: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (path / "cmdline").read_text() and "vlm_grpo.envs import" not in (path / "cmdline").read_text():
                found.append(int(path.name))
        except (OSError, UnicodeDecodeError):
            continue
    return found


def open_pipes() -> set[str]:
    """Pipes and sockets of this process, by what they are rather than by their numbers, which are given anew."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listed them
            found.add(os.readlink(f"/proc/self/fd/{number}"))
    return {link for link in found if link.startswith(("pipe:", "socket:"))}


def test_close_ends_every_process_and_file():
    before = open_pipes()
    sandbox = new_sandbox("process")
    own = open_pipes() - before
    process = sandbox._pool.starter.process
    assert len(own) > sandbox.workers
    sandbox.close()
    assert process.poll() is not None
    assert not own & open_pipes()


def test_auto_takes_the_first_that_works_and_process_warns_once(monkeypatch, caplog):
    module._warn_of_process.cache_clear()
    assert Sandbox(SETTINGS).backend in BACKENDS
    monkeypatch.setattr(module, "BACKENDS", {"none": "namespaces", "process": "folder"})

    class PoolWithout(module.WorkerPool):
        def run_script(self, payload: bytes, caps: ScriptLimits) -> ScriptOutcome:
            if self.backend == "none":
                raise RuntimeError("no such thing here")
            return super().run_script(payload, caps)

    monkeypatch.setattr(module, "WorkerPool", PoolWithout)
    for _ in range(2):
        assert Sandbox(SETTINGS).backend == "process"
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "no such thing here" in said[0] and "can fill the disk" in said[0]


def test_sandbox_refuses_where_nothing_can_hold_a_script(monkeypatch):
    with pytest.raises(ValueError, match=r"backend must be 'auto' or one of bubblewrap, .*, got 'docker'"):
        Sandbox(SETTINGS, "docker")
    with pytest.raises(ValueError, match="sandbox: memory_mb must be more than 0, got 0"):
        SandboxSettings(memory_mb=0)
    monkeypatch.setattr(module.sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="needs Linux"):
        Sandbox(SETTINGS)


def test_sandbox_whose_worker_cannot_start_says_why(monkeypatch):
    monkeypatch.setattr("vlm_grpo.envs.sandbox.process.BOOT", "raise SystemExit('no numpy in this Python')")
    with pytest.raises(SandboxError, match=r"process: .*no numpy in this Python"):
        Sandbox(SETTINGS, "process")


def test_script_that_is_too_long_is_refused():
    sandbox = new_sandbox("process")
    with pytest.raises(ValueError, match=re.escape("at most 1,048,576 characters, got 1,048,577")):
        sandbox.run("#" * (2**20 + 1))
    sandbox.close()


def test_shared_sandbox_is_one_for_equal_settings():
    settings = SandboxSettings(workers=1, time_limit=3.25)
    first = shared_sandbox(settings)
    assert shared_sandbox(SandboxSettings(workers=1, time_limit=3.25)) is first
    first.close()


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (b"\x1b[31mred\x1b[0m \x1b[1;38;5;9mbold", "red bold"),
        (b"a\x1b]0;title\x07b\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "ablink"),
        (b"a\x1b[2J\x1b[Hb\x1bcc\x1b(Bd", "abcd"),
        (b"\x1bPq#0;2;0\x1b\\x\x1b_hidden\x1b\\y\x1b]0;no end", "xy"),
        ("\x9b31ma\x9d0;t\x9cb\x85c".encode(), "abc"),
        (b"a\x00b\x07c\x08d\x7fe\tf\ng\r\nh\ri", "abcde\tf\ng\nh\ni"),
        ("left\u202eright\u2066 \u00e9 \u4e2d \U0001f600".encode(), "leftright \u00e9 \u4e2d \U0001f600"),
        (b"\xff\xfe ok", "\ufffd\ufffd ok"),
    ],
)
def test_what_steers_a_terminal_is_left_out(printed: bytes, expected: str):
    assert decode_output(printed, 1000) == expected


def test_escapes_that_a_script_prints_do_not_come_back(sandbox: Sandbox):
    code = "import sys\nprint('\\x1b[31mred\\x1b[0m')\nprint('\\x1b]0;t\\x07e', file=sys.stderr)\n"
    code += "raise ValueError('\\x1b[2J')"
    result = sandbox.run(code)
    assert result.stdout == "red\n" and "\x1b" not in result.stderr and "e\n" in result.stderr
