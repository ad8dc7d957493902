"""Root inside is nobody outside, and yet the files of the root file system are root's inside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from containers import fine, host_files, in_throwaway_namespaces, needs_alpine, one_line

pytest_plugins = ["attempts"]

FIRST, COUNT = 100000, 65536
HOST_ROOT = ("--userns", "host-root")


def owners(tree):
    """Who owns what below a directory, and when that was last changed."""
    found = {path: path.lstat() for path in [tree, *tree.rglob("*")]}
    return {path: (s.st_uid, s.st_gid, s.st_mode, s.st_ctime_ns) for path, s in found.items()}


def ids(pid, kind):
    """The ids of a process as the host sees them."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next([int(n) for n in line.split()[1:]] for line in lines if line.startswith(kind))


# --- Who is who ----------------------------------------------------------------------------------

SUBIDS = "alice:300000:65536\nroot:400000:65536\nbob:500000:1000\n"


RANGES = {
    "nobody has one": (None, "", FIRST),
    "called as root": (None, SUBIDS, 400000),
    "called by one who has": ("alice", SUBIDS, 300000),
    "given by number": (None, "0:600000:65536\n", 600000),
    "called by one who has none": ("carol", SUBIDS, 400000),
    "called by one who has too few": ("bob", SUBIDS, 400000),
    "a line without a first id": (None, "root::65536\n", FIRST),
    "only others have": ("alice", "carol:700000:65536\n", FIRST),
}


@pytest.mark.parametrize(("user", "subids", "first"), RANGES.values(), ids=RANGES)
def test_ids_inside_are_an_unprivileged_range_outside(shell, place, user, subids, first):
    """That of whoever called sudo, else root's, else one that owns nothing anywhere."""
    sudo = ["env", f"SUDO_USER={user}"] if user else ["env", "-u", "SUDO_USER"]
    prefix = [*sudo, *host_files(place, subuid=subids, subgid=subids.replace("0000:", "9000:"))]
    gids_then_uids = fine(shell("cat /proc/self/?id_map", prefix=prefix)).split()
    first_gid = first if first == FIRST else first + 9000
    assert [*map(int, gids_then_uids)] == [0, first_gid, COUNT, 0, first, COUNT]


@pytest.mark.parametrize(("uid", "gid"), [(0, 0), (1000, 2000)])
def test_a_process_inside_has_those_ids_outside(start, uid, gid):
    with start("--user", f"{uid}:{gid}") as container:
        first = int(Path(f"/proc/{container.pid}/uid_map").read_text().split()[1])
        assert first >= COUNT
        assert ids(container.pid, "Uid") == [first + uid] * 4
        assert ids(container.pid, "Gid") == [first + gid] * 4
        assert all(first <= group < first + COUNT for group in ids(container.pid, "Groups"))


# --- Who owns what -------------------------------------------------------------------------------


@needs_alpine
def test_the_root_file_system_is_roots_inside_and_nothing_is_chowned(shell, fresh_root):
    before = owners(fresh_root)
    assert {uid for uid, *_ in before.values()} == {0}
    look = "find /bin /lib /home /root /usr /var ! -user 0; stat -c %u:%g /bin /etc/shadow"
    assert fine(shell(look, rootfs=fresh_root)) == b"0:0\n0:42\n"
    after = owners(fresh_root)
    assert {path: after[path] for path in before} == before


def test_a_file_made_inside_belongs_to_the_same_id_on_disk(shell, fresh_root):
    """…so that a root which one container wrote is the next one's as well."""
    make = "touch /roots && mkdir /tmp/roots && touch /users && chown 1000:2000 /users"
    fine(shell(make, rootfs=fresh_root))
    made = [(fresh_root / name).stat() for name in ("roots", "tmp/roots", "users")]
    assert [(s.st_uid, s.st_gid) for s in made] == [(0, 0), (0, 0), (1000, 2000)]
    assert fine(shell("stat -c %u:%g /roots /users", rootfs=fresh_root)) == b"0:0\n1000:2000\n"


def test_a_file_of_an_id_that_does_not_exist_inside_is_nobodys(shell, fresh_root):
    path = fresh_root / "strange"
    path.write_text("untouched")
    os.chown(path, 100000, 100000)
    path.chmod(0o600)
    attempt = "stat -c %u:%g /strange; chown 0 /strange || cat /strange"
    assert shell(attempt, rootfs=fresh_root).stdout == b"65534:65534\n"


def test_a_volume_keeps_its_owners_and_root_inside_may_write_it(shell, place):
    """As without a container: who makes a file owns it, and root may do everything."""
    volume = place / "volume"
    volume.mkdir()
    os.chown(volume, 1000, 1000)
    volume.chmod(0o700)
    options = ("--volume", f"{volume}:/mnt")
    fine(shell("stat -c %u:%g /mnt | grep -x 1000:1000 && touch /mnt/roots", *options))
    fine(shell("touch /mnt/users", *options, "--user", "1000:1000"))
    assert shell("ls /mnt", *options, "--user", "1001").returncode == 1
    made = [(volume / name).stat().st_uid for name in ("roots", "users")]
    assert made == [0, 1000]
    assert volume.stat().st_uid == 1000


def test_a_descriptor_of_a_file_of_the_hosts_root_does_not_open_it(chrooted, contained, place):
    """A descriptor that was handed down is no privilege to open the file again."""
    secret = place / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    with secret.open() as file:
        assert chrooted("cat /proc/self/fd/0", stdin=file).stdout == b"secret"
    with secret.open() as file:
        assert contained("cat /proc/self/fd/0", stdin=file).stdout == b""


# --- Where that cannot be ------------------------------------------------------------------------


@pytest.fixture
def overlay(place, root):
    """A `prefix` that mounts the root as an overlay, which takes no idmap, and where that is."""
    for name in ("upper", "work", "merged"):
        (place / name).mkdir()
    layers = f"lowerdir={root},upperdir={place}/upper,workdir={place}/work"
    mount = f"mount -t overlay overlay -o {layers} {place}/merged"
    if in_throwaway_namespaces(mount).returncode:
        pytest.skip("this machine has no overlay file system")
    return ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"], place / "merged"


def test_a_root_that_takes_no_idmap_is_refused_with_the_ways_out(run, overlay):
    prefix, merged = overlay
    message = one_line(run("/bin/true", rootfs=merged, prefix=prefix))
    assert "--userns" in message and "host-root" in message
    assert "ext4" in message


def test_a_volume_that_takes_no_idmap_is_refused_with_the_ways_out(run, overlay):
    prefix, merged = overlay
    message = one_line(run("--volume", f"{merged}:/mnt", "/bin/true", prefix=prefix))
    assert str(merged) in message
    assert "host-root" in message


def test_a_root_that_takes_no_idmap_is_shown_as_it_is_to_the_hosts_root(shell, overlay):
    prefix, merged = overlay
    result = shell("touch /new && stat -c %u /new", *HOST_ROOT, rootfs=merged, prefix=prefix)
    assert (result.returncode, result.stdout) == (0, b"0\n")


# --- The spelled-out other way -------------------------------------------------------------------


@pytest.mark.parametrize("option", [["--userns", "host-root"], ["--userns=host-root"]])
def test_host_root_is_root_outside_and_says_so_in_one_line(shell, option):
    result = shell("cat /proc/self/uid_map", *option)
    assert result.returncode == 0
    inside, outside, count = map(int, result.stdout.split())
    assert (inside, outside) == (0, 0) and count >= COUNT
    warning = result.stderr.decode()
    assert warning.startswith("go_container: ") and warning.count("\n") == 1
    assert "warning" in warning and "host-root" in warning


def test_host_root_owns_what_it_makes_as_root(start, fresh_root):
    with start(*HOST_ROOT, script="touch /new", rootfs=fresh_root) as container:
        assert ids(container.pid, "Uid") == [0] * 4
    assert (fresh_root / "new").stat().st_uid == 0


@pytest.mark.parametrize("mode", ["host", "private", "keep-id", "root", ""])
def test_another_user_namespace_is_refused(run, mode):
    assert "host-root" in one_line(run("--userns", mode, "/bin/true"))
