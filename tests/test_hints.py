"""What a refusal says: what was typed, whose fault it is, and the way out, before it is late."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
from containers import CGROUP_SH, PYTHON, SCRIPT, fine, in_throwaway_namespaces, one_line
from test_worlds import in_world, needs_uml

pytestmark = pytest.mark.once  # the same with every Python

# --- A volume that takes no idmap -----------------------------------------------------------------

OF_THE_ROOT = r"copy the root|the root (to|is|takes|has)"


@pytest.fixture
def overlay(place, root):
    """A `prefix` that mounts an overlay, which takes no idmap, and where that is."""
    for name in ("upper", "work", "merged"):
        (place / name).mkdir()
    layers = f"lowerdir={root},upperdir={place}/upper,workdir={place}/work"
    mount = f"mount -t overlay overlay -o {layers} {place}/merged"
    if in_throwaway_namespaces(mount).returncode:
        pytest.skip("this machine has no overlay file system")
    return ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"], place / "merged"


@pytest.mark.parametrize("volume", ["/sys:/sys:ro", "/dev/null:/d", "/proc:/mnt", "overlay:/mnt"])
def test_a_volume_that_takes_no_idmap_is_named_and_not_the_root(run, overlay, volume):
    """The control: when it is the root's own, the root is named; or it is shown after all."""
    prefix, merged = overlay
    volume = volume.replace("overlay", str(merged))
    source, target = volume.split(":")[:2]
    result = run("-v", volume, "true", prefix=prefix)
    if result.returncode:
        text = one_line(result)
        assert source in text and target in text
        assert not re.search(OF_THE_ROOT, text), text
    assert re.search(OF_THE_ROOT, one_line(run("true", rootfs=merged, prefix=prefix)))


# --- User namespaces that are switched off --------------------------------------------------------

# Run a command where the kernel refuses user namespaces (it does in a chroot), and where Debian's
# switch says this: $2. The rest of /proc/sys/kernel is what a launcher may read.
SWITCHED = """
    there=$1 value=$2; shift 2
    mkdir "$there" && mount --rbind / "$there" && cd /proc/sys/kernel &&
    mount -t tmpfs -o mode=755 none "$there/proc/sys/kernel" &&
    for name in cap_last_cap osrelease overflowuid overflowgid pid_max ngroups_max; do
        cat "$name" >"$there/proc/sys/kernel/$name" || exit 99
    done
    echo "$value" >"$there/proc/sys/kernel/unprivileged_userns_clone" && cd / &&
    exec chroot "$there" "$@" """
SWITCH = "unprivileged_userns_clone"


def test_a_switch_of_debian_s_that_forbids_user_namespaces_is_named(run, normal_user, place):
    user = normal_user()
    said = {}
    for value in "01":
        prefix = ["unshare", "--mount", "sh", "-c", SWITCHED, "sh", place / "there", value]
        prefix += user.prefix
        control = subprocess.run([*prefix, "unshare", "-U", "true"], capture_output=True)
        assert b"Operation not permitted" in control.stderr
        (place / "there").rmdir()
        said[value] = one_line(run("true", parent="none", prefix=prefix))
        (place / "there").rmdir()
    assert SWITCH in said["0"] and SWITCH not in said["1"]


# --- Memory ---------------------------------------------------------------------------------------


def sizes(text):
    """What looks like a size in a line."""
    return set(re.findall(r"\b\d+(?:\.\d+)? ?[kKmMgG][iB]*\b|\b\d{5,}\b", text))


@pytest.mark.parametrize("size", ["1k", "1m", "5m", "5000k"])
def test_too_little_memory_is_refused_with_what_was_typed_and_what_will_do(run, size):
    text = one_line(run("-m", size, "true"))
    (least,) = sizes(text) - {size}
    assert size in sizes(text)
    assert fine(run("-m", least.replace(" ", ""), "echo", "it")) == b"it\n"


TOO_LITTLE = f"""
    for size in 1k 10m 10000k 15m; do
        '{PYTHON}' '{SCRIPT}' run --rootfs /mnt -m $size true; echo "code $?"
    done 2>&1"""


@needs_uml
def test_on_version_2_every_refusal_names_the_same_least_size(root):
    lines = in_world("v2", "sh", "-c", TOO_LITTLE, ext4=root).splitlines()
    typed = ["1k", "10m", "10000k", "15m"]
    refusals = [line for line in lines if line.startswith("go_container: ")]
    assert lines.count("code 125") == len(refusals) == len(typed), lines
    assert all(size in sizes(text) for size, text in zip(typed, refusals)), lines
    assert len({frozenset(sizes(text) - {size}) for size, text in zip(typed, refusals)}) == 1


# --- python-prctl ---------------------------------------------------------------------------------


def test_a_missing_python_prctl_is_found_before_the_root_is_filled(project, parent):
    """Without site-packages (-S) Python has none; the control: with them the root is filled."""
    words = ["run", "--cgroup-parent", parent, "echo", "it"]
    program = project / "go_container.py"
    kw = {"cwd": project, "capture_output": True, "timeout": 60, "stdin": subprocess.DEVNULL}
    argv = ["unshare", "--net", PYTHON, "-S", program, *words]
    control = subprocess.run([PYTHON, "-S", "-c", "import prctl"], capture_output=True)
    assert b"ModuleNotFoundError" in control.stderr
    assert "prctl" in one_line(subprocess.run(argv, **kw))
    assert [path.name for path in (project / "alpine-fs").iterdir()] == [".gitignore"]
    if not shutil.which("busybox"):
        pytest.skip("needs busybox for the control: apt install busybox-static")
    argv.remove("-S")
    assert subprocess.run(argv, **kw).stdout == b"it\n"
    assert (project / "alpine-fs/bin").exists()


# --- noexec ---------------------------------------------------------------------------------------

NOEXEC = """
    mount --bind "$1" "$1" && mount -o remount,bind,noexec "$1" && shift && exec "$@" """


def test_a_root_that_is_mounted_noexec_is_said_to_be(run, fresh_root):
    prefix = ["unshare", "--mount", "sh", "-c", NOEXEC, "sh", fresh_root]
    control = subprocess.run([*prefix, f"{fresh_root}/bin/busybox"], capture_output=True)
    assert b"Permission denied" in control.stderr
    assert "noexec" in one_line(run("true", rootfs=fresh_root, prefix=prefix), 126)
    assert fine(run("echo", "it", rootfs=fresh_root)) == b"it\n"


def test_a_volume_that_is_mounted_noexec_is_said_to_be(run, place, root):
    (place / "volume").mkdir()
    shutil.copy(root / "bin/busybox", place / "volume/busybox")
    command = ["-v", f"{place}/volume:/mnt", "/mnt/busybox", "echo", "it"]
    prefix = ["unshare", "--mount", "sh", "-c", NOEXEC, "sh", place / "volume"]
    assert "noexec" in one_line(run(*command, prefix=prefix), 126)
    assert fine(run(*command)) == b"it\n"


def test_what_is_not_executable_is_not_said_to_be_noexec(run, fresh_root):
    """The control."""
    (fresh_root / "plain").write_text("#!/bin/sh\n")
    (fresh_root / "plain").chmod(0o644)
    assert "noexec" not in one_line(run("/plain", rootfs=fresh_root), 126)


# --- Processors -----------------------------------------------------------------------------------


def test_cgroup_sh_refuses_more_processors_than_there_are_as_run_does(run, own_parent):
    """The control: all that there are is taken by both."""
    there = os.cpu_count()
    words = [CGROUP_SH, "--name", own_parent, "--cpus"]
    for count in (there + 1, there + 0.5, 1000):
        done = subprocess.run([*words, str(count)], capture_output=True, text=True)
        assert done.returncode != 0 and done.stderr.count("\n") == 1, done
        assert str(there) in done.stderr and "cpus" in done.stderr
        assert str(there) in one_line(run("--cpus", str(count), "true"))
    done = subprocess.run([*words, str(there)], capture_output=True)
    assert done.returncode == 0
    assert fine(run("--cpus", str(there), "echo", "it")) == b"it\n"
