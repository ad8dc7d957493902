"""What the launcher trusts: its own code, its own environment, and where a volume leads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from containers import PYTHON, Result, fine, go, one_line

pytest_plugins = ["attempts"]

CODE_HAS_RUN = b"code of somebody else's has run\n"
PLANT = f"import os\nos.write(2, {CODE_HAS_RUN!r})\n"

# --- Modules beside the script -------------------------------------------------------------------


def plant(folder: Path) -> None:
    """Every module of the standard library and of ours, by its name, as a file and a package."""
    names = {*sys.stdlib_module_names, "prctl", "_prctl", "seccomp", "sitecustomize"}
    names |= {"usercustomize"}
    for name in names - {"go_container"}:
        (folder / f"{name}.py").write_text(PLANT)
    (folder / "encodings").mkdir()
    (folder / "encodings/__init__.py").write_text(PLANT)
    (folder / "python3.zip").write_text("")


WORDS = {
    "run": ["run", "--rootfs", "ROOT", "--cgroup-parent", "CGROUP", "/bin/echo", "fine"],
    "run --init": ["run", "--init", "--rootfs", "ROOT", "--cgroup-parent", "CGROUP", "echo", "x"],
    "run --network none": ["run", "--network", "none", "--rootfs", "ROOT", "--cgroup-parent",
                           "CGROUP", "true"],
    "run --explain": ["run", "--explain", "--rootfs", "ROOT", "--cgroup-parent", "CGROUP", "true"],
    "run --plan": ["run", "--plan", "--rootfs", "ROOT", "--cgroup-parent", "CGROUP", "true"],
    "run of nothing": ["run", "--rootfs", "ROOT", "--cgroup-parent", "CGROUP", "/no/such"],
    "run without a root": ["run", "--rootfs", "/no/such", "true"],
    "spec": ["spec", "--rootfs", "ROOT", "true"],
    "spec --copy": ["spec", "--rootfs", "ROOT", "--copy", "--bundle", "NEW", "true"],
    "pull": ["pull", "--rootfs", "NEW", "TARBALL"],
    "pull of a URL": ["pull", "--rootfs", "NEW", "http://127.0.0.1:1/x"],
    "inspect": ["inspect", "1"],
    "help": ["--help"],
    "nonsense": ["nonsense"],
}  # fmt: skip


@pytest.fixture
def words(root: Path, parent: str, place: Path, tarball: Path) -> Callable[[str], list[str]]:
    meant = {"ROOT": root, "CGROUP": parent, "NEW": place / "new", "TARBALL": tarball}
    return lambda key: [str(meant.get(word, word)) for word in WORDS[key]]


@pytest.mark.parametrize("key", WORDS)
def test_root_runs_the_script_and_nothing_that_lies_beside_it(project, words, key):
    """The folder is a user's; with sudo the script is root's to run, and so would be the rest."""
    plant(project)
    probe = project / "probe.py"
    probe.write_text("import json\n")  # the control: Python looks there, and first
    control = subprocess.run([PYTHON, probe], capture_output=True)
    assert CODE_HAS_RUN in control.stderr
    result = go(*words(key), script=project / "go_container.py")
    assert CODE_HAS_RUN not in result.stderr + result.stdout
    assert b"Traceback" not in result.stderr and b"internal error" not in result.stderr
    expected = {"run of nothing": 127, "run without a root": 125, "pull of a URL": 125,
                "nonsense": 125}  # fmt: skip
    assert result.returncode == expected.get(key, 0), result


@pytest.mark.parametrize("key", ["run", "spec --copy", "pull", "inspect"])
@pytest.mark.parametrize("name", ["go_container.py", "linked"])
def test_nothing_is_imported_from_where_root_is(project, words, place, key, name):
    """The current directory, as another one than the script's; and a link to the script."""
    folder = place / "here"
    folder.mkdir()
    plant(folder)
    control = subprocess.run([PYTHON, "-c", "import json"], cwd=folder, capture_output=True)
    assert CODE_HAS_RUN in control.stderr
    (place / "linked").symlink_to(project / "go_container.py")
    result = go(*words(key), script=place / name, cwd=folder)
    assert result.returncode == 0 and CODE_HAS_RUN not in result.stderr, result


def test_the_script_is_still_found_and_imported_as_a_module(project, root, parent):
    """The control of what is taken away: who asks for the folder by -m has it."""
    words = ["run", "--rootfs", root, "--cgroup-parent", parent, "/bin/echo", "fine"]
    argv = [PYTHON, "-m", "go_container", *words]
    result = subprocess.run(argv, cwd=project, capture_output=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"fine\n", b"")


# --- The environment of the launcher -------------------------------------------------------------

GIVEN = "given-to-the-command"
HOSTS = "a-secret-of-the-caller-s-environment"


def read_pid_1(contained: Callable[..., Result], *options: str, **env: str) -> bytes:
    """What the environment of --init's PID 1 is for who may look at every process inside."""
    script = "tr '\\0' '\\n' </proc/1/environ; echo looked"
    options = ("--init", "--cap-add", "SYS_PTRACE", *options)
    result = contained(script, *options, env={**os.environ, **env})
    assert result.stdout.endswith(b"looked\n") and result.returncode == 0
    assert b"Permission denied" not in result.stderr, result
    return result.stdout


@pytest.mark.parametrize("option", [f"K={GIVEN}", "K=", "K=K", "PATH=/bin", "HOME=/x"])
def test_the_host_s_value_of_a_variable_that_is_given_another_is_not_shown(contained, option):
    name = option.partition("=")[0]
    host_s = f"{os.environ['PATH']}:/{HOSTS}" if name == "PATH" else HOSTS
    assert HOSTS.encode() not in read_pid_1(contained, "-e", option, **{name: host_s})


@pytest.mark.parametrize("name", ["K", "PYTHONPATH", "SUDO_USER", "LANG", "TMPDIR", "TERM"])
def test_no_variable_of_the_host_s_is_shown(contained, name):
    assert HOSTS.encode() not in read_pid_1(contained, **{name: HOSTS})


def test_the_command_has_what_it_was_given(contained):
    """The control: K alone means the host's value, and that is for the command."""
    options = ("--init", "-e", "K", "-e", f"L={GIVEN}")
    env = {**os.environ, "K": HOSTS, "L": HOSTS}
    result = contained("echo $K; echo $L", *options, env=env)
    assert result.stdout.split() == [HOSTS.encode(), GIVEN.encode()]


def test_the_environment_of_a_process_can_be_looked_at_so(contained):
    """The control: that is where a variable would be seen."""
    script = "K=here /bin/busybox sleep 9 & sleep 0.2; tr '\\0' '\\n' </proc/$!/environ"
    assert b"K=here" in contained(script, "--cap-add", "SYS_PTRACE").stdout


# --- Where a volume leads ------------------------------------------------------------------------

STRANGER = 54321


@pytest.fixture
def secret_folder(place: Path) -> Path:
    path = place / "roots"
    path.mkdir()
    (path / "file").write_text("a secret of the host's root\n")
    return path


def shared(place: Path, owner: int, mode: int) -> Path:
    path = place / "shared"
    path.mkdir()
    os.chown(path, owner, owner)
    path.chmod(mode)
    return path


THEIRS = {
    "a stranger's link in a stranger's directory": (STRANGER, 0o755, STRANGER),
    "a stranger's link in everybody's": (0, 0o777, STRANGER),
    "a stranger's link in everybody's, who keep to what is theirs": (0, 0o1777, STRANGER),
    "root's link in a stranger's directory": (STRANGER, 0o755, 0),  # as root inside makes it
}


WITHOUT_SUDO = {name: text for name, text in os.environ.items() if not name.startswith("SUDO_")}


def show(run: Callable[..., Result], source: Path | str, **sudo: str) -> Result:
    env = WITHOUT_SUDO | sudo
    return run("-v", f"{source}:/mnt:ro", "/bin/cat", "/mnt/file", env=env)


@pytest.mark.parametrize(("owner", "mode", "maker"), THEIRS.values(), ids=THEIRS)
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_volume_that_is_a_stranger_s_link_is_refused_or_said(
    run, place, secret_folder, owner, mode, maker, slash
):
    """Who can have made it may be a container that was given the directory above it."""
    link = shared(place, owner, mode) / "link"
    link.symlink_to(secret_folder)
    os.chown(link, maker, maker, follow_symlinks=False)
    result = show(run, f"{link}{slash}")
    if result.returncode:
        assert "link" in one_line(result)
    else:
        assert result.stderr.count(b"\n") == 1 and str(link).encode() in result.stderr, result


@pytest.mark.parametrize(("owner", "mode", "maker"), THEIRS.values(), ids=THEIRS)
def test_a_root_that_is_a_stranger_s_link_is_refused(run, place, root, owner, mode, maker):
    link = shared(place, owner, mode) / "link"
    link.symlink_to(root)
    os.chown(link, maker, maker, follow_symlinks=False)
    assert "link" in one_line(run("true", rootfs=link, env=WITHOUT_SUDO))


@pytest.mark.parametrize(("owner", "group", "mode"), [(STRANGER, 0, 0o755), (0, STRANGER, 0o775)])
def test_root_writes_to_no_directory_that_others_can_change(
    run, place, root, tarball, owner, group, mode
):
    """…neither as its owner nor as one of its group: in between they could put a link there."""
    folder = shared(place, owner, mode)
    os.chown(folder, owner, group)
    more = {"env": WITHOUT_SUDO}
    bundle = ["spec", "--rootfs", root, "--cgroup-parent", "none", "--copy", "--bundle"]
    for words in (["pull", "--rootfs", folder / "new", tarball], [*bundle, folder / "new", "true"]):
        assert str(folder) in one_line(go(*words, **more))
        assert not list(folder.iterdir())
    os.chown(folder, 0, 0)  # the control
    fine(go(*bundle, folder / "new", "true", **more))
    fine(go("pull", "--rootfs", folder / "root", tarball, **more))


OWN = {
    "root's link in root's directory": (0, 0o755, 0),
    "root's link in everybody's, who keep to what is theirs": (0, 0o1777, 0),
}


@pytest.mark.parametrize(("owner", "mode", "maker"), OWN.values(), ids=OWN)
def test_a_volume_that_is_a_link_of_one_s_own_is_shown(
    run, place, secret_folder, owner, mode, maker
):
    """The control; and so is a directory that belongs to somebody else, without a link."""
    link = shared(place, owner, mode) / "link"
    link.symlink_to(secret_folder)
    os.chown(link, maker, maker, follow_symlinks=False)
    assert fine(show(run, link)) == b"a secret of the host's root\n"


def test_a_link_of_who_called_sudo_is_shown(run, place, secret_folder):
    """It is their own, in a directory of their own, and root's rights are theirs."""
    link = shared(place, STRANGER, 0o755) / "link"
    link.symlink_to(secret_folder)
    os.chown(link, STRANGER, STRANGER, follow_symlinks=False)
    ids = {"SUDO_UID": f"{STRANGER}", "SUDO_GID": f"{STRANGER}", "SUDO_USER": "somebody"}
    assert fine(show(run, link, **ids)) == b"a secret of the host's root\n"


def test_a_volume_of_a_stranger_s_that_is_no_link_is_shown(run, place):
    path = shared(place, STRANGER, 0o755) / "folder"
    path.mkdir()
    (path / "file").write_text("a stranger's\n")
    assert fine(show(run, path)) == b"a stranger's\n"


def test_a_user_s_own_link_is_shown_to_them(normal_user, root, place):
    user = normal_user()
    (user.home / "folder").mkdir()
    (user.home / "folder/file").write_text("their own\n")
    (user.home / "link").symlink_to("folder")
    shutil.chown(user.home / "folder", user.uid, user.uid)
    os.chown(user.home / "link", user.uid, user.uid, follow_symlinks=False)
    words = ["run", "--rootfs", root, "--cgroup-parent", "none", "-v", f"{user.home}/link:/mnt"]
    assert fine(go(*words, "/bin/cat", "/mnt/file", prefix=user.prefix)) == b"their own\n"
