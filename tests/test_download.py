"""pull from a server that is no friend: no end, other lengths, and redirections to elsewhere."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from containers import (
    CGROUP_SH,
    HIERARCHIES,
    PYTHON,
    SCRIPT,
    children,
    fine,
    go,
    one_line,
    wait_until,
)

pytestmark = pytest.mark.once  # the same with every Python

NO_PROXY = {name: text for name, text in os.environ.items() if not name.lower().endswith("proxy")}
MOST = 1 << 30  # bytes of a download
ENDLESS = memoryview(bytes(1 << 20))


class Server:
    """Answers on a socket as it is told: what http.server would never say."""

    def __init__(self, answer: Callable[[socket.socket, str], None]) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.answer, self.asked = answer, []
        self.sent, self.stopped = 0, threading.Event()
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.talk, args=(client,), daemon=True).start()

    def talk(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            request = client.recv(65536).decode(errors="replace")
            path = (request.split() + ["", ""])[1]
            self.asked.append(path)
            self.answer(client, path)

    def send(self, client: socket.socket, data: Any) -> None:
        client.sendall(data)
        self.sent += len(data)

    def close(self) -> None:
        self.stopped.set()
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


@contextmanager
def serving(answer: Callable[..., None]) -> Iterator[Server]:
    server = Server(answer)
    try:
        yield server
    finally:
        server.close()


def heads(*lines: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", "Connection: close", *lines, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.fixture
def target(place: Path) -> Path:
    """Where pull is to put its root, on a file system that takes much."""
    (place / "mine").mkdir()
    return place / "mine/root"


def pull(target: Path, url: str, *words: str, **kw: Any):
    return go("pull", *words, "--rootfs", target, url, env=NO_PROXY, **kw)


def nothing_left(target: Path) -> bool:
    return os.listdir(target.parent) == []


# --- A body and its length -----------------------------------------------------------------------


def shown_on_a_terminal(argv: list[Any]) -> tuple[int, bytes]:
    """The exit code of a command, and up to some MB of what it shows."""
    ours, theirs = pty.openpty()
    shown, deadline = b"", time.monotonic() + 9
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    with subprocess.Popen(argv, env=NO_PROXY, **streams) as process:
        os.close(theirs)
        while time.monotonic() < deadline and len(shown) < 5_000_000:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    shown += os.read(ours, 65536)
                except OSError:
                    break
        process.poll() is None and wait_until(lambda: process.poll() is not None, 0.5)
        process.kill()
    os.close(ours)
    return process.returncode, shown


LENGTHS = ["1", "10", "0", "-5", "99999999999999999999999", "many", "1e3", "", "5, 7"]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_body_in_chunks_of_another_length_draws_no_flood(target, tarball, length):
    """A length beside chunks means nothing, and who counts with it draws a bar without end."""
    body = tarball.read_bytes()[: 4 << 20]

    def answer(client: socket.socket, _: str) -> None:
        client.sendall(heads(f"Content-Length: {length}", "Transfer-Encoding: chunked"))
        for at in range(0, len(body), 1 << 14):
            client.sendall(chunk(body[at : at + (1 << 14)]))
        client.sendall(chunk(b""))

    with serving(answer) as server:
        argv = [PYTHON, SCRIPT, "pull", "--rootfs", target, f"{server.url}/root.tar"]
        code, shown = shown_on_a_terminal(argv)
    assert code in (0, 125), shown[-300:]
    assert len(shown) < 200_000, f"{len(shown)} bytes were shown"
    assert b"internal error" not in shown and b"Traceback" not in shown
    longest = max(len(line) for line in re.split(rb"[\r\n]+", shown))
    assert longest < 300 and (code == 0 or nothing_left(target))


@pytest.mark.parametrize("length", ["-5", "99999999999999999999999", "many", "5, 7"])
def test_a_length_that_is_none_is_one_line(target, tarball, length):
    def answer(client: socket.socket, _: str) -> None:
        client.sendall(heads(f"Content-Length: {length}") + tarball.read_bytes())

    with serving(answer) as server:
        result = pull(target, f"{server.url}/root.tar", timeout=10)
    if result.returncode:
        assert "internal error" not in one_line(result)
        assert nothing_left(target)
    else:
        assert fine(result) == b""


# --- Size and place ------------------------------------------------------------------------------


def test_a_body_without_an_end_is_given_up(target):
    """…when it is larger than any root that this is for."""

    def answer(client: socket.socket, _: str) -> None:
        client.sendall(heads())
        while server.sent <= MOST + (64 << 20):  # more than that is proof enough
            server.send(client, ENDLESS)

    with serving(answer) as server:
        result = pull(target, f"{server.url}/root.tar", timeout=30)
        sent = server.sent
    assert str(server.url) in one_line(result)
    assert sent <= MOST + (32 << 20)  # with what the sockets hold
    assert nothing_left(target)


def test_a_body_that_is_announced_to_be_too_large_is_not_even_begun(target):
    def answer(client: socket.socket, _: str) -> None:
        client.sendall(heads(f"Content-Length: {20 * MOST}"))
        while server.sent < 200 << 20:
            server.send(client, ENDLESS)
        server.stopped.wait(20)

    with serving(answer) as server:
        one_line(pull(target, f"{server.url}/root.tar", timeout=10))
        assert server.sent < 100 << 20
    assert nothing_left(target)


def test_headers_without_an_end_are_given_up(target):
    def answer(client: socket.socket, _: str) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\n")
        for number in range(1_000_000):
            server.send(client, b"X-%d: %b\r\n" % (number, bytes(1000).replace(b"\0", b"x")))

    with serving(answer) as server:
        one_line(pull(target, f"{server.url}/root.tar", timeout=10))
        assert server.sent < 64 << 20
    assert nothing_left(target)


def test_a_download_takes_disk_and_no_memory(target, own_parent):
    """In a cgroup with a fraction of its size: what were kept in memory would end it (137)."""
    size, limit = 300 << 20, "100M"
    subprocess.run([CGROUP_SH, "--name", own_parent, "--memory", limit], check=True,
                   capture_output=True)  # fmt: skip
    procs = HIERARCHIES["memory"] / own_parent / "cgroup.procs"

    def answer(client: socket.socket, _: str) -> None:
        client.sendall(heads(f"Content-Length: {size}"))
        for _ in range(size >> 20):
            server.send(client, ENDLESS)

    with serving(answer) as server:
        join = ["sh", "-c", 'echo 0 >"$0" && exec "$@"', procs]
        words = ("--sha256", "0" * 64)
        result = pull(target, f"{server.url}/root.tar", *words, prefix=join, timeout=30)
        assert server.sent == size
    assert "256" in one_line(result)
    assert nothing_left(target)


def test_what_is_downloaded_is_beside_the_target(target):
    """Its file system is the one that has to have the room; /tmp may be small, or memory."""
    half, paused = 8 << 20, threading.Event()

    def answer(client: socket.socket, _: str) -> None:
        client.sendall(heads(f"Content-Length: {2 * half}") + bytes(half))
        paused.set()
        server.stopped.wait(20)

    def places(pid: int) -> set[str]:
        found = set()
        for each in [pid, *children(pid)]:
            for fd in Path(f"/proc/{each}/fd").glob("*"):
                with suppress(OSError):
                    if fd.stat().st_size >= half // 2:
                        found.add(os.readlink(fd))
        return found

    with serving(answer) as server:
        argv = [PYTHON, SCRIPT, "pull", "--rootfs", target, f"{server.url}/root.tar"]
        with subprocess.Popen(argv, env=NO_PROXY, stderr=subprocess.PIPE) as process:
            try:
                assert paused.wait(10)
                found = wait_until(lambda: places(process.pid))
                assert found and all(path.startswith(f"{target.parent}/") for path in found), found
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(10)
    assert nothing_left(target)


# --- Redirections --------------------------------------------------------------------------------


@pytest.fixture
def elsewhere() -> Iterator[tuple[int, list[bytes]]]:
    """A port of another service's, and who has called there."""
    calls: list[bytes] = []

    def answer(client: socket.socket, _: str) -> None:
        calls.append(b"called")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)
        end = threading.Event()

        def serve() -> None:
            while not end.is_set():
                with suppress(TimeoutError):
                    client, _ = listening.accept()
                    with client:
                        calls.append(b"called")
                        client.sendall(b"220 here I am\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1], calls
        end.set()
        thread.join()


@pytest.mark.parametrize("kind", ["ftp", "FTP", "gopher", "dict", "telnet", "tftp", "scp"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirection_to_another_protocol_is_not_followed(target, elsewhere, kind, status):
    port, calls = elsewhere
    location = f"{kind}://127.0.0.1:{port}/root.tar"

    def answer(client: socket.socket, _: str) -> None:
        client.sendall(f"HTTP/1.1 {status} There\r\nLocation: {location}\r\n"
                       "Content-Length: 0\r\nConnection: close\r\n\r\n".encode())  # fmt: skip

    with serving(answer) as server:
        one_line(pull(target, f"{server.url}/root.tar", timeout=10))
    assert calls == [] and nothing_left(target)


@pytest.mark.parametrize("kind", ["file://", "file://localhost", "file:", "data:,", "/../../.."])
def test_a_redirection_to_a_file_of_the_host_s_is_not_followed(target, tarball, kind):
    def answer(client: socket.socket, path: str) -> None:
        if path == "/root.tar":
            client.sendall(f"HTTP/1.1 302 There\r\nLocation: {kind}{tarball}\r\n"
                           "Content-Length: 0\r\nConnection: close\r\n\r\n".encode())  # fmt: skip
        else:
            client.sendall(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")

    with serving(answer) as server:
        one_line(pull(target, f"{server.url}/root.tar", timeout=10))
    assert nothing_left(target)


def test_redirections_without_an_end_are_given_up(target):
    def answer(client: socket.socket, path: str) -> None:
        client.sendall(f"HTTP/1.1 302 There\r\nLocation: /{len(server.asked)}\r\n"
                       "Content-Length: 0\r\nConnection: close\r\n\r\n".encode())  # fmt: skip

    with serving(answer) as server:
        one_line(pull(target, f"{server.url}/root.tar", timeout=20))
        assert 1 < len(server.asked) <= 60
    assert nothing_left(target)


def test_an_honest_redirection_is_followed(target, tarball, elsewhere):
    """The control; and what it leads to is another server."""

    def there(client: socket.socket, _: str) -> None:
        body = tarball.read_bytes()
        client.sendall(heads(f"Content-Length: {len(body)}") + body)

    def here(client: socket.socket, _: str) -> None:
        client.sendall(f"HTTP/1.1 302 There\r\nLocation: {other.url}/x\r\n"
                       "Content-Length: 0\r\nConnection: close\r\n\r\n".encode())  # fmt: skip

    with serving(there) as other, serving(here) as server:
        assert fine(pull(target, f"{server.url}/root.tar")) == b""
    assert (target / "mark").read_text() == "it\n"
