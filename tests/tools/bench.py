#!/usr/bin/env python3
"""How quick go_container.py is, side by side with others: `sudo python3 tests/tools/bench.py`.

Everything is measured in one run and in interleaved rounds: in each round every subject starts
once, in an order of that round's own, so that a noisy minute hits all of them. What is compared
is the ratio (or the difference) within a round; its median is given, with its quartiles.

The subjects do the same work, /bin/true in the same root file system, with a user namespace,
ids mapped, and limits of processes and memory where they have such things; runc and crun get
what `go_container.py spec` prints, seccomp included. One that is not installed, or does not run
here, is named with the reason.

script   python3 go_container.py run …: Python compiles the file at each start
module   python3 -m go_container run …, in the folder of a copy: compiled once, and kept
floor    what the shape of go_container.py costs at least: two interpreters that do nothing, and
         the same namespaces and mounts in C (bench/floor.c)
"""

from __future__ import annotations

import argparse
import html
import json
import os
import pty
import random
import re
import select
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
SCRIPT = REPOSITORY / "go_container.py"
CGROUP_SH = REPOSITORY / "cgroup.sh"
PROGRAMS = ("launch", "floor", "relay")  # C, in bench/
DEBIAN_PYTHON = "/usr/bin/python3"
NAME = f"bench-{os.getpid()}"  # of all cgroups that we make
FIRST_ID, IDS = 100000, 65536  # what the peers map 0–65535 to
PIDS, MEMORY = 10, 50 << 20  # the limits of the exercise, which the peers get
ALIVE = 8  # containers, while memory is measured


def main() -> int:
    """Measure, print, plot. Returns 1 if --check was given and a target is missed."""
    options = parse_command_line()
    if os.geteuid() != 0:
        raise SystemExit("bench.py: as root, please: sudo python3 tests/tools/bench.py")
    with workshop(options) as bench:
        bench.find_subjects()
        print_machine(bench)
        for name, section in SECTIONS.items():
            if name in options.only:
                section(bench)
        print_missing(bench)
        return print_targets(bench)


def parse_command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="go_container.py and its peers, side by side")
    add = parser.add_argument
    add("--rounds", type=int, default=40, metavar="N", help="launches of each subject (40)")
    add("--smoke", action="store_true", help="everything once: does it work?")
    add("--markdown", action="store_true", help="tables for the README")
    add("--svg", metavar="FILE", help="write a plot of the launch times")
    add("--check", action="store_true", help="end with 1 if a target is missed")
    add("--only", action="append", choices=SECTIONS, help="only this part; repeatable")
    add("--python", action="append", default=[], metavar="PATH", help="one more; repeatable")
    add("--rootfs", metavar="DIR", help="the root (default: Alpine's from ../shared, or busybox)")
    add("--go", metavar="COMMAND", help="the original, such as 'go run main.go'; it is started "
        "in the working directory, with `run /bin/true` behind")
    add("--mkosi-sandbox", metavar="COMMAND", help="where it is not in PATH")
    options = parser.parse_args()
    options.only = options.only or list(SECTIONS)
    if options.svg and "launch" not in options.only:
        parser.error("--svg plots the part `launch`")
    options.rounds = 3 if options.smoke else max(options.rounds, 2)
    return options


words = shlex.split  # a command line as one reads it


# --- What is compared --------------------------------------------------------------------------


class Subject(NamedTuple):
    """Something that starts /bin/true."""

    name: str
    command: list[str]
    kind: str = "peer"  # or: ours, floor
    folder: Path | None = None  # where it is started, if that matters


class Python(NamedTuple):
    """An interpreter that has prctl, with what it runs."""

    version: str
    script: Subject
    module: Subject
    floor: Subject


class Broken(Exception):
    """Something that has worked before, or has to, does not work."""


class Bench:
    """What all parts of a run share: the place to work in, the subjects, what came out."""

    def __init__(self, options: argparse.Namespace, place: Path) -> None:
        self.options, self.place = options, place
        self.root, self.shifted_root = place / "root", place / "shifted"
        self.copy = place / "copy"  # of the file: its bytecode stays out of the repository
        self.pythons: list[Python] = []
        self.peers: list[Subject] = []
        self.missing: dict[str, str] = {}  # name: reason
        self.targets: list[Target] = []

    def target(self, name: str, value: float | None, limit: float, at_least: bool = False) -> None:
        self.targets.append(Target(name, value, limit, at_least))

    def program(self, name: str) -> str:
        return str(self.place / name)

    def find_subjects(self) -> None:
        """Try each subject once, which also warms the caches; keep those that work."""
        for path in dict.fromkeys([DEBIAN_PYTHON, *self.options.python]):
            version, reason = find_prctl(path)
            if reason:
                self.missing[f"go_container.py with {path}"] = reason
                continue
            python = Python(
                version,
                Subject(f"script, Python {version}", self.script(path), "ours"),
                Subject(f"module, Python {version}", self.module(path), "ours", self.copy),
                Subject(f"floor, Python {version}",
                        [self.program("floor"), path, str(self.root), "/bin/true"], "floor"))
            for subject in python[1:]:
                launch(self, subject)  # these have to work
            tag = f"cpython-{''.join(version.split('.')[:2])}"
            if not [*self.copy.glob(f"__pycache__/go_container.{tag}.pyc")]:
                raise Broken(f"{path} has kept no bytecode of the module")
            self.pythons.append(python)
        if not self.pythons:
            raise SystemExit(f"bench.py: no Python with prctl: {self.missing}; see --python")
        for subject in (*self.runtimes(), *self.sandboxes()):
            if not shutil.which(subject.command[0]):
                self.missing[subject.name] = "not installed"
                continue
            try:
                launch(self, subject)
                self.peers.append(subject)
            except Broken as broken:
                self.missing[subject.name] = str(broken)
        if not self.options.go:
            self.missing["the Go original"] = "give it with --go"

    def script(
        self, python: str, *more: str, command: Sequence[str] = ("/bin/true",), verb: str = "run"
    ) -> list[str]:
        """A command line of the script; more: options."""
        return [python, str(SCRIPT), verb, "--rootfs", str(self.root), "--cgroup-parent", NAME,
                *more, *command]

    def module(self, python: str, command: Sequence[str] = ("/bin/true",)) -> list[str]:
        """The same as a module."""
        return [python, "-m", "go_container", *self.script(python, command=command)[2:]]

    def peer(self, name: str) -> Subject | None:
        return next((peer for peer in self.peers if peer.name == name), None)

    def runtimes(self) -> Iterator[Subject]:
        """What runs OCI containers."""
        for name in ("runc", "crun"):
            yield Subject(name, self.oci(name, ["/bin/true"]))
        yield Subject("podman", self.podman(["/bin/true"]))

    def sandboxes(self) -> Iterator[Subject]:
        """What isolates without limits, and the original."""
        root = shlex.quote(str(self.root))
        yield Subject("bubblewrap", words(
            "bwrap --unshare-user --uid 0 --gid 0 --unshare-pid --unshare-ipc --unshare-uts "
            "--unshare-cgroup-try --hostname container --die-with-parent "
            f"--bind {root} / --proc /proc --dev /dev /bin/true"))
        yield Subject("unshare(1) + chroot", words(
            "unshare --user --map-root-user --mount --uts --ipc --pid --cgroup --fork "
            f"--mount-proc={root}/proc chroot {root} /bin/true"))
        yield Subject("mkosi-sandbox", words(
            f"{self.options.mkosi_sandbox or 'mkosi-sandbox'} --become-root --unshare-ipc "
            f"--bind {root} / --dev /dev --proc /proc -- /bin/true"))
        if go := words(self.options.go or ""):
            name = "go run main.go run" if go[1:2] == ["run"] else "the Go original"
            yield Subject(name, [*go, "run", "/bin/true"])

    def oci(self, runtime: str, command: list[str], terminal: bool = False) -> list[str]:
        """A runc or crun command line, with a bundle written for it."""
        bundle = Path(tempfile.mkdtemp(prefix="bundle-", dir=self.place))
        more = [f"--tty={terminal}".lower(), f"-m{MEMORY}", f"--pids-limit={PIDS}"]
        spec = self.script(self.pythons[0].script.command[0], *more, command=command, verb="spec")
        config = json.loads(must(*spec))
        del config["linux"]["cgroupsPath"]  # one for each launch: the name's
        (bundle / "config.json").write_text(json.dumps(config))
        state = ["--root", str(self.place / f"{runtime}-state")]
        return [runtime, *state, "run", "--bundle", str(bundle), "{}"]

    def podman(self, command: list[str], *more: str) -> list[str]:
        """A podman command line, with storage of its own that goes with us."""
        runtime, place = "crun" if self.peer("crun") else "runc", shlex.quote(str(self.place))
        return [*words(
            f"podman --runtime {runtime} --cgroup-manager cgroupfs --storage-driver vfs "
            f"--root {place}/podman --runroot {place}/podman-run --tmpdir {place}/podman-tmp run "
            f"--rm --network host --log-driver none --cgroup-parent /{NAME}-podman "
            f"--pids-limit {PIDS} --memory {MEMORY}b --memory-swap {MEMORY}b "
            f"--uidmap 0:{FIRST_ID}:{IDS} "
            "--ulimit nofile=1024:1024 --ulimit nproc=1024:1024"  # its own may be above ours
        ), *more, "--rootfs", str(self.shifted_root), *command]


def find_prctl(python: str) -> tuple[str, str]:
    """The version of an interpreter, and why it cannot run go_container.py, if so."""
    code = "import sys; print('%d.%d.%d' % sys.version_info[:3]); import prctl"
    try:
        result = subprocess.run([python, "-c", code], capture_output=True, text=True)
    except OSError as error:
        return "", str(error.strerror)
    return result.stdout.strip(), result.stderr.strip().rpartition("\n")[2]


# --- Measuring ---------------------------------------------------------------------------------


class Launch(NamedTuple):
    """One launch, or several: seconds of each, and from the first's begin to the last's end;
    seconds of processor time; bytes of the largest process."""

    each: list[float]
    together: float
    cpu: float
    memory: int


def launch(bench: Bench, subject: Subject, count: int = 1, at_once: int = 1) -> Launch:
    """Run its command, through bench/launch.c. Raises Broken unless it ends with 0 every time."""
    argv = [bench.program("launch"), str(at_once), str(count), *subject.command]
    pipe, name = subprocess.PIPE, shlex.join(subject.command)
    with subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, process_group=0,
                          cwd=subject.folder) as process:
        try:
            out, said = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            raise Broken(f"{name}: does not end") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        last_line = said.strip().rpartition("\n")[2]
        raise Broken(last_line or f"{name}: exit code {process.returncode}")
    *lines, (_, cpu, memory) = (line.split() for line in out.splitlines())
    times = [(int(begin) / 1e6, int(end) / 1e6) for begin, end in lines]
    each = [end - begin for begin, end in times]
    together = max(end for _, end in times) - min(begin for begin, _ in times)
    return Launch(each, together, int(cpu) / 1e6, int(memory) << 10)


def interleave(bench: Bench, subjects: Iterable[Subject]) -> dict[str, list[Launch]]:
    """Launch each subject once in every round. Returns, by name, its launches in that order."""
    subjects, order = list(subjects), random.Random(0)
    launches: dict[str, list[Launch]] = {subject.name: [] for subject in subjects}
    for number in range(bench.options.rounds):
        progress(f"round {number + 1} of {bench.options.rounds}")
        for subject in order.sample(subjects, len(subjects)):
            launches[subject.name].append(launch(bench, subject))
    return launches


class Spread(NamedTuple):
    """A median and its quartiles."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        digits = 1 if abs(self.median) >= 10 else 2
        if self.low == self.high:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} [{self.low:.{digits}f} to {self.high:.{digits}f}]"


def spread(values: Iterable[float]) -> Spread:
    values = list(values)
    return Spread(*statistics.quantiles(values * (1 + (len(values) < 2)), n=4, method="inclusive"))


def seconds(launches: list[Launch]) -> list[float]:
    return [launch.each[0] for launch in launches]


def milliseconds(launches: list[Launch]) -> Spread:
    return spread(1000 * value for value in seconds(launches))


def ratio(launches: list[Launch], others: list[Launch]) -> Spread:
    """How many times as long as the other, round by round."""
    return spread(a / b for a, b in zip(seconds(launches), seconds(others), strict=True))


# --- The parts of a run ------------------------------------------------------------------------


def measure_launch(bench: Bench) -> None:
    """A launch of everything, all in the same rounds."""
    first = bench.pythons[0]
    subjects = [subject for python in bench.pythons for subject in python[1:]] + bench.peers
    launches = interleave(bench, subjects)

    rows = []
    for subject in sorted(subjects, key=lambda each: milliseconds(launches[each.name]).median):
        own = launches[subject.name]
        rows.append([subject.name, str(milliseconds(own)),
                     str(ratio(launches[first.script.name], own)),
                     str(ratio(launches[first.module.name], own)),
                     f"{statistics.median(1000 * each.cpu for each in own):.0f}",
                     f"{statistics.median(each.memory for each in own) / 1e6:.0f}"])
    print_table(bench, f"Launch of /bin/true, {bench.options.rounds} interleaved rounds",
                ["", "ms", "script ÷ this", "module ÷ this", "CPU ms", "largest process, MB"],
                rows, f"The ratios are those of Python {first.version}.")

    rows = []
    for python in bench.pythons:
        script, module, floor = (launches[subject.name] for subject in python[1:])
        over = {"script": ratio(script, floor), "module": ratio(module, floor)}
        rows.append([python.version, *(str(milliseconds(each)) for each in (script, module, floor)),
                     *map(str, over.values())])
        limits = (2.0, 1.5) if python is first else (2.3, 1.7)
        for (name, value), limit in zip(over.items(), limits, strict=True):
            bench.target(f"{name} ÷ floor, Python {python.version}", value.median, limit)
    print_table(bench, "Against their own floors",
                ["Python", "script, ms", "module, ms", "floor, ms", "script ÷ floor",
                 "module ÷ floor"], rows)
    runc = launches.get("runc")
    value = ratio(launches[first.module.name], runc).median if runc else None
    bench.target("module ÷ runc", value, 1.05)
    if bench.options.svg:
        times = [(subject, milliseconds(launches[subject.name])) for subject in subjects]
        Path(bench.options.svg).write_text(plot(bench, times))


def measure_parallel(bench: Bench) -> None:
    """Containers per second, with several starting at once."""
    repeats, count = (1, 32) if bench.options.smoke else (5, 96)
    _, script, module, _ = bench.pythons[0]
    subjects = [module, script, *(peer for peer in bench.peers if peer.name in ("runc", "crun"))]
    rates: dict[tuple[str, int], list[float]] = {}
    for number in range(repeats):
        for at_once in (8, 32):
            progress(f"{at_once} at once, {number + 1} of {repeats}")
            for subject in subjects:
                result = launch(bench, subject, count, at_once)
                rates.setdefault((subject.name, at_once), []).append(count / result.together)

    def against(name: str, other: str, at_once: int) -> Spread | None:
        theirs = rates.get((other, at_once))
        return theirs and spread(
            a / b for a, b in zip(rates[name, at_once], theirs, strict=True))

    rows = [[name, *(str(value or "–") for at_once in (8, 32) for value in (
                spread(rates[name, at_once]), against(name, "runc", at_once)))]
            for name, *_ in subjects]
    print_table(bench, "Containers per second",
                ["", "8 at once", "this ÷ runc", "32 at once", "this ÷ runc"], rows)
    for subject, limit in ((module, 0.6), (script, 0.4)):
        for at_once in (8, 32):
            value = against(subject.name, "runc", at_once)
            bench.target(f"{subject.name.split(',')[0]}: containers per second ÷ runc's, "
                         f"{at_once} at once", value and value.median, limit, at_least=True)


def measure_sequence(bench: Bench) -> None:
    """One launch after the other: nothing may grow. The floor beside it takes the noise out."""
    python, blocks = bench.pythons[0], 2 if bench.options.smoke else 100
    ours: list[float] = []
    floor: list[float] = []
    before = left_behind(bench)
    for number in range(blocks):
        progress(f"launch {10 * number + 10} of {10 * blocks}")
        ours += launch(bench, python.module, 10).each
        floor += launch(bench, python.floor, 10).each
    left = sorted(left_behind(bench) - before)
    counts = [count for count in (1, 10, 100, 1000) if count <= len(ours)]
    rows = [[subject.name, *(f"{1000 * statistics.mean(values[:count]):.1f}" for count in counts)]
            for subject, values in ((python.module, ours), (python.floor, floor))]
    print_table(bench, "One after the other, mean ms of a launch",
                ["", *(f"first {count}" for count in counts)], rows,
                f"Left behind by {len(ours)} launches: {', '.join(left) or 'nothing'}.")
    bench.target(f"left behind by {len(ours)} launches", len(left), 0)
    if not bench.options.smoke:
        tenth = len(ours) // 10
        first = statistics.median(ours[:tenth]) / statistics.median(floor[:tenth])
        last = statistics.median(ours[-tenth:]) / statistics.median(floor[-tenth:])
        bench.target("last tenth ÷ first tenth of 1000 launches, each ÷ floor", last / first, 1.05)


def left_behind(bench: Bench) -> set[str]:
    """Cgroups and mounts of ours. (Processes would keep `launch` from ending.)"""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return {*map(str, cgroups(NAME)), *(line for line in mounts if str(bench.place) in line)}


def measure_memory(bench: Bench) -> None:
    """What stays in memory beside a container: run and its guard, by proportional set size.

    Pages that several processes share are divided among them: so with several containers alive.
    """
    rows = []
    for python in bench.pythons:
        for subject in (python.script, python.module):
            progress(f"memory, {subject.name}")
            sizes = proportional_sizes(subject)
            run, guard, both = (spread(column) for column in zip(*sizes, strict=True))
            rows.append([subject.name, str(run), str(guard), str(both)])
            if subject is bench.pythons[0].module:
                bench.target("module: memory of run and its guard, MB", both.median, 6)
    print_table(bench, f"Memory beside each of {ALIVE} running containers, PSS in MB",
                ["", "run", "guard", "together"], rows)


def proportional_sizes(subject: Subject) -> list[tuple[float, float, float]]:
    """MB of run, of its guard and of both, for each of several containers that are alive."""
    command = [*subject.command[:-1], "/bin/cat"]  # ends with its input
    with ExitStack() as containers:
        processes = [containers.enter_context(subprocess.Popen(
            command, stdin=subprocess.PIPE, cwd=subject.folder)) for _ in range(ALIVE)]
        pids = [wait_for_command(process, "cat")[:2] for process in processes]
        texts = [[Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pair] for pair in pids]
    sizes = [[int(text.split("\nPss:")[1].split()[0]) * 1024 / 1e6 for text in pair]
             for pair in texts]
    return [(run, guard, run + guard) for run, guard in sizes]


def wait_for_command(process: subprocess.Popen[bytes], name: str) -> list[int]:
    """The pids of run, the middle and PID 1, once PID 1 has become the command."""
    end = time.monotonic() + 20
    while time.monotonic() < end and process.poll() is None:
        pids = [process.pid]
        while children := Path(f"/proc/{pids[-1]}/task/{pids[-1]}/children").read_text().split():
            pids.append(int(children[0]))
        if len(pids) == 3 and Path(f"/proc/{pids[2]}/comm").read_text().strip() == name:
            return pids
        time.sleep(0.01)
    raise Broken(f"no container with {name}")


def measure_relay(bench: Bench) -> None:
    """How quickly output gets from a container's terminal to the caller's."""
    repeats, size = (1, 4 << 20) if bench.options.smoke else (7, 48 << 20)
    python = bench.pythons[0].script.command[0]
    write = ["/bin/dd", "if=/dev/zero", "bs=65536", f"count={size >> 16}", "status=none"]
    direct, relayed = "go_container.py --tty=false (no relay)", "go_container.py -t"
    c_relay = "a relay in C"
    commands = {
        direct: bench.script(python, "--tty=false", command=write),
        relayed: bench.script(python, "-t", command=write),
        c_relay: [bench.program("relay"), *write],  # on the host: it needs /dev/zero
    }
    if bench.peer("runc"):
        runc = bench.oci("runc", write, terminal=True)
        runc[runc.index("{}")] = f"{NAME}-runc"
        commands["runc, with a terminal"] = runc
    if bench.peer("podman"):
        commands["podman -t"] = bench.podman(write, "-t")
    rates: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(repeats):
        for name, command in commands.items():
            progress(f"relay, {number + 1} of {repeats}: {name}")
            rates[name].append(size / read_terminal(command, size) / 1e6)
    compared = {name: spread(a / b for a, b in zip(rates[relayed], rates[name], strict=True))
                for name in commands}
    print_table(bench, f"Output through a terminal, {size >> 20} MiB",
                ["", "MB/s", "go_container.py -t ÷ this"],
                [[name, str(spread(rates[name])), str(compared[name])] for name in commands])
    bench.target("relay ÷ the relay in C", compared[c_relay].median, 0.9, at_least=True)
    podman = compared["podman -t"].median if "podman -t" in compared else None
    bench.target("relay ÷ podman -t", podman, 1, at_least=True)


def read_terminal(command: list[str], size: int) -> float:
    """Run a command in a terminal. Returns the seconds between its first byte and its last."""
    pid, master = pty.fork()
    if pid == 0:
        os.execvp(command[0], command)
    first = last = 0.0
    count, tail = 0, b""
    while select.select([master], [], [], 30)[0]:
        try:
            data = os.read(master, 65536)
        except OSError:  # EIO: everybody has closed it
            break
        last = time.perf_counter()
        first = first or last
        count, tail = count + len(data), data
    os.close(master)  # the command, if it hangs, is hung up on
    if os.waitpid(pid, 0)[1] or count < size:
        raise Broken(f"{shlex.join(command)}: {count} bytes of {size}: {tail[-200:]!r}")
    return last - first


SECTIONS = {"launch": measure_launch, "parallel": measure_parallel, "memory": measure_memory,
            "relay": measure_relay, "sequence": measure_sequence}


# --- The report --------------------------------------------------------------------------------


class Target(NamedTuple):
    """Something that was measured, or could not be (None), and how far it may go."""

    name: str
    value: float | None
    limit: float
    at_least: bool

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        kept = self.value >= self.limit if self.at_least else self.value <= self.limit
        return "kept" if kept else "MISSED"


def print_machine(bench: Bench) -> None:
    """What the figures belong to. Where others work, too, ratios suffer as well as times."""
    for line in (*machine(bench), f"load before: {os.getloadavg()[0]:.1f}"):
        print(f"- {line}" if bench.options.markdown else line)


def machine(bench: Bench) -> Iterator[str]:
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    system = re.search(r'PRETTY_NAME="(.*)"', Path("/etc/os-release").read_text())
    mounted = re.findall(r" - (cgroup2?) ", Path("/proc/self/mountinfo").read_text())
    worlds = {"cgroup": "cgroup v1", "cgroup2": "cgroup v2"}
    kernel = re.match(r"[\d.]*\d", os.uname().release)
    yield ", ".join([
        f"{os.cpu_count()} processors {processor[1] if processor else os.uname().machine}",
        f"{system[1] if system else 'Linux'}, kernel {kernel[0] if kernel else '?'}",
        " and ".join(worlds[kind] for kind in sorted(set(mounted)))])
    versions = [subprocess.run([name, "--version"], capture_output=True, text=True).stdout
                for name in ("runc", "crun", "podman", "bwrap", "unshare") if shutil.which(name)]
    yield ", ".join(version.splitlines()[0] for version in versions if version)


def print_table(
    bench: Bench, title: str, head: list[str], rows: list[list[str]], note: str = ""
) -> None:
    """Print a table, its first column to the left, the others to the right."""
    progress("")
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(row: list[str]) -> str:
        cells = [cell.rjust(width) if column else cell.ljust(width)
                 for column, (cell, width) in enumerate(zip(row, widths, strict=True))]
        return f"| {' | '.join(cells)} |" if bench.options.markdown else "  ".join(cells).rstrip()

    print(f"\n**{title}**\n" if bench.options.markdown else f"\n{title}")
    print(line(head))
    if bench.options.markdown:
        rules = ["-" * (width - 1) + ":" if column else "-" * width
                 for column, width in enumerate(widths)]
        print(f"| {' | '.join(rules)} |")
    for row in rows:
        print(line(row))
    if note:
        print(f"\n{note}" if bench.options.markdown else note)
    sys.stdout.flush()


def print_missing(bench: Bench) -> None:
    if bench.missing:
        print("\nNot measured:")
    for name, reason in bench.missing.items():
        print(f"- {name}: {reason}")


def print_targets(bench: Bench) -> int:
    """With --check, each target with its value. Returns 1 if one is missed."""
    if not bench.options.check:
        return 0
    rows = [[each.name, "–" if each.value is None else f"{each.value:.4g}",
             f"{'≥' if each.at_least else '≤'} {each.limit:g}", each.verdict]
            for each in bench.targets]
    rounds = bench.options.rounds
    few = "" if rounds >= 40 else f" (they are for 40 rounds; these were {rounds})"
    print_table(bench, f"Targets{few}", ["", "value", "target", ""], rows)
    return int(any(each.verdict == "MISSED" for each in bench.targets))


def progress(text: str) -> None:
    """Say on a terminal what is being done; an empty text takes it away."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def plot(bench: Bench, times: list[tuple[Subject, Spread]]) -> str:
    """The launch times as an SVG: a bar for each median, a whisker from quartile to quartile."""
    times = sorted(times, key=lambda pair: pair[1].median)
    left, right, height = 230, 640, 26
    scale = (right - left) / max(spread.high for _, spread in times)
    colours = {"ours": "#2a6fb0", "floor": "#9dbfdd", "peer": "#b5b5b5"}
    bottom = 50 + height * len(times)
    title = f"Launch of /bin/true, ms: medians and quartiles of {bench.options.rounds} rounds"
    shapes = [f'<text x="12" y="26" font-size="15">{title}</text>']
    for row, (subject, value) in enumerate(times):
        y, name = 44 + height * row, html.escape(subject.name)
        low, median, high = (left + scale * number for number in value)
        shapes += [
            f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{name}</text>',
            f'<rect x="{left}" y="{y}" width="{median - left:.1f}" height="{height - 7}" '
            f'fill="{colours[subject.kind]}"/>',
            f'<path d="M{low:.1f} {y + 9.5}H{high:.1f}" stroke="#333"/>',
            f'<text x="{high + 6:.1f}" y="{y + 14}">{value.median:.1f}</text>']
    shapes += [f'<text x="12" y="{bottom + 14 * row + 12}" font-size="10" fill="#666">'
               f"{html.escape(line)}</text>" for row, line in enumerate(machine(bench))]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="{bottom + 36}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>', *shapes, "</svg>", ""])


# --- The place to work in ----------------------------------------------------------------------


@contextmanager
def workshop(options: argparse.Namespace) -> Iterator[Bench]:
    """A directory with the roots and the C programs, and a cgroup; nothing of it stays."""
    signal.signal(signal.SIGTERM, stop)
    place = Path(tempfile.mkdtemp(prefix="go-container-bench-"))
    try:
        place.chmod(0o755)  # the containers' root is nobody, and has to get to its root
        bench = Bench(options, place)
        if not shutil.which("cc"):
            raise Broken("needs a C compiler: apt install gcc libc6-dev")
        for name in PROGRAMS:
            must("cc", "-O2", "-o", bench.program(name), str(HERE / "bench" / f"{name}.c"))
        make_root(bench)
        bench.copy.mkdir()
        shutil.copy(SCRIPT, bench.copy)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # the module's is to be kept
        (place / "containers.conf").write_text('[engine]\nlock_type = "file"\n')
        os.environ["CONTAINERS_CONF"] = str(place / "containers.conf")  # podman's
        must(str(CGROUP_SH), "--name", NAME, "--pids", "1000", "--memory", "2G")
        yield bench
    finally:
        progress("")
        clean_up(place)


def make_root(bench: Bench) -> None:
    """A root file system of our own, and one chowned for podman, which takes no other."""
    tarballs = sorted(REPOSITORY.glob("../shared/alpine-minirootfs-*.tar.gz"))
    if bench.options.rootfs:
        must("cp", "-a", bench.options.rootfs, str(bench.root))
    elif tarballs:
        bench.root.mkdir()
        must("tar", "-xzf", str(tarballs[-1]), "-C", str(bench.root), "--numeric-owner")
    else:
        must(sys.executable, str(SCRIPT), "pull", "--busybox", "--rootfs", str(bench.root))
    must("cp", "-a", str(bench.root), str(bench.shifted_root))
    must("chown", "-hR", f"{FIRST_ID}:{FIRST_ID}", str(bench.shifted_root))


def clean_up(place: Path) -> None:
    """Remove containers that peers did not finish, cgroups, mounts, and the directory."""
    for container in place.glob("*-state/*"):
        runtime = container.parent.name.removesuffix("-state")
        subprocess.run([runtime, "--root", container.parent, "delete", "--force", container.name])
    end = time.monotonic() + 5
    while left := cgroups(NAME):  # a process that has just been killed may still be counted
        for directory in reversed(left):
            with suppress(OSError):
                directory.rmdir()
        if time.monotonic() > end:
            raise Broken(f"in use: {left[-1]}")
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        if line.split()[4].startswith(f"{place}/"):
            must("umount", line.split()[4])
    shutil.rmtree(place)


def cgroups(name: str) -> list[Path]:
    """Every cgroup of that name, or that begins with it and a hyphen, and those below, sorted."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [Path(line.split()[4]) for line in mounts if " - cgroup" in line]
    return [path for point in points for path in sorted(point.rglob("*/")) if any(
        part == name or part.startswith(f"{name}-") for part in path.relative_to(point).parts)]


def must(*command: str) -> str:
    """Run what has to work. Returns its output."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise Broken(f"{shlex.join(command)}: {result.stderr.strip()}")
    return result.stdout


def stop(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Broken as broken:
        sys.exit(f"bench.py: {broken}")
    except KeyboardInterrupt:
        sys.exit(130)
