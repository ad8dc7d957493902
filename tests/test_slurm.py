"""Slurm, a real one, of two nodes on this machine's loopback: a bundle runs on any of them.

oci.conf and the script slurm-run are those of tests/slurm, for readers.

Nothing of the machine's own Slurm, if it has one, is touched: munge, slurmctld and two slurmd have
their keys, sockets, ports and state in a temporary directory.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from containers import PYTHON, REPOSITORY, SCRIPT, Result, children, fine, go, wait_until

DAEMONS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "runc")
missing = [name for name in DAEMONS if not shutil.which(name, path="/usr/sbin:/usr/bin")]
pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(bool(missing), reason="needs slurm-wlm, munge, runc: apt-get install them"),
]

RECIPE = REPOSITORY / "tests" / "slurm"
RUNC = (RECIPE / "oci.conf.runc").read_text()
OURSELVES = (RECIPE / "oci.conf.go_container").read_text()
SLURM_RUN = (RECIPE / "slurm-run").read_text()

SLURM_CONF = """\
ClusterName=loopback
SlurmctldHost={name}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={0}/munge/socket
SlurmctldPidFile={0}/slurmctld.pid
SlurmdPidFile={0}/%n.pid
StateSaveLocation={0}/state
SlurmdSpoolDir={0}/%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
KillWait=2
SchedulerParameters=sched_interval=1,batch_sched_delay=1
NodeName=node1 NodeHostname={name} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=10
NodeName=node2 NodeHostname={name} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=10
PartitionName=all Nodes=ALL Default=YES
"""


@contextmanager
def daemon(log: Path, *argv: str, **environment: str) -> Iterator[None]:
    """A process in the foreground that is stopped after the block."""
    with log.open("w") as file:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=os.environ | environment
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def cluster(runtime: str) -> Iterator[Callable[..., Result]]:
    """`slurm(*command)` runs one of its commands. The paths are short: sockets need that."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as directory, ExitStack() as stack:
        place = Path(directory)
        place.chmod(0o755)
        (place / "munge").mkdir(mode=0o755)
        for name in ("state", "node1", "node2"):
            (place / name).mkdir()
        (place / "munge/key").write_bytes(os.urandom(32))
        (place / "munge/key").chmod(0o400)
        ports, name = free_ports(3), os.uname().nodename.partition(".")[0]
        (place / "slurm.conf").write_text(SLURM_CONF.format(place, name=name, ports=ports))
        runtime = runtime.replace("/usr/bin/python3", PYTHON).replace("/shared", str(place))
        (place / "oci.conf").write_text(runtime)
        (place / "slurm-run").write_text(SLURM_RUN.replace("/shared", str(place)))
        (place / "go_container.py").symlink_to(SCRIPT)
        conf = {"SLURM_CONF": str(place / "slurm.conf")}
        munge = [f"--{file}-file={place}/munge/{file}" for file in ("key", "log", "pid", "seed")]
        munge += [f"--socket={place}/munge/socket", "--num-threads=2", "--foreground", "--force"]
        stack.enter_context(daemon(place / "munged", "/usr/sbin/munged", *munge))
        assert wait_until((place / "munge/socket").exists), (place / "munged").read_text()
        stack.enter_context(daemon(place / "slurmctld", "/usr/sbin/slurmctld", "-D", **conf))
        for node in ("node1", "node2"):
            argv = ("/usr/sbin/slurmd", "-D", "-N", node)
            stack.enter_context(daemon(place / f"{node}.log", *argv, **conf))

        def slurm(*command: str) -> Result:
            environment = {"PATH": os.environ["PATH"], **conf}
            return subprocess.run(command, env=environment, cwd=place, stdin=subprocess.DEVNULL,
                                  capture_output=True, text=True, timeout=100)  # fmt: skip

        def both_idle() -> bool:
            return slurm("sinfo", "-h", "-o", "%D %t").stdout == "2 idle\n"

        logs = ("slurmctld", "node1.log", "node2.log")
        assert wait_until(both_idle, 20), [(place / log).read_text() for log in logs]
        yield slurm


@pytest.fixture(scope="module")
def slurm() -> Iterator[Callable[..., Result]]:
    with cluster(RUNC) as commands:
        yield commands


@pytest.fixture
def bundle(root: Path, place: Path) -> Path:
    path = place / "bundle"
    words = ("--rootfs", root, "--cgroup-parent", "none", "-h", "demo", "/bin/true")
    fine(go("spec", "--bundle", path, "--copy", *words))
    return path


ASK = "echo $(hostname), uid $(id -u), $(cat /proc/self/uid_map), job $SLURM_JOB_ID; exit 7"


def on_both_nodes(slurm: Callable[..., Result], bundle: Path) -> None:
    words = ("--label", "--nodes=2", "--export=NONE", f"--container={bundle}")
    done = slurm("srun", *words, "/bin/sh", "-c", ASK)
    assert done.returncode == 7, done
    first, second = sorted(done.stdout.splitlines())
    assert re.fullmatch(r"0: demo, uid 0, 0 [1-9]\d+ 65536, job \d+", first), done
    assert second == first.replace("0", "1", 1)
    for task, node in enumerate(("node1", "node2")):
        assert f"{node}: task {task}: Exited with exit code 7" in done.stderr


def test_a_bundle_runs_on_both_nodes(slurm, bundle):
    on_both_nodes(slurm, bundle)


def test_an_array_of_twenty_returns_every_exit_code(slurm, bundle):
    task = f'srun --container={bundle} sh -c "exit $SLURM_ARRAY_TASK_ID"'
    done = slurm("sbatch", "--parsable", "--array=0-19", "--output=/dev/null", f"--wrap={task}")

    def jobs() -> str:
        return slurm("scontrol", "--oneliner", "show", "job", done.stdout.strip()).stdout

    ended = " JobState=(?:COMPLETED|FAILED) "
    assert wait_until(lambda: len(re.findall(ended, jobs())) == 20, 60), (done, jobs())
    codes = re.findall(r"ArrayTaskId=(\d+) .*? ExitCode=(\d+):0 ", jobs())
    assert {int(task): int(code) for task, code in codes} == {n: n for n in range(20)}
    assert {"NodeList=node1", "NodeList=node2"} <= set(jobs().split())


@pytest.fixture(scope="module")
def ours() -> Iterator[Callable[..., Result]]:
    """The same, with this program itself as Slurm's runtime."""
    with cluster(OURSELVES) as commands:
        yield commands


def plain_bundle(path: Path, root: Path, *options: str | Path) -> Path:
    """Without a copy: this program shows the root through an idmap."""
    words = ("--rootfs", root, "--cgroup-parent", "none", "-h", "demo", *options, "/bin/true")
    fine(go("spec", "--bundle", path, *words))
    (path / "rootfs").symlink_to(root)  # Slurm 22.05 looks for it nowhere else
    return path


def test_this_program_can_be_slurms_runtime_itself(ours, root, place):
    on_both_nodes(ours, plain_bundle(place / "bundle", root))


def test_as_slurms_runtime_it_does_what_the_bundle_says(ours, root, place):
    (place / "volume").mkdir()
    (place / "volume/file").write_text("it\n")
    options = ["-v", f"{place}/volume:/mnt:ro", "-u", "65534:65534", "-w", "/usr", "--read-only"]
    options += ["--network", "none", "--cap-drop", "ALL", "-e", "A=b  c"]
    made = plain_bundle(place / "bundle", root, *options)
    ask = """id -u; id -g; pwd; cat /mnt/file; touch /mnt/file /file; echo "$A"
        grep -c : /proc/net/dev; grep CapBnd /proc/self/status; for each; do echo "[$each]"; done"""
    words = ("--export=NONE", f"--container={made}", "sh", "-c", ask, "sh", "x  y", "", "it's")
    done = ours("srun", *words)
    assert done.stdout.splitlines() == [
        "65534", "65534", "/usr", "it", "b  c", "1", "CapBnd:\t0000000000000000",
        "[x  y]", "[]", "[it's]",
    ], done  # fmt: skip
    assert done.stderr.count("Read-only file system") == 2


def test_scancel_leaves_nothing_of_it(ours, root, place):
    made, before = plain_bundle(place / "bundle", root), {*children(os.getpid())}
    word = f"--wrap=srun --container={made} sh -c 'trap : TERM; sleep 98765; sleep 98765'"
    job = ours("sbatch", "--parsable", "--output=/dev/null", word).stdout.strip()

    def sleeps() -> list[int]:
        found = []
        for pid in children(os.getpid()):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            found += [pid] * (words[:2] == [b"sleep", b"98765"])
        return found

    assert wait_until(sleeps, 20), ours("scontrol", "show", "job", job)
    assert ours("scancel", job).returncode == 0
    assert wait_until(lambda: {*children(os.getpid())} <= before, 60), sleeps()
