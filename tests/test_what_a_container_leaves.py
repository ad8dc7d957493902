"""What a container leaves in its root is hostile: links, depth, names. The host works in it later.

Nothing on the host may follow a link that a container or a tarball has made, nor stumble over
anything that `rm -rf` does not stumble over.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from containers import Result, fine, go, one_line

pytestmark = pytest.mark.once  # the same with every Python

SHIPPED = "*\n!.gitignore\n"
SECRET = "a secret of the host's root\n"


@pytest.fixture
def own_root(root: Path, place: Path) -> Path:
    """A root whose directories are a test's own; its files it only replaces."""
    subprocess.run(["cp", "-al", root, place / "root"], check=True)
    return place / "root"


@pytest.fixture
def secret(place: Path) -> Path:
    """A file that only the host's root may read."""
    path = place / "secret"
    path.write_text(SECRET)
    path.chmod(0o600)
    return path


@pytest.fixture
def kept(place: Path, own_root: Path, run: Callable[..., Result]) -> Callable[..., Path]:
    """`kept(script)`: run a script in a root, pull --force over it; the new root's .gitignore."""

    def kept(script: str) -> Path:
        fine(run("/bin/sh", "-c", script, rootfs=own_root))
        (place / "mark").write_text("new\n")
        with tarfile.open(place / "new.tar", "w") as tar:
            tar.add(place / "mark", "etc/mark")
        fine(go("pull", "--force", "--rootfs", own_root, place / "new.tar", timeout=10))
        assert (own_root / "etc/mark").read_text() == "new\n"
        return own_root / ".gitignore"

    return kept


# --- .gitignore, which pull --force keeps --------------------------------------------------------

LINKS = {
    "a symbolic link": "ln -s {secret} /.gitignore",
    "a relative one": "ln -s ../../../../../../../../..{secret} /.gitignore",
    "a link to a link": "ln -s {secret} /tmp/x && ln -s tmp/x /.gitignore",
    "a link by way of /proc": "ln -s /proc/1/root{secret} /.gitignore",
}
OTHERS = {
    "another text": "echo mine >/.gitignore",
    "more than the text": f"printf '%s!more\\n' '{SHIPPED}' >/.gitignore",
    "nothing": "true >/.gitignore",
    "a directory": "mkdir /.gitignore",
    "a fifo": "mkfifo /.gitignore",
    "a long file": "head -c 30000000 /dev/zero >/.gitignore",
    "no UTF-8": "printf '\\377' >/.gitignore",
}


@pytest.mark.parametrize("script", LINKS.values(), ids=LINKS)
def test_a_link_that_is_kept_brings_no_file_of_the_host_s(kept, secret, own_root, script):
    """The host's root can read what it leads to, and the new root shows it to everybody."""
    found = kept(script.format(secret=secret))
    assert not os.path.lexists(found)
    whole = subprocess.run(["grep", "-rl", SECRET.strip(), own_root], capture_output=True)
    assert whole.stdout == b""
    assert secret.read_text() == SECRET and stat.S_IMODE(secret.stat().st_mode) == 0o600


@pytest.mark.parametrize("script", OTHERS.values(), ids=OTHERS)
def test_what_is_not_the_file_that_git_has_is_not_kept(kept, script):
    assert not os.path.lexists(kept(script))


def test_the_file_that_git_has_is_kept(kept):
    """The control, and the reason for keeping anything."""
    found = kept(f"printf '%s' '{SHIPPED}' >/.gitignore")
    assert found.read_text() == SHIPPED and not found.is_symlink()


# --- The root's passwd and group, for run, spec and --plan ---------------------------------------

FILES = {"passwd": "stranger:x:4242:4242::/:/bin/sh\n", "group": "stranger:x:4242:\n"}
USERS = {"passwd": "stranger", "group": "0:stranger"}
BOTH = pytest.mark.parametrize("name", FILES)


@pytest.fixture(params=["run", "spec", "--plan"])
def with_user(request: pytest.FixtureRequest, own_root: Path, parent: str):
    """`with_user(user)`: what each of those who look a user up says."""
    words = {"run": ["run"], "spec": ["spec"], "--plan": ["run", "--plan"]}[request.param]
    words = [*words, "--rootfs", own_root, "--cgroup-parent", parent, "--user"]

    def with_user(user: str, *command: str) -> Result:
        return go(*words, user, *(command or ("/bin/sh", "-c", "id -u; id -g")), timeout=10)

    with_user.way = request.param
    return with_user


def numbers(way: str, result: Result) -> tuple[int, int]:
    """The user and group that it came to. --plan says them among other words."""
    output = fine(result)
    if way == "spec":
        user = json.loads(output)["process"]["user"]
        return user["uid"], user["gid"]
    if way == "run":
        uid, gid = output.split()
        return int(uid), int(gid)
    digits = "".join(c if c.isdigit() else " " for c in output.decode()).split()
    return 4242 if "4242" in digits else -1, 4242 if "4242" in digits else -1


def refused(way: str, result: Result) -> bool:
    plan = b"" if way == "--plan" else result.stdout  # as far as it got
    return "stranger" in one_line(Result(result.args, result.returncode, plan, result.stderr))


def link(root: Path, name: str, target: str) -> None:
    path = root / "etc" / name
    path.unlink()
    path.symlink_to(target)
    assert path.is_symlink()


@BOTH
@pytest.mark.parametrize("up", ["", "../" * 30], ids=["absolute", "relative"])
def test_users_are_not_looked_up_in_a_file_of_the_host_s(with_user, own_root, place, name, up):
    there = place / name
    there.write_text(FILES[name])
    link(own_root, name, f"{up.rstrip('/')}{there}")
    assert "4242" in (own_root / "etc" / name).read_text()  # the control: it leads there
    assert refused(with_user.way, with_user(USERS[name]))


@BOTH
def test_users_are_not_looked_up_beyond_a_directory_of_the_host_s(
    with_user, own_root, place, name
):
    for file, text in FILES.items():
        (place / file).write_text(text)
    shutil.move(own_root / "etc", own_root / "other")
    (own_root / "etc").symlink_to(place)
    assert "4242" in (own_root / "etc" / name).read_text()
    result = with_user(USERS[name])
    assert result.returncode == 125 and b"4242" not in result.stdout, result


@BOTH
@pytest.mark.parametrize("target", ["/usr/users/{}", "../../../../usr/users/{}", "../usr/users/{}"])
def test_a_link_inside_is_followed_inside(with_user, own_root, name, target):
    """…also an absolute one, which on the host would lead to nothing, or to the host's file."""
    (own_root / "usr/users").mkdir()
    (own_root / "usr/users" / name).write_text(FILES[name])
    link(own_root, name, target.format(name))
    found = numbers(with_user.way, with_user(USERS[name]))
    assert found[name == "group"] == 4242


@BOTH
def test_users_are_not_looked_up_by_way_of_a_process(with_user, own_root, place, name):
    (place / name).write_text(FILES[name])
    link(own_root, name, f"/proc/self/root{place / name}")
    assert "4242" in (own_root / "etc" / name).read_text()
    result = with_user(USERS[name])
    assert result.returncode == 125 and b"4242" not in result.stdout, result


NO_FILES = {
    "a fifo": lambda path: os.mkfifo(path),
    "endless zeros": lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5)),
    "the caller's terminal": lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(5, 0)),
    "nothing": lambda path: None,
}
UNREADABLE = {
    "a directory": lambda path: path.mkdir(),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


@BOTH
@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES)
def test_what_is_no_file_has_no_users(with_user, own_root, name, make):
    path = own_root / "etc" / name
    path.unlink()
    make(path)
    assert refused(with_user.way, with_user(USERS[name]))
    assert with_user("0", "/bin/true").returncode == 0  # numbers need no file


@BOTH
@pytest.mark.parametrize("make", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_one_line_at_the_most(with_user, own_root, name, make):
    path = own_root / "etc" / name
    path.unlink()
    make(path)
    for user in (USERS[name], "0"):
        result = with_user(user, "/bin/true")
        assert result.returncode in (0, 125) and (result.returncode or user == "0")
        assert result.stderr.count(b"\n") == bool(result.returncode)
        assert b"internal error" not in result.stderr


# --- Depth, names and numbers --------------------------------------------------------------------

DEEP = """
import os, sys
here = os.open(sys.argv[1], os.O_RDONLY)
for _ in range(3000):
    os.mkdir("d", dir_fd=here)
    there = os.open("d", os.O_RDONLY, dir_fd=here)
    os.close(here)
    here = there
os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=here))
"""
STRANGE = rb"""
import os, sys
os.chdir(sys.argv[1])
for name in (b"-rf", b"--", b"new\nline", b"\xff\xfe", b"\x1b[2J", b" ", b"...", b"*", b"~", b'"',
             b"'", b"$(id)", b"%s", b"\\", b"x" * 255):
    os.mkdir(name)
    os.close(os.open(name + b"/" + name, os.O_CREAT))
"""
MANY = """
import os, sys
os.chdir(sys.argv[1])
for n in range(2000):
    os.close(os.open(f"file-{n}", os.O_CREAT))
"""
CLOSED = """
import os, sys
os.chdir(sys.argv[1])
os.makedirs("closed/closed")
os.mkfifo("closed/closed/fifo")
os.symlink("/", "closed/closed/link")
os.mknod("closed/closed/disk", 0o60600, os.makedev(8, 0))
os.chmod("closed/closed", 0)
os.chmod("closed", 0)
"""
TREES = {"3,000 directories deep": DEEP, "strange names": STRANGE, "many files": MANY,
         "closed directories": CLOSED}  # fmt: skip


@contextmanager
def holding(place: Path) -> Iterator[None]:
    """In the end whatever is there goes, by the one tool that manages."""
    try:
        yield
    finally:
        for entry in place.iterdir():
            subprocess.run(["rm", "-rf", "--", entry], check=True)


@pytest.fixture
def simple_tarball(place: Path) -> Path:
    with tarfile.open(place / "new.tar", "w") as tar:
        tar.add("/etc/hostname", "etc/mark")
    return place / "new.tar"


def grow(script: str | bytes, root: Path) -> None:
    subprocess.run([sys.executable, "-c", script, root], check=True)


@pytest.mark.parametrize("script", TREES.values(), ids=TREES)
def test_pull_force_replaces_every_tree(place, simple_tarball, script):
    """…and what could not be removed once would be in the way of every later pull, too."""
    root = place / "root"
    words = ["pull", "--force", "--rootfs", root, simple_tarball]
    with holding(place):
        assert fine(go(*words)) == b""
        for _ in range(2):
            grow(script, root)
            assert fine(go(*words)) == b""
            assert os.listdir(root) == ["etc"] and os.listdir(root / "etc") == ["mark"]
            assert sorted(os.listdir(place)) == ["new.tar", "root"]


@pytest.mark.parametrize("script", TREES.values(), ids=TREES)
def test_what_a_killed_pull_left_is_removed_whatever_is_in_it(place, simple_tarball, script):
    """It was killed between the exchange and the removal: the old tree is the one that is left."""
    with holding(place):
        trace = place / "trace"
        words = ["strace", "-f", "-qq", "-o", trace, "-e", "trace=renameat2"]
        if not shutil.which("strace"):
            pytest.skip("needs strace")
        root = place / "root"
        assert fine(go("pull", "--rootfs", root, simple_tarball)) == b""
        grow(script, root)
        killed = [*words, "-e", "inject=renameat2:signal=KILL"]
        go("pull", "--force", "--rootfs", root, simple_tarball, prefix=killed)
        trace.unlink()
        left = set(os.listdir(place)) - {"new.tar", "root"}
        assert left, "it was not killed there"
        assert fine(go("pull", "--force", "--rootfs", root, simple_tarball)) == b""
        assert sorted(os.listdir(place)) == ["new.tar", "root"]


@pytest.mark.parametrize("script", TREES.values(), ids=TREES)
def test_spec_copies_every_tree_or_says_in_one_line_why_not(place, script):
    """…and leaves nothing then."""
    with holding(place):
        own = place / "own"
        (own / "bin").mkdir(parents=True)
        grow(script, own)
        result = go("spec", "--rootfs", own, "--bundle", place / "bundle", "--copy", "true")
        if result.returncode:
            assert "internal" not in one_line(result)
            assert sorted(os.listdir(place)) == ["own"]
        else:
            assert fine(result) == b""
            count = "find . ! -type b ! -type c | wc -l"  # device nodes are not copied
            counts = [
                subprocess.run(["sh", "-c", count], cwd=tree, capture_output=True, check=True)
                for tree in (own, place / "bundle/rootfs")
            ]
            assert counts[0].stdout == counts[1].stdout
