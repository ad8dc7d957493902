"""What `run` reports about limits is true: of this container, and of whose limit it was.

Two containers side by side: one that meets a limit, and one that does nothing. Kernels before 6.12
count where a process could not be made, later ones where the limit is, and in all cgroups above.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from containers import CGROUP_SH, PYTHON, SCRIPT
from test_worlds import end_of, in_world, is_right, needs_uml, pytest_there, start_world

pytestmark = pytest.mark.once  # the same with every Python

FORK = "for i in $(seq 30); do sleep 600 & echo started; done"
FILL = ("tail", "/dev/zero")


def reports(stderr):
    lines = stderr.decode().splitlines()
    return [line for line in lines if line.startswith("go_container: ")]


def silent(container):
    """It has ended as it was told to, and had nothing to report."""
    result = container.finish()
    assert (result.returncode, result.stdout, result.stderr) == (1, b"", b"")


def one_report(result, *words):
    found = reports(result.stderr)
    assert len(found) == 1 and all(re.search(word, found[0]) for word in words), found


# --- Processes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--pids-limit", "2")], ids=["no limit", "its own"])
def test_who_does_nothing_has_not_met_the_limit_of_another(start, shell, options):
    with start(*options) as idle:
        loud = shell(FORK, "--pids-limit", "3")
        one_report(loud, r"\b3 processes", "--pids-limit")
        silent(idle)


@pytest.mark.parametrize("options", [(), ("--pids-limit", "2")], ids=["no limit", "its own"])
def test_who_does_nothing_has_not_met_the_limit_of_all(start, shell, parent, options):
    with start(*options) as idle:
        loud = shell(FORK)
        one_report(loud, r"\b10 processes", parent)
        assert "--pids-limit" not in reports(loud.stderr)[0]
        silent(idle)


def test_who_met_the_limit_of_all_below_its_own_is_told_so(start, shell, parent):
    """Its own limit was never reached: others had taken what there is."""
    with start(script="for i in 1 2 3 4 5; do sleep 600 & done") as idle:
        loud = shell(FORK, "--pids-limit", "8")
        assert loud.stdout.count(b"started") == 3  # the shell is the fourth, the tenth in all
        one_report(loud, r"\b10 processes", parent)
        assert "--pids-limit" not in reports(loud.stderr)[0]
        silent(idle)


def test_who_met_its_own_limit_is_told_so_while_there_is_room_for_all(start, shell):
    """The control."""
    with start() as idle:
        loud = shell(FORK, "--pids-limit", "4")
        assert loud.stdout.count(b"started") == 3
        one_report(loud, r"\b4 processes", "--pids-limit")
        silent(idle)


def test_two_that_meet_their_own_limits_are_told_of_these(shell, start):
    with start("--pids-limit", "3", script=f"({FORK}) >/dev/null 2>&1") as one:
        other = shell(FORK, "--pids-limit", "5")
        one_report(other, r"\b5 processes", "--pids-limit")
        one_report(one.finish(), r"\b3 processes", "--pids-limit")


def test_what_others_met_before_the_start_is_not_reported(shell):
    one_report(shell(FORK), r"\b10 processes")
    assert reports(shell("true").stderr) == []


# --- Memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--memory", "24m")], ids=["no limit", "its own"])
def test_who_does_nothing_has_not_met_the_memory_limit_of_another(start, run, options):
    with start(*options) as idle:
        loud = run("--memory", "20m", *FILL)
        assert loud.returncode == 137
        one_report(loud, r"\b20 MB", "--memory", "1 process")
        silent(idle)


@pytest.mark.parametrize("options", [(), ("--memory", "24m")], ids=["no limit", "its own"])
def test_who_does_nothing_has_not_met_the_memory_limit_of_all(start, run, parent, options):
    with start(*options) as idle:
        loud = run(*FILL)
        assert loud.returncode == 137
        one_report(loud, r"\b50 MB", parent, "1 process")
        silent(idle)


def test_who_met_the_memory_limit_of_all_below_its_own_is_told_so(start, run, parent):
    """The other one has taken the rest, in a file, for which nobody is killed."""
    with start(script="head -c 25000000 /dev/zero >/dev/shm/file") as idle:
        loud = run("--memory", "40m", *FILL)
        assert loud.returncode == 137
        one_report(loud, r"\b50 MB", parent)
        silent(idle)


def test_what_was_killed_before_the_start_is_not_reported(run, shell):
    assert run(*FILL).returncode == 137
    assert reports(shell("true").stderr) == []


# --- On version 2 ---------------------------------------------------------------------------------


@needs_uml
@pytest.mark.once
@pytest.mark.parametrize("cgroup", ["v2", "hybrid"])
def test_in_another_world_all_of_this_is_the_same_with_cgroups_of(cgroup, tmp_path):
    words = [*pytest_there(Path(__file__).name), "-k", "not another_world"]
    assert is_right(*end_of(start_world(cgroup, *words, ext4=tmp_path)))


# A kernel since 6.12, as far as one before it can look like one: what happens below a cgroup
# counts in its own pids.events. Nobody in this container has met a limit meanwhile.
SINCE_6_12 = f"""
    '{CGROUP_SH}' --name demo >/dev/null && cd /sys/fs/cgroup/demo
    echo 'max 0' >/tmp/events && mount --bind /tmp/events pids.events && cd /
    '{PYTHON}' '{SCRIPT}' run --rootfs /mnt OPTIONS sh -c 'echo begun; sleep 3' >/tmp/said 2>&1 &
    until grep -q begun /tmp/said; do sleep 0.1; done
    echo 'max 3' >/tmp/events
    wait $!; echo "code $?"; cat /tmp/said /sys/fs/cgroup/demo/pids.events"""


@needs_uml
@pytest.mark.once
@pytest.mark.parametrize("options", ["", "--pids-limit 2"], ids=["no limit", "its own"])
def test_what_another_world_counts_for_a_whole_subtree_is_not_this_container_s(root, options):
    script = SINCE_6_12.replace("OPTIONS", options)
    lines = in_world("v2", "sh", "-c", script, ext4=root).splitlines()
    assert lines == ["code 0", "begun", "max 3"]
