"""Somebody changes the tree while the launcher works in it: each race runs for some seconds.

What wins one start in ten by chance wins one in a thousand at will. So a test does not ask how
often it works: every single container has all of its walls, or there is none.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from containers import PYTHON, SCRIPT, NormalUser, Result, fine, go, one_line, pid_1_of

pytestmark = pytest.mark.once  # the kernel's races, whichever Python

SECONDS = float(os.environ.get("GO_CONTAINER_TEST_SECONDS", "6"))

SWAP = """
import ctypes, os, random, sys, time
one, other, longest = os.fsencode(sys.argv[1]), os.fsencode(sys.argv[2]), float(sys.argv[3])
exchange = ctypes.CDLL(None).renameat2
print("begun", flush=True)
while os.getppid() != 1:
    exchange(-100, one, -100, other, 2)
    time.sleep(random.random() * longest)
"""


@contextmanager
def swapping(one: Path, other: Path, longest: float) -> Iterator[None]:
    """Two names change places all the time, after pauses of up to so many seconds."""
    words = [sys.executable, "-c", SWAP, one, other, str(longest)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"begun\n"
            before = one.lstat().st_ino
            deadline = time.monotonic() + 5
            while one.lstat().st_ino == before:  # the control: they do change places
                assert time.monotonic() < deadline
            yield
        finally:
            process.kill()


# --- /proc and /dev, while a container starts ----------------------------------------------------

MASKED = (
    "acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "sched_debug", "scsi",
    "timer_list", "timer_stats",
)  # fmt: skip
READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
DOCKERS_FOURTEEN = "00000000a80425fb"


def prepare_proc(path: Path) -> None:
    """A tree that a launcher takes for /proc: it has what is read and written in a real one."""
    texts = {
        "sys/kernel/cap_last_cap": "31\n",
        "sys/user/max_user_namespaces": "1000\n",
        "self/setgroups": "allow\n",
        "self/uid_map": "0 100000 65536\n",
        "self/gid_map": "0 100000 65536\n",
        "self/status": "Name:\tx\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n",
        "self/stat": Path("/proc/self/stat").read_text(),
        "self/mountinfo": Path("/proc/self/mountinfo").read_text(),
    }
    for name in (*MASKED, *READ_ONLY):
        real = Path("/proc", name)
        if real.is_dir():
            (path / name).mkdir(parents=True)
        elif real.exists():
            texts[name] = "nothing\n"
    for name, text in texts.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    (path / "thread-self").symlink_to("self")
    for name in ("self/fd", "self/ns", "self/task", "1"):
        (path / name).mkdir(parents=True)


def prepare_dev(path: Path) -> None:
    for name in ("pts", "shm", "mqueue"):
        (path / name).mkdir(parents=True)
    for name in ("null", "zero", "full", "random", "urandom", "tty", "console"):
        (path / name).write_text("")


def mounts_of(pid: int) -> list[tuple[str, str, str, str, str]]:
    """Id, parent, mount point, options and kind of each mount that a process has."""
    found = []
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        fields = line.split()
        number, parent, _, _, point, options = fields[:6]
        found.append((number, parent, point, options, fields[fields.index("-") + 1]))
    return found


def weaknesses(pid: int) -> list[str]:
    """Which walls a container does not have, as the host sees it from outside."""
    weak = []
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    if status["CapBnd"] != DOCKERS_FOURTEEN:
        weak.append(f"CapBnd {status['CapBnd']}")
    mounts = mounts_of(pid)
    top = mounts[0][0]
    procs = [each for each in mounts if each[4] == "proc" and each[1] == top]
    names = ("/etc/hostname", "/etc/hosts")  # files of the container's own, on a tmpfs, too
    devs = [
        each for each in mounts if each[4] == "tmpfs" and each[1] == top and each[2] not in names
    ]
    if len(procs) != 1 or len(devs) != 1:
        return [*weak, f"/proc is mounted {len(procs)} times, /dev {len(devs)} times: {mounts}"]
    in_proc, in_dev = (
        # By the last part only: the one above it may change its name from line to line.
        {each[2].rpartition("/")[2]: each[3].split(",") for each in mounts if each[1] == above}
        for above in (procs[0][0], devs[0][0])
    )
    for name in MASKED:
        if Path("/proc", name).exists() and name not in in_proc:
            weak.append(f"{name} is not masked")
    for name in READ_ONLY:
        if Path("/proc", name).exists() and "ro" not in in_proc.get(name, ()):
            weak.append(f"{name} can be written to")
    for name in ("pts", "shm", "mqueue", "null", "zero", "full", "random", "urandom", "tty"):
        if name not in in_dev:
            weak.append(f"{name} is not in a /dev of the container's own")
    limit = subprocess.run(
        ["nsenter", "--user", "--target", str(pid), "cat", "/proc/sys/user/max_user_namespaces"],
        capture_output=True,
    )
    if limit.stdout != b"0\n":
        weak.append(f"user namespaces: {limit.stdout + limit.stderr!r}")
    return weak


def one_start(argv: list[object], tally: dict[str, int], warned: bool) -> list[str]:
    """Start a container and look at it. A refusal in one line is fine, and counted."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(argv, **pipes) as process:
        ready = process.stdout.readline() == b"ready\n"
        weak = weaknesses(pid_1_of(process.pid)) if ready else []
        out, err = process.communicate(timeout=20)
    tally["started" if ready else "refused"] += 1
    if not ready:
        lines = [line for line in err.splitlines(True) if not warned or b"warning" not in line]
        one_line(Result(argv, process.returncode, out, b"".join(lines)))
    return weak


WHERE = {"proc": prepare_proc, "dev": prepare_dev}
OPTIONS = {"nobody": [], "host root": ["--userns", "host-root"]}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("where", WHERE)
def test_no_container_loses_a_wall_to_who_swaps_its(fresh_root, parent, where, options):
    """Who owns the root directory can, and so can a container that shares it."""
    other = fresh_root / "prepared"
    WHERE[where](other)
    argv = [PYTHON, SCRIPT, "run", "--rootfs", fresh_root, "--cgroup-parent", parent, *options]
    argv += ["/bin/sh", "-c", "echo ready; read _"]
    tally = {"started": 0, "refused": 0}
    weak = one_start(argv, tally, bool(options))
    assert not weak and tally["started"] == 1  # undisturbed, it has them all
    weak, deadline = [], time.monotonic() + SECONDS
    with swapping(fresh_root / where, other, 0.001):
        while time.monotonic() < deadline:
            weak += one_start(argv, tally, bool(options))[:1]
    assert not weak, f"{len(weak)} of {tally}: {sorted(set(weak))}"
    assert sum(tally.values()) > 5, tally


def test_a_lost_wall_would_be_seen(fresh_root, parent):
    """The control: what is weak on purpose is told, and so is what lacks a mask."""
    argv = [PYTHON, SCRIPT, "run", "--rootfs", fresh_root, "--cgroup-parent", parent]
    argv += ["--cap-add", "ALL", "--security-opt", "seccomp=unconfined", "/bin/sh", "-c"]
    undo = "umount /proc/keys; umount /proc/sys; umount /dev/shm; echo ready; read _"
    weak = one_start([*argv, undo], {"started": 0, "refused": 0}, False)
    assert "keys is not masked" in weak and "sys can be written to" in weak
    assert any(line.startswith("CapBnd") for line in weak)
    assert "shm is not in a /dev of the container's own" in weak


# --- pull in a directory of somebody else's ------------------------------------------------------

SWAP_NEW = """
import os, sys
os.setgroups([])
os.setresgid(54321, 54321, 54321)
os.setresuid(54321, 54321, 54321)
parent, victim = os.fsencode(sys.argv[1]), os.fsencode(sys.argv[2])
known = set(os.listdir(parent))
print("begun", flush=True)
while os.getppid() != 1:
    for name in os.listdir(parent):
        if name in known:
            continue
        path = parent + b"/" + name
        known.add(name)
        try:
            if os.path.isdir(path) and not os.path.islink(path):
                os.rename(path, path + b".gone")
                known.add(name + b".gone")
                os.symlink(victim, path)
        except OSError:
            pass
"""


@pytest.fixture
def victim(place: Path) -> Path:
    """A directory of root's, where a careless pull finds all it needs to go on."""
    path = place / "victim"
    path.mkdir()
    (path / "etc").mkdir()
    (path / "etc/passwd").write_text("the host's\n")
    return path


def facts(tree: Path) -> dict[Path, tuple[object, ...]]:
    found = {}
    for path in [tree, *sorted(tree.rglob("*"))]:
        s = path.lstat()
        text = path.read_bytes() if stat.S_ISREG(s.st_mode) else None
        found[path] = (s.st_mode, s.st_uid, s.st_gid, s.st_mtime_ns, s.st_ctime_ns, text)
    return found


@pytest.fixture
def theirs(place: Path) -> Path:
    """A directory of a user's."""
    path = place / "theirs"
    path.mkdir()
    os.chown(path, 54321, 54321)
    return path


def sudo(uid: int) -> dict[str, str]:
    return {**os.environ, "SUDO_UID": f"{uid}", "SUDO_GID": f"{uid}", "SUDO_USER": f"user{uid}"}


NOBODY = {name: text for name, text in os.environ.items() if not name.startswith("SUDO_")}
REFUSED = {
    "another user's": ((54321, 0o755), NOBODY),
    "another user's than sudo's caller's": ((54321, 0o755), sudo(54322)),
    "everybody's": ((0, 0o777), NOBODY),
    "everybody's, for sudo's caller": ((0, 0o777), sudo(54321)),
    "the caller's, and everybody's": ((54321, 0o777), sudo(54321)),
}
TAKEN = {
    "root's": ((0, 0o755), NOBODY),
    "root's, for sudo's caller": ((0, 0o755), sudo(54321)),
    "everybody's, who keep to what is theirs": ((0, 0o1777), NOBODY),
    "the caller's before sudo": ((54321, 0o755), sudo(54321)),
    "the caller's alone": ((54321, 0o700), sudo(54321)),
}


@pytest.mark.parametrize(("kind", "env"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("words", [[], ["--force"], ["--busybox"]], ids=["", "force", "busybox"])
def test_root_pulls_into_no_directory_that_is(theirs, tarball, kind, env, words):
    os.chown(theirs, kind[0], kind[0])
    theirs.chmod(kind[1])
    source = [] if "--busybox" in words else [tarball]
    if "--busybox" in words and not shutil.which("busybox"):
        pytest.skip("busybox is not installed")
    text = one_line(go("pull", *words, "--rootfs", theirs / "root", *source, env=env))
    assert str(theirs) in text
    assert os.listdir(theirs) == []


@pytest.mark.parametrize(("kind", "env"), TAKEN.values(), ids=TAKEN)
def test_root_pulls_into_a_directory_that_is(theirs, tarball, kind, env):
    os.chown(theirs, kind[0], kind[0])
    theirs.chmod(kind[1])
    for words in ([], ["--force"]):
        assert fine(go("pull", *words, "--rootfs", theirs / "root", tarball, env=env)) == b""
        assert os.listdir(theirs) == ["root"] and (theirs / "root/mark").read_text() == "it\n"


def test_a_user_still_pulls_wherever_they_may_write(normal_user, theirs, tarball, place):
    """Who has no more rights than the owner of the directory cannot be made to use them."""
    user: NormalUser = normal_user()
    theirs.chmod(0o777)
    words = ("pull", "--rootfs", theirs / "root", tarball)
    assert fine(go(*words, prefix=user.prefix)) == b""
    assert (theirs / "root/mark").read_text() == "it\n"


@pytest.mark.parametrize("env", [NOBODY, sudo(54321)], ids=["root", "the caller before sudo"])
def test_no_swap_of_what_pull_makes_leads_elsewhere(theirs, victim, place, env):
    """The owner of the directory puts links in place of whatever appears there."""
    mark = place / "mark"
    mark.write_text("it\n")
    os.chown(mark, 7, 7)
    subprocess.run(["tar", "-cf", place / "x.tar", "-C", place, "mark"], check=True)
    before = facts(victim)
    attacker = [sys.executable, "-c", SWAP_NEW, theirs, victim]
    with subprocess.Popen(attacker, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"begun\n"
            deadline, pulls, control = time.monotonic() + SECONDS, 0, theirs / "control"
            control.mkdir()
            while not control.is_symlink():  # the control: it is quick
                assert time.monotonic() < deadline
            while time.monotonic() < deadline:
                words = ("pull", "--rootfs", theirs / f"root-{pulls}", place / "x.tar")
                result = go(*words, env=env)
                if result.returncode:
                    one_line(result)
                assert facts(victim) == before, result
                pulls += 1
        finally:
            process.kill()
    assert pulls > 5


# --- spec --copy of a root in use ----------------------------------------------------------------


@pytest.mark.parametrize("up", ["", "../" * 30], ids=["absolute", "relative"])
def test_no_swap_of_a_directory_brings_a_secret_into_the_bundle(place, root, up):
    """A container that goes on in this root puts a link in place of a directory."""
    own, secret = place / "own", place / "secret"
    subprocess.run(["cp", "-a", root, own], check=True)
    secret.mkdir()
    (secret / "file").write_text("a secret of the host's root\n")
    secret.chmod(0o700)
    many = own / "usr/many"
    many.mkdir()
    for number in range(300):
        (many / f"{number}").mkdir()
        (many / f"{number}/file").write_text("the root's\n")
        (many / f"link-{number}").symlink_to(f"{up.rstrip('/')}{secret}")
    swap_all = """
import ctypes, os, sys
os.chdir(sys.argv[1])
exchange = ctypes.CDLL(None).renameat2
pairs = [(b"%d" % n, b"link-%d" % n) for n in range(300)]
print("begun", flush=True)
while os.getppid() != 1:
    for one, other in pairs:
        exchange(-100, one, -100, other, 2)
"""
    words = ("spec", "--rootfs", own, "--copy", "--bundle", place / "bundle", "true")
    copies, deadline = 0, time.monotonic() + SECONDS
    attacker = [sys.executable, "-c", swap_all, many]
    with subprocess.Popen(attacker, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"begun\n"
            first = many / "0"
            while not first.is_symlink():  # the control: it gets there, and leads to the secret
                assert time.monotonic() < deadline
            while time.monotonic() < deadline:
                result = go(*words)
                if result.returncode:
                    one_line(result)
                    assert not (place / "bundle").exists()
                    continue
                look = ["grep", "-rlE", "a secret of the host", place / "bundle"]
                found = subprocess.run(look, capture_output=True).stdout
                subprocess.run(["rm", "-rf", place / "bundle"], check=True)
                assert found == b"", f"in copy {copies}: {found.decode()}"
                copies += 1
        finally:
            process.kill()


def test_a_root_that_nobody_changes_is_copied_whole(place, root):
    """The control: a refusal each time would bring no secret either."""
    (place / "own").mkdir()
    subprocess.run(["cp", "-aT", root, place / "own"], check=True)
    (place / "own/link").symlink_to(place / "secret")
    copied = go("spec", "--rootfs", place / "own", "--copy", "--bundle", place / "bundle", "true")
    assert fine(copied) == b""
    assert os.readlink(place / "bundle/rootfs/link") == str(place / "secret")
    make: Callable[[Path], list[str]] = lambda tree: sorted(  # noqa: E731
        str(path.relative_to(tree)) for path in tree.rglob("*")
    )
    assert make(place / "own") == make(place / "bundle/rootfs")
