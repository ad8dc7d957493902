"""`child` is the container side of `run`. Typed by hand it refuses, and changes nothing."""

from __future__ import annotations

import pytest
from containers import PYTHON, SCRIPT, in_throwaway_namespaces

LOOK = "hostname; cat /proc/self/mountinfo; ls -A /; stat -c '%A %u %g %t %T %n' /dev/*"
ATTEMPTS = {
    "nothing": [],
    "a command": ["/bin/sh", "-c", "echo ran; hostname evil"],
    "options": ["--hostname", "evil", "--cgroup-parent", "none", "/bin/sh", "-c", "echo ran"],
    "garbage": ["--no-such-option"],
}
MANNERS = {
    "as it is": '"$@"',
    "as PID 1 of a new namespace": 'unshare --pid --fork --mount-proc "$@"',
    "in every namespace that run makes": 'unshare -UrmpiufC --mount-proc "$@"',
    "without standard input": '"$@" <&-',
    "without any stream": '("$@" <&- >&- 2>&-)',
    "with descriptors of the host": '"$@" 3</ 4</proc 5</dev/null',
}


def look_around(attempt: str, *words: str) -> tuple[str, str, str]:
    """The throw-away host before and after the attempt, and what this said itself."""
    script = f'exec 2>&1; {LOOK}; echo ==; {attempt}; echo "code $?"; echo ==; {LOOK}'
    result = in_throwaway_namespaces(["sh", "-c", script, "sh", *words])
    before, said, after = result.stdout.decode().split("==\n")
    return before, said, after


@pytest.mark.parametrize("manner", MANNERS.values(), ids=MANNERS)
@pytest.mark.parametrize("words", ATTEMPTS.values(), ids=ATTEMPTS)
def test_child_by_hand_refuses_and_changes_nothing(root, manner, words):
    child = [PYTHON, str(SCRIPT), "child", "--rootfs", str(root)]
    before, said, after = look_around(manner, *child, *words)
    assert before == after
    *error, code = said.splitlines()
    assert code == "code 125" and len(error) <= 1 and "ran" not in error
    assert all(line.startswith("go_container: ") for line in error)
    assert error or manner == MANNERS["without any stream"]


CHANGES = ["hostname evil", "mount -t tmpfs none /mnt", "mount --bind /etc /srv"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_would_have_been_seen(change):
    before, said, after = look_around(change)
    assert before != after and said == "code 0\n"
