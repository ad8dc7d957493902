"""--network pasta: an address of its own, a way out, and published ports.

The host is a network namespace here, with one cable to another one, which is the rest of the
world: it has the gateway, and an address that only a route leads to.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from containers import PYTHON, SCRIPT, children, fine, go, host_files, one_line, wait_until

pytest_plugins = ["attempts"]
pytestmark = [
    pytest.mark.skipif(not shutil.which("pasta"), reason="needs pasta: apt-get install passt"),
    pytest.mark.skipif(not shutil.which("ip"), reason="needs ip: apt-get install iproute2"),
]

HOST, GATEWAY, FAR = "192.0.2.10", "192.0.2.1", "198.51.100.1"
HOST_6, FAR_6 = "2001:db8::10", "2001:db8:1::1"

# Without udev only root may open /dev/net/tun; a machine has it open for all, and so this one.
MAKE_WORLD = f"""set -e
mount -t tmpfs -o mode=755 tmpfs /mnt && mknod -m 666 /mnt/tun c 10 200
mount --bind /mnt/tun /dev/net/tun && umount -l /mnt
echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range
ip link set lo up
unshare --net sleep 1000 & far=$!
while [ "$(readlink /proc/$far/ns/net)" = "$(readlink /proc/$$/ns/net)" ]; do sleep 0.01; done
ip link add eth0 type veth peer name far netns $far
ip addr add {HOST}/24 dev eth0 && ip link set eth0 up && ip route add default via {GATEWAY}
nsenter -t $far -n sh -ec 'ip link set lo up; ip link set far up; ip addr add {GATEWAY}/24 dev far
    ip addr add {FAR}/32 dev lo'
if [ -e /proc/net/if_inet6 ]; then
    ip addr add {HOST_6}/64 dev eth0 nodad
    nsenter -t $far -n sh -ec 'ip addr add 2001:db8::1/64 dev far nodad
        ip addr add {FAR_6}/128 dev lo nodad'
    ip route add default via 2001:db8::1
fi
echo $far
exec sleep 1000
"""


class World(NamedTuple):
    host: int  # a process in the network namespace that is the host's
    far: int  # one in the other one
    prefix: list[str]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    words = ["unshare", "--mount", "--net", "sh", "-c", MAKE_WORLD]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        assert line, "no network namespaces, or no veth"
        try:
            yield World(process.pid, int(line), ["nsenter", "-t", str(process.pid), "-n", "-m"])
        finally:
            os.kill(int(line), signal.SIGKILL)
            process.kill()


def socket_in(pid: int, *what: int) -> socket.socket:
    """A socket of the network namespace that a process is in: it belongs there wherever we are."""
    made = []

    def enter() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{pid}/ns/net") as namespace:
            assert libc.setns(namespace.fileno(), 0x40000000) == 0, os.strerror(ctypes.get_errno())
        made.append(socket.socket(*what))

    thread = threading.Thread(target=enter)  # only this thread goes there
    thread.start()
    thread.join()
    return made[0]


def family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@pytest.fixture
def serve() -> Iterator[Callable[..., socket.socket]]:
    """`serve(pid, address, port, text)`: a server that answers with a text, over TCP or UDP."""
    sockets = []

    def serve(pid: int, address: str, port: int, answer, kind: int = socket.SOCK_STREAM):
        server = socket_in(pid, family(address), kind)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        sockets.append(server)

        def work() -> None:
            with suppress(OSError):
                while True:
                    if kind == socket.SOCK_DGRAM:
                        data, whom = server.recvfrom(4096)
                        if whom is None:
                            break  # the end of the test
                        server.sendto(answer(data), whom)
                    else:
                        connection, whom = server.accept()
                        with connection, suppress(OSError):
                            connection.settimeout(2)
                            connection.recv(4096)
                            text = b"%s to %s\n" % (answer, whom[0].encode())
                            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + text)
                            connection.shutdown(socket.SHUT_WR)
                            while connection.recv(4096):
                                pass

        if kind == socket.SOCK_STREAM:
            server.listen()
        threading.Thread(target=work, daemon=True).start()
        return server

    yield serve
    for server in sockets:
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()


QUESTION = b"question\n"


def ask(pid: int, address: str, port: int, kind: int = socket.SOCK_STREAM) -> bytes:
    """What a server says to a client in that network namespace; nothing if it does not."""
    with socket_in(pid, family(address), kind) as client:
        client.settimeout(0.5)
        for _ in range(10 if kind == socket.SOCK_DGRAM else 1):  # a datagram may get lost
            with suppress(OSError):
                client.connect((address, port))
                client.send(QUESTION)  # first: some versions of pasta complete the connection then
                return client.recv(4096)
    return b""


def is_free(pid: int, port: int) -> bool:
    with socket_in(pid, socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
        return True


@pytest.fixture(params=["root", "host root", "a normal user", "a user with a range"])
def caller(request, world, normal_user) -> tuple[list[str], dict]:
    """Options, and what else `run` gets, for a container on that host, started by each of them."""
    options = ["--network", "pasta"]
    if "user" in request.param:
        user = normal_user("student:300000:65536" if "range" in request.param else "")
        return options, {"prefix": [*world.prefix, *user.prefix], "parent": "none"}
    host_root = ["--userns", "host-root"] if request.param == "host root" else []
    return [*options, *host_root], {"prefix": world.prefix}


@pytest.fixture
def there(run, world):
    """`there(*words)`: what a command on that host's own network of pasta's says."""

    def there(*words, **more):
        return run("--network", "pasta", *words, **{"prefix": world.prefix, **more})

    return there


def fetch(address: str, port: int = 80) -> list[str]:
    """A command that asks there; it does not close its end before the answer is complete."""
    host = f"[{address}]" if ":" in address else address
    return ["wget", "-q", "-T", "1", "-O", "-", f"http://{host}:{port}/"]


def pasta_of(container) -> int:
    return pasta_below(container.process.pid)


def pasta_below(run: int) -> int:
    for pid in children(run):
        if Path(f"/proc/{pid}/comm").read_text().startswith(("pasta", "passt")):
            return pid
    raise AssertionError("there is no pasta")


def guard_of(container) -> int:
    return children(container.process.pid)[0]


# --- Inside --------------------------------------------------------------------------------------


def test_there_is_an_address_a_route_and_a_loopback(caller, run, world):
    options, more = caller
    script = "readlink /proc/self/ns/net; ip -o -4 addr; ip route"
    text = run(*options, "sh", "-c", script, **more).stdout.decode()
    hosts = {os.readlink(f"/proc/{p}/ns/net") for p in (world.host, "self")}
    assert text.splitlines()[0] not in hosts
    assert "127.0.0.1/8" in text and f" {HOST}/" in text  # pasta gives it the host's
    assert f"default via {GATEWAY} " in text


@pytest.mark.parametrize("address", [FAR, FAR_6])
def test_it_reaches_what_the_host_reaches(caller, run, world, serve, address):
    options, more = caller
    serve(world.far, address, 80, b"far away")
    if not ask(world.host, address, 80):
        pytest.skip("this kernel has no IPv6")
    result = run(*options, *fetch(address), **more)
    assert result.stdout == f"far away to {HOST_6 if ':' in address else HOST}\n".encode(), result
    assert not run("--network", "none", *fetch(address), **more).stdout  # the control


def test_the_first_instruction_has_the_network(there, world, serve):
    """It was not started before the way out was there."""
    serve(world.far, FAR, 80, b"far away")
    for _ in range(5):
        assert fine(there(*fetch(FAR))) == f"far away to {HOST}\n".encode()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_host_s_loopback_is_out_of_reach(there, run, world, serve, address):
    """…by its own name, by the gateway's, which pasta would lead there, and by the host's."""
    serve(world.host, address, 8080, b"secret")
    gateway, host = ("2001:db8::1", HOST_6) if ":" in address else (GATEWAY, HOST)
    control = run(*fetch(address, 8080), prefix=world.prefix)
    assert control.stdout == f"secret to {address}\n".encode()
    script = "; ".join(shlex.join(fetch(where, 8080)) for where in (address, gateway, host))
    assert there("sh", "-c", script).stdout == b""


@pytest.mark.parametrize("user", ["0", "1000"])
def test_no_packet_leads_to_the_host_s_loopback(contained, attempts, world, serve, user):
    """…not even one that is sent past the container's own: an old pasta would pass it on."""
    heard = []
    for address in ("127.0.0.1", "::1"):
        serve(world.host, address, 8080, lambda data: heard.append(data) or data, socket.SOCK_DGRAM)
    options = ["--network", "pasta", "--user", user]
    script = "/attempts/loopback eth0 8080 && sleep 1"  # pasta has the time to pass them on
    fine(contained(script, *options, prefix=world.prefix))
    assert not heard
    fine(subprocess.run([*world.prefix, attempts / "loopback", "lo", "8080"], capture_output=True))
    assert wait_until(lambda: len(heard) == 2)  # the control


def test_the_host_s_abstract_sockets_are_out_of_reach(there, run, world):
    with socket_in(world.host, socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind("\0of-the-host")
        server.listen()
        assert b"@of-the-host" in fine(run("cat", "/proc/net/unix", prefix=world.prefix))
        assert b"@of-the-host" not in fine(there("cat", "/proc/net/unix"))


@pytest.mark.parametrize("options", [[], ["--user", "1000"]], ids=str)
def test_ping_works(there, run, world, options):
    assert b" 0% packet loss" in fine(there(*options, "ping", "-c", "1", "-W", "2", FAR))
    control = run("--network", "none", "ping", "-c", "1", "-W", "1", FAR, prefix=world.prefix)
    assert control.returncode


def answer_dns(question: bytes) -> bytes:
    """203.0.113.9, whatever the name; nothing for other questions than the one for an address."""
    end = question.index(b"\0", 12) + 5
    is_a = question[end - 4 : end - 2] == b"\0\1"
    head = question[:2] + struct.pack("!5H", 0x8180, 1, is_a, 0, 0) + question[12:end]
    return head + (b"\xc0\x0c" + struct.pack("!HHIH4B", 1, 1, 60, 4, 203, 0, 113, 9)) * is_a


@pytest.mark.parametrize("address", [FAR, "127.0.0.53", "127.0.0.53\nnameserver ::1"])
def test_name_servers_work(there, run, world, serve, tmp_path, address):
    """…where the host's are in the network, and where it asks itself (systemd-resolved)."""
    where = world.host if address.startswith("127.") else world.far
    serve(where, address.split("\n")[0], 53, answer_dns, socket.SOCK_DGRAM)
    files = host_files(tmp_path, **{"resolv.conf": f"search {{a}}.example\nnameserver {address}\n"})
    words = ["nslookup", "-type=a", "it.example"]
    more = {"prefix": [*world.prefix, *files]}
    assert b"203.0.113.9" in run(*words, **more).stdout  # the control: on the host's network
    assert b"203.0.113.9" in there(*words, **more).stdout
    assert b"search {a}.example\n" in fine(there("cat", "/etc/resolv.conf", **more))
    assert b"203.0.113.9" not in run("--network", "none", *words, **more).stdout


def test_the_memory_that_it_takes_is_not_the_container_s(there):
    """pasta keeps tables of some ten megabytes, and is a process."""
    assert fine(there("-m", "20m", "--pids-limit", "1", "/bin/echo", "it")) == b"it\n"


def test_the_lesson_and_the_end_tell_of_it(there):
    told = there("--explain", "true").stderr.decode()
    assert re.search(r"(?m)^  host +.*\bpasta, \d+.* pasta\(1\)$", told)
    assert re.search(r"(?m)^  container +.*\broute\b", told)
    assert re.search(r"(?m)^  namespaces that are not the host's: .*\bnet\b", told)


# --- Published ports -----------------------------------------------------------------------------

SERVER = "nc -n -lk -p {} -e cat &"


def test_a_published_port_reaches_the_container(caller, start, world):
    options, more = caller
    with start(*options, "-p", "18080:80", script=SERVER.format(80), **more):
        assert wait_until(lambda: ask(world.host, "127.0.0.1", 18080) == QUESTION)
        assert wait_until(lambda: ask(world.far, HOST, 18080) == QUESTION)
        assert not ask(world.far, HOST, 80) and not ask(world.host, "127.0.0.1", 80)
    assert wait_until(lambda: is_free(world.host, 18080))


@pytest.mark.parametrize("publish", [["-p", "18080:80"], ["--publish=18080:80/tcp"]], ids=str)
def test_a_user_inside_may_have_a_port_below_1024(start, world, publish):
    """As in Docker: the port is the container's own."""
    options = ["--network", "pasta", "--user", "1000", *publish]
    with start(*options, script=SERVER.format(80), prefix=world.prefix):
        assert wait_until(lambda: ask(world.far, HOST, 18080) == QUESTION)


def test_a_port_is_published_on_one_address_and_nowhere_else(start, world):
    options = ["--network", "pasta", "-p", "127.0.0.1:18080:8080", "-p", f"{HOST}:18081:8081"]
    script = SERVER.format(8080) + "\n" + SERVER.format(8081)
    with start(*options, script=script, prefix=world.prefix):
        assert wait_until(lambda: ask(world.host, "127.0.0.1", 18080) == QUESTION)
        assert wait_until(lambda: ask(world.far, HOST, 18081) == QUESTION)
        assert not ask(world.far, HOST, 18080) and not ask(world.host, "127.0.0.1", 18081)


def test_without_an_address_a_port_is_published_on_all(start, world):
    """…of IPv6, too, and 0.0.0.0 means those of IPv4: as in Docker."""
    options = ["--network", "pasta", "-p", "18080:8080", "-p", "0.0.0.0:18081:8081"]
    script = "nc -n -lk -p 8080 -e cat & nc -n -lk -p 8081 -e cat &"
    with start(*options, script=script, prefix=world.prefix):
        assert wait_until(lambda: ask(world.far, HOST, 18080) == QUESTION)
        assert wait_until(lambda: ask(world.far, HOST, 18081) == QUESTION)
        listening = Path(f"/proc/{world.host}/net/tcp6").read_text()
        assert f":{18080:X} " in listening and f":{18081:X} " not in listening


def test_what_is_not_published_is_not_reached(start, world):
    with start("--network", "pasta", script=SERVER.format(8080), prefix=world.prefix) as container:
        inside = container.pid  # the control: the server is there
        assert wait_until(lambda: ask(inside, "127.0.0.1", 8080) == QUESTION)
        time.sleep(1.1)  # left to itself, pasta looks for new servers once a second
        for where, address in ((world.host, "127.0.0.1"), (world.far, HOST)):
            assert not ask(where, address, 8080)


def test_udp_is_published_too(start, world):
    options = ["--network", "pasta", "-p", "18090:9000/udp"]
    script = "nc -n -u -l -p 9000 -e cat & until grep -q :2328 /proc/net/udp*; do sleep 0.1; done"
    with start(*options, script=script, prefix=world.prefix):
        assert ask(world.far, HOST, 18090, socket.SOCK_DGRAM) == QUESTION  # it takes one client
        assert not ask(world.far, HOST, 18090)  # and TCP is not


@pytest.mark.parametrize("kind", ["tcp", "udp"])
@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", HOST])
def test_a_port_that_is_taken_is_one_line(there, world, serve, kind, address):
    type_ = socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM
    words = ["-p", f"{address}:18080:80/{kind}".removeprefix("0.0.0.0:"), "true"]
    fine(there(*words))  # the control
    assert wait_until(lambda: is_free(world.host, 18080), 1)
    serve(world.host, address, 18080, b"mine" if kind == "tcp" else bytes, type_)
    assert "18080" in one_line(there(*words))


def test_a_port_that_another_container_has_is_one_line(start, there, world):
    for what in ("18080:80", "18080:80/udp"):
        with start("--network", "pasta", "-p", what, prefix=world.prefix):
            assert "18080" in one_line(there("-p", what, "true"))


def test_one_udp_port_is_never_two_containers(world, root, parent):
    """…that start at the same time. (pasta itself lets others listen at a UDP port.)"""
    words = [*world.prefix, PYTHON, SCRIPT, "run", "--rootfs", root, "--cgroup-parent", parent]
    words += ["--network", "pasta", "-p", "18080:80/udp", "sh", "-c", "echo it; sleep 0.4"]
    for _ in range(25):
        both = [subprocess.Popen(words, stdout=-1, stderr=-1) for _ in range(2)]
        said = [process.communicate() for process in both]
        assert [out for out, _ in said].count(b"it\n") <= 1, said
        assert all(out == b"it\n" or b"18080" in errors for out, errors in said), said


@pytest.mark.parametrize("options", [[], ["--network", "host"], ["--network=none"]], ids=str)
def test_without_pasta_no_port_is_published(run, options):
    assert "--network pasta" in one_line(run(*options, "-p", "18080:80", "true"))


@pytest.mark.parametrize(
    "text", ["", "x", "80:", ":80", "0:80", "80:0", "70000:80", "80:70000", "1:2:3:4", "80:80/icmp",
             "300.0.0.1:80:80", "-1:80", "80:80/", "18080:80 "]
)  # fmt: skip
def test_what_is_no_port_is_refused(there, text):
    result = there("-p", text, "true")
    assert result.returncode == 125 and result.stderr.startswith(b"go_container: "), result
    assert b"Traceback" not in result.stderr and not result.stdout


# --- Where it cannot be had ----------------------------------------------------------------------


def test_without_pasta_the_package_is_named(there, world):
    """…and `run` looks in the usual places besides PATH: so the program itself is hidden."""
    hide = f"mount --bind /dev/null '{os.path.realpath(shutil.which('pasta'))}' && exec \"$@\""
    more = {"prefix": [*world.prefix, "unshare", "--mount", "sh", "-c", hide, "sh"]}
    assert "passt" in one_line(there("true", **more))
    fine(there("true"))  # the control


def test_a_directory_of_that_name_is_not_the_program(there, world, tmp_path):
    (tmp_path / "pasta").mkdir()
    prefix = [*world.prefix, "env", f"PATH={tmp_path}:{os.environ['PATH']}"]
    fine(there("true", prefix=prefix))


def test_a_host_without_a_network_is_one_line(run):
    """What pasta says itself is told in ours, without what it says besides."""
    prefix = ["unshare", "--net"]
    fine(run("--network", "none", "true", prefix=prefix))
    text = one_line(run("--network", "pasta", "true", prefix=prefix))
    assert "pasta" in text and "syslog" not in text


def test_a_tun_device_that_pasta_may_not_open_is_one_line(there, world):
    hide = "mount --bind /dev/null /dev/net/tun && exec \"$@\""
    more = {"prefix": [*world.prefix, "unshare", "--mount", "sh", "-c", hide, "sh"]}
    assert "tun" in one_line(there("true", **more))


# --- Who it is, and how it ends ------------------------------------------------------------------


def ids(pid: int) -> set[int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = [line.split()[1:] for line in lines if line.startswith(("Uid:", "Gid:"))]
    return {int(word) for words in found for word in words}


def test_it_is_nobody_on_the_host(caller, start, request):
    options, more = caller
    with start(*options, **more) as container:
        found = ids(pasta_of(container))
        assert 0 not in found
        if "setpriv" in more["prefix"]:
            assert found == {54321}
        groups = Path(f"/proc/{pasta_of(container)}/status").read_text().split("Groups:")[1]
        assert groups.split("\n")[0].split() in ([], ["65534"])


def test_the_host_s_files_are_not_there_for_it(caller, start):
    options, more = caller
    with start(*options, **more) as container:
        assert wait_until(lambda: os.listdir(f"/proc/{pasta_of(container)}/root") == [])


def test_nothing_is_started_without_the_option(start, world):
    with start(prefix=world.prefix) as container, pytest.raises(AssertionError, match="no pasta"):
        pasta_of(container)


def end_by_input(container) -> None:
    container.process.stdin.close()


def killing(*whom):
    """Stopped first, so that none of them sees another one die."""

    def kill(container) -> None:
        pids = [find(container) for find in whom]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    return kill


ENDINGS = {
    "an exit": end_by_input,
    "SIGTERM": lambda container: container.process.terminate(),
    "SIGKILL of PID 1": killing(lambda container: container.pid),
    "SIGKILL of run": killing(lambda container: container.process.pid),
    "SIGKILL of the guard": killing(guard_of),
    "SIGKILL of run and the guard": killing(lambda container: container.process.pid, guard_of),
    "SIGKILL of the guard and pasta": killing(guard_of, pasta_of),
    "SIGKILL of run and pasta": killing(lambda container: container.process.pid, pasta_of),
}


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]


@pytest.mark.parametrize("end", ENDINGS.values(), ids=ENDINGS)
def test_nothing_is_left_a_second_after(caller, start, run, world, end):
    """…no process, and the port is free; conftest looks for what else there could be."""
    options, more = caller
    options = [*options, "-p", "18080:80"]
    with start(*options, script="trap 'exit 0' TERM", **more) as container:
        pids = children(container.process.pid)
        assert pasta_of(container) in pids and not is_free(world.host, 18080)
        end(container)
        assert wait_until(lambda: not alive(pids) and is_free(world.host, 18080), 1)
    run("true", **more)  # which sweeps, if nobody else could


def test_what_was_sent_before_the_end_arrives(start, world):
    """pasta is stopped here when the command sends it and ends: it is late."""
    with socket_in(world.far, socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind((FAR, 9999))
        server.listen()
        server.settimeout(10)
        script = f"echo ready; exec 5<&0; exec nc -n {FAR} 9999 -e /bin/sh -c "
        script += "'echo here; read _ <&5; echo data'"
        with start("--network", "pasta", script=script, prefix=world.prefix) as it:
            connection, _ = server.accept()
            connection.settimeout(10)
            assert connection.recv(5) == b"here\n"
            pasta = pasta_of(it)
            os.kill(pasta, signal.SIGSTOP)
            it.process.stdin.write(b"\n")
            assert wait_until(lambda: not Path(f"/proc/{it.pid}/exe").exists())
            time.sleep(0.2)
            with suppress(ProcessLookupError):
                os.kill(pasta, signal.SIGCONT)
            with connection:
                assert connection.recv(5) == b"data\n"


def test_what_says_that_pasta_died_begins_and_ends_at_the_left(terminal, world):
    shown = terminal("--network", "pasta", "sh", "-c", "echo ready; read _", prefix=world.prefix)
    shown.expect(rb"ready\r\n")
    os.kill(pasta_below(shown.pid), signal.SIGKILL)
    shown.expect(rb"go_container: pasta has ended[^\n]*\r\n")
    shown.send(b"\r")
    assert shown.wait() == 0 and not re.search(rb"[^\r]\n", shown.output)


def test_when_pasta_dies_the_container_goes_on_and_one_line_says_so(caller, start):
    options, more = caller
    with start(*options, **more) as container:
        os.kill(pasta_of(container), signal.SIGKILL)
        time.sleep(0.3)
        assert container.process.poll() is None
        result = container.finish()
    lines = [line for line in result.stderr.decode().splitlines() if "host-root" not in line]
    assert result.returncode == 1 and len(lines) == 1, result  # what `read` says to no input
    assert lines[0].startswith("go_container: ") and "pasta" in lines[0]


@pytest.mark.parametrize("who", ["run", "all at once"])
def test_sigkill_at_any_moment_of_the_start_leaves_nothing(world, root, parent, who):
    words = [*world.prefix, PYTHON, SCRIPT, "run", "--rootfs", root, "--cgroup-parent", parent]
    words += ["--network", "pasta", "-p", "18080:80", "sleep", "9"]
    for moment in range(25):
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(moment * 0.004)
        if who == "run":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert wait_until(lambda: not [p for p in children(os.getpid()) if not is_world(p, world)], 3)
    assert is_free(world.host, 18080)
    fine(go("run", "--rootfs", root, "--cgroup-parent", parent, "true"))  # which sweeps


def is_world(pid: int, world: World) -> bool:
    return pid in (world.host, world.far)
