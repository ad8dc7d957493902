"""What all tests share: a root file system, ways to start containers, and eyes on the host.

The tests look at go_container.py from outside only: exit codes, bytes, and what /proc and
/sys/fs/cgroup of the host say. Run them as root: `sudo python3 -m pytest tests`.

GO_CONTAINER_PYTHON  the interpreter that runs go_container.py (default: the one that runs pytest)
TMPDIR               where root file systems are unpacked; it has to take idmapped mounts
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPT = REPOSITORY / "go_container.py"
CGROUP_SH = REPOSITORY / "cgroup.sh"
PYTHON = os.environ.get("GO_CONTAINER_PYTHON", sys.executable)
ALPINE = next(iter(sorted(REPOSITORY.glob("../shared/alpine-minirootfs-*.tar.gz"))), None)

Result = subprocess.CompletedProcess  # standard output and error are bytes
Word = "str | bytes | os.PathLike[str]"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than some seconds")
    if os.geteuid() != 0:
        raise pytest.UsageError("containers are started as root: sudo python3 -m pytest tests")
    # A shell makes what it starts in the background deaf to these; containers inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    libc = ctypes.CDLL(None, use_errno=True)
    # What a container leaves behind becomes a child of the tests, where `host_state` finds it.
    libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    # What others mount meanwhile is not seen, and a mount that gets out harms nobody. That it
    # could get out is what sharing is for: so systemd leaves a host's mounts.
    if libc.unshare(0x20000):  # CLONE_NEWNS
        raise pytest.UsageError(f"unshare: {os.strerror(ctypes.get_errno())}")
    for propagation in ("private", "shared"):
        subprocess.run(["mount", f"--make-r{propagation}", "/"], check=True)


# --- Starting things ---------------------------------------------------------------------------


def go(*words: Word, prefix: Sequence[Word] = (), script: Path = SCRIPT, **kw: Any) -> Result:
    """Run go_container.py with these words to its end, by way of the command `prefix`."""
    kw = {"timeout": 60, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kw}
    if "input" not in kw:
        kw.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run([*prefix, PYTHON, script, *words], **kw)


def one_line(result: Result, code: int = 125) -> str:
    """The single line that an error of our own is, after checking that it is nothing else."""
    text = result.stderr.decode()
    assert result.returncode == code, f"exit code {result.returncode}, not {code}: {text}"
    assert not result.stdout
    assert text.startswith("go_container: ") and text.endswith("\n") and text.count("\n") == 1, text
    return text


def fine(result: Result) -> bytes:
    """The standard output of a run that succeeded and said nothing on standard error."""
    assert (result.returncode, result.stderr) == (0, b""), result
    return result.stdout


THROWAWAY = ("unshare", "-muipf", "--mount-proc", "sh", "-c", 'mount --make-rshared / && "$@"')


def in_throwaway_namespaces(command: str | Sequence[Word], **kw: Any) -> Result:
    """Run a shell script or an argv as root where mounts and the host name are not the machine's.

    Mounts are shared there, as systemd leaves them on a real host, but not with the real host.
    The kernel is the same: sysctls and device nodes are the machine's own.
    """
    words = ["sh", "-c", command] if isinstance(command, str) else command
    kw = {"timeout": 60, "stdin": subprocess.DEVNULL, "capture_output": True, **kw}
    return subprocess.run([*THROWAWAY, "sh", *words], **kw)


def host_files(tmp_path: Path, **files: str) -> list[str]:
    """A `prefix` under which /etc/NAME is the given text, for that one command only."""
    script = 'exec "$@"'
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        script = f"mount --bind '{tmp_path / name}' /etc/{name} && {script}"
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


@pytest.fixture(autouse=True)
def reap_strays() -> Iterator[None]:
    """Who has lost its parent is ours, and counts in its cgroup until we have waited for it."""
    yield
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


@pytest.fixture
def run(root: Path, parent: str) -> Callable[..., Result]:
    """`run(*words)`: in the session's root and cgroup, or in those given as rootfs= and parent=."""

    def run(*words: Word, rootfs: Path = root, parent: str = parent, **kw: Any) -> Result:
        return go("run", "--rootfs", rootfs, "--cgroup-parent", parent, *words, **kw)

    return run


@pytest.fixture
def shell(run: Callable[..., Result]) -> Callable[..., Result]:
    """`shell(script, *options)`: a shell script in a container."""

    def shell(script: Word, *options: Word, **kw: Any) -> Result:
        return run(*options, "/bin/sh", "-c", script, **kw)

    return shell


class Container(NamedTuple):
    """A container that runs: `run` on the host, and the pid that the host knows its PID 1 by."""

    process: subprocess.Popen[bytes]
    pid: int

    def finish(self, timeout: float = 20) -> Result:
        """Close its standard input, which ends it, and give what it said since."""
        out, err = self.process.communicate(timeout=timeout)
        return Result(self.process.args, self.process.returncode, out, err)

    def cgroup(self, controller: str) -> Path:
        """The directory of the cgroup that PID 1 is in, as the host sees it."""
        return HIERARCHIES[controller] / cgroup_path(self.pid, controller).lstrip("/")


@pytest.fixture
def start(root: Path, parent: str) -> Callable[..., Any]:
    """`with start(*options, script=…) as container`: waits until the script is through, then
    the container lives until its standard input ends, or the block."""

    @contextmanager
    def start(
        *options: Word,
        script: str = "",
        rootfs: Path = root,
        parent: str = parent,
        prefix: Sequence[Word] = (),
        **kw: Any,
    ) -> Iterator[Container]:
        argv = [*prefix, PYTHON, SCRIPT, "run", "--rootfs", rootfs, "--cgroup-parent", parent]
        argv += [*options, "/bin/sh", "-c", f"{script}\necho ready; read _"]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with subprocess.Popen(argv, **pipes, **kw) as process:
            try:
                line = process.stdout.readline()
                assert line == b"ready\n", line + process.stderr.read()
                yield Container(process, pid_1_of(process.pid))
            finally:
                process.stdin.close()
                wait_until(lambda: process.poll() is not None) or process.kill()

    return start


# --- Things to start it with -------------------------------------------------------------------


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A directory that everybody can enter, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="go-container-tests-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def root(scratch: Path) -> Path:
    """A root file system for tests that only read it: Alpine's, or else the host's busybox."""
    path = scratch / "root"
    if ALPINE:
        path.mkdir()
        subprocess.run(["tar", "-xzf", ALPINE, "-C", path, "--numeric-owner"], check=True)
    else:
        fine(go("pull", "--busybox", "--rootfs", path))
    return path


@pytest.fixture(scope="session")
def tarball(root: Path, scratch: Path) -> Path:
    """Enough of the root to run a command, with a mark in it, as `docker export` would give it."""
    path = scratch / "exported.tar"
    (scratch / "mark").write_text("it\n")
    with tarfile.open(path, "w") as tar:
        tar.add(scratch / "mark", "mark")
        for name in ("bin", "etc", "lib", "root", "tmp"):
            if (root / name).exists():
                tar.add(root / name, name)
    return path


@pytest.fixture
def fresh_root(root: Path, scratch: Path) -> Iterator[Path]:
    """A root file system of its own for a test that writes to it."""
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        os.chmod(directory, 0o755)
        path = Path(directory, "root")
        subprocess.run(["cp", "-a", root, path], check=True)
        yield path


@pytest.fixture
def place(scratch: Path) -> Iterator[Path]:
    """An empty directory that everybody can enter."""
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@pytest.fixture
def project(place: Path) -> Path:
    """A project directory of a test's own: the program, and an alpine-fs as git has it."""
    shutil.copy(SCRIPT, place)
    shutil.copy(CGROUP_SH, place)
    (place / "alpine-fs").mkdir()
    (place / "alpine-fs/.gitignore").write_text("*\n!.gitignore\n")
    return place


@functools.cache
def opened_python() -> list[str]:
    """A `prefix` under which everybody can execute PYTHON, though it is below somebody's home."""
    words = [PYTHON, "-c", "import sys; print(sys.base_prefix)"]
    base = Path(subprocess.run(words, capture_output=True, text=True).stdout.strip())
    closed = next((path for path in [*base.parents][::-1] if not path.stat().st_mode & 1), None)
    if closed is None:
        return []
    script = f"""mount --bind '{base}' /mnt && mount -t tmpfs -o mode=755 none '{closed}' &&
        mkdir -p '{base}' && mount --move /mnt '{base}' && exec "$@" """
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


class NormalUser(NamedTuple):
    """Somebody without privileges, whom /etc/passwd knows under `name` while `prefix` is in use."""

    uid: int
    name: str
    home: Path
    prefix: list[str]


@pytest.fixture
def normal_user(place: Path) -> Callable[..., NormalUser]:
    """`normal_user(subuid="student:300000:65536")`: a user with these subordinate ids, or none."""

    def normal_user(subuid: str = "", uid: int = 54321, name: str = "student") -> NormalUser:
        home = place / name
        home.mkdir()
        os.chown(home, uid, uid)
        passwd = Path("/etc/passwd").read_text() + f"{name}:x:{uid}:{uid}::{home}:/bin/sh\n"
        become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        ids = f"{subuid}\n" if subuid else ""
        prefix = host_files(place, passwd=passwd, subuid=ids, subgid=ids) + opened_python() + become
        if subprocess.run([*prefix, PYTHON, "-c", ""], stderr=subprocess.DEVNULL).returncode:
            pytest.skip(f"a normal user cannot execute {PYTHON}")
        if subprocess.run([*prefix, "unshare", "-Urm", "true"], capture_output=True).returncode:
            pytest.skip("this machine refuses user namespaces to normal users")
        return NormalUser(uid, name, home, prefix)

    return normal_user


# --- cgroups -----------------------------------------------------------------------------------


def mounts() -> Iterator[tuple[str, str, str, str]]:
    """Mount point, type, source and super block options of every mount of the host."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, after = line.split(" - ")
        kind, source, options = after.split(" ", 2)
        yield before.split()[4], kind, source, options


def hierarchies() -> dict[str, Path]:
    """Where each controller's cgroups are, of whichever version; "v2" for where those of v2 are."""
    found = {}
    for point, kind, _, options in mounts():
        if kind == "cgroup":
            found |= dict.fromkeys(options.split(","), Path(point))
        elif kind == "cgroup2":
            names = Path(point, "cgroup.controllers").read_text().split()
            found |= dict.fromkeys([*names, "v2"], Path(point))
    return found


HIERARCHIES = hierarchies()
CONTROLLERS = ("pids", "memory", "cpu")
ON_V2 = HIERARCHIES.get("pids") == HIERARCHIES.get("v2")
needs_v1 = pytest.mark.skipif(ON_V2, reason="needs cgroup v1")


def cgroup_path(pid: int | str, controller: str) -> str:
    """The cgroup of a process in a controller's hierarchy, from its root on."""
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    names = {name: path for _, names, path in lines for name in names.split(",")}
    return names.get(controller, names.get("", "/"))


def read_limits(controller: str, name: str | Path) -> tuple[str, ...]:
    """What the kernel says about a cgroup: processes; bytes; or microseconds of each period."""
    directory = HIERARCHIES[controller] / name
    v2, v1 = {
        "pids": (["pids.max"], ["pids.max"]),
        "memory": (["memory.max"], ["memory.limit_in_bytes"]),
        "cpu": (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]),
    }[controller]
    files = v2 if HIERARCHIES[controller] == HIERARCHIES.get("v2") else v1
    return tuple(word for file in files for word in (directory / file).read_text().split())


def cgroups(prefix: str) -> list[str]:
    """Every cgroup whose path begins like this, and those below."""
    places = {HIERARCHIES[name] for name in CONTROLLERS}
    return sorted(str(found) for place in places for found in place.glob(f"{prefix}*/**/"))


# Of all cgroups of this session: others may be testing, too, and in a PID namespace all are 1.
PREFIX = f"test-{os.urandom(4).hex()}"


def delete_cgroup(name: str) -> None:
    subprocess.run([CGROUP_SH, "--name", name, "--delete"], capture_output=True)


@pytest.fixture(scope="session")
def parent() -> Iterator[str]:
    """A cgroup with the limits of the exercise, 10 processes and 50 MB, for the whole session."""
    subprocess.run([CGROUP_SH, "--name", PREFIX], check=True, stdout=subprocess.DEVNULL)
    yield PREFIX
    delete_cgroup(PREFIX)


@pytest.fixture
def own_parent() -> Iterator[str]:
    """The name of a cgroup that is not there yet, and is deleted after the test."""
    name = f"{PREFIX}-own"
    yield name
    delete_cgroup(name)


# --- The host before and after -----------------------------------------------------------------


def children(pid: int) -> list[int]:
    """The processes that descend from this one, without those that have ended."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, ppid = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            parents.setdefault(int(ppid), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found[1:]


def pid_1_of(pid: int) -> int:
    """Among the descendants of `run`, the one that is PID 1 in its container."""
    for child in children(pid):
        status = Path(f"/proc/{child}/status").read_text()
        ids = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid"))
        if len(ids) > 1 and ids[-1] == "1":
            return child
    raise AssertionError(f"process {pid} has no container")


def host_state() -> dict[str, object]:
    """What no container may change: mounts, host name, device nodes, our cgroups and processes."""
    nodes = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir("/dev")}
    return {
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "hostname": os.uname().nodename,
        "devices": {n: (oct(s.st_mode), s.st_uid, s.st_gid, s.st_rdev) for n, s in nodes.items()},
        "cgroups": cgroups(PREFIX),
        "processes": children(os.getpid()),
    }


def wait_until(condition: Callable[[], Any], seconds: float = 5) -> Any:
    """Give a condition time to come true; its last value either way."""
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return value


@pytest.fixture(autouse=True)
def host_is_left_as_it_was(parent: str) -> Iterator[None]:
    """After every test, the host has to be as it was before."""
    before = host_state()
    yield
    wait_until(lambda: host_state() == before, 2)
    after = host_state()
    for pid in set(after["processes"]) - set(before["processes"]):
        os.kill(pid, signal.SIGKILL)  # one test's leftovers are not the next one's
    assert after == before
