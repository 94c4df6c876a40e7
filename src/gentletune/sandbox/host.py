"""Run model-generated Python (HumanEval-style) where it can do no harm, and score it where it cannot cheat.

The untrusted function and the trusted tests run in two processes of their own (see `sandbox_child.py`): the tests call
the function over a pipe, arguments and results travel as plain data, and only the tests' process can write the
verdict. Walls, best first:

- `namespaces+seccomp`: own PID, mount, network, IPC and UTS namespaces (and a user namespace, or as root an unused
  uid), an empty file system in memory, and a list of the only system calls allowed: no sockets, processes or signals.
- `seccomp`: where the kernel or the container forbids namespaces: the same list without a single call that opens a
  file. The code can compute, and nothing else.
- `namespaces`: where there is no list of system calls for the machine (it is written for x86-64). What no namespace
  covers (vsock, kernel keyrings) stays open, and memory is limited per process, of which there may be `processes`.
- `none`: limits on resources only. Refused unless the user says `--allow-unsafe-code`.

Modules come from the standard library only, and only those in `MODULES`, so a solution that opens no files scores the
same behind each wall. Known limits: arguments and results go by value, so a solution that changes its argument in
place does not change the tests' own; results other than plain data (None, numbers, texts, bytes, lists, tuples, sets,
dicts, ranges, iterators, Decimal, Fraction) fail; tests cannot pass functions; a solution sees the arguments of each
call, and a test that passes the expected value as an argument gives it away.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gentletune.core.errors import UserError
from gentletune.sandbox import child as sandbox_child

# What the code may import. Those that its text names are loaded before the walls go up: behind them are no files.
_NAMES = """
    abc array ast base64 binascii bisect calendar cmath collections collections.abc contextlib copy ctypes dataclasses
    datetime decimal difflib dis doctest enum errno fcntl fractions functools gc glob hashlib heapq hmac html
    importlib inspect io itertools json keyword logging math numbers operator os os.path pathlib pickle platform
    pprint queue random re resource secrets select shutil signal socket statistics string struct subprocess sys
    tempfile textwrap threading time timeit traceback types typing unicodedata unittest urllib.parse uuid warnings
    weakref zlib
    """
MODULES = tuple(_NAMES.split())
# What the standard library itself imports only when it gets there.
_LATER = {
    "codecs": ("encodings.rot_13", "encodings.hex_codec", "encodings.base64_codec"),
    "code": tuple(f"encodings.{name}" for name in ("ascii", "latin_1", "cp1252", "utf_16", "utf_16_le", "utf_32")),
    "futures": ("concurrent.futures", "concurrent.futures.thread"),
    "singledispatch": ("typing", "weakref"),
    "socket": ("encodings.idna",),
    "strptime": ("_strptime",),
    r"\N{": ("unicodedata",),
}
_LEVELS = {
    "namespaces+seccomp": "own namespaces, empty file system, no network, listed system calls only",
    "seccomp": "listed system calls only: no files, no network, no processes",
    "namespaces": "own namespaces, empty file system, no network",
}
_GRACE = 10.0  # seconds beyond the wall-clock limit for starting and clearing away
_DISCARDED = 64  # output is read and dropped up to this many times its limit; then the program is stopped


@dataclass(frozen=True)
class Isolation:
    """The walls in force: `level` to record, `means` to print, `missing` says why no better level is in force.

    >>> str(Isolation("seccomp", "no files", "unshare: Operation not permitted"))
    'sandbox: seccomp (no files; not better, because unshare: Operation not permitted)'
    """

    level: str
    means: str
    missing: str = ""

    @property
    def safe(self) -> bool:
        return self.level != "none"

    def __str__(self) -> str:
        why = f"; not better, because {self.missing}" if self.missing else ""
        return f"sandbox: {self.level} ({self.means}{why})"


@dataclass(frozen=True)
class Limits:
    """Limits of one program; times in seconds, `processes` counts its processes and threads.

    >>> Limits(wall=3).cpu
    10.0
    """

    wall: float = 10.0
    cpu: float = 10.0  # whole seconds, rounded up
    memory_bytes: int = 1 << 30  # address space
    processes: int = 32
    file_bytes: int = 16 << 20  # one file, and the file system in memory
    output_bytes: int = 64 << 10  # kept of standard output and error together


@dataclass(frozen=True)
class Program:
    """An untrusted `solution` that defines `entry_point`, and the trusted `tests` that call it by that name.

    `setup` is trusted code that runs before the tests, apart from the solution (helpers that the tests use).
    """

    solution: str
    tests: str
    entry_point: str
    setup: str = ""


@dataclass(frozen=True)
class Outcome:
    """`reason` is one line that begins with `passed`, `wrong`, `error`, `died`, `timeout` or `output`.

    `seconds` is wall-clock time with starting and clearing away; `output` is untrusted text, as it was printed.
    """

    passed: bool
    reason: str
    seconds: float
    output: str


@functools.lru_cache(maxsize=1)
def probe_isolation() -> Isolation:
    """The best level that works here: each is tried with a program that attempts what it must not be able to do."""
    solution = (
        "import os, socket\n"
        "def probe(paths):\n"
        "    done = []\n"
        "    for path in paths:\n"
        "        try:\n"
        "            os.listdir(path)\n"
        "            done.append(path)\n"
        "        except OSError:\n"
        "            pass\n"
        "    try:\n"
        "        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 9))\n"
        "        done.append('network')\n"
        "    except OSError:\n"
        "        pass\n"
        "    return done\n"
    )
    tests = f"found = probe({['/usr', '/etc', str(Path.home())]!r})\nassert found == [], found"
    program = Program(solution, tests, "probe")
    missing = "" if sys.platform == "linux" else f"namespaces and seccomp are not in {sys.platform}"
    for level, means in _LEVELS.items() if not missing else ():
        try:
            outcome = _launch(program, level, Limits())
        except RuntimeError as error:
            missing = missing or str(error)
            continue
        if outcome.passed:
            return Isolation(level, means, missing)
        missing = missing or outcome.reason
    return Isolation("none", "limits on resources only", missing)


def require_isolation(isolation: Isolation, allow_unsafe: bool) -> None:
    """Raises `UserError` where there are no walls and `allow_unsafe` is not given."""
    if not isolation.safe and not allow_unsafe:
        raise UserError(
            f"no isolation for generated code on this machine ({isolation.missing}); "
            "to run it all the same, with your rights, say --allow-unsafe-code"
        )


def run_program(program: Program, *, limits: Limits | None = None, allow_unsafe: bool = False) -> Outcome:
    """Whether the solution passes the tests, run behind the best walls that this machine has.

    Raises UserError where it has none and `allow_unsafe` is not given; RuntimeError where the sandbox itself cannot
    start or the trusted code does not run, which says nothing about the solution.

    >>> run_program(Program("def double(x):\\n    return 2 * x", "assert double(3) == 6", "double")).reason
    'passed'
    """
    isolation = probe_isolation()
    require_isolation(isolation, allow_unsafe)
    return _launch(program, isolation.level, limits or Limits())


def run_many(
    programs: Sequence[Program],
    *,
    workers: int | None = None,
    limits: Limits | None = None,
    allow_unsafe: bool = False,
) -> list[Outcome]:
    """`run_program` of each, in the order given; `workers` at a time (one per CPU core by default). Raises as it does.

    >>> [o.passed for o in run_many([Program(f"def f():\\n    return {n}", "assert f() == 1", "f") for n in (0, 1)])]
    [False, True]
    """
    probe_isolation()  # once, and not in each worker
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    try:
        return list(pool.map(lambda p: run_program(p, limits=limits, allow_unsafe=allow_unsafe), programs))
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, those not yet begun are not run


def humaneval_program(problem: Mapping[str, str], completion: str) -> Program:
    """A HumanEval problem with a completion of its prompt; the prompt also defines the helpers that the tests use."""
    prompt, name = problem["prompt"], problem["entry_point"]
    return Program(prompt + completion, f"{problem['test']}\ncheck({name})", name, setup=prompt)


def check_humaneval(
    problem: Mapping[str, str], completion: str, *, limits: Limits | None = None, allow_unsafe: bool = False
) -> Outcome:
    """Whether a completion solves a HumanEval problem (a row of the data set). Raises as `run_program` does."""
    return run_program(humaneval_program(problem, completion), limits=limits, allow_unsafe=allow_unsafe)


def _modules(text: str) -> list[str]:
    """The modules to load for this text: a word is enough, for loading one too many does no harm."""
    words = set(re.findall(r"\w+", text))
    named = [name for name in MODULES if words.issuperset(name.split("."))]
    return named + [name for key, names in _LATER.items() if key in text for name in names]


def _launch(program: Program, level: str, limits: Limits) -> Outcome:
    """One run at a level, whichever it is; RuntimeError where it cannot start."""
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        home, directory = "/tmp", "/"
        if level == "none":  # elsewhere the working directory is in memory, or no file can be opened at all
            temporary = tempfile.TemporaryDirectory(prefix="gentletune-", ignore_cleanup_errors=True)
            home = directory = stack.enter_context(temporary)
        # Files without a name: nothing to clear away, and no pipe that could fill up.
        solution, tests = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        solution.write(json.dumps(program.solution).encode())
        tests.write(json.dumps({"setup": program.setup, "tests": program.tests}).encode())
        verdict, writer = os.pipe()
        stack.callback(os.close, verdict)
        job = {
            "level": level, "entry_point": program.entry_point, "parent": os.getpid(), "tests": tests.fileno(),
            "verdict": writer, "modules": _modules(program.setup + program.solution + program.tests),
            "wall": limits.wall, "cpu": limits.cpu, "memory_bytes": limits.memory_bytes,
            "processes": limits.processes, "file_bytes": limits.file_bytes,
        }  # fmt: skip
        solution.seek(0)
        tests.seek(0)
        try:
            process = subprocess.Popen(
                # No site packages, nothing from the working directory, no .pyc files, unbuffered output.
                [sys.executable, "-s", "-S", "-P", "-B", "-u", sandbox_child.__file__, json.dumps(job)],
                stdin=solution, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=directory,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": home, "PYTHONHASHSEED": "0"},
                pass_fds=(tests.fileno(), writer), start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(writer)
        with process:
            try:
                lines, output, stopped = _collect(process, verdict, limits)
            finally:
                # The launcher has cleared away and ended; this is for one that could not, and for code without walls.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
        text = output[: limits.output_bytes].decode(errors="replace")
        return _outcome(lines, stopped, text, time.monotonic() - started)


def _collect(process: subprocess.Popen[bytes], verdict: int, limits: Limits) -> tuple[list[bytes], bytes, str]:
    """The verdict's lines, the output, and why the run was stopped from here ("" where it was not)."""
    assert process.stdout is not None
    printed, lines, output, size, stopped = process.stdout.fileno(), b"", bytearray(), 0, ""
    deadline = time.monotonic() + limits.wall + _GRACE
    with selectors.DefaultSelector() as selector:
        selector.register(verdict, selectors.EVENT_READ)
        selector.register(printed, selectors.EVENT_READ)
        running = True
        while running and (left := deadline - time.monotonic()) > 0:
            # Once the verdict's pipe is closed every process has ended: what is left of the output is there to read.
            for key, _ in selector.select(left):
                data = os.read(key.fd, 1 << 16)
                if key.fd == verdict:
                    lines += data
                    running = bool(data)
                    continue
                if not data:
                    selector.unregister(printed)
                size += len(data)
                output += data[: max(0, limits.output_bytes - len(output))]
                if size > _DISCARDED * limits.output_bytes and not stopped:
                    stopped = f"output: more than {_DISCARDED * limits.output_bytes >> 10} KiB"
                    process.terminate()
                    deadline = time.monotonic() + _GRACE
    os.set_blocking(printed, False)
    with contextlib.suppress(BlockingIOError):
        while len(output) < limits.output_bytes and (data := os.read(printed, 1 << 16)):
            output += data
    return lines.splitlines(), bytes(output), stopped or ("timeout: the sandbox had to be killed" if running else "")


def _outcome(lines: list[bytes], stopped: str, output: str, seconds: float) -> Outcome:
    """The first verdict counts: the launcher may add a second where time ran out just after the first."""
    messages = [json.loads(line) for line in lines]
    for message in messages:
        if "setup" in message:
            raise RuntimeError(f"the sandbox cannot run: {message['setup']}")
    if not messages:
        raise RuntimeError(f"the sandbox did not start: {output.strip()[-300:] or 'no message'}")
    verdicts = [message for message in messages if "passed" in message]
    if stopped:
        return Outcome(False, stopped, seconds, output)
    if not verdicts:
        return Outcome(False, "died: no verdict", seconds, output)
    return Outcome(bool(verdicts[0]["passed"]), str(verdicts[0]["reason"]), seconds, output)
