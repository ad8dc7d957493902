"""The command line, driven at random: it ends in one line and 125, or in the very container.

GO_CONTAINER_EXAMPLES  how many command lines (default: 150; a thorough test: 10000)

Most lines have something to be refused, and end before anything is made. One in ten is right, and
becomes a container; a probe in it and the host tell whether it is the one that was described.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import PYTHON, SCRIPT, cgroup_path, pid_1_of, read_limits

hypothesis = pytest.importorskip("hypothesis", reason="needs hypothesis: pip install hypothesis")
st = hypothesis.strategies

EXAMPLES = int(os.environ.get("GO_CONTAINER_EXAMPLES", "150"))
pytestmark = pytest.mark.once

thorough = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES <= 150,
    suppress_health_check=list(hypothesis.HealthCheck),
)
in_containers = hypothesis.settings(thorough, max_examples=max(10, EXAMPLES // 10))


# --- What may be typed, and the container that it makes ------------------------------------------

NO_NUL = st.characters(blacklist_characters="\0", blacklist_categories=("Cs",))
TEXT = st.text(NO_NUL, max_size=30)
BYTES = st.binary(max_size=20).map(lambda data: os.fsdecode(data.replace(b"\0", b"")))
ANYTHING = st.one_of(TEXT, BYTES, st.integers().map(str), st.floats().map(str), st.just("x" * 5000))


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
REFUSED = st.one_of(
    st.sampled_from([["--banana"], ["-x"], ["--banana=1"], ["---"], ["--=x"], ["-é"], ["--Env=a"]]),
    *[
        option(name, short, ANYTHING.filter(lambda value, right=right: not re.fullmatch(
            right, value, re.DOTALL | re.ASCII | re.IGNORECASE))).map(lambda typed: typed.words)
        for name, short, right in (
            ("hostname", "h", r"[a-z0-9_][a-z0-9_.-]{0,63}"),
            ("env", "e", r"[^=].*"),
            ("memory", "m", r"[0-9.]*[kmg]?b*"),
            ("pids-limit", "", r"-1|[0-9.]*"),
            ("cpus", "", r"[0-9.]*"),
            ("network", "", r"host|none"),
            ("workdir", "w", r"/.*"),
            ("volume", "v", r".*/.*:/.+"),
            ("user", "u", r"[a-z0-9_-]+(:[a-z0-9_-]*)?:?"),
            ("cgroup-parent", "", r"[a-z0-9_][a-z0-9_.-]*"),
            ("userns", "", r"host-root"),
            ("security-opt", "", r"seccomp=unconfined"),
            ("stop-timeout", "", r"[0-9.]*"),
        )
    ],
    st.sampled_from(["read-only", "init", "tty", "interactive", "plan"]).flatmap(
        lambda name: ANYTHING.filter(lambda value: value not in ("true", "false")).map(
            lambda value: [f"--{name}={value}"])),
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


# --- The tests -----------------------------------------------------------------------------------


@thorough
@hypothesis.given(
    before=st.lists(RIGHT.map(lambda typed: typed.words), max_size=3), bad=REFUSED
)
def test_a_line_with_something_to_be_refused_is_one_line_and_125(run_quickly, before, bad):
    words = [word for some in before for word in some]
    result = run_quickly(*words, *bad, "true")
    text = result.stderr.decode(errors="replace")
    lines = text.removesuffix("\n").split("\n")
    assert result.returncode == 125 and not result.stdout, (result, text)
    assert lines[0].startswith("go_container: "), text
    assert len(lines) == 1 or len(lines) == 2 and lines[1].startswith("usage: "), text


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


@in_containers
@hypothesis.given(typed=st.lists(RIGHT, max_size=6), dashes=st.booleans())
def test_a_line_that_is_right_is_the_container_that_it_describes(start_probe, typed, dashes):
    targets = [words for words, change in typed if "mnt" in change]
    hypothesis.assume(len(targets) < 2)  # two for one place are refused
    words = [word for some, _ in typed for word in some] + ["--"] * dashes
    expected = {"hostname": "container", "pwd": "/", "uid": "0", "gid": "0", "pid": "1"}
    for some, change in typed:  # the last one counts
        expected |= change
        if "uid" in change and "gid" not in change:
            expected["gid"] = passwd(start_probe.root).get(change["uid"], "0")
        if some == ["--read-only=false"]:
            expected.pop("root", None)
        if some == ["--init=false"]:
            expected["pid"] = "1"
    seen, variables, limits = start_probe(*words)
    both = {**limits, **seen, **variables}
    assert {name: both.get(name) for name in expected} == expected, (words, both)
    for name in ("root", "mnt", "caps"):
        assert (name in seen) == (name in expected), (words, seen)


def passwd(root: Path) -> dict[str, str]:
    """Group by user, as the root's own /etc/passwd has it."""
    lines = [line.split(":") for line in (root / "etc/passwd").read_text().splitlines()]
    return {line[2]: line[3] for line in reversed(lines)}


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
