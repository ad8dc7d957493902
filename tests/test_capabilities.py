"""Root inside has Docker's fourteen capabilities, nobody else has any, and nobody gains one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from containers import fine, in_throwaway_namespaces, needs_alpine, one_line

pytest_plugins = ["attempts"]

BITS = {
    "CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6, "SETUID": 7,
    "SETPCAP": 8, "NET_BIND_SERVICE": 10, "NET_RAW": 13, "SYS_CHROOT": 18, "MKNOD": 27,
    "AUDIT_WRITE": 29, "SETFCAP": 31,
}  # fmt: skip
OTHERS = {"NET_ADMIN": 12, "SYS_ADMIN": 21, "SYSLOG": 34, "BPF": 39, "CHECKPOINT_RESTORE": 40}
DOCKERS = sum(1 << bit for bit in BITS.values())
ALL = (2 << int(Path("/proc/sys/kernel/cap_last_cap").read_text())) - 1
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def bit(name):
    return 1 << {**BITS, **OTHERS}[name]


def parse(status):
    fields = dict(line.split(":", 1) for line in status.decode().splitlines())
    return {name: int(fields[name], 16) for name in (*SETS, "NoNewPrivs")}


@pytest.fixture
def privileges(run):
    """`privileges(*options)`: what the kernel says about a container's command."""

    def privileges(*options, **kw):
        return parse(fine(run(*options, "/bin/cat", "/proc/self/status", **kw)))

    return privileges


def test_root_inside_has_dockers_fourteen_capabilities(privileges):
    status = Path("/proc/self/status").read_bytes()
    assert parse(status)["CapEff"] & ~DOCKERS  # whoever starts it has more
    found = privileges()
    assert found["CapBnd"] == found["CapPrm"] == found["CapEff"] == DOCKERS


def test_nobody_inside_inherits_or_gains_a_capability(privileges):
    """…even when the caller hands down all that it has."""
    generous = ["setpriv", "--inh-caps=+all", "--ambient-caps=+all"]
    handed_down = subprocess.run([*generous, "cat", "/proc/self/status"], capture_output=True)
    if handed_down.returncode:  # bounding sets of their own keep some machines from having all
        generous = ["setpriv", "--inh-caps=+chown,+kill", "--ambient-caps=+chown,+kill"]
        handed_down = subprocess.run([*generous, "cat", "/proc/self/status"], capture_output=True)
    assert parse(handed_down.stdout)["CapAmb"] and parse(handed_down.stdout)["CapInh"]
    found = privileges(prefix=generous)
    assert (found["CapInh"], found["CapAmb"], found["NoNewPrivs"]) == (0, 0, 1)


def test_a_user_inside_has_no_capability(privileges):
    found = privileges("--user", "1000")
    assert [found[name] for name in SETS] == [0, 0, 0, DOCKERS, 0]
    assert found["NoNewPrivs"] == 1


CHOICES = {
    "adding one": (["--cap-add", "NET_ADMIN"], DOCKERS | bit("NET_ADMIN")),
    "by its whole name": (["--cap-add", "CAP_NET_ADMIN"], DOCKERS | bit("NET_ADMIN")),
    "in small letters": (["--cap-add", "cap_net_admin"], DOCKERS | bit("NET_ADMIN")),
    "adding one of the fourteen": (["--cap-add", "CHOWN"], DOCKERS),
    "adding two": (["--cap-add=BPF", "--cap-add=SYSLOG"], DOCKERS | bit("BPF") | bit("SYSLOG")),
    "adding the newest": (["--cap-add", "CHECKPOINT_RESTORE"], DOCKERS | bit("CHECKPOINT_RESTORE")),
    "adding all": (["--cap-add", "ALL"], ALL),
    "adding all but one": (["--cap-add=ALL", "--cap-drop=SYS_ADMIN"], ALL - bit("SYS_ADMIN")),
    "dropping one": (["--cap-drop", "CHOWN"], DOCKERS - bit("CHOWN")),
    "dropping two": (
        ["--cap-drop=KILL", "--cap-drop=cap_chown"],
        DOCKERS - bit("KILL") - bit("CHOWN"),
    ),
    "dropping what is not there": (["--cap-drop", "SYS_ADMIN"], DOCKERS),
    "dropping all": (["--cap-drop", "ALL"], 0),
    "dropping all but one": (["--cap-drop", "all", "--cap-add", "chown"], bit("CHOWN")),
    "the other order": (["--cap-add", "CHOWN", "--cap-drop", "ALL"], bit("CHOWN")),
    "adding what is dropped, too": (["--cap-add", "CHOWN", "--cap-drop", "CHOWN"], DOCKERS),
}


@pytest.mark.parametrize(("options", "expected"), CHOICES.values(), ids=CHOICES)
def test_capabilities_are_added_and_dropped_as_docker_does(privileges, options, expected):
    found = privileges(*options)
    assert [found[name] for name in SETS] == [0, expected, expected, expected, 0]


def test_an_added_capability_is_not_a_users(privileges):
    found = privileges("--user", "1000", "--cap-add", "NET_ADMIN")
    assert (found["CapEff"], found["CapBnd"]) == (0, DOCKERS | bit("NET_ADMIN"))


@pytest.mark.parametrize("option", ["--cap-add", "--cap-drop"])
@pytest.mark.parametrize("name", ["NOTHING", "12", "CHOWN,KILL", "LAST_CAP"])
def test_an_unknown_capability_is_refused(run, option, name):
    assert name in one_line(run(option, name, "/bin/true"))


@needs_alpine
def test_a_dropped_capability_is_missed(shell, fresh_root):
    script = "chown 7 /etc/motd"
    assert shell(script, "--cap-drop", "CHOWN", rootfs=fresh_root).returncode == 1
    fine(shell(script, rootfs=fresh_root))


def test_host_root_has_no_more_capabilities(run):
    """--userns host-root makes root inside root outside, but not an almighty one."""
    result = run("--userns", "host-root", "/bin/cat", "/proc/self/status")
    found = parse(result.stdout)
    assert [found[name] for name in SETS] == [0, DOCKERS, DOCKERS, DOCKERS, 0]
    assert found["NoNewPrivs"] == 1


def test_a_set_user_id_program_makes_nobody_root(run, fresh_root, attempts):
    """no_new_privs: the bit that makes `su` work is not honoured."""
    program = fresh_root / "attempt"
    program.write_bytes((attempts / "syscalls").read_bytes())
    program.chmod(0o4755)
    chroot = ["chroot", "--userspec=1000:1000", fresh_root, "/attempt", "geteuid"]
    assert in_throwaway_namespaces(chroot).stdout == b"0\n"
    assert fine(run("--user", "1000", "/attempt", "geteuid", rootfs=fresh_root)) == b"1000\n"


def test_below_init_nothing_of_the_launcher_s_can_be_seen_or_taken(shell):
    """Its PID 1 is the launcher's interpreter still. SYS_PTRACE opens what others keep closed."""
    script = """
        tr -s '\\0' ' ' </proc/1/cmdline; echo
        tr '\\0' '\\n' </proc/1/environ
        ls /proc/1/fd
        grep -E 'CapPrm|CapEff' /proc/1/status"""
    options = ("--init", "--cap-add", "SYS_PTRACE", "-e", "SECRET=word")
    said = fine(shell(script, *options, env={**os.environ, "HOSTS": "own"})).decode().split()
    only_kill = f"{bit('KILL'):016x}"
    assert said == ["init", "0", "1", "2", "CapPrm:", only_kill, "CapEff:", only_kill]
