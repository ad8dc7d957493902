"""What all containers, or the host itself, draw from the same account: nobody takes all of it.

A user namespace's inotify instances, message queues and queued signals are charged to who made the
namespace as well: to the host's root. Descriptors in flight count for the id outside, which
containers share. The buffers of TCP have a limit of their own in cgroup v1.
"""

from __future__ import annotations

import resource
import select
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from containers import PYTHON, SCRIPT, NormalUser, fine, go, needs_v1, read_limits, wait_until

pytest_plugins = ["attempts"]
pytestmark = pytest.mark.once  # the kernel counts, whichever Python

HOST_ROOT = ("--userns", "host-root")
BOTH = pytest.mark.parametrize("options", [(), HOST_ROOT], ids=["nobody", "host root"])
SOMEBODY = 54399  # of whom there is nobody else
WHAT = ["instances", "watches", "queues", "signals"]
HARD_FILES = 20250  # descriptors in flight; as many may be open as the caller may open

# --- What the namespace's maker is charged for ---------------------------------------------------


@contextmanager
def held(*argv: Any, **kw: Any) -> Iterator[int]:
    """How many a greedy program took, which it holds until the block ends."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(argv, **pipes, **kw) as process:
        try:
            ready = select.select([process.stdout], [], [], 20)[0]
            line = process.stdout.readline() if ready else b"nothing"
            assert line.strip().isdigit(), line
            yield int(line)
        finally:
            process.stdin.close()
            wait_until(lambda: process.poll() is not None) or process.kill()


def as_user(uid: int) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]


@pytest.fixture
def shelf(place: Path) -> Iterator[Path]:
    """A directory for what is watched on the host."""
    path = place / "shelf"
    path.mkdir()
    path.chmod(0o777)
    yield path
    subprocess.run(["rm", "-rf", path], check=True)


@pytest.fixture
def take(attempts: Path, shelf: Path) -> Callable[..., int]:
    """`take(what, uid, most)`: how many somebody on the host gets now, and gives back."""

    def take(what: str, uid: int, most: int) -> int:
        with held(*as_user(uid), attempts / "greedy", what, f"{most}", shelf) as count:
            return count

    return take


@pytest.fixture
def greedy(armed_root: Path, parent: str) -> Callable[..., Any]:
    """`with greedy(what, *options) as count`: a container that takes all it gets, and holds it."""

    def greedy(what: str, *options: str, limit: int = 0, parent: str = parent, prefix: Any = ()):
        words = [*prefix, PYTHON, SCRIPT, "run", "--rootfs", armed_root, "--cgroup-parent", parent]
        return held(*words, *options, "/attempts/greedy", what, f"{limit}")

    return greedy


def all_there_are(what: str) -> int:
    """…for one user: a sysctl or a limit of this process, which the launcher has, too."""
    if what == "queues":
        return resource.getrlimit(resource.RLIMIT_MSGQUEUE)[0] // (10 * (8192 + 48 + 16))
    if what == "signals":
        return resource.getrlimit(resource.RLIMIT_SIGPENDING)[0]
    return int(Path(f"/proc/sys/fs/inotify/max_user_{what}").read_text())


@BOTH
@pytest.mark.parametrize("what", WHAT)
def test_one_container_leaves_the_host_s_root_its_share_of(greedy, take, what, options):
    """…and gets one itself: programs in containers watch files, too."""
    half = all_there_are(what) // 2
    assert take(what, 0, half) == half
    with greedy(what, *options) as taken:
        assert taken >= 1
        left = take(what, 0, half)
    assert left == half, f"{taken} taken inside: no more than {left} are left"


@pytest.mark.parametrize("what", WHAT)
def test_one_container_leaves_its_user_their_share_of(greedy, take, normal_user, what):
    user: NormalUser = normal_user(uid=SOMEBODY)
    half = all_there_are(what) // 2
    assert take(what, SOMEBODY, half) == half
    with greedy(what, parent="none", prefix=user.prefix) as taken:
        assert taken >= 1
        left = take(what, SOMEBODY, half)
    assert left == half, f"{taken} taken inside: no more than {left} are left"


@pytest.mark.parametrize("what", WHAT)
def test_without_a_share_a_user_namespace_takes_all(attempts, take, shelf, what):
    """The control: this is what the kernel does by itself, to somebody who is not there."""
    few = all_there_are(what) // 10
    namespaces = ["unshare", "--user", "--map-root-user", "--ipc"]
    control = [*as_user(SOMEBODY), *namespaces, attempts / "greedy", what, "0", shelf]
    with held(*control):
        assert take(what, SOMEBODY, few + 1) <= few


# --- Descriptors in flight -----------------------------------------------------------------------


def test_too_many_in_flight_are_refused_to_one_user_by_the_kernel(attempts):
    """The control: the account is the user's, however many processes and namespaces there are."""
    become = as_user(SOMEBODY)
    namespaces = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    first = held(*become, *namespaces, attempts / "greedy", "flight", f"{HARD_FILES}")
    second = ["prlimit", "--nofile=1024:1024", attempts / "greedy", "flight", "500"]
    with first as taken, held(*become, *second) as more:
        assert taken > 1024 and more == 0


@pytest.mark.parametrize("others", [(), HOST_ROOT], ids=["nobody", "host root"])
@BOTH
def test_descriptors_in_flight_in_one_container_stop_no_other(
    greedy, terminal, run, options, others
):
    """They share the ids outside, and the other one's terminal is a descriptor on its way, too."""
    with greedy("flight", *options, limit=HARD_FILES) as taken:
        assert taken > 1024
        result = run(*others, "/bin/echo", "fine", prefix=["prlimit", "--nofile=1024:1024"])
        assert (result.returncode, result.stdout) == (0, b"fine\n"), result
        caller = terminal(*others, "-t", "/bin/sh", "-c", "ulimit -n; tty")
        assert caller.wait() == 0, bytes(caller.output)
        assert caller.output.endswith(b"/dev/pts/0\r\n")


def test_descriptors_in_flight_of_a_user_s_container_stop_no_other(
    greedy, run, normal_user, armed_root
):
    user: NormalUser = normal_user(uid=SOMEBODY)
    with greedy("flight", parent="none", prefix=user.prefix, limit=HARD_FILES) as taken:
        assert taken > 1024
        prefix = [*user.prefix, "prlimit", "--nofile=1024:1024"]
        words = ["run", "--rootfs", armed_root, "--cgroup-parent", "none"]
        assert fine(go(*words, "/bin/echo", "fine", prefix=prefix)) == b"fine\n"
        assert fine(go(*words, "-t", "/bin/echo", "fine", prefix=prefix)) == b"fine\r\n"


# --- The buffers of TCP --------------------------------------------------------------------------

TCP_LIMIT = "memory.kmem.tcp.limit_in_bytes"
MUCH = 300_000_000


@needs_v1
@pytest.mark.parametrize(("options", "limit"), [(["-m", "20m"], 20 << 20), ([], 50 << 20)])
def test_the_memory_limit_is_that_of_tcp_s_buffers_too(start, parent, options, limit):
    """…the container's own, or the one that all containers share."""
    with start(*options) as container:
        leaf = container.cgroup("memory")
        limits = [int((each / TCP_LIMIT).read_text()) for each in (leaf, leaf.parent)]
    assert min(limits) == limit
    assert not options or limits[0] == limit
    assert read_limits("memory", parent) == (str(50 << 20),)


@pytest.mark.parametrize("network", ["host", "none"])
def test_what_is_queued_in_connections_is_within_the_memory_limit(greedy, attempts, network):
    with held(attempts / "greedy", "tcp", f"{MUCH}") as outside:
        assert outside >= MUCH  # the control: the machine takes that much
    with greedy("tcp", "--network", network, "-m", "40m", limit=MUCH) as taken:
        assert 0 < taken < 60 << 20
