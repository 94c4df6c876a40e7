"""The program inside the sandbox: it confines itself, then is judge (trusted tests) and candidate (untrusted code).

`host.py` starts it as a script in a fresh interpreter, with nothing of ours to import behind the walls: so all that
runs there is in this one file, which imports the standard library only. Three processes:

    launcher          outside the walls; enforces the wall-clock limit and waits for the others
      judge           PID 1 of its own PID namespace; runs the trusted tests; alone can write the verdict
        candidate     runs the untrusted code; answers the judge's calls over a pipe, as plain data

The candidate is forked before the judge reads the tests, so no test is in its memory; what it sends back is read as
plain data (numbers, texts, containers) and compared in the judge. Patching builtins, leaving early, forging messages
or returning an object that equals everything therefore ends in a wrong answer or none.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import errno
import importlib
import json
import math
import os
import resource
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, ModuleType
from typing import Any, NoReturn

MAX_MESSAGE = 8 << 20  # bytes of one call or one answer
_FIRST_UID = 2_000_000_000  # above the users of any machine: RLIMIT_NPROC then counts this sandbox alone
_NOBODY = 65534

# --- plain data over the pipe -------------------------------------------------------------------------------------


def pack(value: object) -> object:
    """`value` as JSON-ready data with type tags; TypeError where it is not plain data.

    >>> pack((1, {"a"}))
    ['tuple', [1, ['set', ['a']]]]
    """
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**63 else ["int", format(value, "x")]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, [pack(item) for item in value]]
    if isinstance(value, dict):
        return ["dict", [[pack(key), pack(item)] for key, item in value.items()]]
    if isinstance(value, bytes | bytearray):
        return [type(value).__name__, value.hex()]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, range):
        return ["range", pack(value.start), pack(value.stop), pack(value.step)]
    if isinstance(value, Iterator):
        return ["iterator", [pack(item) for item in value]]
    kind_name = type(value).__name__
    if kind_name == "Decimal":
        return ["Decimal", str(value)]
    if kind_name == "Fraction":
        return ["Fraction", pack(getattr(value, "numerator", 0)), pack(getattr(value, "denominator", 1))]
    raise TypeError(f"only plain data can cross the sandbox's wall, not {kind_name}")


def unpack(data: Any) -> Any:
    """The value that `pack` made `data` of; ValueError, TypeError or ArithmeticError where it made no such thing.

    >>> unpack(["tuple", [1, ["set", ["a"]]]])
    (1, {'a'})
    """
    if data is None or isinstance(data, bool | int | float | str):
        return data
    match data:
        case ["int", str(digits)]:
            return int(digits, 16)
        case ["list" | "tuple" | "set" | "frozenset" | "iterator" as kind, list(items)]:
            makers: dict[str, Callable[[Any], Any]] = {
                "list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "iterator": iter,
            }  # fmt: skip
            return makers[kind]([unpack(item) for item in items])
        case ["dict", list(pairs)]:
            return {unpack(key): unpack(item) for key, item in pairs}
        case ["bytes" | "bytearray" as kind, str(digits)]:
            return bytes.fromhex(digits) if kind == "bytes" else bytearray.fromhex(digits)
        case ["complex", float() | int() as real, float() | int() as imag]:
            return complex(real, imag)
        case ["range", start, stop, step]:
            return range(unpack(start), unpack(stop), unpack(step))
        case ["Decimal", str(text)]:
            return importlib.import_module("decimal").Decimal(text)
        case ["Fraction", top, bottom]:
            return importlib.import_module("fractions").Fraction(unpack(top), unpack(bottom))
    raise ValueError("not plain data")


def _send(pipe: int, message: object) -> None:
    """One length-prefixed JSON message."""
    data = json.dumps(message).encode()
    if len(data) > MAX_MESSAGE:
        raise ValueError(f"the value is larger than {MAX_MESSAGE >> 20} MiB")
    data = struct.pack("<I", len(data)) + data
    while data:
        data = data[os.write(pipe, data) :]


def _receive(pipe: int) -> Any:
    """The next message; EOFError where the other side is gone, ValueError where it is not a message."""
    size = struct.unpack("<I", _read(pipe, 4))[0]
    if size > MAX_MESSAGE:
        raise ValueError(f"a message is larger than {MAX_MESSAGE >> 20} MiB")
    return json.loads(_read(pipe, size))


def _read(pipe: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = os.read(pipe, min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _line(text: str, longest: int = 200) -> str:
    """One printable line: untrusted text must not move the terminal's cursor or break a table."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text[: 4 * longest].split()))[:longest]


# --- the walls ----------------------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_NEW_USER, _NEW_MOUNT_PID_NET_IPC_UTS = 0x10000000, 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000


def _call(name: str, *arguments: object) -> None:
    """A libc function that answers -1 on failure; OSError names the function."""
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _prctl(option: int, value: int, pointer: int = 0) -> None:
    _call("prctl", ctypes.c_int(option), *(ctypes.c_ulong(v) for v in (value, pointer, 0, 0)))


def _enter_namespaces() -> None:
    """New mount, PID (for the children), network, IPC and UTS namespaces; for an ordinary user, in a user namespace."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        # Root needs no user namespace, and without one it can become a uid of its own (see `_drop_privileges`).
        _call("unshare", _NEW_MOUNT_PID_NET_IPC_UTS)
        return
    _call("unshare", _NEW_USER | _NEW_MOUNT_PID_NET_IPC_UTS)
    for name, line in (("setgroups", "deny"), ("uid_map", f"{_NOBODY} {uid} 1"), ("gid_map", f"{_NOBODY} {gid} 1")):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(fd, line.encode())
        os.close(fd)


def _empty_root(size: int) -> None:
    """An empty file system in memory of `size` bytes as the root, with /tmp to work in; nothing else can be reached."""
    nosuid_nodev_noexec, private, detach = 2 | 4 | 8, 0x4000 | 0x40000, 2
    _call("mount", None, b"/", None, private, None)
    # Any directory does as the mount point, and nothing below /proc is needed any more.
    options = f"size={size},nr_inodes=1024,mode=755".encode()
    _call("mount", b"tmpfs", b"/proc", b"tmpfs", nosuid_nodev_noexec, options)
    os.mkdir("/proc/tmp")
    os.chmod("/proc/tmp", 0o777)  # mkdir alone would obey the umask
    os.chdir("/proc")
    _call("pivot_root", b".", b".")  # the old root is now on top of the new one, and comes off
    _call("umount2", b".", detach)
    os.chdir("/tmp")


def _drop_privileges(own_uid: int, must: bool) -> bool:
    """No capability, no way to get one, no debugger; returns whether root became a user of its own."""
    own = False
    if os.geteuid() == 0:
        for uid in (own_uid, _NOBODY):  # where few uids are mapped, as in a rootless container, the first may not exist
            try:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                own = True
                break
            except OSError:
                if must and uid == _NOBODY:
                    raise
    version_3 = 0x20080522
    _call("capset", struct.pack("=Ii", version_3, 0), bytes(24))
    set_no_new_privs, set_dumpable = 38, 4
    _prctl(set_no_new_privs, 1)
    _prctl(set_dumpable, 0)  # no ptrace, no /proc/PID/mem between equals, and no core file
    return own


def _limit(kind: int, value: float) -> None:
    """Soft and hard limit alike: the soft one could be raised again."""
    value = math.ceil(value)
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


# What pure computing needs (x86-64 numbers): memory, clocks, signal handlers, threads' locks, open descriptors.
_COMPUTE = (
    *(0, 1, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 23, 24, 25, 27, 28),  # read ... mmap ... madvise
    *(32, 33, 34, 35, 36, 37, 38, 39, 60, 61, 63, 96, 97, 98, 99, 100, 102, 104, 107, 108, 110),  # ... getppid
    *(131, 186, 201, 202, 204, 218, 228, 229, 230, 231, 270, 271, 273, 292, 293, 309, 318, 334),  # ... getrandom, rseq
)
# Files as well, where the file system is the sandbox's own.
_FILES = (
    *(2, 4, 6, 21, 22, 40, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 83, 84, 85, 86, 87, 88, 89, 90, 91, 95, 137, 138),
    *(217, 221, 257, 258, 262, 263, 264, 265, 266, 267, 268, 269, 280, 316, 332, 439),
)


def _seccomp(files: bool) -> None:
    """Only listed system calls; others fail with EPERM. No socket, process, signal, exec, ptrace or mount is listed."""
    if os.uname().machine != "x86_64":
        raise OSError(errno.ENOSYS, f"seccomp: no list of system calls for {os.uname().machine}")
    load, equal, greater, any_bit, answer = 0x20, 0x15, 0x25, 0x45, 0x06
    allow, deny, absent, kill = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS, 0x80000000
    number, machine, first, second = 0, 4, 16, 24  # offsets in struct seccomp_data
    clone, clone3, fcntl, clone_thread, x86_64, set_flags = 56, 435, 72, 0x00010000, 0xC000003E, 4
    rules: list[tuple[int, int, int, int]] = [
        (load, machine, 0, 0), (equal, x86_64, 1, 0), (answer, kill, 0, 0), (load, number, 0, 0),
        # Threads, but no processes; clone3 hides its flags in memory, so glibc is told to use clone.
        (equal, clone, 0, 4), (load, first, 0, 0), (any_bit, clone_thread, 0, 1), (answer, allow, 0, 0),
        (answer, deny, 0, 0),
        (equal, clone3, 0, 1), (answer, absent, 0, 0),
        # fcntl up to F_SETFL: F_SETOWN and F_SETSIG would send signals to any process of the same user.
        (equal, fcntl, 0, 4), (load, second, 0, 0), (greater, set_flags, 1, 0), (answer, allow, 0, 0),
        (answer, deny, 0, 0),
    ]  # fmt: skip
    for call in _COMPUTE + (_FILES if files else ()):
        rules += [(equal, call, 0, 1), (answer, allow, 0, 0)]
    rules.append((answer, deny, 0, 0))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", op, yes, no, k) for op, k, yes, no in rules))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(rules), ctypes.addressof(code)))
    set_seccomp, mode_filter = 22, 2
    _prctl(set_seccomp, mode_filter, ctypes.addressof(program))


def _die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    if sys.platform == "linux":
        _prctl(1, number)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


# --- the candidate ------------------------------------------------------------------------------------------------


def _candidate(job: dict[str, Any], source: str, requests: int, replies: int) -> None:
    """Defines the untrusted function and answers calls until the judge closes the pipe."""
    namespace = _new_module("solution")
    try:
        exec(compile(source, "<solution>", "exec"), namespace)
        if job["entry_point"] not in namespace:
            raise NameError(f"name '{job['entry_point']}' is not defined")
        function = namespace[job["entry_point"]]
        _send(replies, {"value": None})
    except BaseException as error:
        _send(replies, _failure(error))
        return
    while True:
        try:
            arguments, keywords = unpack(_receive(requests))
        except EOFError:
            return
        try:
            _send(replies, {"value": pack(function(*arguments, **keywords))})
        except BaseException as error:
            _send(replies, _failure(error))


def _new_module(name: str) -> dict[str, Any]:
    """The names of a new module; one that is not `__main__`, and that `dataclass` and the like find by its name."""
    sys.modules[name] = ModuleType(name)
    return vars(sys.modules[name])


def _failure(error: BaseException) -> dict[str, str]:
    try:
        text = str(error)[:1000]
    except BaseException:  # its own __str__ is untrusted too
        text = ""
    return {"error": type(error).__name__, "text": text}


# --- the judge ----------------------------------------------------------------------------------------------------


class _RemoteError(Exception):
    """The candidate's error where it is of no type that the judge knows, or its end."""


class _Remote:
    """The candidate's function, as the tests call it: arguments go and results come by value."""

    def __init__(self, requests: int, replies: int, pid: int, cpu: float) -> None:
        self._requests, self._replies, self._pid, self._cpu = requests, replies, pid, cpu
        self.broken = ""  # why the candidate can answer no more; tests that catch errors must not hide it

    def __call__(self, *arguments: object, **keywords: object) -> Any:
        message = pack((arguments, keywords))
        if not self.broken:
            with contextlib.suppress(BrokenPipeError):
                _send(self._requests, message)
        return self.answer()

    def answer(self) -> Any:
        """The next result; the candidate's own exception where it is a known one, _RemoteError otherwise."""
        if self.broken:
            raise _RemoteError(self.broken)
        try:
            reply = _receive(self._replies)
            if "error" not in reply:
                return unpack(reply["value"])
            name, text = str(reply["error"]), str(reply["text"])
        except EOFError:
            self.broken = self._cause_of_death()
        except Exception as error:  # whatever a hostile message sets off
            self.broken = f"error: unreadable answer: {_line(f'{type(error).__name__}: {error}')}"
        if self.broken:
            raise _RemoteError(self.broken)
        kind, told = getattr(builtins, name, None), None
        if isinstance(kind, type) and issubclass(kind, Exception):
            with contextlib.suppress(TypeError):  # some want more than a text
                told = kind(text)
        raise told or _RemoteError(f"{name}: {text}")

    def finish(self) -> None:
        """Lets the candidate end; one whose thread hangs never does, and the wall-clock limit takes it."""
        os.close(self._requests)
        if not self.broken:
            os.waitpid(self._pid, 0)

    def _cause_of_death(self) -> str:
        for _ in range(100):  # the pipe may be closed a moment before the process ends
            pid, status, usage = os.wait4(self._pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.01)
        else:
            return "died: it closed its pipe"
        if os.WIFSIGNALED(status):
            killed, used = signal.Signals(os.WTERMSIG(status)), usage.ru_utime + usage.ru_stime
            # For the limit the kernel counts clock ticks, for the usage run time: beside busy processes they differ.
            if killed in (signal.SIGKILL, signal.SIGXCPU) and used >= math.ceil(self._cpu) / 2:
                return f"timeout: {math.ceil(self._cpu)} s of CPU time used up"
            return f"died: killed by {killed.name}"
        return f"died: it left with status {os.WEXITSTATUS(status)} before it answered"


def _verdict(remote: _Remote, entry_point: str, setup: str, tests: str) -> dict[str, object]:
    """Runs the trusted tests against the candidate; only a normal end of all of them is a pass."""
    namespace = _new_module("tests")
    try:
        exec(compile(setup, "<setup>", "exec"), namespace)
        code = compile(tests, "<tests>", "exec")
    except Exception as error:
        return {"setup": f"the set-up code or the tests do not run: {_line(repr(error))}"}
    namespace[entry_point] = remote
    reason = ""
    try:
        remote.answer()  # the definition went well
        exec(code, namespace)
        remote.finish()
    except AssertionError as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == "<tests>" and f.lineno]
        reason = f"wrong: {_line(tests.splitlines()[lines[-1] - 1] if lines else str(error))}"
    except BaseException as error:
        kind = "" if isinstance(error, _RemoteError) else f"{type(error).__name__}: "
        reason = f"error: {_line(f'{kind}{error}')}".rstrip(": ")
    reason = remote.broken or reason
    return {"passed": not reason, "reason": reason or "passed"}


def _judge(job: dict[str, Any], launcher: int) -> None:
    """Raises the walls, forks the candidate inside them and writes the verdict."""
    namespaces, seccomp = "namespaces" in job["level"], "seccomp" in job["level"]
    verdict: int = job["verdict"]
    own_uid = False
    try:
        if namespaces:
            _empty_root(job["file_bytes"])
        if namespaces or seccomp:
            own_uid = _drop_privileges(_FIRST_UID + launcher, must=namespaces) or namespaces
        sizes = {"CPU": job["cpu"], "AS": job["memory_bytes"], "FSIZE": job["file_bytes"], "NOFILE": 64, "CORE": 0}
        for name, size in sizes.items():
            # Not every system outside Linux knows or takes every limit; there is no wall there to speak of either.
            with contextlib.nullcontext() if job["level"] != "none" else contextlib.suppress(ValueError, OSError):
                _limit(getattr(resource, f"RLIMIT_{name}"), size)
    except (OSError, ValueError) as error:
        _tell(verdict, {"setup": str(error)})
        return
    (asked, asks), (reads, answers) = os.pipe(), os.pipe()  # judge to candidate, and back
    judge, candidate = os.getpid(), os.fork()
    if candidate == 0:
        source = json.loads(_read_all(0))
        os.dup2(job["null"], 0)
        for fd in range(3, 256):
            if fd not in (asked, answers):
                with contextlib.suppress(OSError):
                    os.close(fd)
    else:
        os.dup2(job["null"], 1)  # the tests' own prints are nobody's output
        os.dup2(job["null"], 2)
        os.close(asked)
        os.close(answers)
    _die_with_parent(judge if candidate == 0 else (0 if namespaces else launcher))
    try:
        if own_uid:  # elsewhere all processes of the user would count; there seccomp and memory bound processes
            _limit(resource.RLIMIT_NPROC, job["processes"] + 1)
        if seccomp:
            _seccomp(files=namespaces)
    except (OSError, ValueError) as error:
        if candidate == 0:
            os._exit(1)
        _tell(verdict, {"setup": str(error)})
        return
    if candidate == 0:
        _candidate(job, source, asked, answers)
        sys.exit(0)  # an ordinary end, which waits for threads
    trusted = json.loads(_read_all(job["tests"]))
    remote = _Remote(asks, reads, candidate, job["cpu"])
    _tell(verdict, _verdict(remote, job["entry_point"], trusted["setup"], trusted["tests"]))


def _read_all(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def _tell(verdict: int, message: dict[str, object]) -> None:
    os.write(verdict, json.dumps(message).encode() + b"\n")


# --- the launcher -------------------------------------------------------------------------------------------------


def _preload(names: Iterable[str]) -> None:
    """Imports now what the code names: inside the walls there are no files to import from."""
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if "hashlib" in sys.modules:
        sys.modules["hashlib"].md5(b"", usedforsecurity=False)  # OpenSSL reads its settings at the first use
    if "threading" in sys.modules and sys.platform == "linux":
        with contextlib.suppress(OSError):
            ctypes.CDLL("libgcc_s.so.1")  # glibc opens it when a thread is made to end


def main() -> NoReturn:
    """Starts the judge, waits for it at most the wall-clock limit, and leaves no process behind."""
    job: dict[str, Any] = json.loads(sys.argv[1])
    linux, confined = sys.platform == "linux", job["level"] != "none"
    if linux:
        _die_with_parent(job["parent"], signal.SIGTERM)
        _prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: the candidate of a judge that died comes here
    _tell(job["verdict"], {"started": True})
    _preload(job["modules"])
    job["null"] = os.open(os.devnull, os.O_RDWR)
    launcher = os.getpid()
    try:
        if "namespaces" in job["level"]:
            _enter_namespaces()
        judge = os.fork()
    except OSError as error:
        _tell(job["verdict"], {"setup": str(error)})
        os._exit(1)
    if judge == 0:
        _judge(job, launcher)
        os._exit(0)
    expired = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal expired
        expired = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(judge, signal.SIGKILL)

    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGTERM, stop)
    signal.setitimer(signal.ITIMER_REAL, job["wall"])
    _, status = os.waitpid(judge, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, 0 if confined else os.WNOHANG)[0]:
            pass
    if expired:
        _tell(job["verdict"], {"passed": False, "reason": f"timeout: not done after {job['wall']:g} s"})
    elif status != 0:
        _tell(job["verdict"], {"passed": False, "reason": "died: the tests' own process ran out of its limits"})
    os._exit(0)


if __name__ == "__main__":
    main()
