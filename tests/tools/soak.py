#!/usr/bin/env python3
"""Mixed launches, many at once, with random kills, for as long as you like.

    sudo python3 tests/tools/soak.py --minutes 30 --jobs 8

Each launch has random options, a command whose answer is known, and perhaps an end before its
time: run, the middle or PID 1 gets SIGKILL, or run a signal that it passes on, after a random
time; or a limit is hit, which run has to say. Reports the launches, the wrong results, what was
left behind (processes, mounts, cgroups, files) and how the kernel's memory grew. Exit code 1 if
anything was wrong, left, or has grown.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import pty
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT, CGROUP_SH = REPOSITORY / "go_container.py", REPOSITORY / "cgroup.sh"
NAME = f"soak-{os.urandom(4).hex()}"  # not a PID: in PID namespaces there are equal ones
MARK = f"SOAK_MARK={NAME}"  # in the environment of every process that belongs to a launch
PATIENCE = 120  # seconds until a launch counts as one that hangs
GROWTH = 16 << 20  # bytes that the kernel may have in use for other reasons
A_LAUNCH = 8 << 10  # or this for each: what it forgets under pressure only. A namespace is more
PASTA = bool(shutil.which("pasta")) and Path("/dev/net/tun").exists()
# Without udev only root may open /dev/net/tun, and pasta is not root: here everybody may.
OPEN_TUN = """mount -t tmpfs -o mode=755 tmpfs /mnt && mknod -m 666 /mnt/tun c 10 200 &&
    mount --bind /mnt/tun /dev/net/tun && umount -l /mnt"""


# --- One launch --------------------------------------------------------------------------------


class Launch:
    """One container: what is asked for, what is to be expected, and who is killed when."""

    def __init__(self, soak: Soak, number: int) -> None:
        self.soak, self.chance = soak, random.Random(f"{soak.arguments.seed} {number}")
        chance = self.chance
        self.hostname, self.code = f"box-{number}", chance.randrange(120)
        self.terminal = chance.random() < 0.25
        self.options = ["-h", self.hostname, "-e", MARK]
        for share, words in (
            (0.3, ["--memory", f"{chance.randrange(30, 60)}m"]),
            (0.3, ["--pids-limit", str(chance.randrange(4, 20))]),
            (0.2, ["--cpus", "0.5"]),
            (0.3, ["--network", "none"]),
            (0.2 * PASTA, ["--network", "pasta"]),
            (0.3, ["--rm"]),
            (0.2, ["--read-only"]),
            (0.2, ["--init"]),
            (0.2, ["--user", "1000:1000"]),
            (0.1, ["--security-opt", "seccomp=unconfined"]),
            (0.2, ["--volume", f"{soak.place}:/mnt:ro"]),
        ):
            if chance.random() < share:
                self.options += words
        lingering = chance.random() < 0.5
        self.script = f'echo "$(hostname) $$"; {"read _;" if lingering else ""} exit {self.code}'
        self.victim = chance.choice(["", "", "run", "middle", "PID 1", "signal"])
        self.delay = chance.choice([0.0, chance.random() / 10, chance.random() / 2])
        if self.victim and chance.random() < 0.7:
            self.script = 'echo "$(hostname) $$"; sleep 1000 & sleep 1000; exit 1'
        self.report = ""  # that run has to make: a limit is hit
        if not self.victim and chance.random() < 0.2:
            self.report, self.code = "the memory limit of 30 MB was hit", 128 + signal.SIGKILL
            self.options += ["--memory", "30m"]
            self.script = 'echo "$(hostname) $$"; exec tail /dev/zero'
        elif not self.victim and chance.random() < 0.2:
            self.report = "the limit of 6 processes was hit"
            self.options += ["--pids-limit", "6"]
            many = "(for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done) 2>/dev/null"
            self.script = f'echo "$(hostname) $$"; {many}; exit {self.code}'

    def __call__(self) -> str:
        """Run it to its end. Returns what was wrong, nothing if it was right."""
        arguments = self.soak.arguments
        argv = [arguments.python, SCRIPT, "run", "--rootfs", arguments.rootfs]
        argv += ["--cgroup-parent", NAME, *self.options, "sh", "-c", self.script]
        environment = {**os.environ, "SOAK_MARK": NAME}
        ours, theirs = pty.openpty() if self.terminal else (-1, subprocess.PIPE)
        streams = {"stdin": theirs, "stdout": theirs, "stderr": subprocess.PIPE}
        with subprocess.Popen(argv, env=environment, **streams) as process:
            killer = threading.Thread(target=self._kill, args=(process,))
            killer.start()
            if self.terminal:
                os.close(theirs)
            said = self._converse(ours if self.terminal else process.stdout.fileno(), process)
            errors = process.stderr.read()
            code = process.wait()
            killer.join()
        if self.terminal:
            os.close(ours)
        return self._judge(code, said, errors)

    def _converse(self, reading: int, process: subprocess.Popen[bytes]) -> bytes:
        """Read what it says until it has ended, and let it go on when it has said it all."""
        said, answered, over, deadline = b"", False, False, time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if select.select([reading], [], [], 0 if over else 0.1)[0]:
                try:
                    data = os.read(reading, 4096)
                except OSError:
                    data = b""
                said += data
                if not data:
                    return said
                if b"\n" in said and not answered:
                    answered = True
                    try:
                        os.write(reading if self.terminal else process.stdin.fileno(), b"\n")
                    except OSError:
                        pass
            elif over:
                return said
            else:  # what it said between our look and its end is still to be read
                over = process.poll() is not None
        self.soak.hanging += 1
        process.kill()
        return said

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        if not self.victim:
            return
        time.sleep(self.delay)
        try:
            if self.victim == "signal":
                # No SIGINT: while Python starts, that is a traceback that nobody can prevent.
                numbers = [signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1]
                process.send_signal(self.chance.choice(numbers))
                time.sleep(0.3)
                process.send_signal(signal.SIGTERM)
                time.sleep(0.3)
                process.send_signal(signal.SIGTERM)  # at the second one it is killed
                ended(process, 3)
            elif self.victim != "run":
                pid = process.pid
                for _ in range(1 + (self.victim == "PID 1")):
                    pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
                os.kill(pid, signal.SIGKILL)
                ended(process, 3)
            if self.victim in ("run", "signal") and process.poll() is None:
                process.kill()
        except (IndexError, OSError):
            if process.poll() is None:  # it has no such process: not yet, or not any more
                process.kill()

    def _judge(self, code: int, said: bytes, errors: bytes) -> str:
        lines = errors.decode(errors="replace").splitlines()
        what = f"{' '.join(self.options)} {self.script!r}, {self.victim or 'nobody'} killed"
        what += f" after {self.delay:.3f} s: exit code {code}, {said[:200]!r}, {lines}"
        # Only one that is taken away while it starts may fail to start, and has to say so.
        if any(not line.startswith("go_container: ") for line in lines):
            return what
        expected = f"{self.hostname} {2 if '--init' in self.options else 1}".encode()
        if said.strip() not in ((expected,) if not self.victim else (expected, b"")):
            return what
        if not self.victim:
            reported = len(lines) == 1 and self.report in lines[0] if self.report else not lines
            return "" if code == self.code and reported else what
        passed_on = (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1)
        if self.victim == "signal" and code in [128 + number for number in passed_on]:
            return what if lines else ""
        if self.victim == "signal" and code in [-number for number in passed_on]:
            return what if said else ""  # Python had not yet got so far
        if code in (-signal.SIGKILL, 128 + signal.SIGKILL, self.code):
            return what if lines else ""
        return "" if code == 125 and len(lines) == 1 else what


# --- The host ----------------------------------------------------------------------------------


def cgroups() -> set[str]:
    return {str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{NAME}/*/")}


def processes() -> set[str]:
    """Everything that has our mark: in its environment, or since it is our child."""
    found = set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if MARK.encode() in entry.read_bytes().split(b"\0"):
                found.add(entry.parent.name)
        except OSError:
            pass
    return found


def mounts() -> set[str]:
    return set(Path("/proc/self/mountinfo").read_text().splitlines())


def unreclaimable() -> int:
    """Bytes that the kernel holds for good: slabs, stacks, page tables, per-CPU data."""
    names = ("SUnreclaim:", "KernelStack:", "PageTables:", "Percpu:")
    lines = Path("/proc/meminfo").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(names))


def ended(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for a process, but not for ever."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def reap() -> None:
    """What has lost its parents has become our child."""
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                os.waitpid(int(pid), os.WNOHANG)
        except (OSError, ValueError):
            pass


class Soak:
    """All launches, and what became of them."""

    def __init__(self, arguments: argparse.Namespace, place: Path) -> None:
        self.arguments, self.place, self.lock = arguments, place, threading.Lock()
        self.number = self.hanging = 0
        self.kinds: Counter[str] = Counter()
        self.wrong: list[str] = []

    def work(self, end: float) -> None:
        while time.monotonic() < end:
            with self.lock:
                self.number += 1
                launch = Launch(self, self.number)
                self.kinds[launch.victim or ("by a limit" if launch.report else "nobody")] += 1
            try:
                text = launch()
            except Exception as error:  # a defect of this script counts too
                text = f"soak.py: {error!r}"
            if text:
                self.wrong.append(text)
                print(f"wrong: {text}", flush=True)

    def spend(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        jobs = [
            threading.Thread(target=self.work, args=(end,)) for _ in range(self.arguments.jobs)
        ]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()

    def left(self, before: dict[str, set[str]]) -> dict[str, set[str]]:
        """What is there that was not; after a moment for the last ones to go."""
        end, remains = time.monotonic() + 10, {"": {""}}
        while remains and time.monotonic() < end:
            time.sleep(0.1)
            reap()
            after = state(self.arguments)
            remains = {name: after[name] - before[name] for name in after}
            remains = {name: found for name, found in remains.items() if found}
        return remains

    def run_true(self) -> list[str | Path]:
        words: list[str | Path] = [self.arguments.python, SCRIPT, "run", "--cpus", "1"]
        return [*words, "--rootfs", self.arguments.rootfs, "--cgroup-parent", NAME, "/bin/true"]


def state(arguments: argparse.Namespace) -> dict[str, set[str]]:
    files = {str(path) for path in Path(arguments.rootfs).rglob("*")}
    return {"processes": processes(), "mounts": mounts(), "cgroups": cgroups(), "files": files}


def main() -> int:
    parser = argparse.ArgumentParser(description="mixed launches with random kills")
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--jobs", type=int, default=8, help="launches at once")
    parser.add_argument("--rootfs", default=str(REPOSITORY / "alpine-fs"))
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--seed", default=str(random.randrange(1 << 30)))
    arguments = parser.parse_args()
    if not Path(arguments.rootfs, "bin").is_dir():
        sys.exit(f"soak.py needs a root in {arguments.rootfs}: go_container.py pull makes one")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: strays become our children
    if libc.unshare(0x20000):  # CLONE_NEWNS: what others mount meanwhile is not seen
        sys.exit("soak.py has to be started as root")
    for propagation in ("private", "shared"):
        subprocess.run(["mount", f"--make-r{propagation}", "/"], check=True)
    if PASTA:
        subprocess.run(["sh", "-c", OPEN_TUN], check=True)
    limits = ["--pids", "1000", "--memory", "2G"]
    subprocess.run([CGROUP_SH, "--name", NAME, *limits], check=True, stdout=subprocess.DEVNULL)
    try:
        with tempfile.TemporaryDirectory(prefix="soak-") as place:
            os.chmod(place, 0o755)
            return report(Soak(arguments, Path(place)))
    finally:
        subprocess.run([CGROUP_SH, "--name", NAME, "--delete"], capture_output=True)


def report(soak: Soak) -> int:
    """Do it, print the figures. Returns the exit code."""
    seconds = soak.arguments.minutes * 60
    soak.spend(min(10, seconds / 3))  # what is made once and kept is there afterwards
    subprocess.run(soak.run_true(), check=True, stdin=subprocess.DEVNULL)
    reap()
    before, memory = state(soak.arguments), unreclaimable()
    first = soak.number
    soak.spend(seconds * 2 / 3 if seconds < 30 else seconds - 10)
    remains = soak.left(before)
    launches = max(1, soak.number - first)
    growth, allowed = unreclaimable() - memory, max(GROWTH, A_LAUNCH * launches)
    for _ in range(20):  # freed in the kernel's own time
        if growth < allowed:
            break
        time.sleep(1)
        growth = unreclaimable() - memory
    print(f"launches         {soak.number} (seed {soak.arguments.seed})")
    print("killed           " + ", ".join(f"{n} {who}" for who, n in soak.kinds.most_common()))
    print(f"wrong results    {len(soak.wrong)}, of these {soak.hanging} that hung")
    print(f"leftovers        {sum(len(found) for found in remains.values())} {remains or ''}")
    print(f"memory growth    {growth / 1024:.0f} KB, {growth / launches:.0f} bytes a launch")
    return int(bool(soak.wrong or remains or growth >= allowed))


if __name__ == "__main__":
    sys.exit(main())
