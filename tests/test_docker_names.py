"""The last mile of docker run's options: taken as it takes them, refused with its reasons.

What there is no such thing for is answered by one line that says what there is instead.
"""

from __future__ import annotations

import re

import pytest
from containers import HIERARCHIES, Container, fine, go, one_line, read_limits

pytestmark = pytest.mark.once  # the same with every Python


def usage_line(result):
    """The first line of an error of the command line, after which the usage may follow."""
    lines = result.stderr.decode().splitlines()
    assert result.returncode == 125 and not result.stdout, result
    assert lines[0].startswith("go_container: ")
    assert all(line.startswith("usage: ") for line in lines[1:]) and len(lines) < 3, lines
    return lines[0]


# --- --env ---------------------------------------------------------------------------------------


def variables(result):
    return dict(line.split("=", 1) for line in fine(result).decode().splitlines())


@pytest.mark.parametrize("option", ["-e", "--env"])
def test_a_variable_by_its_name_alone_has_the_caller_s_value(run, option):
    prefix = ["env", "NAME=a value", "EMPTY=", "PLAIN=it"]
    words = [option, "NAME", option, "EMPTY", "env"]
    inside = variables(run(*words, prefix=prefix))
    assert (inside["NAME"], inside["EMPTY"]) == ("a value", "")
    assert "PLAIN" not in inside  # the control: what is not named stays outside


@pytest.mark.parametrize("name", ["HOSTNAME", "TERM"])
def test_a_variable_that_the_caller_has_not_is_not_there_inside_either(run, name):
    """docker run -e NAME without a NAME takes away what it would set itself."""
    assert name in variables(run("env"))
    assert name not in variables(run("-e", name, "env", prefix=["env", "-u", name]))


@pytest.mark.parametrize("value", ["", "=", "=value"])
def test_a_variable_without_a_name_is_refused_as_that(run, value):
    text = one_line(run("-e", value, "true"))
    assert "--env" in text or "-e" in text
    assert re.search("name|variable|empty", text.replace("--env", "")), text


# --- --network, capabilities, --workdir ----------------------------------------------------------


@pytest.mark.parametrize("words", [["--net", "none"], ["--net=none"]], ids=" ".join)
def test_net_is_network(shell, words):
    count = "tail -n +3 /proc/net/dev | wc -l"
    assert fine(shell(count, *words)) == b"1\n"
    assert fine(shell(count, "--net=host")) == fine(shell(count))


def test_net_is_refused_as_network_is(run):
    assert "banana" in one_line(run("--net", "banana", "true"))


def bounding(result):
    return int(re.search(rb"CapBnd:\t(\w+)", fine(result))[1], 16)


@pytest.mark.parametrize("name", ["all", "ALL", "All"])
def test_all_capabilities_may_be_spelled(run, name):
    status = ["cat", "/proc/self/status"]
    every = bounding(run("--cap-add", "ALL", *status))
    assert bin(every).count("1") > 30 > bin(bounding(run(*status))).count("1")
    for words in ([f"--cap-add={name}"], ["--cap-add", name]):
        assert bounding(run(*words, *status)) == every
    assert bounding(run(f"--cap-drop={name}", *status)) == 0
    assert bounding(run("--cap-drop", name, "--cap-add", "CHOWN", *status)) == 1
    assert bounding(run("--cap-add", name, "--cap-drop", "chown", *status)) == every & ~1


def test_a_relative_working_directory_is_refused_with_the_reason(run):
    text = one_line(run("-w", "usr/bin", "true"))
    assert "usr/bin" in text and "absolute" in text


def test_a_working_directory_with_dots_is_the_one_that_it_means(run):
    """The control: without them it is the same."""
    for path in ("/usr/../tmp", "/usr/bin/../../tmp/", "/../tmp", "/tmp"):
        assert fine(run("-w", path, "/bin/pwd")) == b"/tmp\n"


def test_a_volume_s_place_with_dots_is_the_one_that_it_means(run, place):
    (place / "file").write_text("it\n")
    for path in ("/usr/../mnt", "/../mnt", "/mnt"):
        assert fine(run("-v", f"{place}:{path}", "cat", "/mnt/file")) == b"it\n"


# --- --user --------------------------------------------------------------------------------------


@pytest.fixture
def digits_root(fresh_root):
    """A root with a user and a group whose names are numbers: other ones than their own."""
    with (fresh_root / "etc/passwd").open("a") as file:
        file.write("1234:x:2000:3000:named like a number:/home/digits:/bin/sh\n")
        file.write("named:x:4321:4444:with that number:/home/named:/bin/sh\n")
    with (fresh_root / "etc/group").open("a") as file:
        file.write("777:x:3777:\ngrouped:x:888:named\n")
    return fresh_root


WHO = {
    "a number that is a name, too": ("1234", "1234 0 /"),
    "a number that somebody has": ("4321", "4321 4444 /home/named"),
    "a name": ("named", "4321 4444 /home/named"),
    "a number with zeros in front": ("04321", "4321 4444 /home/named"),
    "a group that is a name, too": ("0:777", "0 777 /root"),
    "a group that somebody has": ("named:888", "4321 888 /home/named"),
    "a group by its name": ("named:grouped", "4321 888 /home/named"),
}


@pytest.mark.parametrize("user, expected", WHO.values(), ids=WHO)
def test_who_is_all_digits_is_a_number(shell, digits_root, user, expected):
    """Docker always takes a number for a number, whatever /etc/passwd calls so."""
    look = "echo $(id -u) $(id -g) $HOME"
    assert fine(shell(look, "--user", user, rootfs=digits_root)).decode().strip() == expected


# --- --memory ------------------------------------------------------------------------------------

MB = 1 << 20
SIZES = {
    "50MB": 50 * MB, "50Mb": 50 * MB, "50mB": 50 * MB, "50mb": 50 * MB, "50MiB": 50 * MB,
    "50mib": 50 * MB, "50MIB": 50 * MB, "50 m": 50 * MB, "50 MB": 50 * MB, "50 MiB": 50 * MB,
    "51200kib": 50 * MB, "51200 KB": 50 * MB, "52428800 b": 50 * MB, "52428800B": 50 * MB,
    "0.5g": 512 * MB, ".5g": 512 * MB, "1.5 GiB": 1536 * MB, "1t": 1 << 40, "1T": 1 << 40,
    "1TB": 1 << 40, "1TiB": 1 << 40, "0.001tb": int(0.001 * (1 << 40)) // 4096 * 4096,
}  # fmt: skip


@pytest.mark.parametrize("size, limit", SIZES.items(), ids=SIZES)
def test_a_size_may_be_spelled(start, size, limit):
    with start("--memory", size) as container:
        assert leaf_limit(container) == limit


def leaf_limit(container: Container) -> int:
    path = container.cgroup("memory").relative_to(HIERARCHIES["memory"])
    assert path.name.startswith("run-")
    return int(read_limits("memory", path)[0])


NO_SIZES = ["50bb", "50mbb", "50ki", "50i", "50ib", "50m5", "50  m", " 50m", "50m ", "5 0m", "m",
            "MB", "50x", "-50m", "+50m", "50mm", "50mkb", "50,5m", "50 m b"]  # fmt: skip


@pytest.mark.parametrize("size", NO_SIZES)
def test_a_size_that_docker_refuses_is_refused(run, size):
    text = one_line(run("--memory", size, "true"))
    assert "--memory" in text and size in text


# --- What needs a value --------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["-h", "-e", "-w", "-u", "-v", "-m", "--hostname", "--net"])
def test_an_option_without_its_value_is_refused_as_that(option):
    text = usage_line(go("run", option))
    assert option in text and re.search("value|argument", text)


def test_h_is_the_host_s_name_and_no_help(run):
    """…of run; of the program itself it is the help."""
    assert fine(run("-h", "box", "hostname")) == b"box\n"
    assert usage_line(go("run", "-h", "box")).startswith("go_container: ")
    assert b"usage: " in fine(go("-h"))


# --- What there is no such thing for -------------------------------------------------------------

INSTEAD = {  # the option: what the line has to name
    "--name box": r"--hostname|-h\b|pid|inspect|kill",
    "--name=box": r"--hostname|-h\b|pid|inspect|kill",
    "-d": r"&|background|systemd-run|nohup|setsid",
    "--detach": r"&|background|systemd-run|nohup|setsid",
    "-dit": r"&|background|systemd-run|nohup|setsid",
    "-p 8080:80": r"--network",
    "-p8080:80": r"--network",
    "--publish 8080:80": r"--network",
    "--publish=8080:80": r"--network",
    "-P": r"--network",
    "--entrypoint sh": r"COMMAND|command",
    "--entrypoint=sh": r"COMMAND|command",
    "--privileged": r"--cap-add",
    "--mount type=bind,src=/etc,dst=/mnt": r"--volume|-v\b",
    "--mount=type=bind,src=/etc,dst=/mnt": r"--volume|-v\b",
    "--tmpfs /scratch": r"--volume|-v\b|/dev/shm",
    "--tmpfs=/scratch:size=1m": r"--volume|-v\b|/dev/shm",
}


@pytest.mark.parametrize("option, instead", INSTEAD.items(), ids=INSTEAD)
def test_what_is_missing_says_in_one_line_what_there_is_instead(run, option, instead):
    """The control: what is no option of docker run's either is not answered like this."""
    words = option.split()
    result = run(*words, "true")
    if option.startswith("--tmpfs") and result.returncode == 0:
        look = run(*words, "grep", " /scratch tmpfs ", "/proc/mounts")
        assert b" /scratch tmpfs " in fine(look)
        return
    text = one_line(result)
    name = re.match(r"--?\w+", words[0])[0]
    assert (name if name.startswith("--") else name[:2]) in text, text
    told = text.partition(":")[2].replace(option, "")
    assert re.search(instead, told), text
    assert not re.search(instead, usage_line(run("--banana", "true")))


def test_such_a_line_comes_before_anything_is_made(run, place):
    """…and wherever on the line the option is."""
    text = one_line(run("-v", f"{place}:/mnt", "--privileged", "--rm", "true", rootfs=place))
    assert "--cap-add" in text
    assert list(place.iterdir()) == []


def test_what_the_command_is_given_is_its_own(run):
    assert fine(run("echo", "-d", "--name", "box", "-p")) == b"-d --name box -p\n"
