"""The sandbox is attacked behind every wall that this machine can raise: each attack fails and leaves no trace."""

from __future__ import annotations

import ctypes
import gzip
import json
import math
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from gentletune.core.errors import UserError
from gentletune.sandbox import host as sandbox
from gentletune.sandbox.child import pack, unpack
from gentletune.sandbox.host import Isolation, Limits, Outcome, Program, run_many, run_program

pytestmark = pytest.mark.attack

SOURCE = Path(sandbox.__file__).resolve().parents[2]
SMALL = Limits(wall=8, cpu=1, memory_bytes=256 << 20, processes=8, file_bytes=1 << 20, output_bytes=4096)
GOOD = "def f(x):\n    return x + 1\n"
TESTS = "assert f(1) == 2\nassert f(5) == 6\nassert f(9) == 10\n"
MISSING: dict[str, str] = {}  # why a level is not available, found once


def missing(level: str) -> str:
    if level not in MISSING:
        try:
            outcome = sandbox._launch(Program(GOOD, TESTS, "f"), level, Limits())
            MISSING[level] = "" if outcome.passed else outcome.reason
        except RuntimeError as error:
            MISSING[level] = str(error)
    return MISSING[level]


@pytest.fixture(params=list(sandbox._LEVELS))
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each level in turn, as if it were the best; skipped where the machine cannot raise it."""
    name: str = request.param
    if missing(name):  # kernels and containers differ in what they allow; the message says what is lacking
        pytest.skip(f"no {name} on this machine: {missing(name)}")
    monkeypatch.setattr(sandbox, "probe_isolation", lambda: Isolation(name, ""))
    return name


@pytest.fixture
def safe() -> None:
    """Generated code runs only where there is a wall."""
    if not sandbox.probe_isolation().safe:  # an attack without a wall would reach the user's machine
        pytest.skip(str(sandbox.probe_isolation()))


def check(solution: str, tests: str = TESTS, limits: Limits | None = None) -> Outcome:
    return run_program(Program(textwrap.dedent(solution), textwrap.dedent(tests), "f"), limits=limits)


# --- attacks: none of them computes x + 1 --------------------------------------------------------------------------

# ENTRY is the function's name, unique to the run; the other capitals are paths and numbers on the real machine.
ATTACKS = {
    # Using the machine up.
    "fork bomb": "import os\ndef ENTRY(x):\n    while True:\n        os.fork()",
    "patient fork bomb": """
        import os
        def ENTRY(x):
            while True:
                try:
                    os.fork()
                except OSError:
                    pass
    """,
    "fork bomb on definition": "import os\nwhile True:\n    os.fork()",
    "thread bomb": """
        import threading, time
        def ENTRY(x):
            while True:
                threading.Thread(target=time.sleep, args=(1000,)).start()
    """,
    "10 GiB": "def ENTRY(x):\n    return len(bytearray(10 << 30))",
    "10 GiB bit by bit": """
        def ENTRY(x):
            kept = []
            while True:
                kept.append(bytes(1 << 20))
    """,
    "infinite loop": "def ENTRY(x):\n    while True:\n        pass",
    "infinite loop on definition": "while True:\n    pass",
    "sleep": "import time\ndef ENTRY(x):\n    time.sleep(1000)",
    "exhausting output": "def ENTRY(x):\n    while True:\n        print('x' * 4096)",
    "exhausting error output": "import sys\ndef ENTRY(x):\n    while True:\n        sys.stderr.write('x' * 999)",
    "filling the disk": """
        def ENTRY(x):
            with open('big', 'wb') as file:
                while True:
                    file.write(bytes(1 << 16))
    """,
    "filling the disk with many files": """
        def ENTRY(x):
            for n in range(10 ** 6):
                with open(str(n), 'wb') as file:
                    file.write(bytes(1 << 12))
    """,
    "hung thread": """
        import threading, time
        def hang():
            while True:
                time.sleep(1)
        def ENTRY(x):
            threading.Thread(target=hang).start()
            return x + 1  # right, but the program never ends
    """,
    "joined thread": """
        import threading
        def ENTRY(x):
            thread = threading.Thread(target=lambda: threading.Event().wait())
            thread.start()
            thread.join()
    """,
    "signal games": """
        import signal
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        def ENTRY(x):
            while True:
                pass
    """,
    "deep recursion": """
        import sys
        sys.setrecursionlimit(10 ** 9)
        def ENTRY(x):
            return ENTRY(x) + 1
    """,
    "stack overflow": """
        import sys
        sys.setrecursionlimit(10 ** 9)
        class Deep:
            def __repr__(self):
                return repr(self)  # by way of C, which has no other limit
        def ENTRY(x):
            return repr(Deep())
    """,
    "huge list": "def ENTRY(x):\n    return [0] * (5 * 10 ** 6)",
    "huge text": "def ENTRY(x):\n    return 'x' * (1 << 25)",
    "endless iterator": "import itertools\ndef ENTRY(x):\n    return itertools.count()",
    "list in itself": "def ENTRY(x):\n    a = []\n    a.append(a)\n    return a",
    "deep list": "def ENTRY(x):\n    a = []\n    for _ in range(10 ** 5):\n        a = [a]\n    return a",
    # Reading and writing outside.
    "reading the home directory": "import os\ndef ENTRY(x):\n    return os.listdir(HOME)",
    "reading a file": "def ENTRY(x):\n    return open(VICTIM).read()",
    "reading passwords": "def ENTRY(x):\n    return open('/etc/passwd').read()",
    "reading the root": "import os\ndef ENTRY(x):\n    return os.listdir('/proc/1/root/etc')",
    "reading by ..": "def ENTRY(x):\n    return open('../../../../../../../..' + VICTIM).read()",
    "reading through a link": "import os\ndef ENTRY(x):\n    os.symlink(VICTIM, 'a')\n    return open('a').read()",
    "reading memory": "def ENTRY(x):\n    return open('/dev/mem', 'rb').read(8)",
    "reading the parent": "def ENTRY(x):\n    return open(f'/proc/{PARENT}/environ', 'rb').read()",
    "reading itself": "def ENTRY(x):\n    return open('/proc/self/maps').read()",
    "reading the environment": "import os\ndef ENTRY(x):\n    return os.environ['GENTLETUNE_SECRET']",
    "writing outside": "def ENTRY(x):\n    open(OUTSIDE, 'w').write('x')",
    "writing at home": "import os\ndef ENTRY(x):\n    open(HOME + '/' + 'ENTRY', 'w').write('x')",
    "writing data": "def ENTRY(x):\n    open(VICTIM, 'a').write('x')",
    "writing through a link": "import os\ndef ENTRY(x):\n    os.link(VICTIM, 'a')\n    open('a', 'w').write('x')",
    "deleting": "import os\ndef ENTRY(x):\n    os.remove(VICTIM)",
    "deleting a tree": "import os, shutil\ndef ENTRY(x):\n    shutil.rmtree(os.path.dirname(VICTIM))",
    "changing permissions": "import os\ndef ENTRY(x):\n    os.chmod(VICTIM, 0o777)",
    "deleting its own directory": "import os\ndef ENTRY(x):\n    os.rmdir(os.getcwd())\n    open('a', 'w')",
    "closing its own directory": "import os\ndef ENTRY(x):\n    os.chmod('.', 0)\n    os.chmod('/tmp', 0)",
    "inherited files": """
        import os
        def ENTRY(x):
            for fd in range(3, 256):
                try:
                    os.fchdir(fd)
                    return os.listdir('..')
                except OSError:
                    pass
    """,
    # Reaching others.
    "socket": "import socket\ndef ENTRY(x):\n    socket.socket().connect(('127.0.0.1', PORT))",
    "datagram": """
        import socket
        def ENTRY(x):
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))
    """,
    "unix socket": "import socket\ndef ENTRY(x):\n    socket.socket(socket.AF_UNIX).connect(chr(0) + 'ENTRY')",
    "killing the parent": "import os\ndef ENTRY(x):\n    os.kill(os.getppid(), 9)",
    "killing another": "import os\ndef ENTRY(x):\n    os.kill(OTHER, 9)",
    "killing the group": "import os\ndef ENTRY(x):\n    os.killpg(0, 9)",
    "killing all": "import os\ndef ENTRY(x):\n    os.kill(-1, 9)",
    "killing all by ctypes": """
        import ctypes
        libc = ctypes.CDLL(None)
        def ENTRY(x):
            return [libc.kill(-1, 9), libc.syscall(62, OTHER, 9), libc.ptrace(16, OTHER, 0, 0)]
    """,
    "signals by way of fcntl": """
        import fcntl, os
        def ENTRY(x):
            r, w = os.pipe()
            fcntl.fcntl(r, 8, OTHER)
            fcntl.fcntl(r, 10, 9)
            fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)
            os.write(w, b'x')
    """,
    "running a program": "import subprocess\ndef ENTRY(x):\n    return subprocess.run(['/bin/sh', '-c', 'exit 0'])",
    "becoming a program": "import os\ndef ENTRY(x):\n    os.execv('/bin/true', ['true'])",
    "becoming root": "import os\ndef ENTRY(x):\n    os.setuid(0)",
    "leaving the root": "import os\ndef ENTRY(x):\n    os.chroot('/proc/1/root')",
    "mounting": """
        import ctypes, os
        def ENTRY(x):
            libc = ctypes.CDLL(None)
            done = [libc.unshare(0x10020000), libc.mount(b'proc', b'/tmp', b'proc', 0, None)]
            return os.listdir('/tmp')
    """,
    # Cheating.
    "os._exit before the asserts": "import os\nos._exit(0)",
    "os._exit in the call": "import os\ndef ENTRY(x):\n    os._exit(0)",
    "os._exit at the end": "import atexit, os\natexit.register(os._exit, 0)\ndef ENTRY(x):\n    return 0",
    "sys.exit": "import sys\ndef ENTRY(x):\n    sys.exit(0)",
    "SystemExit on definition": "raise SystemExit",
    "no error but a stop": "def ENTRY(x):\n    raise KeyboardInterrupt",
    "patched builtins": """
        import builtins, sys, unittest
        class Never(Exception):
            pass
        builtins.AssertionError = Never
        builtins.compile = builtins.exec = builtins.eval = lambda *a, **k: None
        builtins.isinstance = lambda *a: True
        unittest.TestCase.assertEqual = unittest.TestCase.assertTrue = lambda *a, **k: None
        sys.exit = sys.excepthook = lambda *a: None
        def ENTRY(x):
            return 0
    """,
    "no builtins": "__builtins__ = {}\ndef ENTRY(x):\n    return 0",
    "patched harness": """
        import gc, json, sys, types
        main = sys.modules['__main__']
        main._verdict = lambda *a: {'passed': True, 'reason': 'passed'}
        main.pack = json.dumps = lambda value, *a, **k: {'passed': True}
        def ENTRY(x):
            return 0
    """,
    "overriding the check": "def check(candidate):\n    pass\ncandidate = check\ndef ENTRY(x):\n    return 0",
    "tracing": """
        import sys, threading
        def trace(frame, event, argument):
            frame.f_trace_lines = True
            return trace
        sys.settrace(trace)
        sys.setprofile(trace)
        def ENTRY(x):
            frame = sys._getframe()
            while frame:
                frame.f_locals['x'] = frame.f_globals['f'] = 2
                frame = frame.f_back
            return 0
    """,
    "equal to everything": """
        class Equal:
            __eq__ = __ne__ = __lt__ = __gt__ = __bool__ = lambda *a: True
            __hash__ = None
        def ENTRY(x):
            return Equal()
    """,
    "a number equal to everything": """
        class Equal(int):
            __eq__ = lambda *a: True
            __hash__ = None
        def ENTRY(x):
            return Equal(7)
    """,
    "a class that claims to be another": """
        class Equal:
            __class__ = int
            __eq__ = __le__ = __ge__ = lambda *a: True
            __format__ = lambda *a: 'ff'
        def ENTRY(x):
            return Equal()
    """,
    "forged verdicts": """
        import os
        def ENTRY(x):
            for fd in range(1, 64):
                try:
                    os.write(fd, b'{"passed": true, "reason": "passed"}' + bytes([10]))
                except OSError:
                    pass
            return 0
    """,
    "forged answers": """
        import os, struct
        for fd in range(3, 64):
            for answer in (b'{"value": null}', b'{"value": true}', b'{"passed": true}', b'[]', b'{', b''):
                try:
                    os.write(fd, struct.pack('<I', len(answer)) + answer)
                except OSError:
                    pass
        def ENTRY(x):
            return True
    """,
    "forged length": """
        import os, struct
        for fd in range(3, 64):
            try:
                os.write(fd, struct.pack('<I', 0xffffffff) * 9)
            except OSError:
                pass
    """,
    "forged depth": """
        import os, struct
        for fd in range(3, 64):
            try:
                os.write(fd, struct.pack('<I', 60000) + b'[' * 60000)
            except OSError:
                pass
    """,
    "closed pipes": "import os\ndef ENTRY(x):\n    os.closerange(0, 256)",
    "an error that cannot be told": """
        class Worse(Exception):
            def __str__(self):
                raise SystemExit
        def ENTRY(x):
            raise Worse
    """,
    "no function": "g = 1",
    "not a function": "ENTRY = 2",
    "not Python": "def ENTRY(x):\n    return x +",
    "not text": "def ENTRY(x):\n    return '\ud800' + '\0'",
}
TIMEOUTS = ("infinite loop", "infinite loop on definition", "sleep", "hung thread", "joined thread", "signal games")
ENDLESS = (*TIMEOUTS, "patient fork bomb", "deep recursion", "endless iterator")


def processes(marker: str) -> list[str]:
    """Processes with the marker in their command line, and zombies of this one."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                parent_state = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if marker in (entry / "cmdline").read_text() or parent_state == ["Z", str(os.getpid())]:
                    found.append(entry.name)
        except OSError:  # it has ended meanwhile
            continue
    return found


@pytest.fixture
def attack(level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Outcome]]:
    """Runs an attack, and then looks for what it could have done to the machine."""
    marker = f"f_{uuid.uuid4().hex}"
    victim, temporary = tmp_path / "data" / "victim.jsonl", tmp_path / "tmp"
    victim.parent.mkdir()
    temporary.mkdir()
    victim.write_text("precious")
    victim.chmod(0o640)
    tmp_path.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("GENTLETUNE_SECRET", "hf_planted")
    other = subprocess.Popen(["sleep", "1000"])
    ctypes.CDLL(None).prctl(
        36, 1
    )  # PR_SET_CHILD_SUBREAPER: an orphan of the sandbox would become a child of this process
    mounts, limits = Path("/proc/self/mountinfo").read_text(), os.getpriority(os.PRIO_PROCESS, 0)
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        port = tcp.getsockname()[1]
        udp.bind(("127.0.0.1", port))
        places = {
            "HOME": str(Path.home()), "VICTIM": str(victim), "OUTSIDE": str(tmp_path / "outside"), "PORT": port,
            "PARENT": os.getpid(), "OTHER": other.pid,
        }  # fmt: skip

        def run(source: str) -> Outcome:
            header = "".join(f"{name} = {value!r}\n" for name, value in places.items())
            solution = header + textwrap.dedent(source).replace("ENTRY", marker)
            limits = replace(SMALL, wall=0.4) if source in [ATTACKS[name] for name in ENDLESS] else SMALL
            return run_program(Program(solution, TESTS.replace("f(", f"{marker}("), marker), limits=limits)

        try:
            yield run
            for receiver in (tcp, udp):
                receiver.setblocking(False)
            with pytest.raises(BlockingIOError):
                tcp.accept()
            with pytest.raises(BlockingIOError):
                udp.recv(9)
            assert other.poll() is None, "another process was killed"
        finally:
            ctypes.CDLL(None).prctl(36, 0)
            other.kill()
            other.wait()
            (Path.home() / marker).unlink(missing_ok=True)
    assert victim.read_text() == "precious"
    assert victim.stat().st_mode & 0o777 == 0o640
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "tmp"]
    assert [p.name for p in victim.parent.iterdir()] == ["victim.jsonl"]
    assert not list(temporary.iterdir()), "a temporary file was left"
    assert not processes(marker), "a process was left"
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert os.getpriority(os.PRIO_PROCESS, 0) == limits


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_fails_and_leaves_no_trace(name: str, level: str, attack: Callable[[str], Outcome]) -> None:
    outcome = attack(ATTACKS[name])
    assert not outcome.passed
    assert outcome.reason.split(":")[0] in ("wrong", "error", "died", "timeout", "output")
    assert outcome.reason.isprintable()
    assert outcome.seconds < SMALL.wall + sandbox._GRACE
    assert len(outcome.output) <= SMALL.output_bytes
    assert "hf_planted" not in outcome.output + outcome.reason
    assert "precious" not in outcome.output + outcome.reason
    if name in TIMEOUTS:
        assert outcome.reason.startswith("timeout"), outcome
    if name == "stack overflow":
        assert outcome.reason == "died: killed by SIGSEGV"
    if name.startswith("exhausting"):
        assert outcome.reason.startswith("output"), outcome
    if name.startswith("10 GiB"):
        assert "MemoryError" in outcome.reason, outcome


def test_tests_are_not_in_the_candidate_s_memory(level: str) -> None:
    spy = """
        import gc, sys
        def f(first, second):
            wanted, found = first + second, []
            frame = sys._getframe()
            while frame:
                found += [v for v in [*frame.f_locals.values(), *frame.f_globals.values()] if v is not wanted]
                frame = frame.f_back
            for each in gc.get_objects():
                found += [v for v in gc.get_referents(each) if v is not wanted]
            texts = {repr(v) for v in found if isinstance(v, (str, bytes)) and v != wanted}
            return [t for t in texts if wanted in t]
    """
    outcome = check(spy, "mark = 'seamarkmark'\nassert f('seamark', 'mark') == []")
    assert outcome.passed, outcome
    # The spy does see what is in its own memory.
    assert not check(
        f"x = ['{'seamark'}mark' + '!']\n" + textwrap.dedent(spy), "assert f('seamark', 'mark') == []"
    ).passed


def test_environment_and_input(level: str) -> None:
    solution = """
        import os, sys
        def f():
            return [sorted(os.environ), sys.stdin.read(), os.environ["HOME"], os.getuid() == 0]
    """
    tests = "names, text, home, root = f()\nassert set(names) <= {'HOME', 'LANG', 'LC_CTYPE', 'PATH', 'PYTHONHASHSEED'}"
    assert check(solution, tests + "\nassert (text, home, root) == ('', '/tmp', False)").passed


def test_working_directory(level: str) -> None:
    solution = """
        import os
        def f():
            before = os.listdir(".")
            with open("a.txt", "w") as file:
                file.write("one")
            return [before, open("/tmp/a.txt").read(), os.listdir("/")]
    """
    outcome = check(solution, "assert f() == [[], 'one', ['tmp']]")
    if level == "seccomp":
        assert outcome.reason.startswith("error: PermissionError"), outcome
    else:
        assert outcome.passed, outcome


# --- what is right passes, what is wrong fails ---------------------------------------------------------------------


def test_good_and_bad(level: str) -> None:
    good = check("def f(x):\n    print('hi', x)\n    return x + 1")
    assert (good.passed, good.reason, good.output) == (True, "passed", "hi 1\nhi 5\nhi 9\n")
    assert 0 < good.seconds < 10
    assert check("def f(x):\n    return 2").reason == "wrong: assert f(5) == 6"
    assert check("def f(x):\n    pass").reason == "wrong: assert f(1) == 2"
    assert check("def f(x):\n    return [][x]").reason == "error: IndexError: list index out of range"
    assert check("def g(x):\n    return x").reason == "error: NameError: name 'f' is not defined"
    assert check("import numpy\n" + GOOD).reason.startswith("error: ModuleNotFoundError")


def test_loops_are_timeouts(level: str) -> None:
    loop = "def f(x):\n    while True:\n        pass"
    assert check(loop, limits=Limits(wall=0.5)).reason == "timeout: not done after 0.5 s"
    assert check(loop, limits=Limits(wall=60, cpu=0.5)).reason == "timeout: 1 s of CPU time used up"


def test_modules_are_there_without_files(level: str) -> None:
    solution = "".join(f"import {name}\n" for name in sandbox.MODULES)
    solution += r"""
import concurrent.futures
@functools.singledispatch
def size(x):
    return 0
@size.register
def _(x: int):
    return x
@dataclasses.dataclass
class Pair:
    a: int
def f():
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        squares = list(pool.map(lambda n: n * n, range(4)))
    parts = [codecs.encode("ab", "rot13"), "a".encode("utf-16-le"), "é".encode("cp1252"), "\N{DEGREE SIGN}"]
    day = datetime.datetime.strptime("03-11-2000", "%m-%d-%Y")
    warnings.warn("no file is read for this")
    return squares, parts, day.day, size(3), Pair(1) == Pair(1), hashlib.md5(b"").hexdigest()[:4], random.random() < 1
"""
    tests = "assert f() == ([0, 1, 4, 9], ['no', b'a\\0', b'\\xe9', '\\xb0'], 11, 3, True, 'd41d', True)"
    outcome = check("import codecs\n" + solution, tests)
    assert outcome.passed, outcome


RESULTS = {
    "2.5": [2.5, Fraction(5, 2), Decimal("2.5")],
    "(0, 1, 2)": [(0, 1, 2)],
    "{'a': [1, (2, None)], 3: {4}}": [{"a": [1, (2, None)], 3: {4}}],
    "10 ** 4000": [10**4000],
    "float('inf')": [math.inf],
    "'\\ud800 \\u00e9'": ["\ud800 é"],
    "True": [True, 1],
    "-0.1": [-0.1],
    "2j": [2j],
    "b'ab'": [b"ab", bytearray(b"ab")],
    "__import__('collections').Counter('aab')": [{"a": 2, "b": 1}],
    "__import__('fractions').Fraction(5, 2)": [2.5],
    "__import__('decimal').Decimal('2.5')": [2.5],
    "range(3)": [range(3)],
}


def test_results_by_value(safe: None) -> None:
    programs = [
        Program(f"# collections fractions decimal\ndef f():\n    return {text}", f"assert f() == {value!r}", "f", setup)
        for text, values in RESULTS.items()
        for value in values
        for setup in ["from fractions import Fraction\nfrom decimal import Decimal\nfrom math import inf\n"]
    ]
    assert [(p.solution, o.reason) for p, o in zip(programs, run_many(programs), strict=True) if not o.passed] == []


def test_iterators_keyword_arguments_state_and_exceptions(safe: None) -> None:
    assert check("def f(x):\n    yield x", "assert list(f(3)) == [3] and f(3) != [3]").passed
    assert check("def f(a, *, b):\n    return a - b", "assert f(3, b=1) == 2").passed
    assert check("n = []\ndef f():\n    n.append(1)\n    return len(n)", "assert [f(), f()] == [1, 2]").passed
    tests = "try:\n    f()\n    assert False\nexcept ZeroDivisionError:\n    pass"
    assert check("def f():\n    return 1 / 0", tests).passed
    # By value: the tests' own list stays as it was.
    assert check("def f(x):\n    x.append(1)\n    return x", "a = []\nassert f(a) == [1] and a == []").passed


def test_a_candidate_that_died_fails_whatever_the_tests_catch(safe: None) -> None:
    tests = "try:\n    f()\nexcept Exception:\n    pass"
    assert (
        check("import os\ndef f():\n    os._exit(0)", tests).reason == "died: it left with status 0 before it answered"
    )
    assert check("def f():\n    return 1 / 0", tests).passed


def test_helpers_come_from_the_trusted_set_up(safe: None) -> None:
    setup = "def double(x):\n    return 2 * x\ndef f(x):\n    '''Twice x.'''\n"
    program = Program(setup + "    return 2 * x\ndef double(x):\n    return 0", "assert f(3) == double(3)", "f", setup)
    assert run_program(program).passed


def test_hashes_do_not_change_from_run_to_run(safe: None) -> None:
    program = Program("def f():\n    print([*map(str, {'a', 'b', 'c', 'd', 'e'})])", "f()", "f")
    assert len({o.output for o in run_many([program] * 4)}) == 1


@pytest.mark.parametrize(
    "program",
    [Program(GOOD, TESTS, "f", setup="1 / 0"), Program(GOOD, "assert f(1) ==", "f")],
    ids=["set-up", "tests"],
)
def test_broken_trusted_code_is_no_failed_solution(program: Program, safe: None) -> None:
    with pytest.raises(RuntimeError, match="the set-up code or the tests do not run"):
        run_program(program)


def test_run_many_keeps_the_order(safe: None) -> None:
    programs = [
        Program(f"import time\ntime.sleep({(5 - n) / 20})\n{GOOD}", f"assert f({n}) == 3", "f") for n in range(6)
    ]
    assert [o.passed for o in run_many(programs, workers=3)] == [False, False, True, False, False, False]
    assert run_many([]) == []


# The sandbox in another interpreter, without the package's own dependencies.
ALONE = """
import sys, types
for name in ("gentletune", "gentletune.sandbox"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [sys.argv[1] + "/" + name.replace(".", "/")]
from gentletune.sandbox import host as sandbox
"""


def test_the_sandbox_ends_with_the_program_that_started_it(level: str) -> None:
    marker = f"f_{uuid.uuid4().hex}"
    script = f"sandbox._launch(sandbox.Program('while True: pass', '', '{marker}'), {level!r}, sandbox.Limits())"
    with subprocess.Popen([sys.executable, "-c", ALONE + script, str(SOURCE)]) as user:
        deadline = time.monotonic() + 60
        while len(processes(marker)) < 4 and time.monotonic() < deadline:  # itself, launcher, judge, candidate
            time.sleep(0.02)
        assert len(processes(marker)) == 4
        user.kill()
    while processes(marker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not processes(marker)


# --- refusal and the levels ----------------------------------------------------------------------------------------


def test_refuses_without_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "probe_isolation", lambda: Isolation("none", "limits on resources only", "too old"))
    with pytest.raises(UserError, match=r"^no isolation .*\(too old\); .*say --allow-unsafe-code$"):
        check(GOOD)
    with pytest.raises(UserError, match="--allow-unsafe-code"):
        run_many([Program(GOOD, TESTS, "f")])


def test_unsafe_code_runs_only_when_allowed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sandbox, "probe_isolation", lambda: Isolation("none", "limits on resources only", "too old"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    closing = "import os\nopen('a', 'w').close()\nos.mkdir('b')\nopen('b/c', 'w').close()\nos.chmod('b', 0)\n"
    solutions = {
        GOOD: "passed",
        closing + GOOD: "passed",
        "import os, shutil\nshutil.rmtree(os.getcwd())\n" + GOOD: "passed",
        "def f(x):\n    return 0": "wrong: assert f(1) == 2",
        "import os\nos._exit(0)": "died: it left with status 0 before it answered",
        "while True:\n    pass": "timeout: 1 s of CPU time used up",
    }
    programs = [Program(solution, TESTS, "f") for solution in solutions]
    outcomes = run_many(programs, limits=SMALL, allow_unsafe=True)
    assert [o.reason for o in outcomes] == list(solutions.values())
    sleeper = Program("import time\ntime.sleep(1000)", TESTS, "f")
    slept = run_program(sleeper, limits=replace(SMALL, wall=0.8), allow_unsafe=True)
    assert slept.reason == "timeout: not done after 0.8 s"
    assert not list(tmp_path.iterdir())


def test_probe_takes_the_best_level_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def launch(program: Program, level: str, limits: Limits) -> Outcome:
        tried.append(level)
        if level == "namespaces":
            return Outcome(True, "passed", 0.1, "")
        if level == "seccomp":
            return Outcome(False, "wrong: found ['/etc']", 0.1, "")
        raise RuntimeError("unshare: Operation not permitted")

    monkeypatch.setattr(sandbox, "_launch", launch)
    monkeypatch.setattr(sys, "platform", "linux")
    isolation = sandbox.probe_isolation.__wrapped__()
    assert tried == ["namespaces+seccomp", "seccomp", "namespaces"]
    assert (isolation.level, isolation.safe) == ("namespaces", True)
    assert str(isolation).startswith("sandbox: namespaces (own namespaces")
    assert "not better, because unshare: Operation not permitted" in str(isolation)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not sandbox.probe_isolation.__wrapped__().safe


def test_probe_notices_walls_that_do_not_stand() -> None:
    """The probe's own program fails where nothing stops it."""
    here = Path.home()
    program = Program(
        "import os\ndef probe(p):\n    return os.listdir(p)", f"assert probe({str(here)!r}) == []", "probe"
    )
    if list(here.iterdir()):
        assert not sandbox._launch(program, "none", Limits()).passed


def test_an_ordinary_user_has_namespaces_too() -> None:
    """Run as root, the tests would never see the way by user namespaces: here another user takes it."""
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if os.getuid() != 0 or python is None:  # only root may become another user, who cannot read a Python of root's own
        pytest.skip("needs root, to become an ordinary user, and a Python that every user can run")
    script = """
        walls = sandbox.probe_isolation()
        good = sandbox.Program("def f(x):\\n    return x + 1", "assert f(1) == 2", "f")
        bomb = sandbox.Program("import os\\ndef f(x):\\n    while True:\\n        os.fork()", "assert f(1) == 2", "f")
        runs = ((good, sandbox.Limits()), (bomb, sandbox.Limits(wall=1)))
        for level in [walls.level, "seccomp", "namespaces"]:
            print(level, *(sandbox._launch(p, level, limits).reason.split(":")[0] for p, limits in runs))
    """
    command = [python, "-c", ALONE + textwrap.dedent(script), str(SOURCE)]
    done = subprocess.run(
        command, user=65534, group=65534, extra_groups=[], env={}, text=True, capture_output=True, cwd="/"
    )
    if done.returncode != 0 or "namespaces+seccomp" not in done.stdout:
        # Many kernels and containers refuse them to ordinary users; the message has what was said.
        pytest.skip(f"no namespaces for ordinary users here: {(done.stdout + done.stderr)[-200:]}")
    *listed, walls_only = done.stdout.splitlines()
    assert listed == ["namespaces+seccomp passed error", "seccomp passed error"]
    assert walls_only.split()[:2] == ["namespaces", "passed"]
    assert walls_only.split()[2] in ("error", "timeout", "died")


# --- plain data over the pipe --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -1, 2**64, -(10**5000), 0.1, -0.0, math.inf, 1e308, "", "a\n\0é\ud800", b"\0\xff", 1 - 2j,
        [], [[]], (), ((1,), [2]), {1, 2}, frozenset({(1, "a")}), {}, {(1, None): [{"l": 1}]}, ["int", "ff"],
        range(1, 9, 2),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_pack_round_trip(value: object) -> None:
    back = unpack(json.loads(json.dumps(pack(value))))
    assert back == value
    assert type(back) is type(value)
    assert repr(back)[:50] == repr(value)[:50] if not isinstance(value, int) else True


@pytest.mark.parametrize("value", [object(), len, lambda: 0, type, [object()], {1: len}, sys])
def test_only_plain_data_is_packed(value: object) -> None:
    with pytest.raises(TypeError, match="only plain data"):
        pack(value)


@pytest.mark.parametrize(
    "data", [{}, [], ["list"], ["list", 1], ["eval", "1"], ["int", 5], ["set", [["list", []]]], ["dict", [1]], [1, 2],
             ["bytes", "zz"], ["complex", "1", 2], ["range", 1, 2, 0], ["range", "a", 1, 1], ["Fraction", 1, 0]],
)  # fmt: skip
def test_hostile_data_is_an_error(data: object) -> None:
    with pytest.raises((ValueError, TypeError, ArithmeticError)):
        unpack(data)


# --- HumanEval -----------------------------------------------------------------------------------------------------


@pytest.fixture
def humaneval(shared_data: Path) -> list[dict[str, str]]:
    path = shared_data / "humaneval" / "HumanEval.jsonl.gz"
    if not path.is_file():  # licensed apart, so not in the repository
        pytest.skip(f"HumanEval is not here: {path}")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_canonical_solutions_pass(humaneval: list[dict[str, str]], level: str) -> None:
    some = humaneval if "seccomp" in level else humaneval[::4]  # the third level is all but the first
    outcomes = run_many([sandbox.humaneval_program(problem, problem["canonical_solution"]) for problem in some])
    assert [(p["task_id"], o) for p, o in zip(some, outcomes, strict=True) if not o.passed] == []
    assert len(humaneval) == 164


def test_empty_and_foreign_solutions_fail(humaneval: list[dict[str, str]], safe: None) -> None:
    some = random.Random(0).sample(humaneval, 20)
    programs = [sandbox.humaneval_program(problem, "    pass\n") for problem in some]
    assert sum(o.passed for o in run_many(programs)) == 0
    first, last = humaneval[0], humaneval[-1]
    assert not sandbox.check_humaneval(first, last["canonical_solution"]).passed
    assert sandbox.check_humaneval(first, first["canonical_solution"]).passed
