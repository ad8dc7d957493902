"""What comes from outside the file is shown, and never reaches a terminal as it is.

Names of processes, directories, cgroups and hosts may hold escape sequences, which set a terminal's
title, change its colours, or make it answer as if somebody had typed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from containers import CONTROLLERS, HIERARCHIES, PREFIX, fine, go, one_line

pytestmark = pytest.mark.once  # the same with every Python

TITLE = "\x1b]0;owned\x07"  # the window's title
HOSTILE = {
    "a title": TITLE,
    "a colour": "\x1b[31m",
    "a colour in eight bits": "\u009b31m",
    "a bell and backspaces": "\a\b\b\b",
    "a new line": "x\nowned",
    "a return": "x\rowned",
    "right to left": "\u202eoga",
}
ALL = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def clean(output: bytes) -> str:
    """The text, after checking that nothing in it controls a terminal, or begins a line of ours."""
    text = output.decode()
    assert not CONTROL.search(text), repr(text)
    assert "\nowned" not in text
    return text


BE_HOSTILE = """
import ctypes, os, socket, sys
text, root, *cgroups = sys.argv[1:]
for cgroup in cgroups:
    with open(f"{cgroup}/cgroup.procs", "w") as file:
        file.write("0")
libc = ctypes.CDLL(None)
assert libc.unshare(0x04020000) == 0  # host and mounts
assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # private
assert libc.mount(os.fsencode(root), os.fsencode(root), None, 4096, None) == 0
socket.sethostname(text)
os.chroot(root)
os.chdir("/")
libc.prctl(15, os.fsencode(text), 0, 0, 0)
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def hostile_process(place: Path, text: str) -> Iterator[int]:
    """A process of somebody's own making: its name, words, root, host and cgroups are text."""
    root = place / f"root-{text}"
    root.mkdir()
    there = dict.fromkeys(HIERARCHIES[name] / f"{PREFIX}-x{text}" for name in CONTROLLERS)
    argv = [sys.executable, "-c", BE_HOSTILE, text, root, *there]
    for cgroup in there:
        if "\n" not in text:  # no cgroup has that in its name
            cgroup.mkdir()
    argv = argv[:5] if "\n" in text else argv
    try:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(argv, **pipes) as process:
            assert process.stdout.readline() == b"ready\n"
            yield process.pid
            process.stdin.close()
    finally:
        for cgroup in there:
            if cgroup.exists():
                cgroup.rmdir()


@ALL
def test_inspect_shows_a_process_s_own_bytes_as_text(place, text):
    with hostile_process(place, text) as pid:
        if "\n" not in text:  # the control: the kernel gives them out as they are
            assert text in Path(f"/proc/{pid}/cgroup").read_bytes().decode()
            assert text in Path(f"/proc/{pid}/mountinfo").read_bytes().decode()
        shown = clean(fine(go("inspect", f"{pid}")))
    assert "root-" in shown  # it is told, only not like that


@pytest.mark.parametrize("option", ["--explain", "--plan"])
@ALL
def test_the_lesson_shows_everybody_s_bytes_as_text(run, place, root, text, option):
    """A directory, the words of the command, a variable, a volume, where it starts."""
    own, volume = place / f"root-{text}", place / f"volume-{text}"
    subprocess.run(["cp", "-al", root, own], check=True)
    volume.mkdir()
    options = ["-v", f"{volume}:/mnt/{text}", "-e", f"A={text}", "-w", f"/{text}"]
    result = run(option, *options, "/bin/true", text, rootfs=own)
    assert result.returncode == 0, result
    clean(result.stdout + result.stderr)
    missing = run(option, *options, f"/bin/{text}", rootfs=own)
    clean(missing.stdout + missing.stderr)


@ALL
def test_the_lesson_shows_the_name_of_the_command_as_text(run, fresh_root, text):
    """The kernel takes a process's name from the file's."""
    (fresh_root / f"bin/{text}").write_text("#!/bin/sh\nread -r name </proc/self/comm\n")
    (fresh_root / f"bin/{text}").chmod(0o755)
    result = run("--explain", f"/bin/{text}", rootfs=fresh_root)
    assert result.returncode == 0, result
    clean(result.stderr)


def test_the_lesson_on_a_terminal_has_no_colours_but_its_own(terminal, place, root):
    own = place / f"root-{TITLE}"
    subprocess.run(["cp", "-al", root, own], check=True)
    caller = terminal("--explain", "-e", f"A={TITLE}", "/bin/true", TITLE, rootfs=own)
    assert caller.wait() == 0
    assert b"\x1b]" not in caller.output and b"\a" not in caller.output, bytes(caller.output)


@ALL
def test_a_line_about_a_failure_is_text(run, place, text):
    for words in (
        ["--rootfs", place / text, "true"],
        ["--user", text, "true"],
        ["--memory", text, "true"],
        ["--cgroup-parent", text, "true"],
        ["--volume", f"{place / text}:/mnt", "true"],
        ["--network", text, "true"],
        [f"--{text}", "true"],
    ):
        result = run(*words)
        assert result.returncode == 125 and result.stderr.startswith(b"go_container: ")
        clean(result.stderr)
    clean(one_line(run(f"/{text}"), 127).encode())


def test_what_a_server_says_is_text(place):
    """The reason of a status line is the server's, and so is where a redirection leads."""
    import socket
    import threading

    answers = [
        f"HTTP/1.0 404 {TITLE}\r\n\r\n",
        f"HTTP/1.0 302 Found\r\nLocation: gopher://{TITLE}/\r\n\r\n",
        f"{TITLE} 200 OK\r\n\r\n",
        f"HTTP/1.0 200 OK\r\nContent-Length: {TITLE}\r\n\r\n",
    ]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                client, _ = server.accept()
                with client:
                    client.recv(65536)
                    client.sendall(answer.encode())

        threading.Thread(target=serve, daemon=True).start()
        for _ in answers:
            url = f"http://127.0.0.1:{server.getsockname()[1]}/root.tar"
            result = go("pull", "--rootfs", place / "root", url, env={"PATH": "/usr/bin:/bin"})
            clean(one_line(result).encode())
