"""Numbers of users and groups: what setresuid(2) would take for "no change", and whose they are.

-1, as a 32-bit number 4294967295, tells the kernel to leave an id as it is: that of root, who is
about to give it up. So every id is from 0 to 2147483647, as podman has it, wherever it comes from.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from containers import NormalUser, Result, fine, go, host_files, one_line

IDS = 65536
RAN = "echo ran; id -u; id -g; id -G"
HIGHEST = 2147483647
UNCHANGED = 4294967295  # -1

# Lines of the root's own files: every name has one number that is none, or one that is unmapped.
PASSWD = f"""\
root:x:0:0:root:/root:/bin/sh
fine:x:1000:2000::/:/bin/sh
last:x:65535:65535::/:/bin/sh
unchanged:x:{UNCHANGED}:1000::/:/bin/sh
unchanged-group:x:1001:{UNCHANGED}::/:/bin/sh
too-high:x:{HIGHEST + 1}:1000::/:/bin/sh
too-high-group:x:1002:{HIGHEST + 1}::/:/bin/sh
wrapped:x:4294967296:0::/:/bin/sh
minus:x:-1:1000::/:/bin/sh
minus-group:x:1003:-1::/:/bin/sh
empty::::::
no-user:x::1000::/:/bin/sh
no-group:x:1004:::/:/bin/sh
words:x:one:1000::/:/bin/sh
words-group:x:1005:one::/:/bin/sh
unmapped:x:70000:1000::/:/bin/sh
unmapped-group:x:1006:70000::/:/bin/sh
joins-unchanged:x:1007:1000::/:/bin/sh
joins-too-high:x:1008:1000::/:/bin/sh
joins-minus:x:1009:1000::/:/bin/sh
joins-unmapped:x:1010:1000::/:/bin/sh
joins-fine:x:1011:1000::/:/bin/sh
"""
GROUP = f"""\
root:x:0:
fine:x:2000:joins-fine
last:x:65535:joins-fine
unchanged:x:{UNCHANGED}:joins-unchanged
too-high:x:{HIGHEST + 1}:joins-too-high
minus:x:-1:joins-minus
unmapped:x:70000:joins-unmapped
empty:x::
words:x:one:
"""

NUMBERS = [
    f"{UNCHANGED}",
    f"1000:{UNCHANGED}",
    f"{UNCHANGED}:{UNCHANGED}",
    f"fine:{UNCHANGED}",
    f"{HIGHEST + 1}",
    f"0:{HIGHEST + 1}",
    "4294967296",
    "0:4294967296",
    "18446744073709551615",
    "1000:18446744073709551616",
    "99999999999999999999999999",
    "-1",
    "-2",
    "0:-1",
    "1000:-2",
    "1000.5",
    "0x10",
    "1_000",
    "+5",
    " 5",
    "\u0661",  # a digit in Arabic, which int() takes
    "0:\u0661",
]
NAMES = [
    "unchanged",
    "unchanged-group",
    "too-high",
    "too-high-group",
    "wrapped",
    "minus",
    "minus-group",
    "empty",
    "no-user",
    "no-group",
    "words",
    "words-group",
    "1001",  # by its number it is the same user, with the same group
    "fine:unchanged",
    "fine:too-high",
    "fine:minus",
    "fine:empty",
    "fine:words",
    "joins-unchanged",
    "joins-too-high",
]
UNMAPPED = [
    f"{IDS}",
    "70000",
    f"{HIGHEST}",
    "0:70000",
    f"0:{HIGHEST}",
    "unmapped",
    "unmapped-group",
    "fine:unmapped",
    "joins-unmapped",
]
GOOD = {
    "0": "0 0 0",
    "fine": "1000 2000 2000",
    "1000": "1000 2000 2000",
    "1000:fine": "1000 2000 2000",
    "1234": "1234 0 0",
    "0:0": "0 0 0",
    "65535:65535": "65535 65535 65535",
    "last": "65535 65535 65535",
    "joins-fine": "1011 1000 1000 2000 65535",
    "1001:1000": "1001 1000 1000",  # its own group is none, and another one is given
}
WAYS = {
    "run": ["run"],
    "run as root outside": ["run", "--userns", "host-root"],
    "spec": ["spec"],
    "--plan": ["run", "--plan"],
}
# Each of them with `run`, and these with the other ways.
SOME = [f"{UNCHANGED}", f"1000:{UNCHANGED}", "4294967296", "-2", "unchanged", "no-group", "1001",
        "fine:unchanged", "joins-unchanged"]  # fmt: skip
SOME_UNMAPPED = ["70000", f"0:{HIGHEST}", "unmapped-group", "fine:unmapped", "joins-unmapped"]


@pytest.fixture(scope="module")
def numbered_root(root: Path, scratch: Path) -> Path:
    """A root with those users and groups."""
    path = scratch / "numbered"
    subprocess.run(["cp", "-a", root, path], check=True)
    (path / "etc/passwd").write_text(PASSWD)
    (path / "etc/group").write_text(GROUP)
    return path


@pytest.fixture
def with_user(numbered_root: Path, parent: str) -> Callable[..., Result]:
    """`with_user(way, user)`: what one of the WAYS says to `--user`."""

    def with_user(way: str, user: str) -> Result:
        words = [*WAYS[way], "--rootfs", numbered_root, "--cgroup-parent", parent, f"--user={user}"]
        return go(*words, "/bin/sh", "-c", RAN)

    return with_user


def refusal(result: Result) -> str:
    """The one line beside the warning of --userns host-root; and it is none about a defect."""
    lines = [line for line in result.stderr.splitlines(keepends=True) if b"warning" not in line]
    plan = b"" if "--plan" in result.args else result.stdout  # as far as it got
    text = one_line(Result(result.args, result.returncode, plan, b"".join(lines)))
    assert "internal error" not in text, text
    return text


@pytest.mark.parametrize("user", NUMBERS)
def test_a_number_that_no_id_is_makes_no_container(with_user, user):
    assert user.rpartition(":")[2].strip() in refusal(with_user("run", user))


@pytest.mark.parametrize("user", NAMES)
def test_a_line_with_a_number_that_no_id_is_makes_no_container(with_user, user):
    """…and is not passed over either: the next one would be somebody else."""
    refusal(with_user("run", user))


@pytest.mark.parametrize("way", [way for way in WAYS if way != "run"])
@pytest.mark.parametrize("user", SOME)
def test_what_no_id_is_no_other_way_takes(with_user, way, user):
    refusal(with_user(way, user))


@pytest.mark.parametrize("user", UNMAPPED)
def test_an_id_that_the_container_does_not_have_is_one_line(with_user, user):
    refusal(with_user("run", user))


@pytest.mark.parametrize("way", ["run as root outside", "spec"])
@pytest.mark.parametrize("user", SOME_UNMAPPED)
def test_an_id_that_the_container_does_not_have_no_other_way_takes(with_user, way, user):
    refusal(with_user(way, user))


@pytest.mark.parametrize(("user", "ids"), GOOD.items())
def test_the_command_has_the_very_ids_that_were_asked_for(with_user, user, ids):
    """The control: beside all those lines, these work."""
    assert fine(with_user("run", user)).split() == [b"ran", *ids.encode().split()]


@pytest.mark.parametrize(("user", "ids"), GOOD.items())
def test_spec_says_the_very_ids_that_were_asked_for(with_user, user, ids):
    theirs = json.loads(fine(with_user("spec", user)))["process"]["user"]
    uid, gid, *groups = [int(number) for number in ids.split()]
    assert (theirs["uid"], theirs["gid"]) == (uid, gid)
    assert {gid, *theirs["additionalGids"]} == set(groups)


def test_one_id_is_all_that_a_normal_user_without_a_range_has(normal_user, numbered_root):
    user: NormalUser = normal_user()
    words = ["run", "--rootfs", numbered_root, "--cgroup-parent", "none"]
    for other in ("1", "fine", "0:1", f"{UNCHANGED}", f"0:{UNCHANGED}"):
        refusal(go(*words, "--user", other, "/bin/true", prefix=user.prefix))
    assert fine(go(*words, "/bin/sh", "-c", "id -u", prefix=user.prefix)) == b"0\n"


# --- The range outside, when nobody has given one ------------------------------------------------

USED = {  # users, and ranges of others in /etc/subuid and /etc/subgid
    "a user in the middle": ([100000], []),
    "a user at its end": ([165535], []),
    "users everywhere below a million": ([*range(70000, 1000000, 30000)], []),
    "another's range": ([], [(100000, 65536)]),
    "another's range in the middle": ([], [(150000, 10)]),
    "a range that begins below": ([], [(90000, 10001)]),
    "two ranges": ([], [(100000, 65536), (165536, 65536)]),
    "a range to the millions": ([], [(65536, 5000000)]),
    "a range and a user behind it": ([200000], [(100000, 65536)]),
    "what is not quite a line": ([], [(100000, 65536), ("", 65536), (300000, ""), ("x", "y")]),
}


@pytest.mark.parametrize(("users", "ranges"), USED.values(), ids=USED)
@pytest.mark.parametrize("kind", ["uid", "gid"])
def test_the_range_that_nobody_gave_is_nobodys(shell, place, kind, users, ranges):
    """Who has one of these ids on the host could stop the container's processes, and more."""
    passwd = Path("/etc/passwd").read_text()
    group = Path("/etc/group").read_text()
    for number in users:
        if kind == "uid":
            passwd += f"user{number}:x:{number}:1000::/:/bin/sh\n"
        else:
            group += f"group{number}:x:{number}:\n"
    subids = "".join(f"somebody{i}:{a}:{n}\n" for i, (a, n) in enumerate(ranges))
    given = dict.fromkeys(("subuid", "subgid"), "") | {f"sub{kind}": subids}
    prefix = ["env", "-u", "SUDO_USER", "-u", "SUDO_UID", "-u", "SUDO_GID"]
    prefix += host_files(place, passwd=passwd, group=group, **given)
    maps = fine(shell("cat /proc/self/uid_map; cat /proc/self/gid_map", prefix=prefix)).split()
    numbers = [int(number) for number in maps]
    assert numbers[0::3] == [0, 0] and numbers[2::3] == [IDS, IDS]
    first = numbers[1] if kind == "uid" else numbers[4]
    taken = [(number, 1) for number in users]
    taken += [(a, n) for a, n in ranges if isinstance(a, int) and isinstance(n, int)]
    assert first >= IDS and first + IDS <= HIGHEST
    assert not [(a, n) for a, n in taken if a < first + IDS and first < a + n]


def test_where_no_range_is_free_below_the_highest_id_it_is_one_line(shell, place):
    """As podman has it; the kernel would take ids beyond. The control: a few less are taken."""
    end = HIGHEST - 2 * IDS
    for count, free in ((HIGHEST + 1 - 100000, False), (end - 100000, True)):
        subids = f"somebody:100000:{count}\n"
        prefix = ["env", "-u", "SUDO_USER", *host_files(place, subuid=subids, subgid=subids)]
        result = shell("echo ran", prefix=prefix)
        assert fine(result) == b"ran\n" if free else "subuid" in one_line(result)


def test_the_same_free_range_is_taken_each_time(shell, place):
    """…by spec as well: a bundle's copy is owned by it."""
    subids = "somebody:100000:65536\n"
    prefix = ["env", "-u", "SUDO_USER", *host_files(place, subuid=subids, subgid=subids)]
    maps = {fine(shell("cat /proc/self/uid_map", prefix=prefix)) for _ in range(3)}
    assert len(maps) == 1 and b" 100000 " not in maps.pop()
