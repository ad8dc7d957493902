"""`pip install .` gives a `go-container` command that does the same."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from containers import PYTHON, REPOSITORY, fine, one_line, read_limits

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def command(scratch: Path) -> Path:
    """The command, installed into an environment of its own from a copy of the repository."""
    source, place = scratch / "source", scratch / "environment"
    source.mkdir()
    for name in ("go_container.py", "cgroup.sh", "README.md", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, source)
    venv = [PYTHON, "-m", "venv", "--system-site-packages", place]
    if subprocess.run(venv, capture_output=True).returncode:
        pytest.skip("venv does not work here (Debian package python3-venv)")
    subprocess.run([place / "bin/pip", "install", "--quiet", source], check=True)
    return place / "bin/go-container"


@pytest.fixture
def go_container(command: Path, root: Path, parent: str):
    """`go_container(*words)`: `go-container run` in the session's root and cgroup."""

    def go_container(*words: str, parent: str = parent, **kw) -> subprocess.CompletedProcess:
        argv = [command, "run", "--rootfs", root, "--cgroup-parent", parent, *words]
        return subprocess.run(argv, capture_output=True, timeout=60, **kw)

    return go_container


def test_it_runs_a_command_in_a_container(go_container):
    script = "hostname; id -u; echo $$"
    assert fine(go_container("/bin/sh", "-c", script)) == b"container\n0\n1\n"


def test_it_ends_with_the_command_s_exit_code(go_container):
    assert go_container("/bin/sh", "-c", "exit 7").returncode == 7


def test_its_errors_are_one_line(go_container):
    one_line(go_container("--memory", "banana", "true"))
    one_line(go_container("no-such-command"), 127)


def test_its_help_is_the_same(command):
    file = subprocess.run([PYTHON, REPOSITORY / "go_container.py", "--help"], capture_output=True)
    assert fine(subprocess.run([command, "--help"], capture_output=True)) == fine(file) != b""


def test_it_prepares_the_cgroup_when_it_is_not_there(go_container, own_parent):
    fine(go_container("true", parent=own_parent))
    assert read_limits("pids", own_parent) == ("10",)


def test_it_takes_no_code_from_the_working_directory(go_container, place):
    for name in ("go_container", "prctl", "os", "sitecustomize"):
        (place / f"{name}.py").write_text("print('wrong')\n")
    assert fine(go_container("echo", "right", cwd=place)) == b"right\n"
