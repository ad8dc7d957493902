"""The lesson: `run --explain`, `--plan`, and `inspect`.

The lesson is one column. A heading has a number and capitals; an event has who did it, what
happened with its real values, and the manual page; what comes after the last event is the end:

      2 FORK
        host       forks the middle, 14495
        middle     new user, mount, UTS and IPC namespaces          namespaces(7)
"""

from __future__ import annotations

import os
import pty
import re
import resource
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from containers import (
    PATIENCE,
    PREFIX,
    PYTHON,
    SCRIPT,
    cgroups,
    fine,
    go,
    in_throwaway_namespaces,
    one_line,
    opened_python,
)

HEADINGS = ["LOOK", "FORK", "THE HOST PREPARES", "ENTER", "GIVE UP POWERS", "RUN AND END"]
HEADING = re.compile(r" *(\d) ([A-Z][A-Z ]+[A-Z])(?:,.*)?")
EVENT = re.compile(r" +(host|middle|container) +(\S.*)")
CALL = re.compile(r" +(?:\[pid +\d+\] )?(\w+)\(.*(?: = .*| <unfinished ...>)?")

needs_strace = pytest.mark.skipif(
    not shutil.which("strace"), reason="needs strace: apt-get install strace"
)
MODES = ["--explain", pytest.param("--explain=calls", marks=needs_strace)]


class Event(NamedTuple):
    stage: int
    who: str
    what: str


def lesson_of(result) -> str:
    assert result.returncode == 0, result
    return result.stderr.decode()


def events(told: str) -> list[Event]:
    found, stage = [], 0
    for line in told.splitlines():
        if heading := HEADING.fullmatch(line):
            stage = int(heading[1])
        elif event := EVENT.fullmatch(line):
            found.append(Event(stage, event[1], event[2]))
    return found


def end_of(told: str) -> list[str]:
    """What is said below the last event."""
    lines = told.rstrip().splitlines()
    last = max((at for at, line in enumerate(lines) if EVENT.fullmatch(line)), default=-1)
    return lines[last + 1 :]


# --- What it says ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_command_s_own_output_stays_clean(run, mode):
    assert run(mode, "echo", "it").stdout == b"it\n"


def test_it_fits_two_screens_of_80_columns(run):
    lines = lesson_of(run("--explain", "true")).splitlines()
    assert len(lines) <= 48 and max(map(len, lines)) <= 80


def test_it_has_six_stages_in_this_order(run):
    told = lesson_of(run("--explain", "true"))
    found = [each.groups() for each in map(HEADING.fullmatch, told.splitlines()) if each]
    assert found == [(str(number), name) for number, name in enumerate(HEADINGS, 1)]


def test_every_line_of_a_stage_says_who_did_it(run):
    told = lesson_of(run("--explain", "true"))
    begin = next(n for n, line in enumerate(told.splitlines()) if HEADING.fullmatch(line))
    body = told.splitlines()[begin : -len(end_of(told)) or None]
    others = [line for line in body if not HEADING.fullmatch(line) and not EVENT.fullmatch(line)]
    assert not [line for line in others if line.strip()], told
    assert {event.who for event in events(told)} == {"host", "middle", "container"}


TOLD = {  # in the order in which it happens
    "the cgroup is looked for": (1, "host", r"\bcgroup"),
    "the first fork": (2, "host", r"\bforks the middle, \d+"),
    "its namespaces": (2, "middle", r"namespaces.* namespaces\(7\)"),
    "the second fork": (2, "middle", r"\bforks PID 1: \d+ on the host.* pid_namespaces\(7\)"),
    "who is who": (3, "host", r"uid 0–65535 inside = \d+–\d+ outside.* user_namespaces\(7\)"),
    "the new root": (4, "container", r" pivot_root\(2\)"),
    "the powers": (5, "container", r" capabilities\(7\)"),
    "the filter": (5, "container", r" seccomp\(2\)"),
    "the command": (6, "container", r" execve\(2\)"),
}


@pytest.mark.parametrize(("stage", "who", "what"), TOLD.values(), ids=TOLD)
def test_it_tells(run, stage, who, what):
    told = lesson_of(run("--explain", "true"))
    found = [event for event in events(told) if event[:2] == (stage, who)]
    assert [event for event in found if re.search(what, event.what)], told


@pytest.mark.parametrize("_", range(5))
def test_it_is_told_in_the_order_in_which_it_happens(run, _):
    told = events(lesson_of(run("--explain", "true")))
    assert [event.stage for event in told] == sorted(event.stage for event in told)
    places = []
    for stage, who, what in TOLD.values():
        same = [event for event in told if event[:2] == (stage, who)]
        places += [told.index(event) for event in same if re.search(what, event.what)][:1]
    assert len(places) == len(TOLD) and places == sorted(places)


def test_its_numbers_are_the_kernel_s(start):
    with start("--explain", "-h", "a-name") as container:
        told = container.watched.errors.decode()
        uids = Path(f"/proc/{container.pid}/uid_map").read_text().split()
        guard = container.watched.guard
    first, last = int(uids[1]), int(uids[1]) + int(uids[2]) - 1
    assert re.search(rf"host +forks the middle, {guard}\b", told)
    assert re.search(rf"middle +forks PID 1: {container.pid} on the host", told)
    assert f"= {first}–{last} outside" in told
    assert "a-name" in told


OPTIONAL = {  # options, and what is told with them only
    "another network": (["--network", "none"], r"container|middle", r"loopback|\blo\b"),
    "a volume": (["-v", "/etc:/mnt:ro"], r"host|container", r"/mnt"),
    "a limit of its own": (["--pids-limit", "77"], r"host", r"\b77\b"),
    "another user": (["-u", "1234:5678"], r"container", r"\b1234\b"),
    "an init": (["--init"], r"container", r"\binit\b"),
}


@pytest.mark.parametrize(("options", "who", "what"), OPTIONAL.values(), ids=OPTIONAL)
def test_it_tells_only_with_the_option_of(run, options, who, what):
    def lines(*words: str) -> list[Event]:
        told = events(lesson_of(run("--explain", *words, "true")))
        return [e for e in told if re.fullmatch(who, e.who) and re.search(what, e.what)]

    assert lines(*options) and not lines()


LEFT_OUT = {  # options, and what is not told with them
    "a filter": (["--security-opt", "seccomp=unconfined"], r"container", r"seccomp\(2\)"),
    "a cgroup": (["--cgroup-parent", "none"], r"host|container", r"cgroups\(7\)"),
}


@pytest.mark.parametrize(("options", "who", "what"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_it_does_not_tell_of_what_did_not_happen(run, options, who, what):
    def lines(*words: str) -> list[Event]:
        told = events(lesson_of(run("--explain", *words, "true")))
        return [e for e in told if re.fullmatch(who, e.who) and re.search(what, e.what)]

    assert lines() and not lines(*options)


# --- The end -----------------------------------------------------------------------------------


def test_the_end_is_five_or_six_lines(run):
    told = lesson_of(run("--explain", "true"))
    assert 5 <= len([line for line in end_of(told) if line.strip()]) <= 6, told


def test_the_end_has_the_namespaces_that_differ(run):
    def line(*options: str) -> str:
        told = lesson_of(run("--explain", *options, "true"))
        return next(line for line in end_of(told) if "namespaces" in line)

    shared = line()
    for kind in ("user", "pid", "uts", "ipc", "cgroup"):
        assert re.search(rf"\b{kind}\b", shared, re.IGNORECASE), shared
    assert re.search(r"\b(mnt|mount)\b", shared) and not re.search(r"\bnet(work)?\b", shared)
    assert re.search(r"\bnet(work)?\b", line("--network", "none"))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ([], "a80425fb|\\b14\\b"),
        (["--cap-drop", "ALL", "--cap-add", "KILL"], r"\b0*20\b|\b1\b"),
        ([], r"\b10 processes"),
        (["--pids-limit", "7"], r"\b7 processes"),
        ([], r"\b50 MB"),
        (["-m", "40m"], r"\b40 MB"),
    ],
)
def test_the_end_has_powers_and_limits(run, options, what):
    told = lesson_of(run("--explain", *options, "true"))
    assert any(re.search(what, line) for line in end_of(told)), told


ENDS = {  # script, options, exit code, and how the lesson puts it
    "a code of its own": ("exit 3", [], 3, r"\b3\b"),
    "success": ("exit 0", [], 0, r"\b0\b"),
    "no such command": ("nosuch", [], 127, r"\b127\b"),
    "a signal": ("kill -9 $$", ["--init"], 137, r"\b137 = 128 ?\+ ?9\b.*SIGKILL"),
    "another signal": ("kill -15 $$", ["--init"], 143, r"\b143 = 128 ?\+ ?15\b.*SIGTERM"),
}


@pytest.mark.parametrize(("script", "options", "code", "what"), ENDS.values(), ids=ENDS)
def test_the_exit_code_is_decoded(shell, script, options, code, what):
    result = shell(script, "--explain", *options)
    assert result.returncode == code == shell(script, *options).returncode
    end = end_of(result.stderr.decode())
    assert any(re.search(f"exit code.*{what}", line) for line in end), end
    if code < 128:
        assert not any("128" in line for line in end), end


# --- On a terminal -----------------------------------------------------------------------------


def test_it_has_colour_on_a_terminal_only_and_not_with_no_color(run, terminal, monkeypatch):
    assert "\033" not in lesson_of(run("--explain", "true"))
    shown = terminal("--explain", "true")
    assert shown.wait() == 0 and b"\033[" in shown.output
    monkeypatch.setenv("NO_COLOR", "1")
    shown = terminal("--explain", "true")
    assert shown.wait() == 0 and b"\033" not in shown.output and b"FORK" in shown.output


def test_on_a_terminal_the_lesson_waits_with_its_end_until_the_command_has_ended(terminal):
    shown = terminal("--explain", "sh", "-c", "echo first-word; read _; exit 3")
    shown.expect(rb"first-word\r\n")
    before, after = shown.output.split(b"first-word\r\n")[:2]
    assert b"RUN AND END" in before and b"execve(2)" in before and not after
    shown.send(b"\r")
    assert shown.wait() == 3 and re.search(rb"exit code.*\b3\b", shown.output)


# --- The system calls --------------------------------------------------------------------------


def stages(told: str) -> dict[str, list[str]]:
    """The lines below each heading."""
    found: dict[str, list[str]] = {"": []}
    for line in told.splitlines():
        if heading := HEADING.fullmatch(line):
            found[heading[2]] = []
        else:
            [*found.values()][-1].append(line)
    return found


@needs_strace
@pytest.mark.parametrize(
    ("stage", "call"),
    [
        ("FORK", r"unshare\(.*CLONE_NEWUSER.*\) += 0"),
        ("ENTER", r'sethostname\("a-name", 6\) += 0'),
        ("ENTER", r'pivot_root\("\.", "\."\) += 0'),
        ("GIVE UP POWERS", r"capset\(.*\) += 0"),
        ("RUN AND END", r'execve\("/bin/true", \["true"\], .*\) += 0'),
    ],
)
def test_with_calls_it_has_each_call_below_its_step(run, stage, call):
    lines = stages(lesson_of(run("--explain=calls", "-h", "a-name", "true")))[stage]
    at = next((n for n, line in enumerate(lines) if re.search(call, line)), None)
    assert at is not None, "\n".join(lines)
    step = next(line for line in lines[at::-1] if EVENT.fullmatch(line))
    assert len(lines[at]) - len(lines[at].lstrip()) > len(step) - len(step.lstrip())


@needs_strace
def test_with_calls_the_events_are_the_same(run):
    def shape(option: str) -> list[tuple[int, str, str]]:
        told = events(lesson_of(run(option, "true")))
        return [(stage, who, re.sub(r"\d+|run-\w+", "N", what)) for stage, who, what in told]

    assert shape("--explain=calls") == shape("--explain") != []


@needs_strace
def test_with_calls_a_user_with_a_range_has_it(run, normal_user):
    """newuidmap has its rights from a set-user-ID bit, which strace would take away."""
    user = normal_user("student:300000:65536")
    words = ["cat", "/proc/self/uid_map"]
    more = {"parent": "none", "prefix": user.prefix}
    plain = fine(run(*words, **more))
    assert b" 65535\n" in plain
    traced = run("--explain=calls", *words, **more)
    assert (traced.returncode, traced.stdout) == (0, plain), traced


@needs_strace
def test_on_a_terminal_each_line_begins_at_the_left(terminal):
    """…also those that are told when the terminal is raw already, or would be."""
    shown = terminal("--explain=calls", "true")
    assert shown.wait() == 0
    assert b"RUN AND END" in shown.output and not re.search(rb"[^\r]\n", shown.output)


@needs_strace
def test_with_calls_each_step_says_why_it_is_there(run):
    told = lesson_of(run("--explain=calls", "true"))
    kinds = (HEADING, EVENT, CALL)
    prose = [line for line in told.splitlines() if not any(k.fullmatch(line) for k in kinds)]
    assert len(prose) > len(end_of(told)) + 10


@needs_strace
def test_without_strace_one_line_says_how_to_get_it(run):
    hidden = f"mount --bind /dev/null {shutil.which('strace')} && exec \"$@\""
    prefix = ["unshare", "--mount", "sh", "-c", hidden, "sh"]
    result = run("--explain=calls", "sh", "-c", "echo it; exit 3", prefix=prefix)
    assert (result.returncode, result.stdout) == (3, b"it\n")
    lines = [line for line in result.stderr.decode().splitlines() if "strace" in line]
    assert len(lines) == 1 and "apt" in lines[0] and "6 RUN AND END" in result.stderr.decode()


# --- Step by step ------------------------------------------------------------------------------

STOP = rb"Enter"
A_LOOK = rb"sudo |/proc/|/sys/|\b(ps|ls|cat|grep|lsns|findmnt|nsenter|pgrep|readlink|hostname)\b"


def stops(shown) -> int:
    """Answer each stop with one Enter, to the end. How many there were."""
    count = 0
    with suppress(AssertionError):
        while True:
            shown.expect(STOP, 10)
            count += 1
            shown.send(b"\r")
    return count


def test_step_stops_at_each_stage_for_one_enter(terminal):
    shown = terminal("--explain=step", "sh", "-c", "exit 3")
    count = stops(shown)
    assert 5 <= count <= 8, shown.output
    assert shown.wait() == 3 and b"RUN AND END" in shown.output


def test_each_stop_has_a_command_for_a_second_terminal(terminal):
    shown = terminal("--explain=step", "true")
    assert stops(shown) and shown.wait() == 0
    parts = bytes(shown.output).split(STOP)[:-1]
    assert all(re.search(A_LOOK, part.split(b"\n", 1)[-1]) for part in parts), parts


def test_ctrl_c_at_a_stop_ends_it_at_once(terminal):
    shown = terminal("--explain=step", "sh", "-c", "echo never")
    shown.expect(STOP)
    shown.send(b"\r")
    shown.expect(STOP)
    shown.ctrl("c")
    assert shown.wait(3) == 128 + signal.SIGINT
    assert b"never\r\n" not in shown.output
    assert shown.is_gone() and shown.is_restored()


def test_a_signal_at_a_stop_ends_it_at_once(terminal):
    shown = terminal("--explain=step", "true")
    shown.expect(STOP)
    shown.signal(signal.SIGTERM)
    assert shown.wait(3) == 128 + signal.SIGTERM
    assert shown.is_gone() and shown.is_restored()


def test_a_line_that_is_typed_ahead_is_the_command_s(terminal):
    """A stop takes one line, and the next one is left where it is."""
    count = stops(terminal("--explain=step", "true"))
    shown = terminal("--explain=step", "sh", "-c", "read -r line; echo got-$line")
    shown.expect(STOP)
    shown.send(b"\r" * count + b"ahead\r")
    shown.expect(rb"got-ahead\r\n")
    assert shown.wait() == 0


def test_step_leaves_standard_input_to_the_command(root, parent, tmp_path):
    """Keys come from the terminal itself."""
    given, taken = tmp_path / "given", tmp_path / "taken"
    given.write_bytes(bytes(range(256)))
    options = ["--rootfs", root, "--cgroup-parent", parent, "--explain=step"]
    pid, master = pty.fork()
    if pid == 0:
        os.dup2(os.open(given, os.O_RDONLY), 0)
        os.dup2(os.open(taken, os.O_WRONLY | os.O_CREAT), 1)
        os.execv(PYTHON, [os.fspath(word) for word in (PYTHON, SCRIPT, "run", *options, "cat")])
    told = b""
    with suppress(OSError):  # it ends with the last process on the terminal
        while more := os.read(master, 65536):
            told += more
            os.write(master, b"\r" * more.count(STOP))
    os.close(master)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, told.decode()
    assert taken.read_bytes() == given.read_bytes() and told.count(STOP) >= 5


def test_step_without_a_terminal_is_refused_in_one_line(run):
    assert "terminal" in one_line(run("--explain=step", "true", start_new_session=True))


# --- It never changes how a run ends -------------------------------------------------------------


def with_sh(script: str) -> list[str]:
    return ["sh", "-c", f'{script} "$@"', "sh"]


LIMITED = {  # the way in which `run` is started
    "as ever": [],
    "22 descriptors": with_sh("ulimit -n 22; exec"),
    "40 descriptors": with_sh("ulimit -n 40; exec"),
    "a full disk for standard error": with_sh("exec 2>/dev/full;"),
    "no standard error": with_sh("exec 2>&-;"),
    "no file above a block": with_sh("ulimit -f 1; exec"),
}
WORDS = {
    "success": ["echo", "it"],
    "a code": ["sh", "-c", "exit 3"],
    "an argument that is not UTF-8": ["echo", b"\xff\xfe"],
    "an option that is not UTF-8": ["-e", b"K=\xff", "env"],
    "no such command": ["nosuch"],
    "a directory for a command": ["/etc"],
    "no such directory to work in": ["-w", "/proc/nosuch", "true"],
    "a volume of /proc": ["-v", "/proc:/x", "true"],
    "a volume that is not there": ["-v", "/nosuch:/x", "true"],
    "a user that is not there": ["-u", "nosuch", "true"],
    "too little memory to start": ["-m", "1m", "true"],
    "no root": ["--rootfs", "/nosuch", "true"],
    "a root that is no root": ["--rootfs", "/proc", "true"],
    "a cgroup that cannot be": ["--cgroup-parent", "../x", "true"],
}


def same_end(plain, told) -> None:
    assert (told.returncode, told.stdout) == (plain.returncode, plain.stdout), (plain, told)
    if plain.returncode in (125, 126, 127) and plain.stderr:  # then the last line says why

        def last(result) -> str:
            text = result.stderr.decode(errors="replace")
            lines = [line for line in text.splitlines() if line.startswith("go_container: ")]
            return re.sub(r"run-\w+|\d+", "N", lines[-1])

        assert last(told) == last(plain)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_with_the_lesson_it_ends_in_the_same_way(run, mode, words):
    same_end(run(*words, timeout=10), run(mode, *words, timeout=10))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prefix", LIMITED.values(), ids=LIMITED)
def test_with_the_lesson_it_ends_in_the_same_way_with(run, mode, prefix):
    words = ["sh", "-c", "echo it; exit 3"]
    same_end(run(*words, prefix=prefix, timeout=10), run(mode, *words, prefix=prefix, timeout=10))


@pytest.mark.parametrize("mode", MODES)
def test_with_the_lesson_it_ends_in_the_same_way_when_nobody_reads_it(run, mode):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = run(mode, "sh", "-c", "echo it; exit 3", stderr=writing, timeout=10)
    finally:
        os.close(writing)
    assert (result.returncode, result.stdout) == (3, b"it\n")


@pytest.mark.parametrize("mode", MODES)
def test_with_the_lesson_a_root_on_overlay_ends_in_the_same_way(run, root, place, mode):
    """An overlay takes no idmapped mounts: there is one line, and 125."""
    for name in ("upper", "work", "merged"):
        (place / name).mkdir()
    options = f"lowerdir={root},upperdir={place}/upper,workdir={place}/work"
    script = f'mount -t overlay -o {options} none {place}/merged && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
    there = {"prefix": prefix, "rootfs": place / "merged", "timeout": 10}
    same_end(run("true", **there), run(mode, "true", **there))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_with_the_lesson_a_signal_ends_it_as_ever(background, number):
    for options in ([], ["--explain"]):
        container = background(*options, "sh", "-c", "trap 'exit 5' TERM INT HUP; echo ready;"
                               "while :; do sleep 0.02; done")  # fmt: skip
        container.expect(b"ready\n")
        container.signal(number)
        assert container.wait(5) == 5


# --- What else is done ---------------------------------------------------------------------------

CHANGES = (
    "unshare,mount,umount2,pivot_root,chroot,move_mount,open_tree,mount_setattr,sethostname,"
    "setresuid,setresgid,setgroups,capset,mkdir,mkdirat,symlink,prctl,keyctl,personality,setsid"
)


def system_calls(tmp_path: Path, *options: object) -> list[str]:
    """What run changes by system calls, in all its processes, sorted; names of leaves left out."""
    logs = tmp_path / "-".join(["calls", *map(str, options)]).replace("/", "-")
    words = ["strace", "-ff", "-qq", "-o", logs, "-e", f"trace={CHANGES}", "-e", "signal=none"]
    argv = [*words, PYTHON, SCRIPT, "run", *options, "true"]
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(argv, **pipes, start_new_session=True) as traced:
        try:
            traced.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:  # strace alone would leave what it traces behind
            os.killpg(traced.pid, signal.SIGKILL)
            raise
    calls = [line for log in logs.parent.glob(f"{logs.name}.*") for line in log.open()]
    calls = [re.sub(r"run-\w+|0x\w+|\b[3-9]\b|\b\d\d+\b", "…", call).strip() for call in calls]
    return sorted(call for call in calls if "PR_SET_VMA" not in call and "_READ" not in call)


@needs_strace
def test_with_the_option_no_step_does_anything_else(root, parent, tmp_path):
    options = ("--rootfs", root, "--cgroup-parent", parent)
    plain = system_calls(tmp_path, *options)
    assert len(plain) > 20
    assert system_calls(tmp_path, "--explain", *options) == plain


def test_without_the_option_nothing_of_it_is_imported(root, parent):
    words = [PYTHON, "-X", "importtime", SCRIPT, "run", "--rootfs", root]
    done = subprocess.run(
        [*words, "--cgroup-parent", parent, "true"], capture_output=True, timeout=PATIENCE
    )
    imported = {line.split("|")[2].strip() for line in done.stderr.decode().splitlines()[1:]}
    assert "select" in imported or "_socket" in imported
    assert not imported & {"re", "textwrap", "argparse", "json", "subprocess", "socket", "typing"}


# --- A plan ------------------------------------------------------------------------------------


@needs_strace
def test_a_plan_does_nothing(root, parent, tmp_path):
    """But setting signals and a session of its own processes."""
    assert system_calls(tmp_path, "--plan", "--rootfs", root, "--cgroup-parent", parent) == []


def test_a_plan_makes_no_container_no_cgroup_and_no_root(project):
    name = f"{PREFIX}-planned"
    script = project / "go_container.py"
    plan = go("run", "--plan", "--cgroup-parent", name, "touch", "/x", cwd=project, script=script)
    assert fine(plan)
    assert not cgroups(name) and os.listdir(project / "alpine-fs") == [".gitignore"]


PLANNED = {  # options, and what the plan says that they came to
    "memory": (["-m", "20m"], r"20 MB|\b20971520\b"),
    "processes": (["--pids-limit", "77"], r"\b77\b"),
    "processors": (["--cpus", "0.5"], r"\b0\.5\b|\b50000\b"),
    "a volume": (["-v", "/usr:/mnt/here:ro"], r"/usr.*/mnt/here"),
    "a user": (["-u", "1234:5678"], r"\b1234\b.*\b5678\b"),
    "a variable": (["-e", "KEY=value"], r"KEY=value"),
    "a name": (["-h", "a-name"], r"\ba-name\b"),
    "a capability more": (["--cap-add", "SYS_PTRACE"], r"SYS_PTRACE"),
    "another network": (["--network", "none"], r"loopback"),
    "a way out": (["--network", "pasta"], r"pasta.*pasta\(1\)"),
    "a port": (["--network", "pasta", "-p", "18080:80"], r"\b18080\b"),
    "a directory": (["-w", "/srv"], r"/srv"),
}


@pytest.mark.parametrize(("options", "what"), PLANNED.values(), ids=PLANNED)
def test_a_plan_has(run, options, what):
    with_it = fine(run("--plan", *options, "true")).decode()
    without = fine(run("--plan", "true")).decode()
    assert re.search(what, with_it, re.IGNORECASE) and not re.search(what, without, re.IGNORECASE)


def test_a_plan_has_the_steps_that_apply_and_no_others(run):
    def lines(*options: str) -> set[str]:
        return set(fine(run("--plan", *options, "true")).decode().splitlines())

    usual = lines()
    assert len(usual) > 20
    assert len(lines("--network", "none") - usual) >= 1  # a loopback device is set up
    assert len(usual - lines("--security-opt", "seccomp=unconfined")) >= 1  # no filter is


def test_a_plan_has_the_root_the_ids_and_the_limits(run, root, start):
    plan = fine(run("--plan", "true")).decode()
    with start() as container:
        first = Path(f"/proc/{container.pid}/uid_map").read_text().split()[1]
    assert str(root) in plan and first in plan and re.search(r"\bpids\b|processes", plan)


def test_a_plan_needs_no_root(root):
    become = [*opened_python(), "setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    if subprocess.run([*become, PYTHON, "-c", ""], stderr=subprocess.DEVNULL).returncode:
        pytest.skip(f"a normal user cannot execute {PYTHON}")
    assert b"pivot_root" in fine(go("run", "--plan", "--rootfs", root, "true", prefix=become))


# --- inspect -----------------------------------------------------------------------------------

NAMESPACES = {f"{kind} ns": kind for kind in ("user", "pid", "mnt", "uts", "ipc", "cgroup")}
FIELDS = ("Uid", "Gid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "NSpid")


def status(pid: int | str, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(" ".join(line.split()[1:]) for line in lines if line.startswith(f"{name}:"))


def namespace(pid: int, kind: str) -> str:
    return re.findall(r"\d+", os.readlink(f"/proc/{pid}/ns/{kind}"))[0]


ROWS: dict[str, Callable[[int], str]] = {
    **{row: lambda pid, kind=kind: namespace(pid, kind) for row, kind in NAMESPACES.items()},
    **{name: lambda pid, name=name: status(pid, name) for name in FIELDS},
    "uid_map": lambda pid: " ".join(Path(f"/proc/{pid}/uid_map").read_text().split()),
    "gid_map": lambda pid: " ".join(Path(f"/proc/{pid}/gid_map").read_text().split()),
    "memory limit": lambda pid: r"(50 MB|52428800)",
    "pids limit": lambda pid: "10",
    "memory cgroup": lambda pid: rf"\S*/{PREFIX}/run-",
    "pids cgroup": lambda pid: rf"\S*/{PREFIX}/run-",
    "root": lambda pid: r"\S+",
}


@pytest.mark.parametrize("row", ROWS)
def test_inspect_has_the_row(start, row):
    with start() as container:
        table = fine(go("inspect", str(container.pid))).decode()
        ours, theirs = ROWS[row](os.getpid()), ROWS[row](container.pid)
    lines = [line for line in table.splitlines() if re.match(rf"\W*{row}\s", line)]
    assert len(lines) == 1, table
    assert re.search(rf"\s{theirs}(\s|$)" if theirs[-1].isalnum() else theirs, lines[0]), lines
    if row in NAMESPACES:
        assert ours in lines[0] and ours != theirs


def test_of_the_limits_above_a_process_inspect_has_the_lowest(start):
    """Its own below those of all; and those of all below its own."""
    for options, pids, memory in (
        (("--pids-limit", "7", "-m", "20m"), "7", "20 MB"),
        (("--pids-limit", "70", "-m", "200m"), "10", "50 MB"),
    ):
        with start(*options) as container:
            table = fine(go("inspect", str(container.pid))).decode()
        assert re.search(rf"^\W*pids limit .* {pids}$", table, re.MULTILINE), table
        assert re.search(rf"^\W*memory limit .* {memory}$", table, re.MULTILINE), table


def test_inspect_has_what_is_equal_in_one_line(start):
    with start() as container:
        table = fine(go("inspect", str(container.pid))).decode()
    (same,) = [line for line in table.splitlines() if line.startswith("the same: ")]
    names = same.removeprefix("the same: ").split(", ")
    assert "net ns" in names and "time ns" in names
    assert not set(names) & set(NAMESPACES)
    for name in names:
        assert not re.search(rf"^\W*{name}\s", table, re.MULTILINE)


def test_inspect_of_oneself_is_all_the_same_but_for_the_number():
    table = fine(go("inspect", str(os.getpid()))).decode()
    (same,) = [line for line in table.splitlines() if line.startswith("the same: ")]
    assert set(same.removeprefix("the same: ").split(", ")) >= {*NAMESPACES, "uid_map", "CapEff"}
    assert len(table.splitlines()) <= 4  # a heading, and NSpid


def test_inspect_without_a_number_takes_the_container_that_was_started_last(root, parent):
    run = shlex.join(map(str, [PYTHON, SCRIPT, "run", "--rootfs", root, "--cgroup-parent", parent]))
    one, two = 1000000 + os.getpid(), 2000000 + os.getpid()
    script = f"""inspect() {{ '{PYTHON}' '{SCRIPT}' inspect "$@"; }}
    up() {{ i=0; until pgrep -fx "sleep $1" >/dev/null || [ $i = 100 ]; do
            sleep 0.1; i=$((i + 1)); done; pgrep -fx "sleep $1"; }}
    inspect; echo "code $?"
    {run} sleep {one} </dev/null >&2 & first=$!; up {one}; inspect; echo ==
    {run} sleep {two} </dev/null >&2 & second=$!; up {two}; inspect; echo ==
    kill -9 $second; i=0; while pgrep -fx 'sleep {two}' >/dev/null; do sleep 0.1; done; inspect
    kill -9 $first; wait; sleep 1"""  # for the guard, which would end with its PID namespace
    result = in_throwaway_namespaces(script)
    nobody, numbers = result.stdout.decode().split("\n", 1)
    assert nobody == "code 125" and result.stderr.startswith(b"go_container: "), result
    first, second, third = numbers.split("==\n")
    pids = [text.split("\n", 1)[0] for text in (first, second)]
    tables = [first.split("\n", 1)[1], second.split("\n", 1)[1], third]
    for table, pid in zip(tables, [pids[0], pids[1], pids[0]]):
        assert re.search(rf"^\W*NSpid\s.*\b{pid} 1$", table, re.MULTILINE), result


@pytest.mark.parametrize("words", [["0"], ["4194305"]])
def test_inspect_of_nobody_is_one_line(words):
    one_line(go("inspect", *words))


@pytest.mark.parametrize("words", [["x"], ["-1"], ["1", "2"]])
def test_inspect_of_garbage_is_bad_usage(words):
    result = go("inspect", *words)
    assert result.returncode == 125 and b"Traceback" not in result.stderr


# --- Bytes of others -----------------------------------------------------------------------------

HARMFUL = "\033[31mred\033]0;title\a"


@pytest.fixture
def harmful_root(fresh_root):
    """A root whose path has escape sequences in it, which mountinfo shows to everybody."""
    path = fresh_root.parent / HARMFUL
    fresh_root.rename(path)
    yield path
    path.rename(fresh_root)


def clean(said: bytes) -> bool:
    return not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", said)


def test_inspect_filters_what_a_container_could_have_chosen(start, harmful_root):
    with start(rootfs=harmful_root) as container:
        table = go("inspect", str(container.pid))
    assert not clean(os.fsencode(HARMFUL)) and clean(fine(table))
    assert b"31mred" in table.stdout  # it is shown, in harmless letters


@pytest.mark.parametrize("mode", MODES)
def test_the_lesson_filters_what_a_command_line_has(run, harmful_root, mode):
    for words in ({"rootfs": harmful_root}, {}):
        told = run(mode, "sh", "-c", f": '{HARMFUL}'", **words).stderr
        assert clean(told) and b"RUN AND END" in told


def test_a_plan_filters_what_a_command_line_has(run):
    plan = fine(run("--plan", "-e", f"KEY={HARMFUL}", "echo", HARMFUL))
    assert clean(plan) and b"31mred" in plan


def test_the_limit_of_descriptors_is_the_caller_s_own():
    """The control of `22 descriptors`: that the limit is one."""
    script = "import os\nfor _ in range(22): os.dup(0)"
    low = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (22, 22))}
    assert subprocess.run([PYTHON, "-c", script], capture_output=True, **low).returncode
    assert not subprocess.run([PYTHON, "-c", script], capture_output=True).returncode
