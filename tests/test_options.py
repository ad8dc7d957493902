"""The options of `run`, each named and meaning as in `docker run`, and garbage in each of them."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest
from containers import (
    HIERARCHIES,
    Container,
    cgroup_path,
    fine,
    needs_alpine,
    one_line,
    read_limits,
)

# --- --hostname --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "box.example.org", "x" * 64], ids=["short", "dots", "64"])
def test_hostname_may_be(run, name):
    assert fine(run("--hostname", name, "hostname")) == f"{name}\n".encode()


# --- --env -------------------------------------------------------------------------------------

HERE = {"HERE": "of the caller", "ODD": os.fsdecode(b"\xff=\n")}
ENV = {
    "a value": (["-e", "K=v"], "K", b"v\n"),
    "an empty value": (["-e", "K="], "K", b"\n"),
    "an equals sign": (["-e", "K=a=b"], "K", b"a=b\n"),
    "blanks": (["--env=K= a  b "], "K", b" a  b \n"),
    "bytes that are not UTF-8": (["-e", b"K=\xff"], "K", b"\xff\n"),
    "the caller's value": (["-e", "HERE"], "HERE", b"of the caller\n"),
    "the caller's bytes": (["-e", "ODD"], "ODD", b"\xff=\n\n"),
    "several": (["-e", "A=1", "-e", "K=2"], "K", b"2\n"),
    "the last of several": (["-e", "K=1", "-e", "K=2"], "K", b"2\n"),
    "one of the usual four": (["-e", "TERM=vt100"], "TERM", b"vt100\n"),
    "another home": (["-e", "HOME=/tmp"], "HOME", b"/tmp\n"),
}


@pytest.mark.parametrize("options, name, value", ENV.values(), ids=ENV)
@needs_alpine
def test_env_gives(run, options, name, value):
    assert fine(run(*options, "printenv", name, env=os.environ | HERE)) == value


@needs_alpine
def test_env_of_a_variable_that_the_caller_lacks_sets_nothing(run):
    assert run("-e", "NOT_THERE", "printenv", "NOT_THERE").returncode == 1


def test_the_command_is_looked_for_on_the_path_that_env_gives(run):
    one_line(run("-e", "PATH=/nowhere", "ls"), 127)


def test_a_command_is_found_where_neither_side_has_a_path(run):
    assert fine(run("-e", "PATH", "true", prefix=["env", "-u", "PATH"])) == b""


# --- --workdir ---------------------------------------------------------------------------------


def test_workdir_is_where_it_starts(run):
    assert fine(run("-w", "/usr/bin", "pwd")) == b"/usr/bin\n"


def test_a_command_may_be_relative_to_workdir(run):
    assert fine(run("-w", "/bin", "./echo", "it")) == b"it\n"


def test_a_workdir_that_is_not_there_is_made(run, fresh_root):
    """As docker does."""
    assert fine(run("-w", "/no/such/place", "pwd", rootfs=fresh_root)) == b"/no/such/place\n"
    assert (fresh_root / "no/such/place").is_dir()


# --- --user ------------------------------------------------------------------------------------

USERS = {  # as /etc/passwd and /etc/group of Alpine and of `pull --busybox` have it
    "0": "0 0",
    "1234": "1234 0",
    "1234:567": "1234 567",
    "0:567": "0 567",
    "65535:65535": "65535 65535",
    "root": "0 0",
    "nobody": "65534 65534",
    "nobody:0": "65534 0",
    "65534": "65534 65534",
    "1234:root": "1234 0",
}


@pytest.mark.parametrize("user, ids", USERS.items(), ids=USERS)
def test_user_may_be(shell, user, ids):
    script = "echo $(id -u) $(id -g); cat /proc/self/status"
    first, *status = fine(shell(script, "--user", user)).decode().splitlines()
    uid, gid = ids.split()
    assert first == ids
    assert "\t".join(["Uid:", *[uid] * 4]) in status and "\t".join(["Gid:", *[gid] * 4]) in status


@needs_alpine
def test_user_takes_its_home_from_the_root_s_passwd(run, fresh_root):
    with (fresh_root / "etc/passwd").open("a") as passwd:
        passwd.write("eve:x:1000:1000::/home/eve:/bin/sh\n")
    assert fine(run("-u", "eve", "printenv", "HOME", rootfs=fresh_root)) == b"/home/eve\n"


def test_a_user_other_than_root_has_no_capabilities(run):
    status = fine(run("-u", "1000", "cat", "/proc/self/status")).decode().splitlines()
    assert {"CapEff:\t0000000000000000", "CapPrm:\t0000000000000000"} <= set(status)


def test_a_user_other_than_root_cannot_write_what_is_root_s(shell):
    assert fine(shell("touch /etc/file 2>/dev/null || echo no", "-u", "1000")) == b"no\n"


# --- --volume ----------------------------------------------------------------------------------


@pytest.fixture
def directory(place: Path) -> Path:
    (place / "file").write_text("it\n")
    return place


def test_a_volume_is_shown_inside(run, directory):
    assert fine(run("-v", f"{directory}:/mnt", "cat", "/mnt/file")) == b"it\n"


def test_what_is_written_to_a_volume_is_on_the_host_and_the_caller_s(shell, directory):
    fine(shell("echo new > /mnt/new", "-v", f"{directory}:/mnt"))
    new = directory / "new"
    assert (new.read_text(), new.stat().st_uid, new.stat().st_gid) == ("new\n", 0, 0)


def test_a_read_only_volume_cannot_be_written_to(shell, directory):
    script = "touch /mnt/new 2>/dev/null || echo no; echo x 2>/dev/null >> /mnt/file || echo no"
    assert fine(shell(script, "-v", f"{directory}:/mnt:ro")) == b"no\nno\n"
    assert [entry.name for entry in directory.iterdir()] == ["file"]


def test_a_volume_may_be_the_current_directory(run, directory):
    (directory / "below").mkdir()
    for source, cwd in ((".", directory), ("..", directory / "below"), ("./", directory)):
        assert fine(run("-v", f"{source}:/mnt", "ls", "/mnt", cwd=cwd)) == fine(
            run("-v", f"{directory}:/mnt", "ls", "/mnt")
        )


def test_a_volume_may_be_a_file(run, directory):
    assert fine(run("-v", f"{directory}/file:/etc/profile", "cat", "/etc/profile")) == b"it\n"


def test_several_volumes_may_lie_in_each_other(shell, directory):
    (directory / "sub").mkdir()
    options = ["-v", f"{directory}:/mnt", "-v", "/etc/passwd:/mnt/file:ro"]
    assert fine(shell("cat /mnt/file", *options)) == Path("/etc/passwd").read_bytes()


def test_a_volume_s_place_is_made_where_the_root_lacks_it(run, directory, fresh_root):
    command = ["-v", f"{directory}:/new/place", "cat", "/new/place/file"]
    assert fine(run(*command, rootfs=fresh_root)) == b"it\n"


def test_a_volume_is_gone_from_the_root_afterwards(run, directory, fresh_root):
    before = sorted((fresh_root / "mnt").iterdir())
    fine(run("-v", f"{directory}:/mnt", "true", rootfs=fresh_root))
    assert sorted((fresh_root / "mnt").iterdir()) == before


def test_a_source_that_is_not_there_is_refused_and_not_made(run, place):
    assert "nothing-here" in one_line(run("-v", f"{place}/nothing-here:/mnt", "true"))
    assert list(place.iterdir()) == []


# --- --read-only -------------------------------------------------------------------------------

READ_ONLY = {
    "the root": ("touch /file || echo no", b"no\n"),
    "/tmp": ("touch /tmp/file || echo no", b"no\n"),
    "/etc/passwd": ("echo >> /etc/passwd || echo no", b"no\n"),
    "a mount of it": ("mount -o remount,rw / || echo no", b"no\n"),
}


@pytest.mark.parametrize("script, output", READ_ONLY.values(), ids=READ_ONLY)
def test_read_only_protects(shell, script, output):
    assert shell(script, "--read-only").stdout == output


@pytest.mark.parametrize("path", ["/dev/null", "/dev/shm/file", "/mnt/file", "/proc/self/comm"])
def test_read_only_leaves_writable(shell, path, directory):
    fine(shell(f"echo it > {path}", "--read-only", "-v", f"{directory}:/mnt"))


# --- --network ---------------------------------------------------------------------------------


@pytest.fixture
def greeter():
    """The port of a server on the host's loopback that greets."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"hello\n")

        threading.Thread(target=greet, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("options", [[], ["--network", "host"], ["--network=host"]], ids=str)
def test_the_network_is_the_host_s_with(run, greeter, options):
    command = ["nc", "127.0.0.1", str(greeter)]
    assert fine(run(*options, *command)) == b"hello\n"


def test_a_network_of_its_own_has_no_ports_for_root_only(run):
    name = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
    assert fine(run("--network", "none", "cat", name)) == b"0\n"


@pytest.mark.parametrize("name", ["hosts", "hostname"])
def test_read_only_holds_for_what_run_puts_into_etc(shell, name):
    script = f"echo x >>/etc/{name} || chmod 600 /etc/{name} || cat /etc/{name}"
    result = shell(script, "--read-only")
    assert result.returncode == 0 and b"container" in result.stdout, result
    assert fine(shell(f"echo x >>/etc/{name} && echo it")) == b"it\n"  # the control


def test_network_none_cannot_reach_the_host(run, greeter):
    result = run("--network", "none", "nc", "-w", "2", "127.0.0.1", str(greeter))
    assert result.returncode == 1 and not result.stdout


def test_network_none_has_a_loopback_device_that_is_up_and_no_other(shell):
    script = "tail -n +3 /proc/net/dev | cut -d: -f1; ping -c1 -w2 127.0.0.1 >/dev/null && echo up"
    assert fine(shell(script, "--network", "none")).split() == [b"lo", b"up"]


# --- --memory, --pids-limit, --cpus, --cgroup-parent -------------------------------------------


def limits(container: Container, controller: str) -> tuple[str, ...]:
    """The limits of the container's own cgroup, as the kernel has them."""
    path = container.cgroup(controller).relative_to(HIERARCHIES[controller])
    assert path.name.startswith("run-")
    return read_limits(controller, path)


SIZES = {
    "33554432": 32 << 20,
    "33554432b": 32 << 20,
    "32768k": 32 << 20,
    "32m": 32 << 20,
    "32M": 32 << 20,
    "2g": 2 << 30,
    "50000000": 50_000_000 // 4096 * 4096,
}


@pytest.mark.parametrize("size, limit", SIZES.items(), ids=SIZES)
def test_memory_may_be(start, size, limit):
    with start("--memory", size) as container:
        assert limits(container, "memory") == (str(limit),)


def test_pids_limit_is_the_limit_of_its_own_cgroup(start):
    with start("--pids-limit", "7") as container:
        assert limits(container, "pids") == ("7",)


@pytest.mark.parametrize("cpus, share", [("1", 1), ("1.0", 1), ("0.5", 0.5), (".25", 0.25)])
def test_cpus_may_be(start, cpus, share):
    with start("--cpus", cpus) as container:
        quota, period = limits(container, "cpu")
        assert int(quota) / int(period) == share


def test_cpus_0_is_no_limit_of_its_own(start):
    """As for -m and --pids-limit, and in Docker."""
    with start("--cpus", "0") as container, start() as control:
        assert limits(container, "cpu") == limits(control, "cpu")


def test_cgroup_parent_is_the_cgroup_above_its_own(start, own_parent):
    with start(parent=own_parent) as container:
        assert container.cgroup("pids").parent == HIERARCHIES["pids"] / own_parent


def test_cgroup_parent_none_leaves_it_where_the_caller_is(start):
    with start(parent="none") as container:
        for controller in ("pids", "memory"):
            assert cgroup_path(container.pid, controller) == cgroup_path("self", controller)


# --- Garbage -----------------------------------------------------------------------------------

GARBAGE = {
    "--hostname": ["x" * 65],
    "--env": ["", "=value"],
    "--workdir": ["usr", "."],
    "--user": [":", "no-such-user", "0:no-such-group", "-1", "0:-1", "65536", "70000:0", "99" * 9]
    + ["1:2:3", "1.5", "0x10", "²"],
    "--volume": ["", "x", ":", "/:", ":/x", "/tmp:", "/tmp:x", "/tmp:../x", "/tmp:/", "/tmp:/proc"]
    + ["/tmp:/x:rx", "/tmp:/x:ro:ro"],
    "--memory": ["", "banana", "-5", "1", "m", "5x", "1e9", "1.5.5m", "nan", "9" * 30, "²"]
    + ["16777216t", "16777217t"],  # 2 to the 64th, and more: not nothing, and not one terabyte
    "--pids-limit": ["", "banana", "-5", "1.5", "nan", "9" * 30, "²"],
    "--cpus": ["", "banana", "-1", "nan", "inf", "1e400", "0.0000001", "²"],
    "--network": ["", "bridge", "None"],
    "--cgroup-parent": ["", ".", "..", "../x", "/", "a/../b", "no\nname", "x" * 5000],
    "--rootfs": ["", "/no/such/root", "/etc/passwd", "/dev/null", "x" * 5000],
}


@pytest.mark.parametrize(
    "option, value",
    [(option, value) for option, values in GARBAGE.items() for value in values],
    ids=lambda word: repr(word[:20]).strip("'"),
)
def test_garbage_is_one_line_and_125(run, option, value):
    one_line(run(option, value, "true"))


def test_garbage_for_an_option_that_takes_no_value_is_one_line_and_125(run):
    one_line(run("--read-only=banana", "true"))


def test_a_root_that_is_empty_is_refused(run, place):
    assert str(place) in one_line(run("true", rootfs=place))
    assert list(place.iterdir()) == []


def test_limits_and_no_cgroup_contradict_each_other(run):
    one_line(run("-m", "32m", "true", parent="none"))


def test_rm_is_understood_since_nothing_ever_stays(run):
    assert fine(run("--rm", "echo", "it")) == b"it\n"
