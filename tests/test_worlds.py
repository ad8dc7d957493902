"""Other worlds: another kernel with cgroup v2, v1 or both (User-Mode Linux), and containers.

The tests of limits run again in each of them, with the machine's own files as the root.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import PYTHON, SCRIPT, in_throwaway_namespaces, one_line

UML = Path(__file__).with_name("uml")
CORE = (
    "hundred_processes or 50_mb or tightens or cpus_slow or prepares_the_cgroup or inside_the_leaf"
    " or no_leaf_is_left"
)

pytestmark = pytest.mark.once
needs_uml = pytest.mark.skipif(
    not shutil.which("linux.uml"), reason="needs linux.uml: apt-get install user-mode-linux"
)


def in_world(cgroup: str, *command: object, ext4: Path | str, timeout: int = 400) -> str:
    """Run a command under another kernel, with ext4 on /mnt; returns all that it said."""
    words = [UML, "--timeout", str(timeout), "--cgroup", cgroup, "--ext4", f"{ext4}:/mnt"]
    done = subprocess.run([*words, *command], capture_output=True, text=True, timeout=timeout + 60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_uml
@pytest.mark.parametrize("cgroup", ["v2", "v1", "hybrid"])
def test_limits_hold_with_cgroups_of(cgroup, tmp_path):
    pytest_there = ["env", "TMPDIR=/mnt", f"GO_CONTAINER_PYTHON={PYTHON}", shutil.which("pytest")]
    pytest_there += ["-q", "-p", "no:cacheprovider", "tests/test_limits.py", "-k", CORE]
    said = in_world(cgroup, *pytest_there, ext4=tmp_path)
    assert " passed" in said and "failed" not in said and "skipped" not in said


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
def test_a_delegated_subtree_of_cgroup_v2_is_all_that_a_normal_user_needs(root):
    said = in_world("v2", "sh", "-c", A_SCOPE, ext4=root)
    assert "systemd-run --user --scope -p Delegate=yes" in said
    assert said.count("code 125") == 1
    assert "limit of 10 processes" in said and "code 2" in said
    assert "memory limit of 50 MB" in said and "code 137" in said
    assert "/run-" not in said


@needs_uml
def test_swap_does_not_stretch_the_limit_where_there_is_swap(root):
    launch = f"'{PYTHON}' '{SCRIPT}' run --rootfs /mnt tail /dev/zero; echo code $?"
    words = [UML, "--swap", "128M", "--cgroup", "v2", "--ext4", f"{root}:/mnt", "sh", "-c", launch]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert "code 137" in done.stdout and "memory limit of 50 MB" in done.stderr + done.stdout


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
