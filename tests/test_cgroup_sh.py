"""cgroup.sh: what it prepares and prints, what it refuses, what it sweeps and deletes.

The tests hold for whatever cgroups the machine has. The last ones look at all that it could have,
under another kernel: v2, v1 and a mixture.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from containers import (
    CGROUP_SH,
    CONTROLLERS,
    HIERARCHIES,
    REPOSITORY,
    UML,
    cgroups,
    delete_cgroup,
    needs_v1,
    read_limits,
)

pytestmark = pytest.mark.once  # no Python is in it

V1 = HIERARCHIES["pids"] != HIERARCHIES.get("v2")

Result = subprocess.CompletedProcess[str]


def cgroup_sh(*words: str, prefix: tuple[str, ...] = (), **environment: str) -> Result:
    """Run cgroup.sh through `prefix`, with nothing but PATH and this in its environment."""
    return subprocess.run(
        [*prefix, str(CGROUP_SH), *words],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )


def prepare(name: str, *words: str, **kw: Any) -> str:
    """The standard output of cgroup.sh, which has nothing to complain about."""
    result = cgroup_sh("--name", name, *words, **kw)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def refused(result: Result) -> str:
    """The one line that an error is, after checking that it is nothing else."""
    assert result.returncode not in (0, 126, 127) and not result.stdout
    assert re.fullmatch(r"cgroup\.sh: [^\n]+\n", result.stderr), result.stderr
    return result.stderr


def limits(name: str) -> list[tuple[str, ...]]:
    return [read_limits(controller, name) for controller in CONTROLLERS]


def unlimited_cpu() -> tuple[str, str]:
    return ("-1" if HIERARCHIES["cpu"] != HIERARCHIES.get("v2") else "max", "100000")


def swap_limit(name: str) -> Path | None:
    """The file that limits swap, where the kernel counts swap."""
    files = ("memory.swap.max", "memory.memsw.limit_in_bytes")
    found = [path for file in files if (path := HIERARCHIES["memory"] / name / file).exists()]
    return found[0] if found else None


def directories(name: str) -> set[Path]:
    """A cgroup's directory in each hierarchy, on v2 one for all."""
    return {HIERARCHIES[controller] / name for controller in CONTROLLERS}


@pytest.fixture
def leaf(own_parent: str) -> Iterator[str]:
    """A cgroup such as a container's in a prepared one, and no process in it afterwards."""
    prepare(own_parent)
    name = f"{own_parent}/run-1"
    for directory in directories(name):
        directory.mkdir()
    yield name
    kill_all(name)


def kill_all(name: str) -> None:
    file = HIERARCHIES["pids"] / name / "cgroup.procs"
    for pid in file.read_text().split() if file.exists() else ():
        os.kill(int(pid), signal.SIGKILL)


def in_cgroup(name: str, script: str) -> subprocess.Popen[str]:
    """A shell script that is in a cgroup from its first line on."""
    joining = "".join(f"echo 0 >{each}/cgroup.procs || exit\n" for each in directories(name))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(["sh", "-c", joining + script], text=True, **pipes)


# --- Preparing ---------------------------------------------------------------------------------


def test_it_prepares_10_processes_50_mb_and_no_swap(own_parent):
    prepare(own_parent)
    assert limits(own_parent) == [("10",), (str(50 << 20),), unlimited_cpu()]
    if file := swap_limit(own_parent):
        assert int(file.read_text()) == (0 if file.name == "memory.swap.max" else 50 << 20)


def test_it_prints_what_the_kernel_says_a_limit_a_line(own_parent):
    *lines, last = prepare(own_parent, "--memory", "50000000", "--cpus", "0.5").splitlines()
    printed = dict(line.split(" = ") for line in lines)
    assert printed == {file: Path(file).read_text().strip() for file in printed}
    for name, value in {"pids.max": "10", "memory": "49999872", "cpu": "50000"}.items():
        assert any(f"/{name}" in file and value in printed[file].split() for file in printed)
    assert last.endswith(f"sudo python3 go_container.py run --cgroup-parent {own_parent} /bin/sh")


def test_a_second_time_changes_nothing(own_parent):
    assert prepare(own_parent) == prepare(own_parent)


@pytest.mark.parametrize("sizes", [("20m", "1g"), ("1g", "20m")], ids=["up", "down"])
def test_limits_of_a_prepared_cgroup_can_go(own_parent, sizes):
    for size in sizes:
        prepare(own_parent, f"--memory={size}", "--pids", "7", "--cpus", "0.5")
    expected = {"20m": 20 << 20, "1g": 1 << 30}[sizes[1]]
    assert limits(own_parent) == [("7",), (str(expected),), ("50000", "100000")]
    if (file := swap_limit(own_parent)) and file.name != "memory.swap.max":
        assert int(file.read_text()) == expected


def test_without_cpus_a_cgroup_that_had_a_limit_has_none(own_parent):
    prepare(own_parent, "--cpus", "1")
    prepare(own_parent)
    assert read_limits("cpu", own_parent) == unlimited_cpu()


@pytest.mark.parametrize("size", ["50M", "50m", "51200k", "52428800", "52428800b", "52428801"])
def test_a_size_may_be_written(own_parent, size):
    prepare(own_parent, "--memory", size)
    assert read_limits("memory", own_parent) == (str(50 << 20),)


@pytest.mark.parametrize("cpus, quota", [("1", "100000"), (".25", "25000"), ("00.85", "85000")])
def test_cpus_may_be_written(own_parent, cpus, quota):
    prepare(own_parent, "--cpus", cpus)
    assert read_limits("cpu", own_parent) == (quota, "100000")


def test_as_many_processors_as_there_are_may_be_had_and_no_more(own_parent):
    there = os.cpu_count()
    assert str(there) in refused(cgroup_sh("--name", own_parent, "--cpus", f"{there}.01"))
    assert cgroups(own_parent) == []
    prepare(own_parent, "--cpus", f"{there}")
    assert read_limits("cpu", own_parent) == (f"{there}00000", "100000")


@needs_v1
def test_on_v1_what_waits_in_sockets_has_its_limit_too(own_parent):
    file = HIERARCHIES["memory"] / own_parent / "memory.kmem.tcp.limit_in_bytes"
    if not (HIERARCHIES["memory"] / file.name).exists():
        pytest.skip("this kernel has no limit for them")
    for size in ("1g", "20m"):
        prepare(own_parent, "--memory", size)
    assert file.read_text() == f"{20 << 20}\n"


def test_each_cgroup_in_it_has_all_controllers(leaf):
    assert [len(each) for each in limits(leaf)] == [1, 1, 2]


def test_eight_at_once_do_not_get_into_each_others_way(own_parent):
    words = [CGROUP_SH, "--name", own_parent]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    at_once = [subprocess.Popen(words, **pipes) for _ in range(8)]
    assert [(each.communicate()[1], each.returncode) for each in at_once] == [(b"", 0)] * 8
    assert limits(own_parent)[:2] == [("10",), (str(50 << 20),)]


@pytest.mark.parametrize("shell", ["dash", "bash --posix", "busybox sh"])
def test_it_runs_in(own_parent, shell):
    words = tuple(shell.split())
    if not shutil.which(words[0]):
        pytest.skip(f"there is no {words[0]}")
    assert prepare(own_parent, prefix=words) == prepare(own_parent)
    refused(cgroup_sh("--name", f"{own_parent}\n", prefix=words))


# --- The limits hold ---------------------------------------------------------------------------


def test_ten_processes_in_all_cgroups_below_together(own_parent, leaf):
    other = f"{own_parent}/run-2"
    for directory in directories(other):
        directory.mkdir()
    with in_cgroup(other, "sleep 60 & sleep 60 & sleep 60 & echo; read _") as four:
        four.stdout.readline()
        with in_cgroup(leaf, "for i in 1 2 3 4 5 6 7 8 9; do sleep 60 & echo $i; done") as more:
            assert more.wait() == 2  # the shell could not fork
            kill_all(leaf)
            assert more.stdout.read() == "1\n2\n3\n4\n5\n"
        kill_all(other)


def test_memory_past_50_mb_is_not_had(leaf):
    with in_cgroup(leaf, "head -c 40000000 /dev/zero | tail >/dev/null") as less:
        assert less.wait() == 0
    with in_cgroup(leaf, "head -c 80000000 /dev/zero | tail >/dev/null") as more:
        assert more.wait() == 128 + signal.SIGKILL


# --- Who may use it ----------------------------------------------------------------------------


def test_the_caller_of_sudo_gets_the_cgroup_but_not_its_limits(own_parent):
    prepare(own_parent, SUDO_UID="54321", SUDO_GID="54322")
    for directory in directories(own_parent):
        for file in [directory, *directory.iterdir()]:
            names = ("cgroup.procs", "tasks", "cgroup.subtree_control", directory.name)
            assert file.stat().st_uid == (54321 if file.name in names else 0), file
            assert file.stat().st_gid == 0, file


@pytest.mark.parametrize("umask", ["077", "777", "000"])
def test_the_callers_umask_decides_nothing(own_parent, umask):
    become = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    prefix = ("sh", "-c", f'umask {umask}; exec "$@"', "sh")
    for owner, mode in (({}, 0o755), ({"SUDO_UID": "54321"}, 0o775)):
        prepare(own_parent, prefix=prefix, **owner)
        for directory in directories(own_parent):
            assert directory.stat().st_mode & 0o777 == mode
            mkdir = subprocess.run([*become, "mkdir", directory / "run-1"], capture_output=True)
            assert (mkdir.returncode == 0) == bool(owner), mkdir.stderr
            subprocess.run([*become, "ls", directory], check=True, stdout=subprocess.DEVNULL)
        delete_cgroup(own_parent)


REMOVERS = {
    "root in a user namespace": ("unshare", "--user"),
    "root without capabilities": ("setpriv", "--bounding-set=-all", "--inh-caps=-all"),
    "the caller of sudo": ("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"),
    "root of a container": ("setpriv", "--reuid=100000", "--regid=100000", "--clear-groups"),
}


@pytest.mark.parametrize("who", REMOVERS)
@pytest.mark.parametrize("maker", [0, 54321])
def test_in_a_cgroup_handed_over_a_leaf_is_removed_by(own_parent, who, maker):
    """When `run` is killed, its guard removes the leaf: host root, who has no power there now."""
    prepare(own_parent, SUDO_UID="54321", SUDO_GID="54322")
    expected = who != "root of a container" and (maker == 0 or who == "the caller of sudo")
    for directory in directories(own_parent):
        leaf = directory / "run-1"
        subprocess.run(["setpriv", f"--reuid={maker}", "mkdir", leaf], check=True)
        done = subprocess.run([*REMOVERS[who], "rmdir", leaf], capture_output=True, text=True)
        assert leaf.exists() != expected, done.stderr
        assert expected or "not permitted" in done.stderr or "Permission denied" in done.stderr


def test_only_the_bit_for_roots_group_lets_root_without_power_remove_a_leaf(own_parent):
    """The control of the test above."""
    prepare(own_parent, SUDO_UID="54321")
    for directory in directories(own_parent):
        (directory / "run-1").mkdir()
        directory.chmod(0o755)
        assert subprocess.run(["unshare", "--user", "rmdir", directory / "run-1"]).returncode == 1


@pytest.mark.skipif(not V1, reason="on cgroup v2 a normal user cannot join")
def test_on_v1_the_caller_of_sudo_can_join_but_not_raise_the_limit(own_parent):
    prepare(own_parent, SUDO_UID="54321", SUDO_GID="54321")
    script = "mkdir run-1 && echo 0 >run-1/tasks && cat /proc/self/cgroup; echo 99 >pids.max"
    words = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "sh", "-c", script]
    top = HIERARCHIES["pids"] / own_parent
    result = subprocess.run(words, cwd=top, capture_output=True, text=True)
    assert f"/{own_parent}/run-1\n" in result.stdout and "Permission denied" in result.stderr
    assert read_limits("pids", own_parent) == ("10",)


# --- Sweeping and deleting ---------------------------------------------------------------------


def test_it_sweeps_cgroups_of_containers_that_nobody_holds(own_parent, leaf):
    prepare(own_parent)
    assert not any(directory.exists() for directory in directories(leaf))


def test_it_leaves_cgroups_that_are_locked(own_parent, leaf):
    locks = [os.open(directory, os.O_RDONLY) for directory in directories(leaf)]
    for lock in locks:
        fcntl.flock(lock, fcntl.LOCK_EX)
    prepare(own_parent)
    assert all(directory.exists() for directory in directories(leaf))
    for lock in locks:
        os.close(lock)


def test_it_leaves_cgroups_that_have_processes(own_parent, leaf):
    with in_cgroup(leaf, "echo; exec sleep 60") as process:
        process.stdout.readline()
        prepare(own_parent)
        assert all(directory.exists() for directory in directories(leaf))
        process.kill()


def test_delete_leaves_nothing_and_may_be_repeated(own_parent, leaf):
    for _ in range(2):
        assert prepare(own_parent, "--delete") == ""
        assert cgroups(own_parent) == []


def test_a_cgroup_in_use_is_not_deleted_from_any_hierarchy(own_parent, leaf):
    with in_cgroup(leaf, "echo; exec sleep 60") as process:
        process.stdout.readline()
        assert "in use" in refused(cgroup_sh("--name", own_parent, "--delete"))
        assert all(directory.exists() for directory in directories(leaf))
        process.kill()


# --- Refusing ----------------------------------------------------------------------------------

GARBAGE = [
    *(f"--name={text}" for text in ("", ".", "..", "a/b", "/a", "-a", "a b", "ü", "a\nb", "*")),
    *(f"--pids={text}" for text in ("", "0", "-1", "1.5", "ten", "010", "4194305", "9" * 30)),
    *(f"--memory={text}" for text in ("", "0", "-5", "banana", "1.5g", "50MB", "m", "1023k")),
    *(f"--memory={text}" for text in ("9" * 30, "9999999999g", "0x10m", "50t", "$(id)", "50m\n")),
    *(f"--cpus={text}" for text in ("", "0", "0.009", "-1", ".", "1.2.3", "two", "1e3", "9" * 30)),
    *("--banana", "-x", "x", "--delete=x", "--pids", "--memory", "--cpus", "--name", ""),
]


@pytest.mark.parametrize("word", GARBAGE)
def test_garbage_is_refused_before_anything_is_made(own_parent, word):
    refused(cgroup_sh("--name", own_parent, word))
    assert cgroups(own_parent) == []


def test_garbage_is_refused_to_a_normal_user_first(own_parent):
    become = ("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "sh")
    assert "banana" in refused(cgroup_sh("--banana", prefix=become))
    assert "sudo" in refused(cgroup_sh("--name", own_parent, prefix=become))


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_is_the_usage(own_parent, word):
    assert prepare(own_parent, word).startswith("usage: ")
    assert cgroups(own_parent) == []


@pytest.fixture
def theirs(own_parent: str) -> Callable[[str], Path]:
    """`theirs(controller)`: a cgroup of that name that somebody else has made, in one hierarchy."""

    def theirs(controller: str) -> Path:
        directory = HIERARCHIES[controller] / own_parent
        directory.mkdir()
        return directory

    return theirs


def state(name: str) -> dict[str, object]:
    """All that can be set in the cgroups of that name, and whose they are."""
    found = [Path(path) for path in cgroups(name)]
    files = [file for each in found for file in [each, *each.iterdir()]]
    return {
        f"{file}": (status.st_mode, status.st_uid, status.st_gid, text)
        for file in files
        if (status := file.stat()).st_mode & 0o200
        for text in [file.read_text() if file.is_file() and status.st_mode & 0o400 else ""]
    }


@pytest.mark.parametrize("controllers", [(each,) for each in CONTROLLERS] + [CONTROLLERS])
def test_somebody_elses_cgroup_is_left_alone(own_parent, theirs, controllers):
    """Wherever there is one, nothing changes anywhere."""
    for directory in {HIERARCHIES[each] for each in controllers}:
        (directory / own_parent).mkdir()
    before = state(own_parent)
    text = refused(cgroup_sh("--name", own_parent, SUDO_UID="54321"))
    assert own_parent in text and state(own_parent) == before


def test_what_cgroup_sh_made_is_not_somebody_elses(own_parent):
    """The control: whoever may have made cgroups in it, and wherever a part is missing."""
    prepare(own_parent)
    for directory in directories(own_parent):
        (directory / "theirs").mkdir()
        result = cgroup_sh("--name", own_parent, "--pids", "8")
        (directory / "theirs").rmdir()
        assert (result.returncode, limits(own_parent)[0]) == (0, ("8",)), result
        directory.rmdir()
        prepare(own_parent, "--pids", "7")
        assert limits(own_parent)[0] == ("7",)


def test_the_bit_that_says_so_is_gone_with_the_cgroup(own_parent, theirs):
    prepare(own_parent)
    prepare(own_parent, "--delete")
    theirs("pids")
    refused(cgroup_sh("--name", own_parent))


def test_somebody_elses_cgroup_that_nobody_uses_can_be_deleted_and_prepared(own_parent, theirs):
    """The way out that the message names."""
    theirs("memory")
    assert "--delete" in refused(cgroup_sh("--name", own_parent))
    prepare(own_parent, "--delete")
    prepare(own_parent)


def test_a_file_of_that_name_is_not_a_cgroup(own_parent):
    """Every hierarchy has this file at its top."""
    refused(cgroup_sh("--name", "cgroup.procs"))


def test_who_comes_second_waits_for_the_first(own_parent):
    top = os.open(HIERARCHIES["memory"], os.O_RDONLY)
    fcntl.flock(top, fcntl.LOCK_EX)
    with subprocess.Popen([CGROUP_SH, "--name", own_parent], stdout=subprocess.DEVNULL) as second:
        time.sleep(0.5)
        assert second.poll() is None and cgroups(own_parent) == []
        os.close(top)
        assert second.wait() == 0


def hidden(controller: str) -> tuple[str, ...]:
    """A `prefix` under which the kernel seems to have no such controller."""
    top = HIERARCHIES[controller]
    if top == HIERARCHIES.get("v2"):
        others = " ".join({*CONTROLLERS} - {controller})
        script = f"mount -t tmpfs none /mnt; echo {others} >/mnt/others"
        script += f"; mount --bind /mnt/others {top}/cgroup.controllers"
    else:
        script = f"mount -t tmpfs none {top}"
    return ("unshare", "--mount", "sh", "-c", f'{script}; exec "$@"', "sh")


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_without_a_controller_nothing_half_made_is_left(own_parent, controller):
    result = cgroup_sh("--name", own_parent, prefix=hidden(controller))
    assert f" {controller} " in refused(result)
    assert cgroups(own_parent) == []


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_in_a_read_only_hierarchy_nothing_half_made_is_left(own_parent, controller):
    script = f'mount -o remount,bind,ro {HIERARCHIES[controller]} && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", script, "sh")
    result = cgroup_sh("--name", own_parent, prefix=prefix)
    text = refused(result)
    assert f"{HIERARCHIES[controller]} is mounted read-only" in text
    assert "ProtectControlGroups" in text and "sudo" not in text
    assert cgroups(own_parent) == []


# --- Ended halfway -----------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["pids.max", "cpu.", "nothing"])
def test_a_limit_that_the_kernel_refuses_leaves_nothing_half_made(own_parent, tmp_path, file):
    """By then the memory has its limit. tee(1) seems to fail; the control, where nothing does."""
    refusing = f"case $1 in */{file}*) echo Refused; exit 1 ;; esac"
    (tmp_path / "tee").write_text(f"#!/bin/sh\n{refusing}\nexec /usr/bin/tee $1\n")
    (tmp_path / "tee").chmod(0o755)
    path = f"PATH={tmp_path}:{os.environ['PATH']}"
    result = cgroup_sh("--name", own_parent, prefix=("env", path))
    if file == "nothing":
        assert result.returncode == 0 and cgroups(own_parent), result
    else:
        assert file in refused(result) and cgroups(own_parent) == []


TOOLS = ("mkdir", "rmdir", "tee", "cat", "chown", "chmod", "flock", "id", "tr")
TOOL = """#!/bin/sh
# Counts the commands that cgroup.sh calls. The one with the number $at, and all after it, send it
# signals when they are done.
PATH=$real
${0##*/} "$@"
code=$?
read -r number <"$bin/number"
echo $((number + 1)) >"$bin/number"
[ "$number" -lt "$at" ] || for each in $signals; do kill -s "$each" "$(cat "$bin/pid")"; done
exit $code
"""


@pytest.fixture
def interrupted(own_parent: str, tmp_path: Path) -> Callable[[int, str], Result]:
    """`interrupted(5, "TERM")`: cgroup.sh, which gets a signal after the fifth command, and on."""
    for tool in TOOLS:
        (tmp_path / tool).write_text(TOOL)
        (tmp_path / tool).chmod(0o755)
    script = 'echo $$ >"$bin/pid"; exec env PATH="$bin:$PATH" "$@"'

    def interrupted(at: int, signals: str, shell: str = "sh") -> Result:
        (tmp_path / "number").write_text("1\n")
        given = {
            "bin": str(tmp_path),
            "real": os.environ["PATH"],
            "at": str(at),
            "signals": signals,
        }
        prefix = ("sh", "-c", script, "sh", *shell.split())
        return cgroup_sh("--name", own_parent, prefix=prefix, SUDO_UID="54321", **given)

    return interrupted


@pytest.mark.parametrize("shell", ["sh", "bash --posix"])
@pytest.mark.parametrize("signals", ["TERM", "INT", "HUP", "TERM INT HUP"])
def test_a_signal_after_any_command_leaves_all_or_nothing(own_parent, interrupted, signals, shell):
    """Before it is prepared and while what was made is undone, since the signals go on."""
    if not shutil.which(shell.split()[0]):
        pytest.skip(f"there is no {shell}")
    ends = []
    for at in range(1, 200):
        result = interrupted(at, signals, shell)
        assert (len(cgroups(own_parent)) == 0) == (result.returncode != 0), (at, result)
        ends.append(result.returncode)
        if result.returncode == 0:
            break
    assert len(ends) > 15 and ends[-1] == 0
    assert limits(own_parent)[:2] == [("10",), (str(50 << 20),)]


def test_a_signal_leaves_a_cgroup_that_was_there_before(own_parent, interrupted):
    prepare(own_parent)
    for at in range(1, 40, 3):
        interrupted(at, "TERM")
        assert {str(each) for each in directories(own_parent)} == {*cgroups(own_parent)}


@pytest.mark.parametrize("names", ["TERM", "INT", "HUP", "INT INT TERM HUP INT TERM"])
def test_signals_at_any_time_leave_all_or_nothing(own_parent, names):
    """To all its processes, as Ctrl-C, or to the shell alone, by somebody impatient, too."""
    begin = time.monotonic()
    prepare(own_parent)
    usual = time.monotonic() - begin
    delete_cgroup(own_parent)
    seen = set()
    numbers = [signal.Signals[f"SIG{name}"] for name in names.split()]
    for attempt in range(60):
        words = [CGROUP_SH, "--name", own_parent]
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
        kill = (os.kill, os.killpg)[attempt % 2]
        with subprocess.Popen(words, start_new_session=True, **pipes) as process:
            time.sleep(usual * (attempt % 20) / 16)
            for number in numbers:
                if process.poll() is None:
                    kill(process.pid, number)
                    time.sleep(0.0005)
        left = len(cgroups(own_parent))
        assert (left == 0) == (process.returncode != 0), (attempt, left, process.returncode)
        seen.add(left)
        delete_cgroup(own_parent)
    assert 0 in seen


# --- Under another kernel: version 2, version 1, and pids on v1 with the rest on v2 ------------

TOP = "/sys/fs/cgroup"
V2_FILES = {"pids": "pids.max", "memory": "memory.max", "swap": "memory.swap.max", "cpu": "cpu.max"}
FILES = {  # where each limit of the cgroup demo is
    "v2": {key: f"{TOP}/demo/{file}" for key, file in V2_FILES.items()},
    "v1": {
        "pids": f"{TOP}/pids/demo/pids.max",
        "memory": f"{TOP}/memory/demo/memory.limit_in_bytes",
        "swap": f"{TOP}/memory/demo/memory.memsw.limit_in_bytes",
        "cpu": f"{TOP}/cpu,cpuacct/demo/cpu.cfs_quota_us",
    },
    "hybrid": {key: f"{TOP}/unified/demo/{file}" for key, file in V2_FILES.items()}
    | {"pids": f"{TOP}/pids/demo/pids.max"},
}

# $pids, $memory, $swap and $cpu are those files, $all the cgroup's directories. `inside` starts a
# shell in the container's cgroup run-1, `as_user` in somebody's own cgroup.
PRELUDE = """
limits() { cat $pids $memory $swap $cpu | tr '\\n' ' '; }
leaf() { for each in $all; do mkdir -p $each/run-1; done; }
inside() { sh -c 'for each in '"$all"'; do echo 0 >$each/run-1/cgroup.procs; done; '"$1"; }
subtree() {  # of cgroup v2, which somebody's shell can be in
    top=${memory%/demo/*}
    mkdir $top/scope $top/plain; chown -R 54321:54321 $top/scope
    for each in memory pids cpu; do echo +$each >$top/cgroup.subtree_control; done
} 2>/dev/null
as_user() {  # as_user CGROUP: a shell with the script in its standard input
    sh -c "echo \\$\\$ >$top/$1/cgroup.procs; exec env top=$top \
        setpriv --reuid=54321 --regid=54321 --clear-groups sh"
}
fill='head -c 8m /dev/zero | tail >/dev/null'
"""

SCRIPTS = {
    "the limits": "./cgroup.sh >/dev/null; limits",
    "limits that go up and down": """
        for size in 1g 20m 50000000; do
            ./cgroup.sh --memory $size --pids 7 --cpus 0.5 >/dev/null; limits
        done""",
    "what is printed": "./cgroup.sh",
    "a process too many": """
        ./cgroup.sh >/dev/null; leaf
        inside 'for i in 1 2 3 4 5 6 7 8 9 10; do sleep 100 & echo -n $i; done'
        kill $(cat ${pids%/*}/run-1/cgroup.procs)""",
    "too much memory": """
        ./cgroup.sh --memory 4M >/dev/null; leaf
        inside "$fill"; echo $?
        case $swap in *memsw*) echo -1 ;; *) echo max ;; esac >$swap
        inside "$fill"; echo $?""",
    "the files handed over": """
        SUDO_UID=54321 SUDO_GID=54322 ./cgroup.sh >/dev/null
        find $all -user 54321 -group 0 -printf '%f '""",
    "who removes a leaf": """
        for mode in 755 775; do
            chmod 1$mode $all; leaf
            for each in $all; do
                setpriv --reuid=100000 --regid=100000 --clear-groups rmdir $each/run-1 2>/dev/null
                unshare --user rmdir $each/run-1 2>/dev/null
            done
            find $all -name run-1 | wc -l
        done""",
    "the leaves that are swept": """
        leaf; ./cgroup.sh >/dev/null
        ls -d ${pids%/*}/run-* ${memory%/*}/run-* ${cpu%/*}/run-*""",
    "the leaves that are not swept": """
        leaf; inside 'sleep 100 & ./cgroup.sh >/dev/null; ./cgroup.sh --delete; kill $!'
        ls -d ${pids%/*}/run-* ${memory%/*}/run-* ${cpu%/*}/run-*""",
    "what delete leaves": f"sleep 0.2; ./cgroup.sh --delete; find {TOP} -name demo",
    "what a failure leaves": f"""
        unshare --mount sh -c 'echo memory pids >/tmp/two
            mount --bind /tmp/two {TOP}/cgroup.controllers 2>/dev/null ||
            mount -t tmpfs none {TOP}/cpu,cpuacct 2>/dev/null ||
            mount --bind /tmp/two {TOP}/unified/cgroup.controllers
            ./cgroup.sh'
        find {TOP} -name demo""",
    "a cgroup of somebody else": """
        for each in $all; do
            mkdir $each; SUDO_UID=54321 ./cgroup.sh; ls -d $all 2>/dev/null | wc -l
            cat $each/*.max $each/*limit_in_bytes 2>/dev/null | sort -u | tr '\\n' ' '
            find $each -user 54321; rmdir $each; echo
        done""",
    "a signal halfway": """
        for each in 05 20 35 50; do
            ./cgroup.sh >/dev/null & sleep 0.$each; kill -s TERM $! 2>/dev/null
            wait $! 2>/dev/null && echo -n all || echo -n none
            echo " $(ls -d $all 2>/dev/null | wc -l)"; ./cgroup.sh --delete
        done""",
    "somebody in a cgroup of root": """
        subtree; echo './cgroup.sh' | as_user plain; ls $top | grep -x -e demo -e launcher; :""",
    "a shell in a delegated subtree": """
        subtree; as_user scope <<'END'
            sleep 100 &  # whoever else is there
            ./cgroup.sh --cpus 0.5; grep ^0 /proc/self/cgroup; stat -c '%A %u %g' $top/scope/demo
            cat $top/scope/cgroup.procs; ./cgroup.sh --pids 7 >/dev/null; ./cgroup.sh
            mkdir $top/scope/demo/run-1; echo $! >$top/scope/demo/run-1/cgroup.procs
            ./cgroup.sh --delete; cat $top/scope/demo/run-1/pids.max; kill $!; wait
            ./cgroup.sh --delete; ls $top/scope | grep -x demo
            mkdir $top/scope/demo; ./cgroup.sh
END
        rmdir $top/scope/* $top/scope 2>/dev/null; ls $top | grep -x demo; :""",
    "a subtree without cpu": """
        subtree; echo -cpu >$top/cgroup.subtree_control
        as_user scope <<'END'
            ./cgroup.sh --cpus 0.5; ls $top/scope | grep -x demo; ./cgroup.sh; ./cgroup.sh --delete
END
        rmdir $top/scope/* $top/scope 2>/dev/null; ls $top | grep -x demo; :""",
}


@pytest.fixture(scope="module")
def all_said() -> dict[str, dict[str, str]]:
    """What each script says on a machine of each layout; the machines run at the same time."""
    if not shutil.which("linux.uml"):
        pytest.skip("there is no linux.uml: apt-get install user-mode-linux")
    if Path("/run/uml").exists():
        pytest.skip("we are in such a machine already")
    machines = {}
    for layout, files in FILES.items():
        directories = dict.fromkeys(str(Path(file).parent) for file in files.values())
        script = "exec 2>&1\n" + "".join(f"{key}={file}\n" for key, file in files.items())
        script += f"all='{' '.join(directories)}'\n{PRELUDE}"
        script += "".join(f"echo '=== {name}'\n{lines}\n" for name, lines in SCRIPTS.items())
        words = [UML, "--cgroup", layout, "--swap", "64M", "--timeout", "300", "sh", "-c", script]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        machines[layout] = subprocess.Popen(words, cwd=REPOSITORY, text=True, **pipes)
    results = {layout: (*each.communicate(), each.returncode) for layout, each in machines.items()}
    assert [result[1:] for result in results.values()] == [("", 0)] * len(results)
    parts = {layout: result[0].split("=== ")[1:] for layout, result in results.items()}
    return {layout: dict(part.split("\n", 1) for part in each) for layout, each in parts.items()}


@pytest.fixture(params=FILES)
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def said(all_said: dict[str, dict[str, str]], layout: str) -> dict[str, str]:
    return all_said[layout]


def test_in_that_world_the_limits_are_prepared(layout, said):
    rest = {"v1": "52428800 -1 "}.get(layout, "0 max 100000 ")  # of swap, and processors
    assert said["the limits"] == f"10 52428800 {rest}"


def test_in_that_world_limits_go_up_and_down(layout, said):
    sizes = (1 << 30, 20 << 20, 49999872)
    rest = "7 {0} {0} 50000 " if layout == "v1" else "7 {0} 0 50000 100000 "
    assert said["limits that go up and down"] == "".join(rest.format(size) for size in sizes)


def test_in_that_world_the_limits_are_printed(layout, said):
    *lines, last = said["what is printed"].splitlines()
    assert {line.split(" = ")[0] for line in lines} >= set(FILES[layout].values())
    assert f"{FILES[layout]['memory']} = 52428800" in lines
    assert last == "now: sudo python3 go_container.py run /bin/sh"


def test_in_that_world_there_are_ten_processes(said):
    assert re.match("123456789sh: .*fork", said["a process too many"])


def test_in_that_world_swap_does_not_stretch_the_limit(said):
    closed, opened = re.findall(r"^\d+$", said["too much memory"], re.MULTILINE)
    assert (closed, opened) == ("137", "0")


def test_in_that_world_the_caller_of_sudo_gets_the_cgroup(layout, said):
    v1, v2 = ["demo", "cgroup.procs", "tasks"], ["demo", "cgroup.procs", "cgroup.subtree_control"]
    expected = {"v1": 3 * v1, "v2": v2, "hybrid": v1 + v2}[layout]
    assert sorted(said["the files handed over"].split()) == sorted(expected)


def test_in_that_world_leaves_are_swept_only_without_processes(said):
    assert said["the leaves that are swept"].count("No such file") == 3
    refusal, *leaves = said["the leaves that are not swept"].splitlines()
    assert refusal.startswith("cgroup.sh: demo is in use: ") and len(leaves) == 3


def test_in_that_world_delete_leaves_nothing(said):
    assert said["what delete leaves"] == ""


def test_in_that_world_nothing_half_made_is_left(said):
    refusal, *left = said["what a failure leaves"].splitlines()
    assert refusal.startswith("cgroup.sh: ") and " cpu controller" in refusal and not left


def test_in_that_world_root_without_power_removes_a_leaf_if_its_group_may(layout, said):
    there = len({str(Path(file).parent) for file in FILES[layout].values()})
    assert said["who removes a leaf"].split() == [str(there), "0"]


def test_in_that_world_somebody_elses_cgroup_is_left_alone(layout, said):
    """In whichever hierarchy it is, it is the only one there, has no limit and no new owner."""
    lines = said["a cgroup of somebody else"].splitlines()
    refusals, counts, values = lines[::3], lines[1::3], lines[2::3]
    there = len({str(Path(file).parent) for file in FILES[layout].values()})
    assert len(refusals) == there and counts == ["1"] * there
    assert all(line.startswith("cgroup.sh: ") and "/demo " in line for line in refusals)
    nothing = {"max", "100000", "9223372036854771712"}
    assert {word for line in values for word in line.split()} <= nothing


def test_in_that_world_a_signal_leaves_all_or_nothing(layout, said):
    there = len({str(Path(file).parent) for file in FILES[layout].values()})
    lines = {line for line in said["a signal halfway"].splitlines() if "Terminated" not in line}
    assert "none 0" in lines and lines <= {"none 0", f"all {there}"}


def test_in_that_world_somebody_can_prepare_nothing_where_all_is_roots(layout, said):
    (line,) = said["somebody in a cgroup of root"].splitlines()
    assert line.startswith("cgroup.sh: ") and "sudo ./cgroup.sh" in line
    assert ("systemd-run --user --scope -p Delegate=yes" in line) == (layout != "v1")


SCOPE = f"{TOP}/scope"
SAID_IN_A_SCOPE = f"""\
{SCOPE}/demo/memory.max = 52428800
{SCOPE}/demo/memory.swap.max = 0
{SCOPE}/demo/pids.max = 10
{SCOPE}/demo/cpu.max = 50000 100000
now: python3 go_container.py run /bin/sh
0::/scope/launcher
drwxr-xr-t 54321 54321
{SCOPE}/demo/memory.max = 52428800
{SCOPE}/demo/memory.swap.max = 0
{SCOPE}/demo/pids.max = 10
{SCOPE}/demo/cpu.max = max 100000
now: python3 go_container.py run /bin/sh
cgroup.sh: demo is in use: {SCOPE}/demo/run-1/
max
cgroup.sh: {SCOPE}/demo is not ours: take another --name, or --delete it if nobody uses it
"""


def test_in_that_world_a_delegated_subtree_of_v2_is_somebodys_to_prepare(layout, said):
    """Though his shell is in it. Called again, from beside the cgroup, it finds the same one."""
    lines = said["a shell in a delegated subtree"]
    if layout == "v2":
        assert lines == SAID_IN_A_SCOPE
    else:
        assert lines.count("only root can prepare a cgroup") > 2 and "52428800" not in lines


def test_in_that_world_a_subtree_without_cpu_has_no_limit_for_it(layout, said):
    first, *rest = said["a subtree without cpu"].splitlines()
    if layout == "v2":
        assert first.startswith(f"cgroup.sh: cannot write +cpu to {SCOPE}/")
        assert rest == [line for line in SAID_IN_A_SCOPE.splitlines()[7:12] if "cpu" not in line]
