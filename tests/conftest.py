"""What the tests are given: a root file system, ways to start containers, users and cgroups.

Run them as root: `sudo python3 -m pytest tests`. What they call to start containers and to look at
the host is in containers.py.

TMPDIR  where root file systems are unpacked; it has to take idmapped mounts
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("containers")

from containers import (
    ALPINE,
    CGROUP_SH,
    PREFIX,
    PYTHON,
    SCRIPT,
    TOOLS,
    Background,
    Container,
    NormalUser,
    Result,
    Terminal,
    Word,
    delete_cgroup,
    fine,
    go,
    host_files,
    host_state,
    opened_python,
    reap_strays,
    wait_until,
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than some seconds")
    if os.geteuid() != 0:
        raise pytest.UsageError("containers are started as root: sudo python3 -m pytest tests")
    # A shell makes what it starts in the background deaf to these; containers inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGQUIT, signal.SIGHUP):  # …and so does nohup
        signal.signal(number, signal.SIG_DFL)
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


@pytest.fixture(autouse=True)
def strays_are_reaped() -> Iterator[None]:
    """Who has lost its parent is ours, and counts in its cgroup until we have waited for it."""
    yield
    reap_strays()


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


@pytest.fixture
def launch(root: Path, parent: str) -> Iterator[Callable[..., Any]]:
    """`launch(Kind, *words, …)`: what `terminal`, `background` and `start` have in common."""
    with ExitStack() as stack:

        def launch(
            kind: type,
            *words: Word,
            rootfs: Path = root,
            parent: str = parent,
            prefix: Sequence[Word] = (),
            **kw: Any,
        ) -> Any:
            mark = f"MARK={secrets.token_hex(8)}"
            options = ["--rootfs", rootfs, "--cgroup-parent", parent, "-e", mark]
            argv = [*prefix, PYTHON, SCRIPT, "run", *options, *words]
            return stack.enter_context(closing(kind(argv, mark.encode(), **kw)))

        yield launch


@pytest.fixture
def terminal(launch: Callable[..., Any]) -> Callable[..., Terminal]:
    """`terminal(*words)`: `run` in the foreground of a new terminal."""
    return lambda *words, **kw: launch(Terminal, *words, **kw)


@pytest.fixture
def background(launch: Callable[..., Any]) -> Callable[..., Background]:
    """`background(*words)`: `run` on pipes, while the test goes on."""
    return lambda *words, **kw: launch(Background, *words, **kw)


@pytest.fixture
def start(launch: Callable[..., Any]) -> Callable[..., Any]:
    """`with start(*options, script=…) as container`: waits until the script is through, then
    the container lives until its standard input ends, or the block."""

    @contextmanager
    def start(*options: Word, script: str = "", **kw: Any) -> Iterator[Container]:
        words = [*options, "/bin/sh", "-c", f"{script}\necho ready; read _"]
        watched = launch(Background, *words, stdin=subprocess.PIPE, **kw)
        try:
            watched.expect(rb"\Aready\n")
            yield Container(watched, watched.pid_1)
        finally:
            watched.process.stdin.close()
            with suppress(AssertionError):  # then it is killed
                watched.wait(5)
            watched.close()

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
    elif go("pull", "--rootfs", path).returncode != 0:  # Alpine's site does not answer
        fine(go("pull", "--busybox", "--rootfs", path))
    return path


@pytest.fixture
def alpine(root: Path) -> None:
    """For tests of what a whole distribution has, and a lone busybox has not."""
    if not (root / "etc/alpine-release").exists():
        pytest.skip("needs Alpine's root file system, and its site does not answer")


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


@pytest.fixture(scope="session")
def injector(scratch: Path) -> Path:
    """tools/inject.c, which lets system calls fail."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    path = scratch / "inject"
    source = TOOLS / "inject.c"
    subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-o", path, source], check=True)
    return path


@pytest.fixture
def project(place: Path) -> Path:
    """A project directory of a test's own: the program, and an alpine-fs as git has it."""
    shutil.copy(SCRIPT, place)
    shutil.copy(CGROUP_SH, place)
    (place / "alpine-fs").mkdir()
    (place / "alpine-fs/.gitignore").write_text("*\n!.gitignore\n")
    return place


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
