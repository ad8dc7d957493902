"""A root file system may be anybody's: links in it that name paths of the host lead nowhere.

Every link leads to a directory of the host that has whatever the launcher may look for, so that
a launcher which follows it would succeed there, and leave traces.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from containers import PYTHON, SCRIPT, fine, needs_alpine, one_line

pytest_plugins = ["attempts"]

# --- Links to the host ---------------------------------------------------------------------------


@pytest.fixture
def target(place):
    """A directory of the host's, furnished like /dev, /etc and /proc at once."""
    path = place / "host"
    for name in ("pts", "shm", "mqueue", "net", "self", "sys", "directory"):
        (path / name).mkdir(parents=True)
    for name in ("null", "ptmx", "console", "resolv.conf", "hosts", "hostname", "passwd", "group"):
        (path / name).write_text(f"the host's {name}\n")
    return path


@pytest.fixture
def hostile_root(root, place):
    """A root file system whose directories are a test's own; its files it only replaces."""
    subprocess.run(["cp", "-al", root, place / "root"], check=True)
    return place / "root"


def absolute(link, target):
    link.symlink_to(target)


def relative(link, target):
    link.symlink_to(f"{'../' * 30}{target.relative_to('/')}")


def chained(link, target):
    """…through a link that is an innocent one by itself."""
    relative(link.with_name("innocent"), target)
    link.symlink_to("innocent")


ALL_LINKS = pytest.mark.parametrize("make_link", [absolute, relative, chained])
LINKS = pytest.mark.parametrize("make_link", [absolute, relative])


def traces(directory):
    """Everything about a directory that using it would change."""
    facts = {}
    for entry in [directory, *directory.rglob("*")]:
        found = entry.lstat()
        text = entry.read_bytes() if entry.is_file() else None
        facts[entry] = (found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, text)
    return facts


@contextmanager
def trap(link, target, make_link, name="."):
    """Put a link to something in the target into a root; in the end the target is as it was."""
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    make_link(link, target / name)

    pristine = traces(target)  # the control: on the host the link leads there
    trace = link / "trace" if link.is_dir() else link
    trace.touch()
    assert traces(target) != pristine
    for path in traces(target).keys() - pristine.keys():
        path.unlink()

    before = traces(target)
    yield
    assert traces(target) == before


def refused_or_fine(result, word):
    """Either one line that names the place, or a container that is right."""
    if result.returncode:
        assert word in one_line(result)
    else:
        assert fine(result) == b"fine\n"


@ALL_LINKS
@pytest.mark.parametrize("path", ["proc", "dev"])
def test_a_mount_point_that_is_a_link_is_refused(run, hostile_root, target, path, make_link):
    with trap(hostile_root / path, target, make_link):
        assert path in one_line(run("/bin/true", rootfs=hostile_root))


@LINKS
@pytest.mark.parametrize(
    "path", ["dev/pts", "dev/shm", "dev/net", "etc", "tmp", "run", "sys", "root", "var/run"]
)
def test_a_directory_that_is_a_link_is_refused_or_not_followed(
    run, hostile_root, target, path, make_link
):
    """What the container mounts for itself hides it; what it does not need it leaves alone."""
    with trap(hostile_root / path, target, make_link):
        refused_or_fine(run("/bin/echo", "fine", rootfs=hostile_root), path)


@LINKS
@pytest.mark.parametrize("name", ["resolv.conf", "new"], ids=["to a file", "to nothing"])
@pytest.mark.parametrize(
    "path", ["etc/resolv.conf", "etc/hosts", "etc/hostname", "etc/passwd", "etc/group", "dev/null"]
)
def test_a_file_that_is_a_link_is_refused_or_not_followed(
    run, hostile_root, target, path, name, make_link
):
    with trap(hostile_root / path, target, make_link, name):
        refused_or_fine(run("/bin/echo", "fine", rootfs=hostile_root), path)


BEYOND = ("", "/directory", "/new", "/new/deeper")


@ALL_LINKS
@pytest.mark.parametrize("path", BEYOND)
def test_a_volume_is_not_mounted_beyond_a_link(run, hostile_root, target, place, path, make_link):
    """…which is resolved inside the root, where there may be nothing at its end."""
    (place / "volume").mkdir()
    with trap(hostile_root / "link", target, make_link):
        options = ("--volume", f"{place}/volume:/link{path}")
        refused_or_fine(run(*options, "/bin/echo", "fine", rootfs=hostile_root), "link")


@LINKS
@pytest.mark.parametrize("name", ["resolv.conf", "new"], ids=["to a file", "to nothing"])
def test_a_volume_that_is_a_file_is_not_mounted_beyond_a_link(
    run, hostile_root, target, place, name, make_link
):
    (place / "volume").write_text("mine")
    with trap(hostile_root / "link", target, make_link, name):
        options = ("--volume", f"{place}/volume:/link")
        refused_or_fine(run(*options, "/bin/echo", "fine", rootfs=hostile_root), "link")


@pytest.mark.parametrize("way", ["self/root", "self/cwd/../../../../..", "thread-self/root"])
def test_a_volume_is_not_mounted_beyond_a_link_through_proc(run, hostile_root, target, place, way):
    """While /proc is the host's, it knows the way to everything."""
    (place / "volume").mkdir()

    def through_proc(link, target):
        link.symlink_to(f"/proc/{way}{target}")

    with trap(hostile_root / "link", target, through_proc):
        one_line(run("--volume", f"{place}/volume:/link", "/bin/true", rootfs=hostile_root))


@LINKS
def test_a_working_directory_beyond_a_link_is_not_made_on_the_host(
    run, hostile_root, target, make_link
):
    with trap(hostile_root / "link", target, make_link):
        run("--workdir", "/link/new", "/bin/true", rootfs=hostile_root)


# --- Things that are no directories --------------------------------------------------------------


@pytest.mark.parametrize("path", ["proc", "dev"])
@pytest.mark.parametrize("kind", ["regular file", "fifo", "device"])
def test_a_mount_point_that_is_no_directory_is_refused(run, hostile_root, path, kind):
    kinds = {"regular file": stat.S_IFREG, "fifo": stat.S_IFIFO, "device": stat.S_IFCHR}
    shutil.rmtree(hostile_root / path)
    os.mknod(hostile_root / path, kinds[kind] | 0o644, os.makedev(1, 3))
    assert path in one_line(run("/bin/true", rootfs=hostile_root, timeout=10))


@pytest.mark.parametrize("name", ["passwd", "group"])
def test_a_file_as_large_as_memory_does_not_get_there(run, hostile_root, name):
    """It takes no room on the disk: it is sparse."""
    path = hostile_root / "etc" / name
    path.unlink()  # the other root has this file, too
    path.touch()
    os.truncate(path, 1 << 40)
    assert f"etc/{name}" in one_line(run("true", rootfs=hostile_root))


@pytest.mark.parametrize("path", ["etc/passwd", "etc/group", "etc/resolv.conf"])
def test_a_fifo_in_place_of_a_file_does_not_stop_the_launcher(run, hostile_root, path):
    """Nobody ever writes to it, so whoever opens it waits for ever."""
    (hostile_root / path).unlink(missing_ok=True)
    os.mkfifo(hostile_root / path)
    refused_or_fine(run("--user", "0", "/bin/echo", "fine", rootfs=hostile_root, timeout=10), path)


# --- Code of the root ----------------------------------------------------------------------------

CODE_HAS_RUN = b"code of the root has run\n"


def ask_python(code):
    """What a few lines print, run by the interpreter that runs the launcher."""
    result = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout


def test_the_launcher_loads_no_library_of_the_root(run, fresh_root, attempts):
    """…under whatever name it knows one on the host, and whatever /etc/ld.so.preload says."""
    load = "import ctypes, socket, prctl; ctypes.CDLL('libseccomp.so.2')"
    maps = ask_python(f"{load}; print(open('/proc/self/maps').read())")
    libraries = set(re.findall(r" (/\S+\.so\S*)", maps))
    assert any("libseccomp" in path for path in libraries)
    for library in libraries:
        path = fresh_root / library.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(attempts / "library", path)
    (fresh_root / "etc/ld.so.preload").write_text("".join(f"{path}\n" for path in libraries))
    env = {"LD_PRELOAD": attempts / "library"}
    assert subprocess.run(["true"], env=env, capture_output=True).stderr == CODE_HAS_RUN
    for options in ((), ("--user", "nobody"), ("--init",)):
        assert fine(run(*options, "/bin/echo", "fine", rootfs=fresh_root)) == b"fine\n"


@needs_alpine
def test_the_launcher_imports_no_module_of_the_root(run, fresh_root):
    """…neither when it is started there nor by the paths that modules have on the host."""
    paths = ask_python("import sys; print(*sys.path, sep='\\n')").split()
    for folder in (fresh_root, *(fresh_root / path.lstrip("/") for path in paths)):
        (folder / "encodings").mkdir(parents=True, exist_ok=True)
        names = {*sys.stdlib_module_names, "prctl", "go_container", "encodings/__init__"}
        for name in names - {"encodings"}:
            (folder / f"{name}.py").write_text(f"import os; os.write(2, {CODE_HAS_RUN})")
    there = {"cwd": fresh_root, "capture_output": True}
    assert CODE_HAS_RUN in subprocess.run([PYTHON, "-c", "import prctl"], **there).stderr

    there = {"cwd": fresh_root, "rootfs": fresh_root}
    for options in ((), ("--user", "nobody"), ("--init",), ("--network", "none")):
        assert fine(run(*options, "/bin/echo", "fine", **there)) == b"fine\n"
    one_line(run("/missing", **there), 127)
    one_line(run("/etc/motd", **there), 126)


# --- Devices and streams -------------------------------------------------------------------------

# Run a command under a /dev like the machine's, but with nodes of its own.
OWN_DEV = """
    dev=$1 && shift && mkdir "$dev" && mount -t tmpfs -o mode=755 dev "$dev" && cd /dev &&
    cp -a null zero full random urandom tty ptmx fd stdin stdout stderr "$dev" &&
    chown -h root:root "$dev"/* && mkdir "$dev/pts" "$dev/shm" &&
    mount --rbind pts "$dev/pts" && mount --rbind "$dev" /dev && cd / &&
    stat -c '%n %a %u:%g' /dev/* > "$dev.before" && {
        "$@"
        stat -c '%n %a %u:%g' /dev/* > "$dev.after"
    }"""
WORST = """
    for node in null zero full random urandom tty ptmx; do
        chown 7:7 /dev/$node; chmod 641 /dev/$node; rm /dev/$node
    done"""


@pytest.mark.parametrize("options", [(), ("--userns", "host-root")], ids=["nobody", "host root"])
def test_the_hosts_device_nodes_stay_as_they_are(armed_root, parent, place, options):
    def nodes_after(*words, prefix):
        subprocess.run([*prefix, "sh", "-c", OWN_DEV, "sh", place / "dev", *words], timeout=60)
        (place / "dev").rmdir()
        before, after = (Path(f"{place}/dev.{when}").read_text() for when in ("before", "after"))
        assert "/dev/null " in before
        return "unchanged" if after == before else after

    namespaces = ["unshare", "--mount"]
    naive = 'mount --rbind /dev "$1/dev" && exec chroot "$1" /bin/sh -c "$2"'
    assert nodes_after("sh", "-c", naive, "sh", armed_root, WORST, prefix=namespaces) != "unchanged"
    container = [PYTHON, SCRIPT, "run", "--rootfs", armed_root, "--cgroup-parent", parent, *options]
    assert nodes_after(*container, "/bin/sh", "-c", WORST, prefix=namespaces) == "unchanged"


@pytest.mark.parametrize("options", [(), ("--user", "1000")], ids=["root", "a user"])
@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_the_callers_streams_keep_their_owner_and_mode(chrooted, contained, place, stream, options):
    """Neither does the launcher hand them to the user inside, nor can root inside take them."""
    descriptor = f"/proc/self/fd/{('stdin', 'stdout', 'stderr').index(stream)}"
    script = f"chown 7:7 {descriptor}; chmod 707 {descriptor}"

    def after(attempt, *options):
        path = place / "stream"
        path.touch()
        path.chmod(0o640)
        with path.open("r+b") as file:
            streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            streams[stream] = file
            attempt(script, *options, **streams, capture_output=False)
        found = path.stat()
        path.unlink()
        return oct(stat.S_IMODE(found.st_mode)), found.st_uid, found.st_gid

    assert after(chrooted) == ("0o707", 7, 7)
    assert after(contained, *options) == ("0o640", 0, 0)
