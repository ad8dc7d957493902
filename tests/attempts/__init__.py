"""Attempts to get out of a container: small static C programs, and the places to try them in.

A test module says `pytest_plugins = ["attempts"]` to have the fixtures.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from containers import Result, in_throwaway_namespaces

SOURCES = Path(__file__).parent
BUILD = {
    "syscalls": ["-static"],
    "exe": ["-static"],
    "handle": ["-static"],
    "greedy": ["-static"],
    "loopback": ["-static"],
    "loader": ["-static-pie", "-nostdlib", "-fno-stack-protector"],
    "library": ["-shared", "-fPIC"],
}


@pytest.fixture(scope="session")
def attempts(scratch: Path) -> Path:
    """The directory of the compiled programs."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    path = scratch / "attempts"
    path.mkdir()
    headers = ["gcc", "-E", "-dM", "-include", "sys/syscall.h", "-x", "c", "/dev/null"]
    defined = subprocess.run(headers, check=True, capture_output=True, text=True).stdout
    names = sorted(set(re.findall(r"#define SYS_(\w+) ", defined)))
    (path / "calls.h").write_text("".join(f'{{"{name}", SYS_{name}}},\n' for name in names))
    for name, flags in BUILD.items():
        gcc = ["gcc", "-O1", f"-I{path}", *flags, "-o", path / name, SOURCES / f"{name}.c"]
        subprocess.run(gcc, check=True)
    return path


@pytest.fixture(scope="session")
def armed_root(root: Path, attempts: Path, scratch: Path) -> Path:
    """A root file system that has the programs in /attempts."""
    path = scratch / "armed"
    subprocess.run(["cp", "-a", root, path], check=True)
    shutil.copytree(attempts, path / "attempts")
    return path


@pytest.fixture
def contained(run: Callable[..., Result], armed_root: Path) -> Callable[..., Result]:
    """`contained(script, *options)`: a shell script in a container that has /attempts.

    It has to run there: an attempt has not failed where there was no container.
    """

    def contained(script: str, *options: str, **kw: object) -> Result:
        script = f"echo inside >&2; {script}"
        result = run(*options, "/bin/sh", "-c", script, rootfs=armed_root, **kw)
        assert result.returncode < 125, result
        if result.stderr is not None:
            assert result.stderr.startswith(b"inside\n"), result
            result.stderr = result.stderr.removeprefix(b"inside\n")
        return result

    return contained


@pytest.fixture
def chrooted(armed_root: Path) -> Callable[..., Result]:
    """`chrooted(script)`: the same script where a root directory and namespaces are the only walls.

    There are masks as in a container, but privileges are kept, and so is a descriptor of the host's
    root (7), as careless launchers do.
    """
    furnish = """
        cd "$1" && exec 7</ && mount -t proc proc proc && mount --bind /dev/null proc/keys &&
        mount --bind proc/sys proc/sys && mount -o remount,bind,ro proc/sys &&
        exec chroot . /bin/sh -c "$2" """

    def chrooted(script: str, **kw: object) -> Result:
        return in_throwaway_namespaces(["sh", "-c", furnish, "sh", armed_root, script], **kw)

    return chrooted


@pytest.fixture(scope="session")
def answers() -> Callable[[Result], list[str]]:
    """`answers(result)`: what `syscalls` printed, one answer for each attempt."""

    def answers(result: Result) -> list[str]:
        assert result.returncode == 0, result
        return result.stdout.decode().splitlines()

    return answers
