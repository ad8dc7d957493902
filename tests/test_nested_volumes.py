"""Volumes within each other, in any order, and volumes that are no directories."""

from __future__ import annotations

import itertools
import os
import socket
import stat

import pytest
from containers import fine, one_line

pytestmark = pytest.mark.once  # the same with every Python

# --- Within each other ----------------------------------------------------------------------------


@pytest.fixture
def sources(place):
    """Directories of the host's, each with a file that has its name."""
    for name in "abc":
        (place / name).mkdir()
        (place / name).chmod(0o755)
        (place / name / name).write_text(f"{name}\n")
    return place


def volumes(place, pairs):
    return [word for name, target in pairs for word in ("-v", f"{place / name}:{target}")]


TWO = [("a", "/mnt/x/y"), ("b", "/mnt/x")]
THREE = [("a", "/mnt"), ("b", "/mnt/x"), ("c", "/mnt/x/y/z")]


@pytest.mark.parametrize("pairs", itertools.permutations(TWO), ids=lambda pairs: pairs[0][0])
@pytest.mark.parametrize("there", [True, False], ids=["there", "new"])
def test_a_volume_within_a_volume_is_seen_in_either_order(shell, sources, pairs, there):
    """The control: the one order worked always."""
    if there:
        (sources / "b/y").mkdir()
    said = fine(shell("cat /mnt/x/y/a /mnt/x/b", *volumes(sources, pairs)))
    assert said == b"a\nb\n"


@pytest.mark.parametrize(
    "pairs", itertools.permutations(THREE), ids=lambda pairs: "".join(name for name, _ in pairs)
)
def test_three_volumes_within_each_other_are_seen_in_any_order(shell, sources, pairs):
    said = fine(shell("cat /mnt/a /mnt/x/b /mnt/x/y/z/c", *volumes(sources, pairs)))
    assert said == b"a\nb\nc\n"


def test_a_file_within_a_volume_is_seen_in_either_order(shell, sources):
    for pairs in itertools.permutations([("a", "/mnt"), ("b/b", "/mnt/sub/file")]):
        assert fine(shell("cat /mnt/a /mnt/sub/file", *volumes(sources, pairs))) == b"a\nb\n"


def test_neighbours_whose_names_begin_alike_are_no_parents(shell, sources):
    """/mnt/x-y comes before /mnt/x/y in the order of letters."""
    pairs = [("a", "/mnt/x/y"), ("b", "/mnt/x-y"), ("c", "/mnt/x")]
    for some in itertools.permutations(pairs):
        assert fine(shell("cat /mnt/x/y/a /mnt/x-y/b /mnt/x/c", *volumes(sources, some))) == (
            b"a\nb\nc\n"
        )


def test_read_only_holds_for_the_one_that_it_was_said_of(shell, sources):
    options = ["-v", f"{sources}/a:/mnt/x/y:ro", "-v", f"{sources}/b:/mnt/x"]
    script = "touch /mnt/x/new; touch /mnt/x/y/new 2>/dev/null || echo no"
    assert fine(shell(script, *options)) == b"no\n"
    assert (sources / "b/new").exists() and not (sources / "a/new").exists()


def test_dots_and_slashes_do_not_hide_who_is_whose_parent(shell, sources):
    options = ["-v", f"{sources}/a:/mnt//x/./y", "-v", f"{sources}/b:/mnt/x/"]
    assert fine(shell("cat /mnt/x/y/a /mnt/x/b", *options)) == b"a\nb\n"


def test_two_ways_to_one_place_are_two_for_one_place(run, sources):
    """Docker: Duplicate mount point."""
    options = ["-v", f"{sources}/a:/mnt/x", "-v", f"{sources}/b:/mnt//x/"]
    assert "/mnt/x" in one_line(run(*options, "true"))


# --- What does not fit together -------------------------------------------------------------------


def test_a_directory_onto_a_file_is_one_line_that_names_both(run, sources, fresh_root):
    """Docker: Are you trying to mount a directory onto a file (or vice-versa)?"""
    before = (fresh_root / "etc/passwd").read_bytes()
    text = one_line(run("-v", f"{sources}/a:/etc/passwd", "true", rootfs=fresh_root))
    assert f"{sources}/a" in text and "/etc/passwd" in text
    assert "directory" in text and "file" in text
    assert (fresh_root / "etc/passwd").read_bytes() == before


def test_a_file_onto_a_directory_is_one_line_that_names_both(run, sources):
    text = one_line(run("-v", f"{sources}/a/a:/etc", "true"))
    assert f"{sources}/a/a" in text and "/etc" in text
    assert "directory" in text and "file" in text


def test_below_a_file_is_no_place_for_a_volume(run, sources):
    text = one_line(run("-v", f"{sources}/a:/etc/passwd/x", "true"))
    assert f"{sources}/a" in text and "/etc/passwd" in text


def test_the_controls_fit_together(run, sources):
    assert fine(run("-v", f"{sources}/a:/etc", "cat", "/etc/a")) == b"a\n"
    assert fine(run("-v", f"{sources}/a/a:/etc/passwd", "cat", "/etc/passwd")) == b"a\n"


# --- Devices, sockets and pipes as a source -------------------------------------------------------


def shown_or_named(run, source, target, *command):
    """As Docker does it, or one line that names both."""
    result = run("-v", f"{source}:{target}", *command)
    if result.returncode != 125:
        return fine(result)
    text = one_line(result)
    assert str(source) in text and target in text, text
    return None


@pytest.mark.parametrize("target", ["/d", "/etc/motd", "/new/place"])
def test_dev_null_as_a_source_is_an_empty_file_or_one_line(run, fresh_root, target):
    """With Docker one hides a file like that."""
    command = ["sh", "-c", f"cat {target}; echo x >{target}; stat -c %F {target}"]

    def there(*words):
        return run(*words, rootfs=fresh_root)

    assert shown_or_named(there, "/dev/null", target, *command) in (
        None, b"character special file\n")  # fmt: skip
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("kind", ["device", "fifo", "socket"])
def test_what_is_neither_a_file_nor_a_directory_is_shown_or_one_line(run, fresh_root, place, kind):
    source = place / "source"
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.fspath(source))
    else:
        made = stat.S_IFIFO if kind == "fifo" else stat.S_IFCHR
        os.mknod(source, made | 0o644, os.makedev(1, 3))
    before = source.lstat()

    def there(*words):
        return run(*words, rootfs=fresh_root, timeout=10)

    flag = {"device": "-c", "fifo": "-p", "socket": "-S"}[kind]
    said = shown_or_named(there, source, "/place", "sh", "-c", f"[ {flag} /place ] && echo it")
    assert said in (None, b"it\n")
    after = source.lstat()
    assert (before.st_mode, before.st_uid, before.st_rdev) == (
        after.st_mode, after.st_uid, after.st_rdev)  # fmt: skip


def test_a_device_of_a_volume_s_does_not_open(run, place):
    """The wall that stays: what is in a directory of the host's is no device inside."""
    os.mknod(place / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    (place / "zero").chmod(0o666)
    assert (place / "zero").open("rb").read(1) == b"\0"
    result = run("-v", f"{place}:/mnt", "head", "-c", "1", "/mnt/zero")
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"Permission denied" in result.stderr
