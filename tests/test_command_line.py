"""The command line, driven at random: it ends in one line and 125, or in the right result.

GO_CONTAINER_EXAMPLES  how many command lines for each command (default: 40; thorough: 10000)

Most lines have something to be refused, and end before anything is made. One in ten is right: of
run's, a probe in the container and the host tell whether it is the one that was described; of
pull's the root, of spec's the config.json, and of inspect's /proc.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from containers import (
    PYTHON,
    SCRIPT,
    Result,
    cgroup_path,
    fine,
    go,
    pid_1_of,
    read_limits,
    wait_until,
)

hypothesis = pytest.importorskip("hypothesis", reason="needs hypothesis: pip install hypothesis")
st = hypothesis.strategies

EXAMPLES = int(os.environ.get("GO_CONTAINER_EXAMPLES", "40"))
pytestmark = pytest.mark.once

thorough = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES <= 40,
    suppress_health_check=list(hypothesis.HealthCheck),
)
one_in_ten = hypothesis.settings(thorough, max_examples=max(10, EXAMPLES // 10))


# --- What may be typed, and the container that it makes ------------------------------------------

NO_NUL = st.characters(blacklist_characters="\0", blacklist_categories=("Cs",))
TEXT = st.text(NO_NUL, max_size=30)
BYTES = st.binary(max_size=20).map(lambda data: os.fsdecode(data.replace(b"\0", b"")))
ANYTHING = st.one_of(TEXT, BYTES, st.integers().map(str), st.floats().map(str), st.just("x" * 5000))


Entry = tuple[tarfile.TarInfo, bytes]
Tree = dict[str, tuple[bytes, int, bytes]]  # by path: kind as in a tarball, mode, content


class Typed(NamedTuple):
    """Some words of the command line, and what they change in what the probe sees inside."""

    words: list[str]
    change: dict[str, str]


def spelled(name: str, short: str, value: str) -> st.SearchStrategy[list[str]]:
    """All ways to write an option."""
    ways = [[f"--{name}", value], [f"--{name}={value}"]]
    if short:
        ways.append([f"-{short}", value])
        if value:
            ways += [[f"-{short}={value}"], *[[f"-{short}{value}"]] * (not value.startswith("="))]
    return st.sampled_from(ways)


def option(name: str, short: str, values, change=lambda value: {}) -> st.SearchStrategy[Typed]:
    return values.flatmap(
        lambda value: spelled(name, short, value).map(lambda words: Typed(words, change(value)))
    )


def switch(name: str, change: dict[str, str]) -> st.SearchStrategy[Typed]:
    on = [Typed([f"--{name}"], change), Typed([f"--{name}=true"], change)]
    return st.sampled_from([*on, Typed([f"--{name}=false"], {})])


def no_switch(*names: str) -> st.SearchStrategy[list[str]]:
    """Switches that are neither on nor off."""
    values = ANYTHING.filter(lambda value: value not in ("true", "false"))
    return st.builds(lambda name, value: [f"--{name}={value}"], st.sampled_from(names), values)


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}[a-z]", fullmatch=True)
VARIABLES = st.from_regex(r"[A-Z][A-Z0-9_]{3,9}", fullmatch=True).map(lambda name: f"V_{name}")
SIZES = st.one_of(
    st.tuples(st.integers(32, 4096), st.sampled_from(["m", "M", "mb", "MB"])).map(
        lambda pair: (f"{pair[0]}{pair[1]}", pair[0] << 20)
    ),
    st.integers(32 << 20, 1 << 40).map(lambda size: (str(size), size)),
    st.integers(1, 8).map(lambda size: (f"{size}g", size << 30)),
)
IDS = st.integers(0, 65535)
CPUS = st.integers(20, 100 * (os.cpu_count() or 1)).map(lambda n: (f"{n / 100:.2f}", n * 1000))


def sized(pair: tuple[str, int]) -> st.SearchStrategy[Typed]:
    limit = {"memory": str(pair[1] // 4096 * 4096)}
    return spelled("memory", "m", pair[0]).map(lambda words: Typed(words, limit))


def shared(pair: tuple[str, int]) -> st.SearchStrategy[Typed]:
    return spelled("cpus", "", pair[0]).map(lambda words: Typed(words, {"cpu": str(pair[1])}))


def of_user(pair: tuple[int, int | None]) -> st.SearchStrategy[Typed]:
    uid, gid = pair
    text = f"{uid}" if gid is None else f"{uid}:{gid}"
    change = {"uid": str(uid)} | ({} if gid is None else {"gid": str(gid)})
    return spelled("user", "u", text).map(lambda words: Typed(words, change))


def with_variable(pair: tuple[str, str]) -> st.SearchStrategy[Typed]:
    name, value = pair
    return spelled("env", "e", f"{name}={value}").map(lambda words: Typed(words, {name: value}))


RIGHT = st.one_of(
    option("hostname", "h", NAMES, lambda value: {"hostname": value}),
    st.tuples(VARIABLES, st.one_of(TEXT, BYTES)).flatmap(with_variable),
    option("workdir", "w", st.sampled_from(["/", "/tmp", "//usr/./bin/"]), lambda value: {
        "pwd": os.path.normpath(value).replace("//", "/")}),
    st.tuples(IDS, st.none() | IDS).flatmap(of_user),
    SIZES.flatmap(sized),
    CPUS.flatmap(shared),
    option("pids-limit", "", st.integers(8, 1 << 22).map(str), lambda value: {"pids": value}),
    option("network", "", st.just("none"), lambda value: {"interfaces": "1"}),
    option("volume", "v", st.sampled_from(["/etc:/mnt", "/etc:/mnt:ro", "/etc:/mnt:rw"]),
           lambda value: {"mnt": "there"}),
    option("stop-timeout", "", st.sampled_from(["0", "1", "2.5"])),
    switch("read-only", {"root": "ro"}),
    switch("init", {"pid": "2"}),
    option("cap-drop", "", st.sampled_from(["ALL", "all"]), lambda value: {"caps": "none"}),
)  # fmt: skip

# What has to be refused, whatever else is there.
UNKNOWN = [["--banana"], ["-x"], ["--banana=1"], ["---"], ["--=x"], ["-é"], ["--Env=a"]]
REFUSED = st.one_of(
    st.sampled_from(UNKNOWN),
    *[
        option(name, short, ANYTHING.filter(lambda value, right=right: not re.fullmatch(
            right, value, re.DOTALL | re.ASCII | re.IGNORECASE))).map(lambda typed: typed.words)
        for name, short, right in (
            ("hostname", "h", r"[a-z0-9_][a-z0-9_.-]{0,63}"),
            ("env", "e", r"[^=].*"),
            ("memory", "m", r"[0-9.]*[kmg]?b*"),
            ("pids-limit", "", r"-1|[0-9.]*"),
            ("cpus", "", r"[0-9.]*"),
            ("network", "", r"host|none|pasta"),
            ("publish", "p", r"([0-9.]*:)?[0-9]*:[0-9]*(/tcp|/udp)?"),
            ("workdir", "w", r"/.*"),
            ("volume", "v", r".*/.*:/.+"),
            ("user", "u", r"[a-z0-9_-]+(:[a-z0-9_-]*)?:?"),
            ("cgroup-parent", "", r"[a-z0-9_][a-z0-9_.-]*"),
            ("userns", "", r"host-root"),
            ("security-opt", "", r"seccomp=unconfined"),
            ("stop-timeout", "", r"[0-9.]*"),
        )
    ],
    no_switch("read-only", "init", "tty", "interactive", "plan"),
)  # fmt: skip

PROBE = r"""
echo "hostname=$(hostname)"; echo "pwd=$(pwd)"; echo "uid=$(id -u)"; echo "gid=$(id -g)"
echo "pid=$$"; echo "interfaces=$(tail -n +3 /proc/net/dev | wc -l)"
test -e /mnt/passwd && echo mnt=there
grep -q '^[^ ]* [^ ]* [^ ]* [^ ]* / ro' /proc/self/mountinfo && echo root=ro
grep -q 'CapBnd:.0*$' /proc/self/status && echo caps=none
echo environment; cat /proc/self/environ; echo; echo "the end of it"; read _
"""


def inside(output: bytes) -> tuple[dict[str, str], dict[str, str]]:
    """What the probe says, and the variables of its environment."""
    facts, _, environment = output.partition(b"environment\n")
    environment = environment.rpartition(END)[0]
    seen = dict(os.fsdecode(line).split("=", 1) for line in facts.splitlines() if b"=" in line)
    variables = [os.fsdecode(word) for word in environment.split(b"\0") if b"=" in word]
    return seen, dict(word.split("=", 1) for word in variables)


END = b"\nthe end of it\n"


def refused(result: Result, command: str, usage: bool | None = None) -> None:
    """It was one line and 125, and the command's usage line or not; None: either will do."""
    text = result.stderr.decode(errors="replace")
    lines = text.removesuffix("\n").split("\n")
    assert result.returncode == 125 and not result.stdout, (result, text)
    assert lines[0].startswith("go_container: ") and "internal error" not in text, text
    line = f"usage: go_container.py {command} "
    assert len(lines) == 1 or len(lines) == 2 and lines[1].startswith(line), text
    assert usage in (None, len(lines) == 2), text


# --- run -----------------------------------------------------------------------------------------


@thorough
@hypothesis.given(
    before=st.lists(RIGHT.map(lambda typed: typed.words), max_size=3), bad=REFUSED
)
def test_a_line_with_something_to_be_refused_is_one_line_and_125(run_quickly, before, bad):
    words = [word for some in before for word in some]
    refused(run_quickly(*words, *bad, "true"), "run")


@thorough
@hypothesis.given(words=st.lists(st.one_of(ANYTHING, RIGHT.map(lambda typed: typed.words[0])),
                                 max_size=6))  # fmt: skip
def test_any_words_at_all_are_no_traceback(run_quickly, words):
    words = [word for word in words if "step" not in word]
    result = run_quickly(*words, "/no such command")
    text = result.stderr.decode(errors="replace")
    assert result.returncode in (0, 125, 126, 127), (result, text)
    assert b"Traceback" not in result.stdout and "Traceback" not in text, text
    assert "internal error" not in text, text


@one_in_ten
@hypothesis.given(typed=st.lists(RIGHT, max_size=6), dashes=st.booleans())
def test_a_line_that_is_right_is_the_container_that_it_describes(start_probe, typed, dashes):
    targets = [words for words, change in typed if "mnt" in change]
    hypothesis.assume(len(targets) < 2)  # two for one place are refused
    words = [word for some, _ in typed for word in some] + ["--"] * dashes
    expected = expected_of(typed, start_probe.root)
    seen, variables, limits = start_probe(*words)
    both = {**limits, **seen, **variables}
    assert {name: both.get(name) for name in expected} == expected, (words, both)
    for name in ("root", "mnt", "caps"):
        assert (name in seen) == (name in expected), (words, seen)


def expected_of(typed: list[Typed], root: Path) -> dict[str, str]:
    """What the probe sees in the container that these options describe."""
    expected = {"hostname": "container", "pwd": "/", "uid": "0", "gid": "0", "pid": "1"}
    for some, change in typed:  # the last one counts
        expected |= change
        if "uid" in change and "gid" not in change:
            expected["gid"] = passwd(root).get(change["uid"], "0")
        if some == ["--read-only=false"]:
            expected.pop("root", None)
        if some == ["--init=false"]:
            expected["pid"] = "1"
    return expected


def passwd(root: Path) -> dict[str, str]:
    """Group by user, as the root's own /etc/passwd has it."""
    lines = [line.split(":") for line in (root / "etc/passwd").read_text().splitlines()]
    return {line[2]: line[3] for line in reversed(lines)}


# --- pull ----------------------------------------------------------------------------------------

# Values that name nothing outside of the directory that pull is started in.
INSIDE = ANYTHING.filter(lambda value: not value.startswith("/") and ".." not in value.split("/"))
URLS = st.builds(
    "{}://{}".format, st.sampled_from(["http", "https", "file", "HTTP", "x", ""]), ANYTHING
)
NO_TARBALLS = ["missing", "empty", "file", "alpine-fs", "cut.gz", ".", "-", "root.tar/", ""]
PULL_REFUSED = st.one_of(
    st.sampled_from(UNKNOWN + [["-h"], ["--network=none"], ["--rootfs="], ["--sha256", ""]]),
    no_switch("busybox", "force"),
    st.lists(INSIDE.filter(lambda value: value[:1] != "-"), min_size=2, max_size=4),
    st.sampled_from(NO_TARBALLS).map(lambda name: ["--force", "--", name]),
    INSIDE.map(lambda name: ["--force", "--", name]),
    URLS.map(lambda url: ["--force", "--", url]),
    option("sha256", "", ANYTHING).map(lambda typed: [*typed.words, "--force", "root.tar"]),
    option("sha256", "", ANYTHING).map(lambda typed: [*typed.words, "--busybox", "--force"]),
    INSIDE.map(lambda name: ["--rootfs", f"missing/{name}/root", "root.tar"]),
    st.sampled_from([["--busybox", "root.tar"], ["--rootfs", "file", "root.tar"],
                     ["--force", "--rootfs", "file", "root.tar"], ["root.tar"]]),
)  # fmt: skip
PULL_RIGHT = st.sampled_from([["--force"], ["--force=false"], ["--busybox=false"],
                              ["--rootfs", "alpine-fs"], ["--rootfs=alpine-fs/"]])  # fmt: skip


@thorough
@hypothesis.given(before=st.lists(PULL_RIGHT, max_size=2), bad=PULL_REFUSED)
def test_pull_of_something_to_be_refused_is_one_line_and_changes_nothing(pull, before, bad):
    hypothesis.assume(bad != ["root.tar"] or ["--force"] not in before)
    there = pull.tree()
    refused(pull(*[word for some in before for word in some], *bad), "pull")
    assert pull.tree() == there


# Without slashes, halves of a character may have become one: as os.fsdecode has it then.
PARTS = st.one_of(TEXT, BYTES).map(lambda text: os.fsdecode(os.fsencode(text).replace(b"/", b"")))
PARTS = PARTS.filter(lambda text: text not in ("", ".", "..", "dev"))
ROOTS = st.dictionaries(
    PARTS,
    st.one_of(
        st.tuples(st.just(tarfile.REGTYPE), st.integers(0, 0o7777), st.binary(max_size=99)),
        st.tuples(st.just(tarfile.DIRTYPE), st.integers(0, 0o7777), st.just(b"")),
        st.tuples(st.just(tarfile.SYMTYPE), st.just(0o777), PARTS.map(os.fsencode)),
    ),
    min_size=1,
    max_size=5,
)


PACKED = [kind for kind, program in (("", "tar"), ("gz", "gzip"), ("xz", "xz"), ("bz2", "bzip2"))
          if shutil.which(program)]  # fmt: skip


@one_in_ten
@hypothesis.given(
    before=st.lists(PULL_RIGHT, max_size=2),
    root=ROOTS,
    kind=st.sampled_from(PACKED),
    digits=st.sampled_from([None, str.lower, str.upper]),
    ignored=st.sampled_from([b"*\n!.gitignore\n", b"\xff\n", b""]),
)
def test_pull_of_what_is_right_is_that_root(pull, before, root, kind, digits, ignored):
    hypothesis.assume(list(root) != [".gitignore"])  # which is taken for an empty root
    pull.reset(ignored)
    entries = [entry_of(name, *rest[:2], data=rest[2]) for name, rest in root.items()]
    pack(pull.place / "it", entries, f"w:{kind}")
    words = [word for some in before for word in some]
    if digits:
        words += ["--sha256", digits(hashlib.sha256((pull.place / "it").read_bytes()).hexdigest())]
    there = pull.tree()
    fine(pull(*words, "--force", "it"))
    # Only what git has in an empty alpine-fs is kept: a container can have made the others.
    ours = ignored == b"*\n!.gitignore\n"
    kept = {".gitignore": (tarfile.REGTYPE, 0o644, ignored)} if ours else {}
    expected = {f"alpine-fs/{name}": rest for name, rest in {**kept, **root}.items()}
    assert pull.tree() == without_root(there) | expected


def entry_of(name: str, kind: bytes, mode: int = 0o644, link: str = "", data: bytes = b"") -> Entry:
    """A file, folder or link of a tarball; data is also where a symbolic link leads to."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.devmajor, entry.devminor = kind, mode, 1, 3
    entry.linkname = link or os.fsdecode(data) * (kind == tarfile.SYMTYPE)
    entry.size = len(data) * (kind == tarfile.REGTYPE)
    return entry, data


def pack(path: Path, entries: list[Entry], mode: str = "w") -> None:
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as tar:
        for entry, data in entries:
            tar.addfile(entry, io.BytesIO(data))


def without_root(tree: Tree) -> Tree:
    return {name: what for name, what in tree.items() if not name.startswith("alpine-fs/")}


PLACES = st.lists(st.sampled_from(["a", "b", "..", ".", "", "out", "é", "host", "file"]),
                  min_size=1, max_size=5).map("/".join)  # fmt: skip
MEMBERS = st.tuples(
    st.sampled_from(["", "", "", "HOST/", "../"]),
    PLACES,
    st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.SYMTYPE,
                     tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"V"]),
    st.sampled_from(["", "HOST/", "../../", "../"]),
    PLACES,
)  # fmt: skip


@one_in_ten
@hypothesis.given(members=st.lists(MEMBERS, min_size=1, max_size=6))
def test_a_tarball_of_whatever_kind_changes_nothing_but_the_root(pull, members):
    pull.reset()
    host = str(pull.place / "host")
    entries = []
    for start, name, kind, to, link in members:
        # What is absolute is below the test's own directory: tar is not believed in here.
        name, link = name.lstrip("/"), link.lstrip("/")
        start, to = (text.replace("HOST", host) for text in (start, to))
        entries.append(entry_of(f"{start}{name}" or ".", kind, link=f"{to}{link}"))
    pack(pull.place / "it", entries)
    there = pull.tree()
    result = pull("--force", "it")
    after = pull.tree()
    assert without_root(after) == without_root(there)
    assert (pull.place / "host/file").stat().st_nlink == 1
    if result.returncode:
        refused(result, "pull", usage=False)
        assert after == there
    else:
        fine(result)
        kinds = {kind for kind, *_ in after.values()}
        assert not kinds & {tarfile.CHRTYPE, tarfile.BLKTYPE}


# --- spec ----------------------------------------------------------------------------------------

SPEC_REFUSED = st.one_of(
    REFUSED,
    no_switch("copy"),
    st.sampled_from([["--bundle="], ["--bundle", "there"], ["--bundle", "file"], ["--copy"],
                     ["--bundle=file/below"], ["--bundle", "x" * 300], ["--init"], ["--force"],
                     ["--rootfs", "missing"], ["--rootfs", "empty"], ["--rootfs", "file"],
                     ["--cap-add", "banana"], ["--user", "nobody:nowhere"], ["--user", "noone"],
                     ["--env", "A=\udcff"], ["--volume", "\udcff/:/mnt"]]),
)  # fmt: skip


@thorough
@hypothesis.given(
    before=st.lists(RIGHT.map(lambda typed: typed.words), max_size=3),
    bad=SPEC_REFUSED,
    bundle=st.booleans(),
)
def test_spec_of_something_to_be_refused_is_one_line_and_leaves_nothing(spec, before, bad, bundle):
    hypothesis.assume(not bundle or bad != ["--copy"])
    there = spec.tree()
    words = [word for some in [["--bundle", "new"] * bundle, *before, bad] for word in some]
    refused(spec(*words, "true"), "spec")
    assert spec.tree() == there


@one_in_ten
@hypothesis.given(
    typed=st.lists(RIGHT, max_size=6),
    bundle=st.sampled_from(["", "new", "-new", "deep/new"]),
    copy=st.booleans(),
    command=st.lists(st.one_of(TEXT, BYTES), min_size=1, max_size=3),
)
def test_spec_of_what_is_right_describes_that_container(spec, typed, bundle, copy, command):
    hypothesis.assume(sum("mnt" in change for _, change in typed) < 2)
    spec.reset()
    there = spec.tree()
    expected = expected_of(typed, spec.place / "alpine-fs")
    words = [word for some, _ in typed for word in some]
    copy = copy and bundle != ""
    options = [f"--bundle={bundle}"] * (bundle != "") + ["--copy"] * copy
    result = spec(*options, *words, "--", *command)
    is_text = all(word.encode(errors="replace").decode() == word for word in words + command)
    if not is_text or expected["pid"] == "2":  # JSON is UTF-8; and engines bring their own init
        refused(result, "spec", usage=False)
        assert spec.tree() == there
        return
    text = fine(result)
    if bundle:
        assert text == b""
        text = (spec.place / bundle / "config.json").read_bytes()
        root = sorted(path.name for path in (spec.place / bundle / "rootfs").rglob("*"))
        assert root == [".gitignore", "etc", "group", "passwd"] * copy
    config = json.loads(text.decode())
    json.dumps(config, ensure_ascii=False).encode()  # no half of a character either
    seen = described(config)
    assert config["process"]["args"] == command
    assert {name: seen.get(name) for name in expected} == expected, (words, config)
    for name in ("root", "mnt", "caps", "interfaces", "memory", "cpu", "pids"):
        assert (name in seen) == (name in expected), (words, config)


def described(config: dict[str, Any]) -> dict[str, str]:
    """What the probe of run's tests would see in this container."""
    process, linux, user = config["process"], config["linux"], config["process"]["user"]
    limits = linux["resources"]
    seen = {"hostname": config["hostname"], "pwd": process["cwd"], "pid": "1"}
    seen |= {name: str(user[name]) for name in ("uid", "gid")}
    seen |= dict(word.split("=", 1) for word in process["env"])
    for name, has in (
        ("interfaces=1", {"type": "network"} in linux["namespaces"]),
        ("root=ro", config["root"]["readonly"]),
        ("mnt=there", any(mount["destination"] == "/mnt" for mount in config["mounts"])),
        ("caps=none", not process["capabilities"]["bounding"]),
    ):
        seen |= [name.split("=")] * has
    if "memory" in limits:
        seen["memory"] = str(limits["memory"]["limit"] // 4096 * 4096)
    if "pids" in limits:
        seen["pids"] = str(limits["pids"]["limit"])
    if "cpu" in limits:
        seen["cpu"] = str(limits["cpu"]["quota"])
    return seen


# --- inspect -------------------------------------------------------------------------------------


@thorough
@hypothesis.given(
    words=st.lists(ANYTHING, max_size=3)
    | st.tuples(st.integers(0, 1 << 80).map(str) | st.from_regex(r"\d+", fullmatch=True))
)
def test_inspect_of_anything_but_a_process_is_one_line(inspect, words):
    is_number = len(words) == 1 and bool(re.fullmatch("[0-9]{1,19}", words[0]))
    hypothesis.assume(words and (not is_number or not is_process(words[0])))
    refused(inspect(*words), "inspect", usage=not is_number)


def is_process(number: str) -> bool:
    return Path(f"/proc/{number}").exists()


NAMESPACES = ["mount", "uts", "ipc", "net", "cgroup", "user"]


@one_in_ten
@hypothesis.given(
    new=st.sets(st.sampled_from(NAMESPACES)), state=st.sampled_from(["runs", "stopped", "ended"])
)
def test_inspect_of_a_process_is_what_the_kernel_says_of_it(inspect, new, state):
    argv = ["unshare", *[f"--{name}" for name in new], "sh", "-c", "echo ready; read _"]
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    with subprocess.Popen(argv, **pipes) as process:
        assert process.stdout.readline() == b"ready\n"
        if state != "runs":
            process.send_signal(signal.SIGSTOP if state == "stopped" else signal.SIGKILL)
        status = Path(f"/proc/{process.pid}/status")
        wait_until(lambda: re.search("State:.[TZ]", status.read_text()) or state == "runs")
        result = inspect(str(process.pid))
        links = {} if state == "ended" else namespaces(process.pid)
        process.kill()
    if state == "ended":
        refused(result, "inspect", usage=False)
        assert f"process {process.pid} has ended" in result.stderr.decode()
        return
    lines = fine(result).decode().splitlines()[1:]
    rows = {line[2:13].strip(): line.split() for line in lines}
    same = next(line.partition("the same: ")[2] for line in lines if "the same: " in line)
    for name, number in links.items():
        if name in {"mnt" if each == "mount" else each for each in new}:
            expected = ["*", name, "ns", namespaces("self")[name], number]
            assert rows[f"{name} ns"] == expected, (new, rows)
        else:
            assert f"{name} ns" in same.split(", "), (new, same)


def namespaces(pid: int | str) -> dict[str, str]:
    """The numbers of a process's namespaces, by their names in /proc."""
    names = ("mnt", "uts", "ipc", "net", "cgroup", "user")
    return {name: os.readlink(f"/proc/{pid}/ns/{name}")[len(name) + 2 : -1] for name in names}


# --- Any of them ---------------------------------------------------------------------------------

COMMANDS = st.sampled_from(["pull", "spec", "inspect", "child", "help", "--help", "-h", ""])
WORDS = st.one_of(
    INSIDE,
    st.sampled_from(["--help", "--", "-", "--force", "--plan", "--copy", "--rm", "-it", "true"]),
    RIGHT.map(lambda typed: typed.words[0]),
)


@thorough
@hypothesis.given(command=COMMANDS | ANYTHING, words=st.lists(WORDS, max_size=5))
def test_any_words_after_any_command_are_no_traceback(place, command, words):
    hypothesis.assume(command != "run")
    result = Elsewhere(place, command)(*words)
    if result.returncode == 0:
        fine(result)
    else:
        refused(result, command if command in ("pull", "spec", "inspect") else "run")


# --- Ways to run it ------------------------------------------------------------------------------


@pytest.fixture
def run_quickly(run):
    """Most lines fail before anything is made, so this is `run`; what starts, ends at once."""

    def run_quickly(*words: str):
        return run(*[os.fsencode(word) for word in words])

    return run_quickly


class Probe:
    """`start_probe(*words)`: what is seen inside, the variables there, and the limits."""

    def __init__(self, root: Path, parent: str) -> None:
        self.root, self.parent = root, parent

    def __call__(self, *words: str) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
        argv = [PYTHON, SCRIPT, "run", "--rootfs", self.root, "--cgroup-parent", self.parent]
        argv += [*[os.fsencode(word) for word in words], "/bin/sh", "-c", PROBE]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with subprocess.Popen(argv, **pipes) as process:
            seen, deadline = b"", time.monotonic() + 60
            while not seen.endswith(END) and time.monotonic() < deadline:
                seen += (data := os.read(process.stdout.fileno(), 65536))
                if not data:
                    break
            limits = {}
            if seen.endswith(END):
                pid = pid_1_of(process.pid)
                for name in ("pids", "memory", "cpu"):
                    limits[name] = read_limits(name, cgroup_path(pid, name).lstrip("/"))[0]
            _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (1, b""), (words, process.returncode, errors)
        return *inside(seen), limits


@pytest.fixture
def start_probe(root: Path, parent: str) -> Probe:
    return Probe(root, parent)


class Elsewhere:
    """`elsewhere(*words)`: a command of a copy of the program, in a directory of its own; pull
    without a network."""

    def __init__(self, place: Path, command: str) -> None:
        self.place, self.command = place, command
        self.script = shutil.copy(SCRIPT, place)
        for name in ("host", "empty", "there"):
            (place / name).mkdir(exist_ok=True)
        (place / "host/file").write_text("the host's\n")
        (place / "file").write_text("<html>no tarball</html>\n" * 100)
        (place / "cut.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\0")
        pack(place / "root.tar", [entry_of("mark", tarfile.REGTYPE)])
        self.reset()

    def reset(self, ignored: bytes = b"*\n!.gitignore\n") -> None:
        """A small root in alpine-fs, and no bundle."""
        for name in ("alpine-fs", "new", "-new", "deep"):
            shutil.rmtree(self.place / name, ignore_errors=True)
        (self.place / "alpine-fs/etc").mkdir(parents=True)
        (self.place / "alpine-fs/etc/passwd").write_text(PASSWD)
        (self.place / "alpine-fs/etc/group").write_text("root:x:0:\ntty:x:5:\n")
        if ignored:
            (self.place / "alpine-fs/.gitignore").write_bytes(ignored)

    def __call__(self, *words: str) -> Result:
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("proxy")}
        kw = {"script": self.script, "cwd": self.place, "env": environment}
        prefix = ["unshare", "--net"] if self.command == "pull" else []
        return go(self.command, *[os.fsencode(word) for word in words], prefix=prefix, **kw)

    def tree(self) -> Tree:
        """All that is there, but the program."""
        found = {}
        for path in self.place.rglob("*"):
            mode, data = path.lstat().st_mode, b""
            if stat.S_ISLNK(mode):
                data = os.fsencode(os.readlink(path))
            elif stat.S_ISREG(mode):
                data = path.read_bytes()
            kind = KINDS[stat.S_IFMT(mode)]
            found[str(path.relative_to(self.place))] = kind, stat.S_IMODE(mode), data
        return found


PASSWD = "root:x:0:0:root:/root:/bin/sh\nsomeone:x:7:8:Someone:/home/someone:/bin/sh\n"
KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


@pytest.fixture
def pull(place: Path) -> Elsewhere:
    return Elsewhere(place, "pull")


@pytest.fixture
def spec(place: Path) -> Elsewhere:
    return Elsewhere(place, "spec")


@pytest.fixture
def inspect(place: Path) -> Elsewhere:
    return Elsewhere(place, "inspect")
