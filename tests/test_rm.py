"""--rm: a fresh root for each run, and the root on disk as it was, whatever happens."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import (
    PYTHON,
    SCRIPT,
    children,
    fine,
    go,
    in_throwaway_namespaces,
    needs_alpine,
    one_line,
    wait_until,
)
from test_worlds import in_world, needs_uml

pytestmark = pytest.mark.once  # the same with every Python

SHIFTED, HOST_ROOT, NORMAL = "ids shifted", "host root", "a normal user"


def facts(root: Path) -> dict[str, tuple[int, ...]]:
    """Everything about a root's files that using them could change, seen without changing it.

    Who writes to a file cannot keep its ctime. The atime of the root directory itself is left
    out: to see whether it is empty, somebody has to look.
    """
    found = {}
    todo = [root]
    while todo:
        here = os.open(path := todo.pop(), os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME)
        with os.scandir(here) as entries:
            names = [entry.name for entry in entries]
        for name in [".", *names]:
            s = os.stat(name, dir_fd=here, follow_symlinks=False)
            times = [s.st_mtime_ns, s.st_ctime_ns, s.st_atime_ns * (path != root)]
            found[f"{path / name}"] = (s.st_ino, s.st_mode, s.st_nlink, s.st_uid, s.st_gid,
                                       s.st_size, s.st_rdev, *times)  # fmt: skip
            if stat.S_ISDIR(s.st_mode) and name != ".":
                todo.append(path / name)
        os.close(here)
    return found


def read_long_ago(root: Path) -> None:
    """The kernel notes a reading only if the last one was before the last change, or a day ago."""
    for directory, _, names in os.walk(root, topdown=False):
        for path in [*(Path(directory, name) for name in names), Path(directory)]:
            times = (10**18, path.lstat().st_mtime_ns)
            os.utime(path, ns=times, follow_symlinks=False)


@pytest.fixture
def untouched(fresh_root: Path) -> Iterator[Path]:
    """A root that has to be the same after the test, byte for byte and time for time."""
    read_long_ago(fresh_root)
    before = facts(fresh_root)
    yield fresh_root
    after = facts(fresh_root)
    assert {p: (before.get(p), after.get(p)) for p in before.keys() | after.keys()
            if before.get(p) != after.get(p)} == {}  # fmt: skip


@pytest.fixture(params=[SHIFTED, HOST_ROOT, NORMAL])
def way(request, fresh_root, normal_user):
    """Options and what else `run` gets, of each kind of caller, who owns the fresh root.

    The owner changes files, too: ask for it before `untouched`.
    """
    if request.param == SHIFTED:
        return [], {}
    if request.param == HOST_ROOT:
        return ["--userns", "host-root"], {}
    user = normal_user()
    subprocess.run(["chown", "-R", f"{user.uid}:{user.uid}", fresh_root], check=True)
    return [], {"prefix": user.prefix, "parent": "none"}


def said(result) -> bytes:
    """Standard output of a run that succeeded; --userns host-root warns."""
    assert result.returncode == 0, result
    warning = b"warning: --userns host-root"
    assert all(warning in line for line in result.stderr.splitlines()), result
    return result.stdout


CHANGES = """set -e
echo new >/new && echo more >>/etc/passwd && chmod 600 /etc/group && mkdir -p /a/b && echo b >/a/b/c
rm /etc/motd && mv /etc/issue /etc/moved && ln /etc/profile /etc/hard && ln -s /x /link
rm -r /opt && mkdir /opt && rm -r /etc/apk && mkdir /etc/apk && echo k >/etc/apk/k
touch -d '2001-01-01 00:00:00' /etc/shells && cp -a /usr/share /usr/copy && mv /var /moved
"""
LOOK = """cat /new /a/b/c /etc/apk/*; tail -n 1 /etc/passwd; stat -c %a /etc/group
ls /etc/motd /opt; ls -d /etc/moved /etc/hard /moved/cache /usr/copy
readlink /link; stat -c %Y /etc/shells"""


@needs_alpine
def test_whatever_is_changed_is_seen_inside_and_gone_afterwards(way, shell, untouched):
    options, more = way
    script = f"{CHANGES}\nset +e; exec 2>/dev/null; {LOOK}"
    lines = said(shell(script, "--rm", *options, rootfs=untouched, **more)).decode().split()
    assert lines == ["new", "b", "k", "more", "600", "/opt:", "/etc/hard", "/etc/moved",
                     "/moved/cache", "/usr/copy", "/x", "978307200"]  # fmt: skip
    look = "ls /new /a /link /moved 2>/dev/null; ls -d /opt /etc/motd /etc/issue /var/cache"
    kept = said(shell(look, "--rm", *options, rootfs=untouched, **more)).decode().split()
    assert kept == ["/etc/issue", "/etc/motd", "/opt", "/var/cache"]


@needs_alpine
def test_without_it_the_changes_stay(shell, fresh_root):
    """The control: that a root on disk can be seen to change."""
    read_long_ago(fresh_root)
    before = facts(fresh_root)
    fine(shell(CHANGES, rootfs=fresh_root))
    after = facts(fresh_root)
    assert (fresh_root / "new").read_text() == "new\n" and not (fresh_root / "etc/motd").exists()
    assert before[f"{fresh_root}/etc/shells"] != after[f"{fresh_root}/etc/shells"]
    assert before[f"{fresh_root}/bin/busybox"] != after[f"{fresh_root}/bin/busybox"]  # read


# --- Endings ------------------------------------------------------------------------------------


def guard_of(container) -> int:
    return next(pid for pid in children(container.process.pid) if pid != container.pid)


def end_by_input(container) -> None:
    container.process.stdin.close()


def killing(whom):
    return lambda container: os.kill(whom(container), signal.SIGKILL)


ENDINGS = {
    "an exit": end_by_input,
    "SIGTERM": lambda container: container.process.terminate(),
    "SIGKILL of PID 1": killing(lambda container: container.pid),
    "SIGKILL of the guard": killing(guard_of),
    "SIGKILL of run": killing(lambda container: container.process.pid),
}


@pytest.mark.parametrize("end", ENDINGS.values(), ids=ENDINGS)
def test_the_root_on_disk_is_as_it_was_after(start, run, untouched, end):
    script = f"trap 'exit 0' TERM; {CHANGES}"
    with start("--rm", script=script, rootfs=untouched) as container:
        inside = children(container.process.pid)
        end(container)
        assert wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in inside))
    fine(run("--rm", "true", rootfs=untouched))  # which sweeps, if nobody else could


def test_the_root_on_disk_is_as_it_was_after_too_little_memory(run, untouched):
    result = run("--rm", "-m", "20m", "tail", "/dev/zero", rootfs=untouched)
    assert result.returncode == 137 and b"memory limit" in result.stderr


def test_sigkill_at_any_moment_of_the_start_leaves_the_root_as_it_was(run, parent, untouched):
    words = [PYTHON, SCRIPT, "run", "--rootfs", untouched, "--cgroup-parent", parent, "--rm"]
    words += ["-v", "/etc:/new/place:ro", "-w", "/new/dir", "sh", "-c", "echo x >/x; sleep 9"]
    for moment in range(30):
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        time.sleep(moment * 0.003)
        process.kill()
        process.wait()
    assert wait_until(lambda: not children(os.getpid()))
    fine(run("--rm", "true", rootfs=untouched))


# --- What is not there, and what must not be made -----------------------------------------------


def test_not_even_a_mount_point_is_made(run, shell, fresh_root, place):
    """What is missing is made in the layer above, whether to mount on or to start in."""
    shutil.rmtree(fresh_root / "dev")
    (fresh_root / "proc").rmdir()
    for name in ("resolv.conf", "hostname", "hosts"):
        (fresh_root / "etc" / name).unlink(missing_ok=True)
    (place / "volume").mkdir()
    options = ["-v", f"{place}/volume:/new/place", "-v", f"{SCRIPT}:/new/file:ro", "-w", "/new/dir"]
    script = "pwd; ls -d /dev/null /proc/self /new/place; ls /new"
    before = facts(fresh_root)
    result = fine(shell(script, "--rm", *options, rootfs=fresh_root))
    assert result.split() == b"/new/dir /dev/null /new/place /proc/self dir file place".split()
    after = facts(fresh_root)
    assert after.keys() == before.keys()
    fine(shell("true", *options, rootfs=fresh_root))  # the control
    assert facts(fresh_root).keys() > before.keys()


READ_ONLY = """mount -t tmpfs -o mode=755 tmpfs /mnt && cp -a '{}/.' /mnt &&
    chown -R {} /mnt && mount -o remount,ro /mnt && "$@" """


@pytest.mark.parametrize("who", [SHIFTED, HOST_ROOT, NORMAL])
def test_the_root_may_be_on_a_read_only_file_system(root, parent, normal_user, who):
    prefix = normal_user().prefix if who == NORMAL else []
    owner = "54321:54321" if who == NORMAL else "0:0"
    words = [*prefix, PYTHON, SCRIPT, "run", "--rootfs", "/mnt", "--cgroup-parent"]
    words += ["none" if who == NORMAL else parent, *["--userns=host-root"] * (who == HOST_ROOT)]
    there = ["sh", "-c", READ_ONLY.format(root, owner), "sh", *words]
    script = "echo it >/tmp/x && cat /tmp/x"
    control = in_throwaway_namespaces([*there, "sh", "-c", script])
    assert control.returncode and b"Read-only file system" in control.stderr
    assert said(in_throwaway_namespaces([*there, "--rm", "sh", "-c", script])) == b"it\n"


def test_two_containers_on_one_root_do_not_see_each_other(start, shell, fresh_root):
    for options, sees in ([["--rm"], b""], [[], b"first\n"]):
        with start(*options, script="echo first >/mark", rootfs=fresh_root) as container:
            script = "cat /mark 2>/dev/null; echo second >/mark"
            assert shell(script, *options, rootfs=fresh_root).stdout == sees
            path = Path(f"/proc/{container.pid}/root/mark")
            assert path.read_text() == ("first\n" if options else "second\n")


def test_people_share_a_root_that_is_somebody_else_s(run, normal_user, root):
    """A class has one alpine-fs, and it is the teacher's.

    The kernel copies no file up whose owner has no id inside: new names in / are all there is.
    """
    user = normal_user()
    script = "echo it >/mine && cat /mine && test -s /etc/passwd"
    common = {"prefix": user.prefix, "parent": "none"}
    assert fine(run("--rm", "sh", "-c", script, **common)) == b"it\n"
    assert not (root / "mine").exists()
    assert b"denied" in run("sh", "-c", script, **common).stderr  # the control


# --- What stays as it is without it -------------------------------------------------------------


def test_volumes_stay_real(way, run, untouched, place):
    options, more = way
    volume = place / "volume"
    volume.mkdir()
    volume.chmod(0o777)
    words = [*options, "-v", f"{volume}:/data", "sh", "-c", "echo it >/data/real; echo it >/unreal"]
    said(run("--rm", *words, rootfs=untouched, **more))
    assert (volume / "real").read_text() == "it\n"


def test_user_and_working_directory_are_the_container_s(shell, untouched):
    options = ["--rm", "--user", "1000:1000", "-w", "/srv/new/deep"]
    script = "id -u; pwd; echo it >/tmp/x; stat -c '%u %g' /tmp/x; touch /etc/x 2>&1"
    lines = shell(script, *options, rootfs=untouched).stdout.decode().splitlines()
    assert lines[:3] == ["1000", "/srv/new/deep", "1000 1000"]
    assert "ermission denied" in lines[3]


SEES = """exec 2>/dev/null; cd /
    find . -xdev ! -type d ! -path './etc/resolv.conf' ! -path './etc/host*' \
        -exec stat -c '%n %f %u %g %s %h %Y %t %T' {} + | sort
    find . -xdev -type d -exec stat -c '%n %f %u %g' {} + | sort"""


@pytest.mark.parametrize("options", [[], ["--userns", "host-root"], ["--user", "1000"]], ids=str)
def test_owners_and_modes_are_those_of_the_root(shell, fresh_root, options):
    """…of `/` itself, too, and with set-user-ID bits, hard links, and other owners."""
    fresh_root.chmod(0o715)
    os.chown(fresh_root, 5, 6)
    shutil.copy(fresh_root / "bin/busybox", fresh_root / "bin/as-seven")
    os.chown(fresh_root / "bin/as-seven", 7, 8)
    (fresh_root / "bin/as-seven").chmod(0o6755)
    os.link(fresh_root / "bin/as-seven", fresh_root / "bin/again")
    said(shell("true", *options, rootfs=fresh_root))  # makes what is missing
    plain = said(shell(SEES, *options, rootfs=fresh_root)).decode()
    assert "./bin/as-seven 8ded 7 8" in plain and "\n. 41cd 5 6\n" in plain
    assert said(shell(SEES, "--rm", *options, rootfs=fresh_root)).decode() == plain


GETXATTR = r"""
#include <stdio.h>
#include <sys/xattr.h>
int main(int n, char **words) {
    unsigned char value[64];
    int size = getxattr(words[1], "security.capability", value, sizeof value);
    for (int i = 0; i < size; i++) printf("%02x", value[i]);
    puts("");
    return size < 0;
}
"""


@pytest.mark.parametrize("options", [[], ["--userns", "host-root"]], ids=str)
def test_capabilities_of_files_are_those_of_the_root(run, fresh_root, options):
    """cap_net_raw+ep, as setcap(8) writes it."""
    words = ["gcc", "-static", "-x", "c", "-", "-o", fresh_root / "bin/getxattr"]
    subprocess.run(words, input=GETXATTR.encode(), check=True)
    value = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(fresh_root / "bin/getxattr", "security.capability", value)
    words = [*options, "getxattr", "/bin/getxattr"]
    plain = run(*words, rootfs=fresh_root)
    assert plain.returncode or value.hex() in plain.stdout.decode()
    with_it = run("--rm", *words, rootfs=fresh_root)
    assert (with_it.returncode, with_it.stdout) == (plain.returncode, plain.stdout)


def test_with_read_only_nothing_of_the_root_can_be_written(shell, untouched, place):
    """As in Docker, where both may be given, too; volumes are there all the same."""
    (place / "volume").mkdir()
    (place / "volume").chmod(0o777)
    options = ["--rm", "--read-only", "-v", f"{place}/volume:/new/data"]
    script = "touch /x /etc/x /tmp/x 2>&1; mount -o remount,rw / 2>&1; touch /x; touch /new/data/it"
    text = shell(script, *options, rootfs=untouched).stdout.decode()
    assert text.count("Read-only file system") == 3
    assert (place / "volume/it").exists()
    assert fine(shell("touch /x && echo it", "--rm", rootfs=untouched)) == b"it\n"  # the control


# --- Walls; test_rm_walls.py has those that hold without it, too --------------------------------


@pytest.mark.parametrize("options", [[], ["--userns", "host-root"], NORMAL], ids=str)
def test_nothing_but_the_root_itself_is_mounted_in_addition(start, normal_user, root, options):
    """Neither the host's tree, nor the layers, nor their tmpfs, not even out of anybody's reach."""
    more, words = {}, options
    if options == NORMAL:
        more, words = {"prefix": normal_user().prefix, "parent": "none"}, []
    tables = []
    for rm in ([], ["--rm"]):
        with start(*rm, *words, **more) as container:
            tables.append(Path(f"/proc/{container.pid}/mountinfo").read_text().splitlines())
    points, kinds = ([[(line.split()[4], line.split(" - ")[1].split()[0]) for line in table]
                      for table in tables], {})  # fmt: skip
    plain, fresh = (sorted(point) for point in points)
    kinds = dict(plain)
    assert kinds.pop("/") != "overlay" and dict(fresh).pop("/") == "overlay"
    only = [point for point, _ in fresh]
    assert only.count("/") == 1
    ours = {"/etc/resolv.conf", "/etc/hostname", "/etc/hosts"}  # can be written into the layer
    assert [p for p in only if p not in ours] == [p for p, _ in plain if p not in ours]
    assert sum(kind == "overlay" for _, kind in fresh) == 1


@pytest.mark.parametrize("options", [[], ["--userns", "host-root"]], ids=str)
def test_no_table_of_mounts_names_a_path_of_the_host(shell, root, scratch, options):
    script = "cat /proc/self/mountinfo /proc/self/mounts /proc/1/mountstats; df; mount"
    text = said(shell(script, "--rm", *options)).decode()
    assert " / " in text and str(scratch) not in text and str(root) not in text
    assert not re.findall(r"(?:lower|upper|work)dir\+?=[^, ]*/[^, ]*", text)
    assert shell("ls -di / /..; ls /proc/1/root/.. | wc -l", "--rm").stdout.split()[0::2][:1]


def test_what_the_layer_holds_counts_as_the_container_s_memory(start, fresh_root):
    """20 MB of it; on disk the kernel can drop them, so there they are not shared memory."""
    script = "head -c 20000000 /dev/zero >/big"
    found = []
    for options in (["--rm"], []):
        with start(*options, script=script, rootfs=fresh_root) as container:
            text = (container.cgroup("memory") / "memory.stat").read_text()
            found.append(int(re.search(r"^shmem (\d+)$", text, re.MULTILINE)[1]))
    assert found[0] >= 20000000 > 5000000 > found[1]


def test_it_cannot_hold_more_than_the_container_s_memory(shell, fresh_root, place):
    (place / "volume").mkdir()
    (place / "volume").chmod(0o777)
    script = "head -c 60000000 /dev/zero >{}/big && echo all of it"
    options = ["-m", "30m", "-v", f"{place}/volume:/data"]
    result = shell(script.format(""), "--rm", *options, rootfs=fresh_root)
    assert result.returncode and b"all of it" not in result.stdout
    assert b"No space left" in result.stderr or b"memory limit" in result.stderr
    control = shell(script.format("/data"), "--rm", *options, rootfs=fresh_root)
    assert b"all of it" in control.stdout


def test_without_limits_it_cannot_hold_half_of_the_host_s_memory(shell):
    """…which a tmpfs may by itself."""
    size = int(fine(shell("df -k / | tail -n 1", "--rm", parent="none")).split()[1])
    total = int(re.search(r"^MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())[1])
    assert 0 < size < total / 3


# --- Where it cannot be had ---------------------------------------------------------------------

STACKED = """cd '{}' && mkdir -p a b one two && mount -t overlay -o lowerdir='{}:a' one one &&
    mount -t overlay -o lowerdir=one:b two two && "$@" """


def test_a_file_system_that_has_no_such_overlay_is_one_line(root, parent, place):
    """An overlay on an overlay on an overlay is one too many for the kernel."""
    common = ["sh", "-c", STACKED.format(place, root), "sh", PYTHON, SCRIPT, "run"]
    common += ["--userns", "host-root", "--cgroup-parent", parent, "--rootfs", place / "two"]
    text = in_throwaway_namespaces([*common, "echo", "it"]).stdout
    assert text == b"it\n"  # the control
    result = in_throwaway_namespaces([*common, "--rm", "echo", "it"])
    result.stderr = b"".join(line for line in result.stderr.splitlines(True)
                             if b"warning: --userns host-root" not in line)  # fmt: skip
    assert "--rm" in one_line(result)


def test_what_is_mounted_below_the_root_is_never_silently_missing(run, normal_user, fresh_root):
    """A normal user's namespace may not look below such mounts, so its overlay cannot be had."""
    user = normal_user()
    subprocess.run(["chown", "-R", f"{user.uid}", fresh_root], check=True)
    mount = f"mount -t tmpfs tmpfs '{fresh_root}/mnt' && touch '{fresh_root}/mnt/it' && exec \"$@\""
    more = {"prefix": ["unshare", "--mount", "sh", "-c", mount, "sh", *user.prefix],
            "parent": "none", "rootfs": fresh_root}  # fmt: skip
    assert fine(run("ls", "/mnt", **more)) == b"it\n"  # the control
    result = run("--rm", "ls", "/mnt", **more)
    if result.returncode:
        assert "--rm" in one_line(result)
    else:
        assert fine(result) == b"it\n"


ANOTHER_KERNEL = f"""
try() {{ '{PYTHON}' '{SCRIPT}' run --cgroup-parent none --rootfs /mnt "$@" 2>&1; echo "code $?"; }}
try echo it
try --rm echo it
module=$(find /usr/lib/uml/modules -path "*/$(uname -r)/*" -name overlay.ko)
[ -z "$module" ] || busybox insmod "$module" && grep overlay /proc/filesystems
try --rm sh -c 'rm -r /etc/apk && mkdir /etc/apk && echo k >/etc/apk/k && rm -r /opt /etc/apk &&
    mkdir /opt && echo fresh'
"""


@needs_uml
@pytest.mark.once
def test_a_kernel_without_overlays_is_one_line_and_an_older_one_is_never_half_right(root):
    """Linux 6.1 has no user attributes on a tmpfs: what was removed there cannot be made anew."""
    text = in_world("v2", "sh", "-c", ANOTHER_KERNEL, ext4=root)
    first, second, *last = text.split("code ")
    assert first == "it\n"
    assert second.startswith("0\ngo_container: ") and "--rm" in second and second.count("\n") == 2
    assert last[0].startswith("125\n") and "I/O error" not in text
    if "overlay" in last[0]:
        assert "fresh\n" in last[0] or re.search(r"go_container: .*--rm.*\n$", last[0])


def test_spec_says_in_one_line_that_engines_have_layers_of_their_own(root):
    assert b"ociVersion" in fine(go("spec", "--rootfs", root, "true"))  # the control
    assert "--rm" in one_line(go("spec", "--rootfs", root, "--rm", "true"))
