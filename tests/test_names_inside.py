"""/etc/hostname and /etc/hosts inside name the container; the root on disk keeps its own."""

from __future__ import annotations

import os

import pytest
from containers import fine, needs_alpine, one_line

pytestmark = pytest.mark.once  # the same with every Python

NAMES = {
    "by default": ([], "container"),
    "as asked": (["-h", "box.example.org"], "box.example.org"),
}
USERS = pytest.mark.parametrize(
    "options", [[], ["--user", "1000"], ["--read-only"], ["--network", "none"], ["--init"]], ids=str
)


@USERS
@pytest.mark.parametrize("words, name", NAMES.values(), ids=NAMES)
def test_etc_hostname_is_the_container_s_name(run, words, name, options):
    """The control: the kernel's own name is the same."""
    assert fine(run(*words, *options, "hostname")) == f"{name}\n".encode()
    assert fine(run(*words, *options, "cat", "/etc/hostname")) == f"{name}\n".encode()


def entries(text):
    """Names by address, as hosts(5) has them."""
    lines = [line.partition("#")[0].split() for line in text.decode().splitlines()]
    return {line[0]: line[1:] for line in lines if line}


@USERS
@pytest.mark.parametrize("words, name", NAMES.values(), ids=NAMES)
def test_etc_hosts_has_the_container_s_name_and_localhost(run, words, name, options):
    hosts = entries(fine(run(*words, *options, "cat", "/etc/hosts")))
    assert "localhost" in hosts["127.0.0.1"]
    assert any(name in names for names in hosts.values())
    if "." in name:  # docker puts the short name behind the long one
        (names,) = [names for names in hosts.values() if name in names]
        assert name.split(".")[0] in names


@pytest.mark.parametrize("options", [[], ["--network", "none"]], ids=["host", "none"])
@needs_alpine
def test_the_container_s_name_has_an_address(run, options):
    """The control: a name that nobody has has none."""
    for name, known in (("container", True), ("localhost", True), ("nobody.invalid", False)):
        result = run(*options, "getent", "hosts", name)
        assert (result.returncode == 0) == known, result


def as_it_is(root):
    found = {}
    for name in ("hostname", "hosts", "resolv.conf"):
        path = root / "etc" / name
        if path.exists():
            facts = path.lstat()
            found[name] = path.read_bytes(), facts.st_mode, facts.st_uid, facts.st_ino
    return found


def test_nothing_of_it_is_in_the_root_on_disk(shell, fresh_root):
    (fresh_root / "etc/hostname").write_text("of-the-root\n")
    (fresh_root / "etc/hosts").write_text("192.0.2.1 of-the-root\n")
    before = as_it_is(fresh_root)
    script = """
        cat /etc/hostname
        echo inside >/etc/hostname; echo 192.0.2.2 inside >>/etc/hosts; rm -f /etc/hosts
        hostname other"""
    result = shell(script, rootfs=fresh_root)
    assert result.stdout == b"container\n"
    assert as_it_is(fresh_root) == before


def test_a_root_that_has_neither_starts(run, fresh_root):
    for name in ("hostname", "hosts"):
        (fresh_root / "etc" / name).unlink(missing_ok=True)
    assert fine(run("hostname", rootfs=fresh_root)) == b"container\n"


@needs_alpine
def test_a_root_that_has_no_etc_starts(run, fresh_root):
    os.rename(fresh_root / "etc", fresh_root / "usr/etc")
    assert fine(run("hostname", rootfs=fresh_root)) == b"container\n"
    assert not (fresh_root / "etc/hosts").exists() or not (fresh_root / "etc/hosts").read_bytes()


def test_a_read_only_root_on_disk_will_do(run, fresh_root):
    for name in ("hostname", "hosts"):
        (fresh_root / "etc" / name).write_text("of the root\n")
    prefix = ["unshare", "--mount", "sh", "-c",
              'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"',
              "sh", fresh_root]  # fmt: skip
    said = fine(run("cat", "/etc/hostname", rootfs=fresh_root, prefix=prefix))
    assert said == b"container\n"


@pytest.mark.parametrize("name", ["hostname", "hosts"])
def test_a_volume_on_it_wins(run, place, name):
    (place / "mine").write_text("mine\n")
    (place / "mine").chmod(0o644)
    words = ["-v", f"{place}/mine:/etc/{name}", "cat", f"/etc/{name}"]
    assert fine(run(*words)) == b"mine\n"
    assert fine(run(*words[2:])) != b"mine\n"  # the control


def test_a_volume_on_etc_keeps_its_own_on_the_host(run, place):
    """Inside, Docker shows the container's names on top of it."""
    (place / "etc").mkdir()
    for name in ("hostname", "hosts"):
        (place / "etc" / name).write_text("mine\n")
        (place / "etc" / name).chmod(0o644)
    (place / "etc").chmod(0o755)
    said = fine(run("-v", f"{place}/etc:/etc", "cat", "/etc/hostname", "/etc/hosts"))
    assert said == b"mine\nmine\n" or said.startswith(b"container\n")
    for name in ("hostname", "hosts"):
        assert (place / "etc" / name).read_text() == "mine\n"


def test_two_containers_of_one_root_have_each_its_own(start, run, root):
    with start("-h", "one", script="cp /etc/hostname /dev/shm/name"):
        assert fine(run("-h", "other", "cat", "/etc/hostname")) == b"other\n"


def test_a_normal_user_s_container_has_them_too(run, normal_user):
    prefix = normal_user().prefix
    words = ["-h", "box", "cat", "/etc/hostname"]
    assert fine(run(*words, parent="none", prefix=prefix)) == b"box\n"


@pytest.mark.parametrize("name", ["hostname", "hosts"])
@pytest.mark.parametrize("link", ["/run/name", "missing", "/proc/version", "/dev/null", "LOOP"])
def test_a_link_in_its_place_is_followed_inside_or_one_line(run, fresh_root, name, link):
    (fresh_root / "etc" / name).unlink(missing_ok=True)
    (fresh_root / "etc" / name).symlink_to(name if link == "LOOP" else link)
    result = run("echo", "it", rootfs=fresh_root)
    if result.returncode:
        assert name in one_line(result)
    else:
        assert fine(result) == b"it\n"
