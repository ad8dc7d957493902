"""spec: the container that `run` starts, as other engines start it from an OCI bundle.

GO_CONTAINER_ENGINE  whom to compare `run` with: runc, or crun, which wants cgroups of version 2
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from difflib import unified_diff
from pathlib import Path
from typing import Any

import pytest
from containers import (
    CONTROLLERS,
    HIERARCHIES,
    ON_V2,
    PYTHON,
    REPOSITORY,
    SCRIPT,
    UML,
    NormalUser,
    cgroup_path,
    fine,
    go,
    needs_uml,
    one_line,
    pid_1_of,
    wait_until,
)

pytest_plugins = ["attempts"]

ENGINE = os.environ.get("GO_CONTAINER_ENGINE", "runc")
SCHEMA = Path("/usr/share/gocode/src/github.com/opencontainers/runtime-spec/schema")

needs_engine = pytest.mark.skipif(
    not shutil.which(ENGINE), reason=f"needs {ENGINE}: apt-get install {ENGINE}"
)

OPTIONS = {  # what `run` and `spec` are both told
    "nothing": "",
    "limits": "-m 40m --pids-limit 7 --cpus 0.5",
    "a user": "-u 65534:65534",
    "a user by name": "-u nobody:tty",
    "a read-only volume": "-v VOLUME:/mnt:ro",
    "a volume to write to": "-v VOLUME:/srv",
    "a read-only root": "--read-only",
    "no network": "--network none",
    "one capability": "--cap-drop ALL --cap-add NET_RAW",
    "one capability more": "--cap-add SYS_PTRACE",
    "every capability": "--cap-add ALL",
    "root as outside": "--userns host-root",
    "every system call": "--security-opt seccomp=unconfined",
    "together": "-m 40m --pids-limit 7 --cpus 0.5 -u 65534 -v VOLUME:/srv --read-only "
                "--network none --cap-drop ALL --cap-add NET_RAW -h other",
    "environment": "-e A=b -e PATH=/bin -e NOT_SET_HERE -w /usr/bin -h other",
}

NORMAL_OPTIONS = {  # what a normal user tells both
    "nothing": "",
    "together": "-v VOLUME:/srv --read-only --network none --cap-drop ALL -h other -e A=b -w /usr",
}

CALLS = (  # for attempts/syscalls.c
    "add_key 0 0 0 0 0", "keyctl 99", "io_uring_setup 1 @120", "userfaultfd 0", "bpf 0 @120 120",
    "perf_event_open @120 0 -1 -1 0", "open_by_handle_at -100 @99 0", "unshare 0",
    "unshare 0x20000", "unshare 0x10000000", "setns 0 0", "mount none /tmp tmpfs 0 0",
    "umount2 /tmp 0", "fsopen tmpfs 0", "open_tree -100 / 0", "pivot_root . .", "clone3 0 0",
    "clone 0x20000011; wait4 $1 0 0 0; chroot /", "personality 0xffffffff",
    "personality 8", "personality 0x40000", "ioctl 0 0x5412", "ioctl 0 0x541c", "socket 40 1 0",
    "socket 1 1 0",
    "kcmp 1 1 0", "process_madvise 0 0 0 0 0", "init_module 0 0 /", "reboot 0", "acct 0",
    "settimeofday 0 0", "syslog 2 @99 9", "iopl 0", "get_mempolicy 0 0 0 0 0", "sethostname x 1",
    "swapon / 0", "ptrace 0 0 0 0", "chroot /", "mknodat -100 /tmp/n 0x2190 259", "x32:39",
    "i386:20",
)  # fmt: skip

PROBE = r"""
/bin/busybox env | /bin/busybox sed 's/^/environment /'
PATH=/usr/bin:/bin:/usr/sbin:/sbin  # or with another one, the questions themselves are not found
for name in cgroup ipc mnt net pid user uts; do
    echo "namespace $name $(readlink /proc/self/ns/$name)"
done
sed 's/  */ /g; s/^/uid map/' /proc/self/uid_map
sed 's/  */ /g; s/^/gid map/' /proc/self/gid_map
grep -E '^(Uid|Gid|Groups|Umask|NoNewPrivs|Seccomp|Cap|Sig[BIC])' /proc/self/status
while read -r _ _ _ root target options rest; do
    [ "$target" = / ] && root=
    echo "mount $target $options: $root ${rest#*- }"
done </proc/self/mountinfo
sed 's/  */ /g; s/^/limit /' /proc/self/limits
for masked in acpi asound interrupts kcore keys latency_stats scsi timer_list; do
    [ ! -e /proc/$masked ] || echo "masked $masked $(ls -A /proc/$masked; cat /proc/$masked 2>&1)"
done
echo 1 2>&1 >/proc/sysrq-trigger | sed 's/.*: /sysrq-trigger: /'
echo "hostname $(hostname), in $(pwd)"
id
sed 's/^/cgroup /' /proc/self/cgroup
ls -lnA /dev | grep -v ^total | while read -r mode _ owner group rest; do
    echo "device $mode $owner $group ${rest%% [A-Z][a-z][a-z] *} ${rest##*[0-9] }"
done
echo "owner of /bin/busybox: $(stat -c %u:%g /bin/busybox)"
echo "owner of /mnt: $(stat -c %u:%g /mnt)"
touch /new 2>&1 | sed 's/^/new file: /'; rm -f /new
touch /mnt/new 2>&1 | sed 's/^/new file: /'; rm -f /mnt/new
ip link | grep -A1 ' lo:' | grep -o '<.*>' | sed 's/^/loopback /'
echo "oom $(cat /proc/self/oom_score_adj), keys $(grep -c . /proc/keys)"
echo "descriptors" /proc/self/fd/[4-9]
echo "user namespaces $(cat /proc/sys/user/max_user_namespaces)"
"""

ASKED = (  # what the answers begin with: none may be missing on both sides
    "namespace user user:", "namespace mnt mnt:", "uid map 0 ", "gid map 0 ", "Uid:", "Groups:",
    "Umask:", "SigIgn:", "CapBnd:", "CapEff:", "NoNewPrivs:", "Seccomp:", "mount / ",
    "mount /proc ", "mount /proc/sys ro", "mount /dev/pts ", "limit Max open files", "masked keys",
    "environment PATH=", "hostname ", "uid=", "cgroup ", "device crw-rw-rw- ", "owner of /mnt",
    "loopback ", "oom ", "descriptors ", "user namespaces ",
)  # fmt: skip

# What cannot be the same: what of a line is not compared, and why. `run` is the stricter one.
MASKED = "acpi|asound|interrupts|kcore|keys|latency_stats|sched_debug|scsi|timer_list|timer_stats"
UNAVOIDABLE = (
    (r"^mount / (r.).*", r"mount / \1",
     "engines show no root through an idmap yet, so it is another one: a copy with its owners "
     "shifted; they have no word for nodev there, which the user namespace implies"),
    (r"^(mount /(?:mnt|srv) .*?),idmapped", r"\1", "nor a volume through an idmap"),
    (r"^(mount /(?:mnt|srv) rw),nodev", r"\1", "crun remounts only what is to be read-only"),
    (r"^owner of /mnt: .*", "owner of /mnt", "so that nobody inside owns what is in it"),
    (r"^(mount /dev/(?:null|zero|full|random|urandom|tty)) \S+:", r"\1:",
     "engines bind the host's device nodes writable; here their owner and mode cannot be changed"),
    (r"^device .* core -> /proc/kcore$", "", "crun's own idea; it is masked"),
    (r"^(mount /proc/(?:bus|fs|irq|sys|sysrq-trigger) ro)\S*:", r"\1:",
     "crun leaves out nosuid, nodev and noexec; proc has neither programs nor device nodes"),
    (rf"^(mount /proc/(?:{MASKED})) .*", r"\1",
     "the engine chooses what it mounts over what is masked, and with which options"),
    (r"^SigIgn:\t0000000180000000$", "SigIgn:\t0000000000000000",
     "posix_spawn(3) of glibc, so also Python 3.13's subprocess, ignores 32 and 33 in what it "
     "starts; glibc's sigaction(2) refuses to touch them"),
    (r"^(device \S+) .* mqueue", r"\1 mqueue",
     "made together with the IPC namespace, before or after root is root inside; its mode is 1777"),
    (r"^(i386:20|x32:39): .*", r"\1",
     "another architecture's calls: ENOSYS here; engines have libseccomp's default, which kills"),
    (r"^user namespaces .*", "user namespaces",
     "user.max_user_namespaces is 0 here; engines refuse to set it, and leave it to the filter"),
    (r"^mount /etc/host(name|s) .*", "",
     "files of the container's own; engines leave them to whoever calls them"),
    (r"^(unshare 0x10000000): (ENOSPC|0)$", r"\1", "which --security-opt takes away"),
)  # fmt: skip

# With subordinate ids. (crun sets groups, but what is printed is for all engines.)
UNAVOIDABLE_FOR_A_NORMAL_USER = (
    *UNAVOIDABLE,
    (r"^Groups:.*", "Groups:", "runc refuses to set any in a container that root has not started"),
    (r"^(uid=\S+ gid=\S+) groups=.*", r"\1", "the same, as id has it"),
)  # fmt: skip


def probe() -> str:
    """The script that asks: PROBE, then CALLS."""
    calls = " ".join(shlex.quote(call) for call in CALLS)
    names = "\n".join(CALLS)
    return f"""{PROBE}
/attempts/syscalls {calls} | while read -r answer; do
    read -r call <&3; echo "$call: $answer"
done 3<<'.'
{names}
.
echo ready; read -r _"""


@pytest.fixture(scope="module", autouse=True)
def no_cgroup_is_left(parent: str) -> Iterator[None]:
    """Engines make one in every hierarchy; cgroup.sh has to do with three of them only."""
    yield
    others = {*HIERARCHIES.values()} - {HIERARCHIES[name] for name in CONTROLLERS}
    for path in [other / parent for other in others if (other / parent).exists()]:
        path.rmdir()


@pytest.fixture
def words(place: Path, armed_root: Path, parent: str) -> Callable[[str], list[str]]:
    """`words(options)`: what `run` and `spec` are both told, up to the command."""
    volume = place / "volume"
    volume.mkdir()
    volume.chmod(0o777)
    always = ["--rootfs", str(armed_root), "--cgroup-parent", parent]
    return lambda options: [*always, *options.replace("VOLUME", str(volume)).split()]


@pytest.fixture(params=["", "student:300000:65536"], ids=["one id", "subordinate ids"])
def user(request: pytest.FixtureRequest, normal_user: Callable[..., NormalUser]) -> NormalUser:
    """A normal user of either kind."""
    if request.param and not shutil.which("newuidmap"):
        pytest.skip("newuidmap is not installed (Debian package uidmap)")
    return normal_user(subuid=request.param)


def bundle(path: Path, *words: str) -> Path:
    assert not fine(go("spec", "--bundle", path, *words))
    return path


def config(*words: str) -> dict[str, Any]:
    return json.loads(fine(go("spec", *words)))


def engine(place: Path, path: Path) -> list[str]:
    return [ENGINE, "--root", str(place / "state"), "run", "--bundle", str(path), place.name]


def limits(pid: int) -> Iterator[str]:
    """What the host says of a container's cgroups."""
    names = {"pids": ["pids.max"], "memory": ["memory.max", "memory.swap.max"], "cpu": ["cpu.max"]}
    if not ON_V2:
        names["memory"] = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        names["cpu"] = ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
    for controller, files in names.items():
        parent, _, _ = cgroup_path(pid, controller).rpartition("/")
        yield f"limits of {controller}: in {parent}"
        for file in files:
            path = HIERARCHIES[controller] / cgroup_path(pid, controller).lstrip("/") / file
            yield f"limit {file} {path.read_text().strip() if path.exists() else None}"


def answers(argv: list[str], with_limits: bool) -> list[str]:
    """What the probe in a container says, and the host of the container, line by line."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(argv, **pipes, text=True) as process:
        lines = []
        while (line := process.stdout.readline()) not in ("", "ready\n"):
            lines.append(line.rstrip())
        assert line, (lines, process.stderr.read())
        if with_limits:
            lines += limits(pid_1_of(process.pid))
        _, errors = process.communicate("\n", timeout=20)
        assert process.returncode == 0, errors
    for kind in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts"):
        own = os.readlink(f"/proc/self/ns/{kind}")
        lines = [line.replace(own, "the host's") for line in lines]
    return [re.sub(r"^(namespace .*)\[\d+\]", r"\1", line) for line in lines]


def differences(ours: list[str], theirs: list[str], unavoidable: tuple[Any, ...]) -> list[str]:
    """In any order, since engines mount in another one, and without what is unavoidable."""
    for begin in (*ASKED, *(f"{call}: " for call in CALLS)):
        assert any(line.startswith(begin) for line in ours), f"no answer to {begin}"
    for pattern, replacement, _ in unavoidable:
        ours, theirs = ([re.sub(pattern, replacement, line) for line in lines]
                        for lines in (ours, theirs))  # fmt: skip
    ours, theirs = (sorted(filter(None, lines)) for lines in (ours, theirs))
    return [*unified_diff(ours, theirs, "run", ENGINE, "", "", 0, "")]


@needs_engine
@pytest.mark.skipif(ENGINE == "crun" and not ON_V2, reason="crun wants cgroups of version 2 only")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_bundle_gives_the_same_answers_as_run(options, words, place):
    given = [*words(options), "/bin/sh", "-c", probe()]
    made = bundle(place / "bundle", "--copy", *given)
    ours = answers([PYTHON, str(SCRIPT), "run", *given], with_limits=True)
    theirs = answers(engine(place, made), with_limits=True)
    assert not (lines := differences(ours, theirs, UNAVOIDABLE)), "\n".join(lines)


def drop_capability(config: dict[str, Any]) -> None:
    for names in ("bounding", "permitted", "effective"):
        config["process"]["capabilities"][names].remove("CAP_MKNOD")


CHANGES = {  # in a config.json, and an answer that has to differ then
    "a namespace": (lambda c: c["linux"]["namespaces"].remove({"type": "cgroup"}),
                    "+namespace cgroup the host's"),
    "an id map": (lambda c: c["linux"]["gidMappings"][0].update(size=65535),
                  "+gid map 0 100000 65535"),
    "a capability": (drop_capability, "+CapBnd:\t00000000a00425fb"),
    "new privileges": (lambda c: c["process"].update(noNewPrivileges=False), "+NoNewPrivs:\t0"),
    "a mount": (lambda c: c["mounts"].remove(next(each for each in c["mounts"]
                                                  if each["destination"] == "/dev/shm")),
                "-mount /dev/shm rw,nosuid,nodev,noexec"),
    "a mount's options": (lambda c: next(each for each in c["mounts"]
                                            if each["destination"] == "/srv")[
        "options"].append("ro"), "+mount /srv ro"),
    "the root": (lambda c: c["root"].update(readonly=True), "+mount / ro"),
    "a masked path": (lambda c: c["linux"]["maskedPaths"].remove("/proc/keys"),
                      "-mount /proc/keys"),
    "a read-only path": (lambda c: c["linux"]["readonlyPaths"].remove("/proc/sys"),
                         "-mount /proc/sys ro"),
    "a resource limit": (lambda c: c["process"].update(rlimits=[
        {"type": "RLIMIT_NOFILE", "soft": 99, "hard": 99}]), "+limit Max open files 99 99"),
    "a cgroup's limit": (lambda c: c["linux"]["resources"]["pids"].update(limit=6),
                         "+limit pids.max 6"),
    "the cgroup": (lambda c: c["linux"].pop("cgroupsPath"), "+limits of pids: in "),
    "a variable": (lambda c: c["process"]["env"].append("A=b"), "+environment A=b"),
    "the host name": (lambda c: c.update(hostname="other"), "+hostname other"),
    "the directory": (lambda c: c["process"].update(cwd="/tmp"), "+hostname container, in /tmp"),
    "the user": (lambda c: c["process"]["user"].update(gid=1), "+Gid:\t1"),
    "a system call": (lambda c: c["linux"]["seccomp"].update(syscalls=[
        rule for rule in c["linux"]["seccomp"]["syscalls"] if rule["names"] != ["clone3"]
    ]), "+clone3 0 0: EINVAL"),
}  # fmt: skip


@pytest.mark.once
@pytest.mark.skipif(ENGINE == "crun", reason="one engine is enough to see what is noticed")
@needs_engine
@pytest.mark.parametrize("change, noticed", CHANGES.values(), ids=CHANGES)
def test_the_comparison_notices_a_change_of(change, noticed, words, place):
    """Its control: answers that cannot differ would not be worth comparing."""
    given = [*words("--pids-limit 7 -v VOLUME:/srv"), "/bin/sh", "-c", probe()]
    made = bundle(place / "bundle", "--copy", *given)
    document = json.loads((made / "config.json").read_text())
    change(document)
    (made / "config.json").write_text(json.dumps(document))
    ours = answers([PYTHON, str(SCRIPT), "run", *given], with_limits=True)
    theirs = answers(engine(place, made), with_limits=True)
    lines = differences(ours, theirs, UNAVOIDABLE)
    assert any(line.startswith(noticed) for line in lines), "\n".join(lines)


@needs_engine
@pytest.mark.skipif(ENGINE == "crun", reason="crun's is another machine: see below")
@pytest.mark.parametrize("options", NORMAL_OPTIONS.values(), ids=NORMAL_OPTIONS)
def test_a_normal_users_bundle_gives_the_same_answers_as_run(options, user, armed_root, place):
    """As that user, with a root of their own, which needs no copy: nobody's ids are shifted."""
    own, made = user.home / "root", user.home / "bundle"
    subprocess.run(["cp", "-a", armed_root, own], check=True)
    (user.home / "volume").mkdir()
    subprocess.run(["chown", "-Rh", f"{user.uid}:{user.uid}", user.home], check=True)
    given = ["--rootfs", str(own), "--cgroup-parent", "none"]
    given += options.replace("VOLUME", str(user.home / "volume")).split()
    given += ["/bin/sh", "-c", probe()]
    assert not fine(go("spec", "--bundle", made, *given, prefix=user.prefix))
    ours = answers([*user.prefix, PYTHON, str(SCRIPT), "run", *given], with_limits=False)
    theirs = answers([*user.prefix, *engine(user.home, made)], with_limits=False)
    lines = differences(ours, theirs, UNAVOIDABLE_FOR_A_NORMAL_USER)
    assert not lines, "\n".join(lines)


def test_a_normal_user_cannot_ask_for_root_outside(user, root):
    words = ["--rootfs", root, "--cgroup-parent", "none", "--userns", "host-root", "true"]
    for command in ("run", "spec"):
        assert "host-root" in one_line(go(command, *words, prefix=user.prefix))


@pytest.mark.once
@pytest.mark.skipif(ENGINE == "crun", reason="this is crun's machine already")
@needs_uml
@pytest.mark.skipif(not shutil.which("crun"), reason="needs crun: apt-get install crun")
def test_with_crun_and_cgroups_of_version_2_they_are_the_same_too(tmp_path):
    there = ["env", "TMPDIR=/mnt", f"GO_CONTAINER_PYTHON={PYTHON}", "GO_CONTAINER_ENGINE=crun"]
    there += [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_spec.py"]
    there += ["-k", "same_answers and (nothing or together)"]  # 6 seconds each
    uml = [UML, "--cgroup", "v2", "--ext4", f"{tmp_path}:/mnt", *there]
    done = subprocess.run(uml, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_published_schema_has_nothing_to_complain_of(words):
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install")
    referencing = pytest.importorskip("referencing.jsonschema", reason="needs jsonschema >= 4.18")
    if not SCHEMA.exists():
        pytest.skip("needs the schema: apt-get install golang-github-opencontainers-specs-dev")

    def read(uri: str) -> Any:
        text = (SCHEMA / uri.rpartition("/")[2]).read_text()
        return referencing.DRAFT4.create_resource(json.loads(text))

    registry = referencing.Registry(retrieve=read)
    schema = {"$ref": "https://schema/config-schema.json"}
    complain = jsonschema.Draft4Validator(schema, registry=registry).iter_errors
    for options in [*OPTIONS.values(), "-t", "--cgroup-parent none"]:
        document = config(*words(options), "true")
        assert not [error.message for error in complain(document)]
    document["linux"]["maskedPaths"] = "/proc/kcore"
    del document["process"]["cwd"]
    assert len([*complain(document)]) == 2


def test_a_terminal_is_asked_for_as_run_would(words):
    assert config(*words("-t"), "sh")["process"]["terminal"] is True
    assert config(*words(""), "sh")["process"]["terminal"] is False


def test_every_file_of_the_copy_is_shifted_once(fresh_root, place):
    os.chown(fresh_root / "etc/passwd", 7, 8)
    os.link(fresh_root / "etc/passwd", fresh_root / "etc/another-name")
    (fresh_root / "tool").write_text("")
    (fresh_root / "tool").chmod(0o6755)
    words = ["--rootfs", str(fresh_root), "true"]
    copy = bundle(place / "bundle", "--copy", *words) / "rootfs"
    first = config(*words)["linux"]["uidMappings"][0]["hostID"]
    before = {path.relative_to(fresh_root): path.lstat() for path in fresh_root.rglob("*")}
    after = {path.relative_to(copy): path.lstat() for path in copy.rglob("*")}
    assert before.keys() == after.keys()
    for path, was in before.items():
        now = after[path]
        assert (now.st_uid, now.st_gid) == (was.st_uid + first, was.st_gid + first), path
        assert (now.st_mode, now.st_nlink) == (was.st_mode, was.st_nlink), path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_copy_leaves_no_bundle(root, place, number):
    (place / "tar").write_text(f"#!/bin/sh\ntouch {place}/begun\nexec sleep 60\n")
    (place / "tar").chmod(0o755)
    argv = [PYTHON, SCRIPT, "spec", "--rootfs", root, "--copy", "--bundle", place / "bundle", "x"]
    environment = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}"}
    with subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE) as process:
        assert wait_until((place / "begun").exists)
        process.send_signal(number)
        _, errors = process.communicate(timeout=10)
    assert process.returncode in (-number, 128 + number) and errors.count(b"\n") <= 1, errors
    assert not (place / "bundle").exists()


def test_without_a_copy_the_bundle_names_the_root_where_it_is(root, place, monkeypatch):
    monkeypatch.chdir(root.parent)
    made = bundle(place / "bundle", "--rootfs", root.name, "true")
    assert json.loads((made / "config.json").read_text())["root"]["path"] == str(root)
    assert os.listdir(made) == ["config.json"]


def test_without_a_cgroup_parent_the_engine_chooses_and_limits_stay(root):
    words = ["--rootfs", root, "--cgroup-parent", "none", "--pids-limit", "7", "true"]
    linux = config(*words)["linux"]
    assert "cgroupsPath" not in linux
    assert linux["resources"] == {"pids": {"limit": 7}}


def test_what_run_refuses_is_refused(words):
    for options in ("-v /a:/b -v /c:/b", "--cap-add NONSENSE", "--memory much", "-u stranger"):
        assert one_line(go("run", *words(options), "true"))
        assert one_line(go("spec", *words(options), "true"))


def test_what_a_config_cannot_say_is_refused(words):
    assert "--init" in one_line(go("spec", *words("--init"), "true"))
    published = words("--network pasta -p 18080:80")
    assert "--publish" in one_line(go("spec", *published, "true"))
    assert "pasta" in one_line(go("spec", *words("--network pasta"), "true"))


def test_a_bundle_that_is_there_already_is_left_alone(words, place):
    mine = place / "volume/mine"
    mine.write_text("")
    refusal = one_line(go("spec", "--bundle", mine.parent, "--copy", *words(""), "true"))
    assert str(mine.parent) in refusal
    assert os.listdir(mine.parent) == ["mine"]


@needs_engine
def test_the_engine_ends_with_the_commands_exit_code(root, parent, place):
    words = ["--rootfs", root, "--cgroup-parent", parent, "sh", "-c", "exit 7"]
    made = bundle(place / "bundle", "--copy", *words)
    assert subprocess.run(engine(place, made), input=b"").returncode == 7


@pytest.mark.once
@pytest.mark.skipif(not shutil.which("ctr"), reason="needs ctr: apt-get install containerd")
def test_containerd_runs_it(root, parent, place):
    words = ["--rootfs", root, "--cgroup-parent", parent]
    words += ["sh", "-c", "cat /proc/self/uid_map; exit 7"]
    made = bundle(place / "bundle", "--copy", *words)
    text = (made / "config.json").read_text()
    (made / "config.json").write_text(text.replace('"path": "rootfs"', f'"path": "{made}/rootfs"'))
    (place / "containerd.toml").write_text(f"""
        version = 2
        root = "{place}/root"
        state = "{place}/state"
        disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
        [grpc]
        address = "{place}/socket"
    """)
    daemon = ["containerd", "--config", place / "containerd.toml"]
    with (place / "log").open("w") as log, subprocess.Popen(daemon, stdout=log, stderr=log) as up:
        try:
            ctr = ["ctr", "--address", place / "socket"]
            ready = wait_until(lambda: not subprocess.run([*ctr, "version"], capture_output=True)
                               .returncode, 20)  # fmt: skip
            assert ready, (place / "log").read_text()
            run = [*ctr, "run", "--rm", "--config", made / "config.json", "demo"]
            done = subprocess.run(run, capture_output=True, text=True, timeout=60)
        finally:
            up.terminate()
    assert done.returncode == 7, done
    assert done.stdout.split() == ["0", "100000", "65536"], done
