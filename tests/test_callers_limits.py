"""What the caller has set for itself: resource limits, the umask, and files longer than a page.

A limit that leaves the launcher no room has to be named: a container that is not right is none.
"""

from __future__ import annotations

import os
import re
import resource
import stat
import subprocess
from pathlib import Path

import pytest
from containers import PYTHON, SCRIPT, fine, go, in_throwaway_namespaces, one_line

# --- Resource limits ------------------------------------------------------------------------------

# What a container shows of itself without a second process, which a limit could refuse.
LOOK = ["/bin/cat", "/proc/self/status", "/proc/self/cgroup", "/proc/self/mountinfo"]
KEPT = re.compile(
    rb"^(?:Uid|Gid|Groups|CapBnd|CapEff|NoNewPrivs|Seccomp|NSpid):.*|^\d+:.*:/.*"
    rb"|^\d+ \d+ \S+ \S+ (\S+)", re.MULTILINE
)  # fmt: skip


def seen(result):
    """Ids, powers, cgroups, and what is mounted where."""
    found = [match[1] or match[0] for match in KEPT.finditer(fine(result))]
    assert b"Seccomp:\t2" in found and b"/proc" in found
    return found


def under(*limits):
    """A `prefix`: these resource limits, as `ulimit` sets them."""
    return ["prlimit", *limits]


NAMES = {
    "fsize": r"ulimit -f|RLIMIT_FSIZE|file size",
    "nofile": r"ulimit -n|RLIMIT_NOFILE|open files|many open files",
    "nproc": r"ulimit -u|RLIMIT_NPROC|number of processes|user processes",
    "as": r"ulimit -v|RLIMIT_AS|virtual memory|address space",
    "stack": r"ulimit -s|RLIMIT_STACK|stack",
    "core": r"ulimit -c|RLIMIT_CORE",
    "data": r"ulimit -d|RLIMIT_DATA|data segment",
    "memlock": r"ulimit -l|RLIMIT_MEMLOCK|locked memory",
}


def is_right_or_named(run, name, value, *options):
    """Either the same container as without the limit, or one line that names it."""
    result = run(*options, *LOOK, prefix=under(f"--{name}={value}"), timeout=20)
    if result.returncode == 125:
        text = one_line(result)
        assert re.search(NAMES[name], text), text
        return False
    assert seen(result) == seen(run(*options, *LOOK))
    return True


@pytest.mark.parametrize("size", [0, 512, 1024, 4096])
@pytest.mark.parametrize(
    "options", [(), ("--init",), ("-v", "/etc:/mnt"), ("--explain",)], ids=" ".join
)
def test_what_the_launcher_needs_does_not_depend_on_the_size_of_files(run, size, options):
    """`ulimit -f 1` cuts the filter's memfd; no name of the limit will do here."""
    prefix = under(f"--fsize={size}")
    control = subprocess.run([*prefix, "sh", "-c", "head -c 9999 /dev/zero >$0", os.devnull])
    assert control.returncode == 0
    if options == ("--explain",):
        assert run(*options, "echo", "it", prefix=prefix, timeout=10).stdout == b"it\n"
    elif size:
        assert is_right_or_named(run, "fsize", size, *options)
    else:  # not a byte can be written: the container's /etc/hosts and /etc/hostname are the root's
        names = (b"/etc/hostname", b"/etc/hosts")
        without = [line for line in seen(run(*options, *LOOK)) if line not in names]
        assert seen(run(*options, *LOOK, prefix=prefix)) == without


def test_the_control_such_a_limit_does_cut_a_file(place):
    words = ["dd", "if=/dev/zero", f"of={place}/file", "bs=9999", "count=1"]
    subprocess.run([*under("--fsize=512"), *words], capture_output=True)
    assert (place / "file").stat().st_size == 512


def test_pull_below_such_a_limit_changes_nothing(project, tarball):
    words = ["pull", "--force", tarball]
    prefix = under("--fsize=4096")
    text = one_line(go(*words, script=project / "go_container.py", cwd=project, prefix=prefix))
    assert re.search(NAMES["fsize"] + "|File (size limit exceeded|too large)", text)
    assert [path.name for path in (project / "alpine-fs").iterdir()] == [".gitignore"]


@pytest.mark.parametrize("number", [8, 10, 12, 14, 16, 18, 20, 24, 32, 64])
@pytest.mark.parametrize("volumes", [0, 5, 30])
def test_a_low_limit_of_open_files(run, place, number, volumes):
    """The control: with sixty-four all is right."""
    options = [word for n in range(volumes) for word in ("-v", f"{place}:/mnt/{n}")]
    right = is_right_or_named(run, "nofile", number, *options)
    assert right or number < 64


@pytest.mark.parametrize("options", [(), ("--user", "1000"), ("--init",)], ids=" ".join)
@pytest.mark.parametrize("number", [1, 2, 5, 10, 100])
def test_a_low_limit_of_processes(run, number, options):
    is_right_or_named(run, "nproc", number, *options)


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_a_low_limit_of_processes_of_a_normal_user(run, normal_user, number):
    prefix = [*normal_user().prefix, *under(f"--nproc={number}")]
    result = run("echo", "it", parent="none", prefix=prefix)
    if result.returncode == 125:
        assert re.search(NAMES["nproc"], one_line(result))
    else:
        assert fine(result) == b"it\n"


def least(name, first):
    """The least value below which Python can read our program: what fails earlier is not ours."""
    value = first

    def starts(value):
        words = [*under(f"--{name}={value}:{value}"), PYTHON, SCRIPT, "--help"]
        return subprocess.run(words, capture_output=True).returncode == 0

    while not starts(value):
        value = value * 9 // 8
    return value


@pytest.mark.parametrize("name, first", [("as", 8 << 20), ("stack", 32 << 10), ("data", 1 << 20)])
def test_little_memory_for_each_process(run, name, first):
    """From the least with which it starts; the control: with thirty times as much it is right."""
    value = least(name, first)
    for percent in (110, 120, 130, 150, 200, 300):
        is_right_or_named(run, name, value * percent // 100)
    assert is_right_or_named(run, name, value * 30)


HIGHEST = resource.getrlimit(resource.RLIMIT_CORE)[1]  # sudo may cut it, not every root raise it


@pytest.mark.parametrize("name, value", [("core", 0), ("core", HIGHEST), ("memlock", 0)])
def test_limits_that_nobody_needs_change_nothing(run, name, value):
    assert is_right_or_named(run, name, value)


# --- Files longer than a page ---------------------------------------------------------------------

# Run a command where the mount table is long, and the cgroups are at its end.
LONG_TABLE = """
    work=$1 kind=$2; shift 2
    mount --make-rprivate / && mkdir -p "$work/cgroups" "$work/many" &&
    mount --rbind /sys/fs/cgroup "$work/cgroups" &&
    umount -R -l /sys/fs/cgroup &&
    if [ "$kind" = many ]; then
        for n in $(seq 80); do mkdir "$work/many/$n" && mount --bind "$work/many/$n" \
            "$work/many/$n" || exit 99; done
    else
        mount -t tmpfs none "$work/many" && cd "$work/many" && layers=
        for n in $(seq 30); do
            folder=$(printf '%0100d' "$n"); mkdir "$folder"; layers=$layers:$folder
        done
        mkdir upper work merged &&
        for n in 1 2 3; do mkdir "over$n" && mount -t overlay overlay \
            -o "lowerdir=${layers#:}" "over$n" || exit 99; done
        cd /
    fi && mount --rbind "$work/cgroups" /sys/fs/cgroup && umount -R -l "$work/cgroups" &&
    "$@" """


@pytest.mark.parametrize("kind", ["many", "long"])
def test_a_long_mount_table_is_read_to_its_end(place, root, parent, kind):
    """The kernel gives it in parts of a page, however much is asked for."""

    def there(*words):
        argv = ["sh", "-c", LONG_TABLE, "sh", place / "work", kind, *words]
        result = in_throwaway_namespaces(argv)
        for path in sorted((place / "work").rglob("*"), reverse=True):
            path.rmdir()
        return result

    first = "dd bs=4096 count=1 if=/proc/self/mountinfo 2>/dev/null | grep -c cgroup"
    control = there("sh", "-c", f"{first}; grep -c cgroup /proc/self/mountinfo")
    page, whole = control.stdout.split()
    assert page == b"0" and int(whole) > 0, control
    words = [PYTHON, SCRIPT, "run", "--rootfs", root, "--cgroup-parent", parent]
    assert fine(there(*words, "echo", "it")) == b"it\n"


@pytest.fixture
def crowded_root(fresh_root):
    """A root with thirty thousand users and groups."""
    for name, line in (("passwd", "u{0}:x:{1}:{1}:a user of many:/home/u{0}:/bin/sh\n"),
                       ("group", "g{0}:x:{1}:u{0},somebody-else,and-others\n")):  # fmt: skip
        with (fresh_root / "etc" / name).open("a") as file:
            file.writelines(line.format(n, 10000 + n) for n in range(30000))
            file.write(line.format("last", 54321))
    assert (fresh_root / "etc/passwd").stat().st_size > 1 << 20
    assert (fresh_root / "etc/group").stat().st_size > 1 << 20
    return fresh_root


@pytest.mark.parametrize("n, uid", [("1", 10001), ("29999", 39999), ("last", 54321)])
def test_a_user_and_a_group_are_found_wherever_they_are(shell, crowded_root, n, uid):
    """The control: the first one, and what a program inside says."""
    look = "echo $(id -u) $(id -g) $HOME"
    said = fine(shell(look, "--user", f"u{n}", rootfs=crowded_root))
    assert said == f"{uid} {uid} /home/u{n}\n".encode()
    said = fine(shell(look, "--user", f"7:g{n}", rootfs=crowded_root))
    assert said.split()[:2] == [b"7", str(uid).encode()]
    assert fine(shell(f"id -u u{n}", rootfs=crowded_root)) == b"%d\n" % uid


def test_long_files_of_the_host_are_read_to_their_end(start, place):
    """/etc/subuid of a machine with many users: what is behind root is in its last line."""
    lines = "".join(f"user{n}:{200000 + n}:1\n" for n in range(60000))
    assert len(lines) > 1 << 20
    script = 'exec "$@"'
    for name in ("subuid", "subgid"):
        (place / name).write_text(f"{lines}root:7000000:65536\n")
        script = f"mount --bind '{place / name}' /etc/{name} && {script}"
    prefix = ["unshare", "--mount", "env", "-u", "SUDO_USER", "sh", "-c", script, "sh"]
    with start(prefix=prefix) as container:
        behind = Path(f"/proc/{container.pid}/uid_map").read_text().split()
    assert behind == ["0", "7000000", "65536"]


# --- The caller's umask ---------------------------------------------------------------------------

MASKED = ["sh", "-c", 'umask 077; exec "$@"', "sh"]


def modes(root, *names):
    return {name: oct(stat.S_IMODE((root / name).stat().st_mode)) for name in names}


@pytest.mark.parametrize("prefix", [[], MASKED], ids=["022", "077"])
@pytest.mark.parametrize("options", [(), ("--user", "1000")], ids=["root", "a user"])
def test_what_is_made_in_the_root_does_not_depend_on_the_umask(
    run, place, fresh_root, prefix, options
):
    """Without it, a user inside cannot even get to the volume."""
    (place / "volume").mkdir()
    (place / "volume").chmod(0o755)
    (place / "file").write_text("it\n")
    (place / "file").chmod(0o644)
    words = ["-v", f"{place}/volume:/new/dir", "-v", f"{place}/file:/newer/file"]
    words += ["-w", "/newest/work/dir", *options]
    assert fine(run(*words, "cat", "/newer/file", rootfs=fresh_root, prefix=prefix)) == b"it\n"
    made = ["new", "new/dir", "newer", "newest", "newest/work", "newest/work/dir"]
    assert modes(fresh_root, *made) == dict.fromkeys(made, "0o755")


def test_the_control_the_umask_is_in_force(place):
    subprocess.run([*MASKED, "mkdir", place / "made"], check=True)
    assert modes(place, "made") == {"made": "0o700"}


@pytest.mark.parametrize("path", ["/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/proc"])
def test_nor_does_what_is_mounted(run, path):
    look = ["stat", "-c", "%a", path]
    assert fine(run(*look, prefix=MASKED)) == fine(run(*look))


def test_mount_points_of_a_root_that_has_none_are_everybody_s_to_see(run, fresh_root):
    for name in ("proc", "dev"):
        (fresh_root / name).rmdir()
    fine(run("true", rootfs=fresh_root, prefix=MASKED))
    assert modes(fresh_root, "proc", "dev") == {"proc": "0o755", "dev": "0o755"}


def tree(root):
    return {
        os.fspath(path.relative_to(root)): path.lstat().st_mode for path in [root, *root.rglob("*")]
    }


@pytest.mark.parametrize("words", [["--busybox"], ["TARBALL"]], ids=["busybox", "a tarball"])
def test_pull_makes_the_same_root_with_every_umask(project, place, tarball, words):
    words = [tarball if word == "TARBALL" else word for word in words]
    made = []
    for name, prefix in (("one", []), ("other", MASKED)):
        path = place / name
        fine(go("pull", "--rootfs", path, *words, prefix=prefix))
        made.append(tree(path))
    assert made[0] == made[1]
    assert made[0]["."] == stat.S_IFDIR | 0o755
