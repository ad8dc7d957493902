"""A root shell that wants out: every attempt is made twice.

First where a root directory and namespaces are the only walls (`chrooted`), or as root on the
host in throw-away namespaces: there it works. Then in a container: there it fails.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from containers import PYTHON, fine, in_throwaway_namespaces, mounts, one_line

pytest_plugins = ["attempts"]
pytestmark = pytest.mark.once  # the kernel holds them, whichever Python

SECRET = b"a secret of the host"


@pytest.fixture
def contained(contained):
    """Without the filter that test_seccomp.py is about: it is a second wall, not the only one."""

    def unfiltered(script, *options, **kw):
        return contained(script, "--security-opt", "seccomp=unconfined", *options, **kw)

    return unfiltered


@pytest.fixture
def secret(place):
    """A file of the host's that everybody may read who gets there."""
    path = place / "secret"
    path.write_bytes(SECRET)
    path.chmod(0o644)
    return path


# --- The host's files ----------------------------------------------------------------------------

WAYS_BACK = {
    "climbing out of a chroot of its own": [
        "openat -100 / 0",
        "chroot /tmp",
        "fchdir $1",
        *["chdir .."] * 20,
        "chroot .",
    ],
    "entering its own mount namespace again": [
        "openat -100 /proc/self/ns/mnt 0",
        "setns $1 0x20000",
    ],
}


@pytest.mark.parametrize("steps", WAYS_BACK.values(), ids=WAYS_BACK)
def test_no_system_calls_lead_back_to_the_hosts_root(chrooted, contained, secret, steps):
    calls = shlex.quote("; ".join(steps))
    attempt = f"/attempts/syscalls {calls} -- /bin/cat {secret}"
    assert chrooted(attempt).stdout == SECRET
    assert SECRET not in contained(attempt).stdout


PROCESSES = {
    "the root of a process": "cat /proc/[0-9]*/root{secret}",
    "the working directory of a process": "cat /proc/[0-9]*/cwd/../../../../../../../..{secret}",
    "a descriptor of a process": "cat /proc/[0-9]*/fd/[3-9]{secret} /proc/[0-9]*/fd/??{secret}",
}


@pytest.mark.parametrize("attempt", PROCESSES.values(), ids=PROCESSES)
def test_no_process_gives_a_view_of_the_host(chrooted, contained, secret, attempt):
    script = attempt.format(secret=secret)
    assert SECRET in chrooted(script).stdout
    assert SECRET not in contained(script).stdout


def test_no_descriptor_of_the_launcher_can_be_the_working_directory(chrooted, run, secret):
    """--workdir /proc/self/fd/N leads to the host if the launcher has a directory open there."""
    script = f"cat ../../../../../../../..{secret}"
    assert chrooted(f"cd /proc/self/fd/7; {script}").stdout == SECRET
    for fd in range(3, 12):
        result = run("--workdir", f"/proc/self/fd/{fd}", "/bin/sh", "-c", f"{script}; echo inside")
        assert result.stdout == b"inside\n" or one_line(result), fd


def test_no_file_is_opened_by_its_handle(chrooted, contained, attempts, secret):
    """The container's root is on the same file system as the secret, so that it has a number."""
    made = subprocess.run([attempts / "handle", "make", secret], capture_output=True, text=True)
    if made.returncode:
        pytest.skip("this file system has no handles")
    attempt = f"/attempts/handle read {made.stdout.strip()}"
    assert chrooted(attempt).stdout == SECRET
    assert SECRET not in contained(attempt).stdout


DISKS = [
    f"b {(disk / 'dev').read_text().strip().replace(':', ' ')}"
    for disk in Path("/sys/block").iterdir()
    if int((disk / "size").read_text())
]
KERNEL_LOG = "c 1 11"


@pytest.mark.parametrize("device", [*DISKS[:1], KERNEL_LOG])
def test_no_device_is_opened_through_a_node_of_its_own(chrooted, contained, device):
    attempt = f"""
        rm -f /tmp/node; mknod /tmp/node {device}
        {{ true < /tmp/node; }} 2>/dev/null && echo opened; rm -f /tmp/node"""
    if chrooted(attempt).stdout != b"opened\n":
        pytest.skip("this machine does not let its own root open it")
    assert contained(attempt).stdout == b""


def test_there_is_no_disk_in_dev(shell):
    look = "find /dev -type b"
    assert in_throwaway_namespaces(look).stdout
    assert fine(shell(look)) == b""


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_a_stream_that_may_be_read_cannot_be_opened_for_writing(
    chrooted, contained, secret, stream
):
    """…nor can one be that may be written at its end be cut."""
    script = f"echo changed > /proc/self/fd/{stream}"
    name = ("stdin", "stdout", "stderr")[stream]
    for attempt, expected in ((chrooted, b"changed\n"), (contained, SECRET)):
        secret.write_bytes(SECRET)
        with secret.open("rb" if stream == 0 else "ab") as file:
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, name: file}
            attempt(script, **streams, capture_output=False)
        assert secret.read_bytes().startswith(expected)


# --- The kernel's files --------------------------------------------------------------------------

OPEN_FOR_WRITING = """
    find {path} -type f 2>/dev/null | while read -r file; do
        if {{ true >> "$file"; }} 2>/dev/null; then echo "$file"; fi
    done"""  # opened only: nothing is written

SWITCHES = (
    "sys/kernel/core_pattern",
    "sys",
    "irq",
    "bus",
    "fs",
    "sysrq-trigger",
    "mtrr",
    "slabinfo",
)


@pytest.mark.parametrize("path", SWITCHES)
def test_no_switch_of_the_kernel_can_be_turned(contained, path):
    script = OPEN_FOR_WRITING.format(path=f"/proc/{path}")
    if not in_throwaway_namespaces(script).stdout:
        pytest.skip("this kernel has nothing to write there")
    assert fine(contained(script)) == b""


def test_all_capabilities_together_do_not_reach_a_global_sysctl(contained):
    """They are those of a user namespace, in which the host's root is nobody."""
    attempt = """
        mount -o remount,rw,bind /proc/sys; umount /proc/sys
        true >> /proc/sys/kernel/core_pattern && echo open"""
    assert in_throwaway_namespaces(attempt).stdout == b"open\n"
    assert contained(attempt, "--cap-add", "ALL").stdout == b""


@pytest.mark.parametrize("path", ["/sys/firmware", "/sys/devices/virtual/powercap"])
def test_what_the_kernel_tells_about_the_machine_is_not_there(shell, path):
    """…nor in /proc, of which test_rows.py has each name."""
    look = f"ls -A {path}"
    if not in_throwaway_namespaces(look).stdout:
        pytest.skip("this kernel tells nothing there")
    assert shell(look).stdout == b""


# Those of the host's own, or the control would change them, for all of the machine.
CGROUP2 = next((options for _, kind, _, options in mounts() if kind == "cgroup2"), "rw")
LIFTS = {
    "unmounting a mask": "umount /proc/keys",
    "unmounting it later": "umount -l /proc/keys",
    "mounting over it": "mount --bind /proc/self/status /proc/keys",
    "unmounting all of /proc": "umount -l /proc",
    "mounting another /proc": "mount -t proc proc /mnt",
    "unmounting what makes it read-only": "umount /proc/sys",
    "making it writable again": "mount -o remount,rw,bind /proc/sys",
    "mounting the host's devices": "mount -t devtmpfs dev /mnt",
    "mounting the host's cgroups": f"mount -t cgroup2 -o {CGROUP2} cgroup /mnt",
}


@pytest.mark.parametrize("attempt", LIFTS.values(), ids=LIFTS)
def test_a_mask_cannot_be_lifted(chrooted, contained, attempt):
    assert chrooted(f"{attempt} && echo lifted").stdout == b"lifted\n"
    assert contained(f"{attempt} && echo lifted").stdout == b""


# --- New privileges ------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["0x10000000", "0x30000000"], ids=["a user", "a user and a PID"])
@pytest.mark.parametrize("call", ["unshare {}", "clone {} 0 0 0 0"], ids=["unshare", "clone"])
def test_no_namespace_of_its_own_gives_it_all_capabilities(
    attempts, contained, answers, call, flag
):
    """In a new user namespace a process has them all, and reaches code that only root reaches."""
    call = call.format(flag)
    assert int(answers(in_throwaway_namespaces([attempts / "syscalls", call]))[0]) >= 0
    refusal = answers(contained(f"/attempts/syscalls '{call}'"))
    assert refusal in (["EPERM"], ["ENOSPC"])


def test_the_limit_of_user_namespaces_cannot_be_raised_again(contained):
    limit = "/proc/sys/user/max_user_namespaces"
    attempt = f"cat {limit}; true >> {limit} && echo open"
    theirs = in_throwaway_namespaces(["unshare", "--map-root-user", "sh", "-c", attempt])
    assert theirs.stdout.endswith(b"open\n")
    assert contained(attempt).stdout == b"0\n"


# --- The launcher --------------------------------------------------------------------------------


@pytest.fixture
def loader_root(fresh_root, attempts):
    """A root whose dynamic loader is an attempt on the program that it is to load."""
    interpreter = Path(PYTHON).resolve().read_bytes()
    loader = re.search(rb"(/lib[\w/-]*/ld-[\w.-]+)\0", interpreter)
    if not loader:
        pytest.skip(f"{PYTHON} is static")
    path = fresh_root / loader[1].decode().lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((attempts / "loader").read_bytes())
    path.chmod(0o755)
    (fresh_root / "script").write_text("#!/proc/self/exe\n")
    (fresh_root / "script").chmod(0o755)
    return fresh_root


@pytest.mark.parametrize("command", ["/proc/self/exe", "/script"])
def test_the_launchers_interpreter_cannot_be_overwritten(run, loader_root, command):
    """CVE-2019-5736: the launcher is asked to execute itself, with the container's code in it."""
    become = "import os, sys; os.chroot(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"
    naive = ["sh", "-c", 'mount -t proc proc "$1/proc" && exec "$2" -c "$3" "$1" "$4"', "sh"]
    words = [loader_root, PYTHON, become, command]
    assert in_throwaway_namespaces([*naive, *words]).stdout == b"writable\n"
    result = run(command, rootfs=loader_root)
    assert result.stdout == b"not writable\n" or one_line(result, 126)


@pytest.mark.parametrize("options", [(), ("--userns", "host-root")])
def test_the_interpreter_of_init_is_on_a_read_only_mount(run, armed_root, attempts, options):
    control = subprocess.run([attempts / "exe", "/proc/self/exe"], capture_output=True, check=True)
    assert control.stdout == b"writable\n"
    look = ("--init", "--cap-add", "SYS_PTRACE", *options)  # without it, it cannot even be opened
    result = run(*look, "/attempts/exe", "/proc/1/exe", rootfs=armed_root)
    assert (result.returncode, result.stdout) == (0, b"read-only\n")
