"""Other worlds: another kernel with cgroup v2, v1 or both (User-Mode Linux), and containers.

The tests of limits, of endings and of normal users run again in each of them, with the machine's
own files as the root.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from containers import (
    CGROUP_SH,
    PYTHON,
    REPOSITORY,
    SCRIPT,
    UML,
    in_throwaway_namespaces,
    needs_uml,
    one_line,
)

LIMITS = """
    test_limits.py::test_a_hundred_processes_stop_at_ten
    test_limits.py::test_run_says_that_the_limit_of_processes_was_hit
    test_limits.py::test_memory_past_50_mb_gets_the_command_killed[exec tail /dev/zero]
    test_limits.py::test_run_says_how_many_processes_the_memory_limit_killed
    test_limits.py::test_pids_limit_tightens_one_container
    test_limits.py::test_memory_tightens_one_container
    test_limits.py::test_cpus_slow_one_container_down[0.1-True]
    test_limits.py::test_not_even_the_first_instruction_runs_outside_the_limits[0]
    test_limits.py::test_two_containers_share_the_ten_processes
    test_limits.py::test_run_prepares_the_cgroup_when_it_is_not_there
    test_limits.py::test_run_keeps_a_cgroup_that_is_there_as_it_is
    test_limits.py::test_each_container_has_a_leaf_of_its_own_in
    test_limits.py::test_inside_the_leaf_is_all_there_is
    test_limits.py::test_no_leaf_is_left_after[an exit]
    test_limits.py::test_no_leaf_is_left_after[processes that stay]
    test_limits.py::test_no_leaf_is_left_after[too much memory]
    test_rows.py::test_swap_is_closed_for_one_container_and_for_all
    test_rows.py::test_the_limit_that_was_hit_is_named[one's own processes]
    test_rows.py::test_the_limit_that_was_hit_is_named[one's own memory]
    test_rows.py::test_the_kernel_reads_the_memory_limit_back[40.5m]
    test_rows.py::test_the_kernel_reads_the_share_of_processors_back[0.5]
"""
LIFE = """
    test_endings.py::test_nothing_is_left_a_second_after[exit-terminal]
    test_endings.py::test_nothing_is_left_a_second_after[SIGKILL of PID 1-background]
    test_endings.py::test_nothing_is_left_a_second_after[SIGTERM twice-background]
    test_endings.py::test_nothing_is_left_a_second_after[SIGKILL of the guard-background]
    test_endings.py::test_nothing_is_left_a_second_after[SIGKILL of run-terminal]
    test_endings.py::test_nothing_is_left_a_second_after[SIGKILL of both-background]
    test_endings.py::test_sigkill_of_run_at_any_moment_of_the_start_leaves_nothing[background]
    test_endings.py::test_a_leaf_that_nobody_could_remove_is_swept
    test_endings.py::test_a_leaf_in_use_is_never_swept
    test_signals.py::test_a_handler_inside_decides_what_a_signal_to_run_does[TERM-]
    test_signals.py::test_a_handler_inside_decides_what_a_signal_to_run_does[TERM-through init]
"""
USERS = """
    test_normal_user.py::test_a_normal_user_is_root_inside
    test_normal_user.py::test_a_user_with_one_id_maps_that[uid_map]
    test_normal_user.py::test_a_user_with_subordinate_ids_maps_them_all[uid_map]
    test_normal_user.py::test_behind_root_s_container_is[the caller's range]
    test_normal_user.py::test_behind_root_s_container_is[100000 without a range]
"""
WHOSE_CGROUP = """
    test_normal_user.py::test_the_limit_of_processes_holds_for_a_normal_user
    test_normal_user.py::test_the_memory_limit_holds_for_a_normal_user
"""
EVERYWHERE = LIMITS + LIFE + USERS  # but on v2 a normal user needs a subtree of his own: A_SCOPE
WORLDS = {"v2": EVERYWHERE, "v1": EVERYWHERE + WHOSE_CGROUP, "hybrid": EVERYWHERE}
# What differs between Pythons: how they unshare, fork and wait.
WITH_EVERY_PYTHON = "\n".join([*LIMITS.splitlines()[:4], *LIFE.splitlines()[-7:]])


def in_world(cgroup: str, *command: object, ext4: Path | str, timeout: int = 400) -> str:
    """Run a command under another kernel, with ext4 on /mnt; returns all that it said."""
    said, code = end_of(start_world(cgroup, *command, ext4=ext4, timeout=timeout))
    assert code == 0, said
    return said


def start_world(
    cgroup: str, *command: object, ext4: Path | str, timeout: int = 400
) -> subprocess.Popen[str]:
    words = [UML, "--timeout", str(timeout), "--cgroup", cgroup, "--ext4", f"{ext4}:/mnt"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    return subprocess.Popen([*words, *command], cwd=REPOSITORY, text=True, **pipes)


def end_of(world: subprocess.Popen[str]) -> tuple[str, int]:
    return world.communicate()[0], world.returncode


def is_right(said: str, code: int) -> bool:
    """Whether pytest has run something there, and all of it was fine; nothing may be left out."""
    print(said)
    return code == 0 and " passed" in said and "failed" not in said and "skipped" not in said


def pytest_there(tests: str) -> list[str]:
    """The command that runs these tests, as they stand above, in another world."""
    words = ["env", "TMPDIR=/mnt", f"GO_CONTAINER_PYTHON={PYTHON}", sys.executable, "-m", "pytest"]
    names = [line.strip() for line in tests.split("\n") if line.strip()]
    return [*words, "-q", "-p", "no:cacheprovider", *[f"tests/{name}" for name in names]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    """The tests in all worlds, which run at the same time: each has one processor only."""
    empty = tmp_path_factory.mktemp("empty")
    running = {}
    for cgroup, tests in WORLDS.items():
        running[cgroup] = start_world(cgroup, *pytest_there(tests), ext4=empty)
    return {cgroup: end_of(world) for cgroup, world in running.items()}


@needs_uml
@pytest.mark.once
@pytest.mark.parametrize("cgroup", WORLDS)
def test_limits_endings_and_users_are_the_same_with_cgroups_of(cgroup, results):
    assert is_right(*results[cgroup])


@needs_uml
def test_with_each_python_they_are_the_same_on_cgroup_v2(tmp_path):
    assert is_right(*end_of(start_world("v2", *pytest_there(WITH_EVERY_PYTHON), ext4=tmp_path)))


A_SCOPE = f"""
cd /
echo +pids +memory +cpu >/sys/fs/cgroup/cgroup.subtree_control
mkdir /sys/fs/cgroup/scope
chown -R 54321 /sys/fs/cgroup/scope /mnt
become='setpriv --reuid=54321 --regid=54321 --clear-groups'
try() {{  # try FOLDER SCRIPT: as somebody whose shell is in that cgroup
    sh -c 'echo $$ >/sys/fs/cgroup/$1/cgroup.procs; shift; exec "$@"' sh "$1" \
        $become '{PYTHON}' '{SCRIPT}' run --rootfs /mnt sh -c "$2"
    echo "code $?"
}}
try . true
try scope 'for i in $(seq 20); do sleep 9 & done'
try scope/launcher 'exec tail /dev/zero'
find /sys/fs/cgroup/scope -name 'run-*'
"""


@needs_uml
@pytest.mark.once
def test_a_delegated_subtree_of_cgroup_v2_is_all_that_a_normal_user_needs(root):
    said = in_world("v2", "sh", "-c", A_SCOPE, ext4=root)
    assert "systemd-run --user --scope -p Delegate=yes" in said
    assert said.count("code 125") == 1
    assert "limit of 10 processes" in said and "code 2" in said
    assert "memory limit of 50 MB" in said and "code 137" in said
    assert "/run-" not in said


@needs_uml
@pytest.mark.once
def test_swap_does_not_stretch_the_limit_where_there_is_swap(root):
    launch = f"'{PYTHON}' '{SCRIPT}' run --rootfs /mnt tail /dev/zero; echo code $?"
    words = [UML, "--swap", "128M", "--cgroup", "v2", "--ext4", f"{root}:/mnt", "sh", "-c", launch]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert "code 137" in done.stdout and "memory limit of 50 MB" in done.stderr + done.stdout


# The number of a process that is in no PID namespace of the reader's is 0, and kill(0) is oneself.
AN_ORPHAN_ELSEWHERE = f"""
run="'{PYTHON}' '{SCRIPT}' run --rootfs /mnt"
eval "$run true"
mkdir /sys/fs/cgroup/demo/run-orphan
sleep 1000 & echo $! >/sys/fs/cgroup/demo/run-orphan/cgroup.procs
eval "setsid -w unshare --pid --fork --mount-proc $run hostname"; echo code $?
"""


@needs_uml
@pytest.mark.once
def test_an_orphan_of_another_pid_namespace_is_not_mistaken_for_oneself(root):
    said = in_world("v2", "sh", "-c", AN_ORPHAN_ELSEWHERE, ext4=root)
    assert "container\n" in said and "code 0" in said, said


# That kernel has its devices as modules, and nothing that lets everybody open /dev/net/tun.
A_NETWORK = f"""
for name in tun dummy; do
    busybox insmod "$(find /usr/lib/uml/modules -name $name.ko)"
done
chmod 666 /dev/net/tun
ip link add eth0 type dummy && ip addr add 192.0.2.10/24 dev eth0 && ip link set eth0 up
ip route add default via 192.0.2.1
run="'{PYTHON}' '{SCRIPT}' run --rootfs /mnt --network pasta"
eval "$run -p 18080:80 sh -c 'nc -l -p 80 -e cat & sleep 3'" &
for i in $(seq 20); do curl -s -m 1 --http0.9 127.0.0.1:18080 && break; sleep 0.2; done
wait
eval "$run -p 18080:80 ip route"
eval "setpriv --reuid=54321 --regid=54321 --clear-groups $run --cgroup-parent none hostname"
pgrep pas && echo left
true
"""


@needs_uml
@pytest.mark.once
@pytest.mark.skipif(not shutil.which("pasta"), reason="needs pasta: apt-get install passt")
def test_a_network_of_pasta_s_works_with_cgroup_v2(root):
    said = in_world("v2", "sh", "-c", A_NETWORK, ext4=root)
    assert "GET / HTTP/1.1" in said and "default via 192.0.2.1 dev eth0" in said
    assert said.count("container\n") == 1 and "left" not in said, said


@pytest.mark.parametrize("hidden", ["memory.memsw.", "memory.swap."])
def test_without_swap_accounting_the_memory_limits_are_there_all_the_same(
    injector, own_parent, root, scratch, hidden
):
    """A kernel without it has no such files; here it only looks as if it had none."""
    without = [injector, f"WITHOUT,{hidden}", scratch / "unused"]
    done = subprocess.run([*without, CGROUP_SH, "--name", own_parent], capture_output=True)
    assert done.returncode == 0 and b"52428800" in done.stdout
    assert hidden not in done.stdout.decode()
    for options, limit in (([], "50 MB"), (["--memory", "20m"], "20 MB")):
        words = [PYTHON, SCRIPT, "run", "--rootfs", root, "--cgroup-parent", own_parent, *options]
        done = subprocess.run([*without, *words, "tail", "/dev/zero"], capture_output=True)
        assert done.returncode == 137 and f"memory limit of {limit}" in done.stderr.decode()


def test_a_container_in_a_container_is_refused_in_one_line(root, run):
    """Even with every other wall open: user namespaces end at the first one."""
    inner = [PYTHON, SCRIPT, "run", "--cgroup-parent", "none", "--rootfs", root, "true"]
    doors = ("--cap-add", "ALL", "--security-opt", "seccomp=unconfined", "-u", "0:0")
    assert "max_user_namespaces" in one_line(run(*doors, *inner, rootfs=Path("/")))


@pytest.mark.parametrize("masked", ["/proc/sys", "/proc/bus"])
def test_where_proc_is_masked_as_inside_docker_the_message_says_so(root, masked):
    words = f"'{PYTHON}' '{SCRIPT}' run --cgroup-parent none --rootfs '{root}' true"
    assert in_throwaway_namespaces(words).returncode == 0
    mask = f"mount --bind {masked} {masked} && mount -o remount,bind,ro {masked} && {words}"
    assert "its /proc may be masked" in one_line(in_throwaway_namespaces(mask))
