"""The limits: both experiments of the exercise, what `run` reports, and the cgroups on the host."""

from __future__ import annotations

import os
import re
import signal
import subprocess

import pytest
from containers import CGROUP_SH, CONTROLLERS, HIERARCHIES, cgroups, fine, one_line, read_limits

FORK_100 = "for i in $(seq 100); do sleep 600 & echo started; done"
FILL_MEMORY = "exec tail /dev/zero"  # waits for the end of a line that never ends


def reports(stderr: bytes, *words: str) -> int:
    """How many of the lines are a report of ours that has all these words in it."""
    lines = [line for line in stderr.decode().splitlines() if line.startswith("go_container: ")]
    return sum(all(re.search(word, line) for word in words) for line in lines)


# --- The experiments ---------------------------------------------------------------------------


def test_a_hundred_processes_stop_at_ten(shell):
    result = shell(FORK_100)
    assert result.stdout == b"started\n" * 9  # the shell itself is the tenth
    assert result.returncode == 2
    assert b"can't fork: Resource temporarily unavailable" in result.stderr


def test_run_says_that_the_limit_of_processes_was_hit(shell, parent):
    assert reports(shell(FORK_100).stderr, "limit", "10 processes", parent) == 1


@pytest.mark.parametrize("script", [FILL_MEMORY, "x=x; while :; do x=$x$x; done"])
def test_memory_past_50_mb_gets_the_command_killed(shell, parent, script):
    result = shell(script)
    assert (result.returncode, result.stdout) == (128 + signal.SIGKILL, b"")
    assert reports(result.stderr, "memory", "limit", "50 MB", "1 (process )?killed", parent) == 1
    assert result.stderr.count(b"\n") == 1


def test_run_says_how_many_processes_the_memory_limit_killed(shell):
    script = "for i in 1 2; do (exec tail /dev/zero); echo $?; done; exit 3"
    result = shell(script)
    assert (result.returncode, result.stdout) == (3, b"137\n137\n")
    assert reports(result.stderr, "memory", "limit", "2 (processes )?killed") == 1


def test_memory_up_to_the_limit_is_had(shell):
    assert fine(shell("head -c 40000000 /dev/zero > /dev/shm/file; wc -c < /dev/shm/file")) == (
        b"40000000\n"
    )


def test_both_limits_are_reported_by_a_line_each(shell):
    result = shell(f"({FILL_MEMORY}); {FORK_100}")
    assert reports(result.stderr, "memory", "limit") == reports(result.stderr, "10 processes") == 1


# --- One container's own, tighter limits -------------------------------------------------------


def test_pids_limit_tightens_one_container(shell):
    result = shell(FORK_100, "--pids-limit", "4")
    assert result.stdout == b"started\n" * 3
    assert reports(result.stderr, "limit", r"\b4 processes") == 1


def test_memory_tightens_one_container(run):
    result = run("-m", "20m", "tail", "/dev/zero")
    assert result.returncode == 137 and reports(result.stderr, "memory", "limit", "20 MB") == 1


@pytest.mark.parametrize("cpus, slowed", [("0.1", True), (str(os.cpu_count()), False)])
def test_cpus_slow_one_container_down(start, cpus, slowed):
    work = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
    with start("--cpus", cpus, script=work) as container:
        statistics = (container.cgroup("cpu") / "cpu.stat").read_text().split()
    assert (statistics[statistics.index("nr_throttled") + 1] != "0") == slowed


@pytest.mark.parametrize("attempt", range(5))
def test_not_even_the_first_instruction_runs_outside_the_limits(shell, attempt):
    assert shell("true; (true); echo forked", "--pids-limit", "1").stdout == b""


# --- The prepared limits hold for all containers together --------------------------------------


def test_two_containers_share_the_ten_processes(shell, start):
    with start(script="for i in 1 2 3 4 5 6; do sleep 600 & done"):
        result = shell(FORK_100)
        assert result.stdout == b"started\n" * 2
        assert reports(result.stderr, "limit", "10 processes") == 1


def test_two_containers_share_the_50_mb(shell, start):
    """The kernel chooses which process of either has to go."""
    fill = "head -c 30000000 /dev/zero > /dev/shm/file"
    with start(script=fill) as container:
        results = [shell(f"{fill}; echo through"), container.finish()]
    assert any(result.returncode == 137 or b"Killed" in result.stderr for result in results)
    assert any(reports(result.stderr, "memory", "limit", "50 MB") for result in results)


# --- The cgroups, as the host sees them --------------------------------------------------------


def test_run_prepares_the_cgroup_when_it_is_not_there(run, own_parent):
    fine(run("true", parent=own_parent))
    assert read_limits("pids", own_parent) == ("10",)
    assert read_limits("memory", own_parent) == (str(50 << 20),)


def test_run_keeps_a_cgroup_that_is_there_as_it_is(run, own_parent):
    limits = ["--pids", "3", "--memory", "40M"]
    subprocess.run([CGROUP_SH, "--name", own_parent, *limits], check=True, capture_output=True)
    fine(run("true", parent=own_parent))
    assert read_limits("pids", own_parent) == ("3",)
    assert read_limits("memory", own_parent) == (str(40 << 20),)


def test_the_cgroup_is_demo_by_default(start, root):
    with start("--cgroup-parent", "demo") as container:
        assert container.cgroup("pids").parent == HIERARCHIES["pids"] / "demo"


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_each_container_has_a_leaf_of_its_own_in(start, parent, controller):
    with start("--cpus", "1") as one, start("--cpus", "1") as other:
        leaves = [container.cgroup(controller) for container in (one, other)]
        assert leaves[0] != leaves[1]
        for leaf, container in zip(leaves, (one, other)):
            assert leaf.parent == HIERARCHIES[controller] / parent
            assert leaf.name.startswith("run-")
            assert (leaf / "cgroup.procs").read_text() == f"{container.pid}\n"


def test_a_leaf_is_held_by_a_lock_while_it_is_in_use(start):
    with start() as container:
        lock = ["flock", "--nonblock", str(container.cgroup("pids")), "true"]
        assert subprocess.run(lock).returncode == 1


def test_children_of_the_command_are_in_its_leaf(start):
    with start(script="sleep 600 & sleep 600 &") as container:
        assert len((container.cgroup("memory") / "cgroup.procs").read_text().split()) == 3


def test_inside_the_leaf_is_all_there_is(run):
    paths = {line.split(b":", 2)[2] for line in fine(run("cat", "/proc/self/cgroup")).splitlines()}
    assert paths == {b"/"}


def leaves(parent: str) -> list[str]:
    """The containers' own cgroups below the prepared one, which is there."""
    assert cgroups(parent)
    return cgroups(f"{parent}/run-")


ENDINGS = {
    "an exit": "exit 3",
    "a command that is not found": "exec /no/such",
    "processes that stay": "for i in 1 2 3; do sleep 600 & done; exit",
    "a hundred processes": FORK_100,
    "too much memory": FILL_MEMORY,
    "too much in a file": "head -c 90000000 /dev/zero > /dev/shm/file",
}


@pytest.mark.parametrize("script", ENDINGS.values(), ids=ENDINGS)
def test_no_leaf_is_left_after(shell, own_parent, script):
    shell(script, parent=own_parent)
    assert leaves(own_parent) == []


def test_no_leaf_is_left_after_the_container_was_killed(start, own_parent):
    with start(parent=own_parent) as container:
        os.kill(container.pid, signal.SIGKILL)
        container.finish()
    assert leaves(own_parent) == []


@pytest.mark.parametrize("garbage", ["/no/such/command", ""])
def test_no_leaf_is_left_when_there_was_nothing_to_run(run, own_parent, garbage):
    one_line(run(garbage, parent=own_parent), 127)
    assert leaves(own_parent) == []


def test_a_mount_without_a_source_hides_no_cgroup(run):
    """mount(2) takes an empty one, and mountinfo has two blanks there."""
    mount = "mount -t tmpfs '' /mnt && exec \"$@\""
    assert fine(run("true", prefix=["unshare", "--mount", "sh", "-c", mount, "sh"])) == b""
