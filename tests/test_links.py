"""Links in the root: they are resolved inside it, as the container's own programs would see them.

Every image of a host with systemd-resolved has an /etc/resolv.conf that leads to what is not there
yet, and /var/run is a link everywhere. What they must not lead to: see test_hostile_root.py, too.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from containers import fine, needs_alpine, one_line

pytestmark = pytest.mark.once  # the same with every Python

STUB = "run/systemd/resolve/stub-resolv.conf"


def replace(path, link):
    """A symbolic link in place of whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(link)


@pytest.fixture
def volume(place):
    """A directory of the host's with a file in it."""
    path = place / "volume"
    (path / "sub").mkdir(parents=True)
    (path / "mark").write_text("it\n")
    return path


# --- /etc/resolv.conf -----------------------------------------------------------------------------

RESOLV_CONFS = {
    "to nothing": (f"../{STUB}", None),
    "to nothing, by its whole path": (f"/{STUB}", None),
    "to a file": (f"../{STUB}", STUB),
    "to a file, by its whole path": (f"/{STUB}", STUB),
    "to a file, over the top": (f"../../../../{STUB}", STUB),
    "to a file beside it": ("resolv.conf.real", "etc/resolv.conf.real"),
    "through a folder that is a link": ("/var/run/resolv.conf", "run/resolv.conf"),
    "to a link": ("/etc/other", None),
}


@pytest.mark.parametrize("link, there", RESOLV_CONFS.values(), ids=RESOLV_CONFS)
def test_a_root_starts_with_the_host_s_name_servers_and_a_link(run, fresh_root, link, there):
    replace(fresh_root / "var/run", "/run")
    replace(fresh_root / "etc/resolv.conf", link)
    replace(fresh_root / "etc/other", f"../{STUB}")
    if there:
        (fresh_root / there).parent.mkdir(parents=True, exist_ok=True)
        (fresh_root / there).write_text("nameserver 192.0.2.1\n")
    servers = Path("/etc/resolv.conf").read_bytes()
    assert fine(run("cat", "/etc/resolv.conf", rootfs=fresh_root)) == servers
    assert os.readlink(fresh_root / "etc/resolv.conf") == link
    if there:  # the control: it was another one's, and still is
        assert (fresh_root / there).read_text() == "nameserver 192.0.2.1\n"


@pytest.mark.parametrize("options", [("--user", "1000"), ("--read-only",), ("--init",)], ids=str)
def test_every_user_sees_them(run, fresh_root, options):
    replace(fresh_root / "etc/resolv.conf", f"../{STUB}")
    servers = Path("/etc/resolv.conf").read_bytes()
    assert fine(run(*options, "cat", "/etc/resolv.conf", rootfs=fresh_root)) == servers


def test_without_a_network_a_link_stays_what_it_is(run, fresh_root):
    replace(fresh_root / "etc/resolv.conf", f"../{STUB}")
    words = ["--network", "none", "readlink", "/etc/resolv.conf"]
    assert fine(run(*words, rootfs=fresh_root)) == f"../{STUB}\n".encode()


NOWHERE = {
    "/proc": "/proc/version",
    "/proc, by a link that follows": "/proc/self/root/etc/motd",
    "/proc, one's own descriptor": "/proc/self/fd/0",
    "/dev": "/dev/null",
    "/dev, a new file": "/dev/new",
    "/dev/shm": "/dev/shm/new",
    "itself": "resolv.conf",
    "below a file": "/etc/passwd/resolv.conf",
}


@pytest.mark.parametrize("link", NOWHERE.values(), ids=NOWHERE)
def test_a_link_of_resolv_conf_that_leads_to_where_nothing_is_mounted_is_one_line(
    run, fresh_root, link
):
    """The control: a volume there, and no network, do without it."""
    replace(fresh_root / "etc/resolv.conf", link)
    assert "/etc/resolv.conf" in one_line(run("true", rootfs=fresh_root))
    assert fine(run("--network", "none", "true", rootfs=fresh_root)) == b""


# --- Volumes --------------------------------------------------------------------------------------

LINKS = {"absolute": "/run", "relative": "../run", "over the top": "../../../../../run"}


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
@pytest.mark.parametrize("exists", [True, False], ids=["there", "new"])
@needs_alpine
def test_a_volume_goes_through_a_link_of_the_root_s(shell, fresh_root, volume, link, exists):
    replace(fresh_root / "var/run", link)
    shutil.rmtree(fresh_root / "run")
    (fresh_root / "run").mkdir()
    if exists:
        (fresh_root / "run/x").mkdir()
    options = ("-v", f"{volume}:/var/run/x")
    assert fine(shell("cat /run/x/mark /var/run/x/mark", *options, rootfs=fresh_root)) == (
        b"it\nit\n"
    )
    assert (fresh_root / "run/x").is_dir()
    assert os.readlink(fresh_root / "var/run") == link


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
def test_a_volume_s_place_may_itself_be_a_link(shell, fresh_root, volume, link):
    replace(fresh_root / "var/run", link)
    options = ("-v", f"{volume}:/var/run")
    assert fine(shell("cat /run/mark; readlink /var/run", *options, rootfs=fresh_root)) == (
        f"it\n{link}\n".encode()
    )


def test_a_volume_s_place_may_be_a_link_to_a_directory_that_is_not_there_yet(
    run, fresh_root, volume
):
    replace(fresh_root / "data", "/srv/new/data")
    options = ("-v", f"{volume}:/data")
    assert fine(run(*options, "cat", "/srv/new/data/mark", rootfs=fresh_root)) == b"it\n"


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing"])
def test_a_file_goes_where_a_link_leads(run, fresh_root, volume, there):
    """/etc/localtime is one everywhere."""
    replace(fresh_root / "etc/localtime", "/usr/share/zoneinfo/Here")
    if there:
        (fresh_root / "usr/share/zoneinfo").mkdir(parents=True, exist_ok=True)
        (fresh_root / "usr/share/zoneinfo/Here").write_text("the root's\n")
    options = ("-v", f"{volume}/mark:/etc/localtime:ro")
    assert fine(run(*options, "cat", "/etc/localtime", rootfs=fresh_root)) == b"it\n"


def test_several_links_in_a_row_are_followed(run, fresh_root, volume):
    replace(fresh_root / "a", "b/c")
    replace(fresh_root / "b", "/mnt/b")
    (fresh_root / "mnt/b").mkdir()
    replace(fresh_root / "mnt/b/c", "../../srv")
    options = ("-v", f"{volume}:/a/place")
    assert fine(run(*options, "cat", "/srv/place/mark", rootfs=fresh_root)) == b"it\n"


def test_tmp_may_be_elsewhere(shell, fresh_root, volume):
    replace(fresh_root / "tmp", "var/tmp")
    (fresh_root / "var/tmp").mkdir(exist_ok=True)
    options = ("-v", f"{volume}:/tmp/x", "-w", "/tmp")
    said = fine(shell("pwd -P; cat x/mark; touch file", *options, rootfs=fresh_root))
    assert said == b"/var/tmp\nit\n"
    assert (fresh_root / "var/tmp/file").exists()


@pytest.mark.parametrize("name", ["passwd", "group", "hosts", "hostname", "motd"])
@needs_alpine
def test_a_file_in_etc_may_be_a_link(run, fresh_root, name):
    """Without it: all that is the same for a root without links."""
    if (fresh_root / "etc" / name).exists():
        shutil.move(fresh_root / "etc" / name, fresh_root / "usr" / name)
    replace(fresh_root / "etc" / name, f"../usr/{name}")
    assert fine(run("--user", "0", "echo", "it", rootfs=fresh_root)) == b"it\n"
    assert os.readlink(fresh_root / "etc" / name) == f"../usr/{name}"


FORBIDDEN = {
    "/proc": "/proc",
    "a process": "/proc/1",
    "/proc/sys": "/proc/sys/kernel",
    "a process's root": "/proc/self/root/mnt",
    "a process's working directory": "/proc/self/cwd",
    "a descriptor": "/proc/self/fd/3",
    "/dev": "/dev",
    "/dev/shm": "/dev/shm",
    "/dev, by a relative path": "mnt/../dev",
    "itself": "link",
}


@pytest.mark.parametrize("below", ["", "/new"], ids=["to it", "below it"])
@pytest.mark.parametrize("link", FORBIDDEN.values(), ids=FORBIDDEN)
def test_a_volume_beyond_a_link_into_proc_or_dev_is_one_line(run, fresh_root, volume, link, below):
    replace(fresh_root / "link", link)
    one_line(run("-v", f"{volume}:/link{below}", "true", rootfs=fresh_root))
    replace(fresh_root / "link", "/mnt")  # the control
    assert fine(run("-v", f"{volume}:/link{below}", "true", rootfs=fresh_root)) == b""


@pytest.mark.parametrize("path", ["proc", "dev"])
@pytest.mark.parametrize("link", ["run", "/run", "../run", "missing"])
def test_proc_and_dev_that_are_links_stay_refused(run, fresh_root, path, link):
    """…also when they lead to an innocent directory of the root's."""
    replace(fresh_root / path, link)
    assert f"/{path}" in one_line(run("true", rootfs=fresh_root))


# --- The working directory ------------------------------------------------------------------------


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
@needs_alpine
def test_a_working_directory_may_be_reached_through_a_link(run, fresh_root, link):
    replace(fresh_root / "var/run", link)
    (fresh_root / "run/sub").mkdir()
    for path, real in (("/var/run", b"/run\n"), ("/var/run/sub", b"/run/sub\n")):
        assert fine(run("-w", path, "/bin/pwd", rootfs=fresh_root)) == real


def test_a_working_directory_that_is_new_is_made_beyond_a_link(run, fresh_root):
    replace(fresh_root / "var/run", "/run")
    assert fine(run("-w", "/var/run/new/sub", "/bin/pwd", rootfs=fresh_root)) == b"/run/new/sub\n"
    assert (fresh_root / "run/new/sub").is_dir()


def test_a_working_directory_may_be_a_link_to_what_is_not_there_yet(run, fresh_root):
    replace(fresh_root / "data", "/srv/new")
    assert fine(run("-w", "/data", "/bin/pwd", rootfs=fresh_root)) == b"/srv/new\n"


@pytest.mark.parametrize("number", range(10))
def test_a_working_directory_through_a_descriptor_of_the_launcher_s_is_not_had(
    run, fresh_root, number
):
    """…which may still be open on the host's files at that time, as in CVE-2024-21626."""
    replace(fresh_root / "link", f"/proc/self/fd/{number}")
    for path in ("/link", f"/proc/self/fd/{number}"):
        result = run("-w", path, "sh", "-c", "/bin/pwd; ls -ld ../../../../..", rootfs=fresh_root)
        if result.returncode == 125:
            one_line(result)
        else:
            assert result.stdout.startswith(b"/") and b"unreachable" not in result.stdout
