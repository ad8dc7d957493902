"""Whose ids stand behind the container's: a normal user's, or a range that owns nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from containers import (
    CGROUP_SH,
    ON_V2,
    Container,
    NormalUser,
    fine,
    go,
    host_files,
    needs_alpine,
    needs_v1,
    one_line,
)


@pytest.fixture
def single(normal_user) -> NormalUser:
    """A normal user who has one id."""
    return normal_user()


@pytest.fixture
def ranged(normal_user) -> NormalUser:
    """A normal user who has subordinate ids, too."""
    if not shutil.which("newuidmap"):
        pytest.skip("newuidmap is not installed (Debian package uidmap)")
    return normal_user(subuid="student:300000:65536")


@pytest.fixture(params=["single", "ranged"])
def user(request: pytest.FixtureRequest) -> NormalUser:
    """A normal user of either kind."""
    return request.getfixturevalue(request.param)


def outside(container: Container, name: str = "Uid") -> int:
    """The effective id that the host knows the container's PID 1 by."""
    status = Path(f"/proc/{container.pid}/status").read_text()
    return int(re.search(rf"^{name}:\t\d+\t(\d+)", status, re.MULTILINE)[1])


def id_map(container: Container, name: str) -> list[list[int]]:
    """Lines of: first id inside, first id outside, how many."""
    lines = Path(f"/proc/{container.pid}/{name}").read_text().splitlines()
    return [[int(word) for word in line.split()] for line in lines]


# --- What works for a normal user --------------------------------------------------------------


def test_a_normal_user_is_root_inside(shell, user):
    assert fine(shell("id -u; id -g", parent="none", prefix=user.prefix)) == b"0\n0\n"


def test_a_normal_user_is_nobody_else_outside(start, user):
    with start(parent="none", prefix=user.prefix) as container:
        assert outside(container, "Uid") == outside(container, "Gid") == user.uid


@pytest.mark.parametrize("name", ["uid_map", "gid_map"])
def test_a_user_with_one_id_maps_that(start, single, name):
    with start(parent="none", prefix=single.prefix) as container:
        assert id_map(container, name) == [[0, single.uid, 1]]
        assert Path(f"/proc/{container.pid}/setgroups").read_text() == "deny\n"


@pytest.mark.parametrize("name", ["uid_map", "gid_map"])
def test_a_user_with_subordinate_ids_maps_them_all(start, ranged, name):
    with start(parent="none", prefix=ranged.prefix) as container:
        own, others = id_map(container, name)
        assert own == [0, ranged.uid, 1]
        assert others[:2] == [1, 300000] and 65535 <= others[2] <= 65536


def test_another_user_inside_is_one_of_the_subordinate_ids_outside(start, ranged):
    with start("-u", "1000:1000", parent="none", prefix=ranged.prefix) as container:
        assert 300000 < outside(container, "Uid") == outside(container, "Gid") < 365536


def test_with_one_id_there_is_no_other_user_inside(run, single):
    for user in ("1000", "nobody"):
        text = one_line(run("-u", user, "true", parent="none", prefix=single.prefix))
        assert "/etc/subuid" in text and "/etc/passwd" not in text


OPTIONS = {
    "nothing": ([], "echo it", b"it\n"),
    "--hostname": (["-h", "box"], "hostname", b"box\n"),
    "--env": (["-e", "K=v"], "echo $K", b"v\n"),
    "--workdir": (["-w", "/usr"], "pwd", b"/usr\n"),
    "--network none": (["--network", "none"], "tail -n +3 /proc/net/dev | cut -c1-7", b"    lo:\n"),
    "--read-only": (["--read-only"], "touch /file 2>/dev/null || echo no", b"no\n"),
    "--volume": (["-v", "/etc:/mnt:ro"], "cat /mnt/hostname", Path("/etc/hostname").read_bytes()),
}


@pytest.mark.parametrize("options, script, output", OPTIONS.values(), ids=OPTIONS)
@needs_alpine
def test_a_normal_user_may_use(shell, user, options, script, output):
    assert fine(shell(script, *options, parent="none", prefix=user.prefix)) == output


@pytest.mark.parametrize("script, code", [("exit 7", 7), ("exec /no/such", 127)])
def test_a_normal_user_gets_the_exit_code(shell, user, script, code):
    assert shell(script, parent="none", prefix=user.prefix).returncode == code


def test_what_a_normal_user_makes_inside_is_his_own_outside(shell, user):
    fine(shell("echo it > /mnt/file", "-v", f"{user.home}:/mnt", parent="none", prefix=user.prefix))
    facts = (user.home / "file").stat()
    assert (facts.st_uid, facts.st_gid) == (user.uid, user.uid)


def test_a_container_gives_a_normal_user_no_rights_to_others_files(shell, user, place):
    secret = place / "secret"
    secret.write_text("secret\n")
    secret.chmod(0o600)
    script = "cat /mnt/secret 2>/dev/null || echo no; chown 0:0 /mnt/secret 2>/dev/null || echo no"
    options = ["-v", f"{place}:/mnt"]
    assert fine(shell(script, *options, parent="none", prefix=user.prefix)) == b"no\nno\n"
    assert secret.stat().st_mode & 0o777 == 0o600


def test_a_normal_user_pulls_and_runs_a_root_of_his_own(run, user, root, place):
    tarball, own = place / "root.tar", user.home / "root"
    subprocess.run(["tar", "-cf", tarball, "-C", root, "."], check=True)
    assert fine(go("pull", "--rootfs", own, tarball, prefix=user.prefix)) == b""
    script = ["/bin/sh", "-c", "touch /root/file && echo it"]
    assert fine(run(*script, rootfs=own, parent="none", prefix=user.prefix)) == b"it\n"
    assert (own / "root/file").stat().st_uid == user.uid


# --- What a normal user cannot have, in one line -----------------------------------------------


def test_a_place_where_the_user_can_make_no_root_is_named(single, place, tarball):
    place.chmod(0o755)
    result = go("pull", "--rootfs", place / "root", tarball, prefix=single.prefix)
    assert str(place / "root") in one_line(result)


def test_a_root_that_the_user_cannot_read_is_named(run, single, fresh_root):
    fresh_root.chmod(0o700)
    result = run("true", rootfs=fresh_root, parent="none", prefix=single.prefix)
    assert str(fresh_root) in one_line(result)


def test_a_cgroup_that_is_not_there_is_said_to_want_cgroup_sh(run, single, own_parent):
    text = one_line(run("true", parent=own_parent, prefix=single.prefix))
    assert "systemd-run" in text if ON_V2 else "cgroup.sh" in text and own_parent in text


def test_a_cgroup_that_the_user_cannot_join_comes_with_the_command_that_helps(run, single, parent):
    text = one_line(run("true", prefix=single.prefix))
    assert ("systemd-run --user --scope" if ON_V2 else "cgroup.sh") in text


# --- The cgroup that cgroup.sh hands to the caller of sudo ---------------------------------------


def test_a_file_that_cannot_be_shown_is_not_left_out(run, user, place):
    """…not even at /etc/resolv.conf, where the host's one is left out if the root has no place."""
    (place / "mine").write_text("mine\n")
    (place / "mine").chmod(0o644)
    place.chmod(0o755)
    words = ["-v", f"{place}/mine:/etc/resolv.conf:ro", "cat", "/etc/resolv.conf"]
    result = run(*words, parent="none", prefix=user.prefix)
    assert result.stdout == b"mine\n" or "/etc/resolv.conf" in one_line(result)


@pytest.fixture
def handed(own_parent: str, user: NormalUser) -> str:
    """A cgroup that was prepared for the user."""
    sudo = {"SUDO_UID": str(user.uid), "SUDO_GID": str(user.uid), "SUDO_USER": user.name}
    argv = [CGROUP_SH, "--name", own_parent]
    subprocess.run(argv, check=True, capture_output=True, env=os.environ | sudo)
    return own_parent


@needs_v1
def test_the_limit_of_processes_holds_for_a_normal_user(shell, user, handed):
    script = "for i in $(seq 100); do sleep 600 & echo started; done"
    result = shell(script, parent=handed, prefix=user.prefix)
    assert result.stdout == b"started\n" * 9 and b"limit of 10 processes" in result.stderr


@needs_v1
def test_the_memory_limit_holds_for_a_normal_user(run, user, handed):
    result = run("tail", "/dev/zero", parent=handed, prefix=user.prefix)
    assert result.returncode == 128 + signal.SIGKILL and b"memory limit" in result.stderr


@needs_v1
def test_a_normal_user_may_tighten_the_limits(start, user, handed):
    with start("--pids-limit", "5", parent=handed, prefix=user.prefix) as container:
        assert (container.cgroup("pids") / "pids.max").read_text() == "5\n"


# --- Root's ids --------------------------------------------------------------------------------

BEHIND_ROOT = {
    "the caller's range": ("root:400000:65536\nstudent:300000:65536", "student", 300000),
    "root's range": ("student:300000:65536\nroot:400000:65536", "", 400000),
    "root's range by number": ("0:400000:65536", "", 400000),
    "100000 without a range": ("", "", 100000),
    "100000 without a range of these two": ("other:300000:65536", "student", 100000),
    "100000 with nonsense": ("# a comment\nroot\nroot:x:y\n:::\n\nroot:400000", "", 100000),
}


@pytest.mark.parametrize("subuid, caller, first", BEHIND_ROOT.values(), ids=BEHIND_ROOT)
def test_behind_root_s_container_is(start, tmp_path, subuid, caller, first):
    environment = {name: text for name, text in os.environ.items() if not name.startswith("SUDO_")}
    if caller:
        environment["SUDO_USER"] = caller
    prefix = host_files(tmp_path, subuid=subuid + "\n", subgid=subuid + "\n")
    with start(prefix=prefix, env=environment) as container:
        assert id_map(container, "uid_map") == [[0, first, 65536]]
        assert id_map(container, "gid_map") == [[0, first, 65536]]
        assert outside(container, "Uid") == outside(container, "Gid") == first


def test_root_s_range_is_not_moved_by_a_user_s_number(start):
    with start("-u", "1000:2000") as container:
        uid, gid = outside(container, "Uid"), outside(container, "Gid")
        assert uid == id_map(container, "uid_map")[0][1] + 1000
        assert gid == id_map(container, "gid_map")[0][1] + 2000
