"""`pull [FILE|URL]`, and `run` where alpine-fs is still empty."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import pty
import re
import shutil
import signal
import ssl
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from containers import PYTHON, Result, fine, go, host_files, one_line

NO_PROXY = {name: text for name, text in os.environ.items() if not name.lower().endswith("proxy")}
NO_NETWORK = ["unshare", "--net"]  # not even a loopback device that is up


@pytest.fixture
def pull(project: Path):
    """`pull(*words)` in a project of its own, without a proxy between it and the tests' server."""

    def pull(*words: str | Path, **kw) -> Result:
        kw = {"script": project / "go_container.py", "cwd": project, "env": NO_PROXY, **kw}
        return go("pull", *words, **kw)

    return pull


@pytest.fixture(scope="session")
def digest(tarball: Path) -> str:
    return hashlib.sha256(tarball.read_bytes()).hexdigest()


def filled(project: Path, mark: str = "it\n") -> bool:
    """Whether alpine-fs holds the tarball's root, and nothing of the making is left beside it."""
    beside = {entry.name for entry in project.iterdir()}
    assert beside <= {"alpine-fs", "go_container.py", "cgroup.sh", "__pycache__"}
    files = {entry.name for entry in (project / "alpine-fs").iterdir()} - {".gitignore"}
    assert not files or {"bin", "etc", "mark"} <= files
    return bool(files) and (project / "alpine-fs/mark").read_text() == mark


@pytest.fixture
def filled_before(project: Path, tarball: Path) -> Path:
    """A project whose alpine-fs has been filled once, with another mark."""
    subprocess.run(["tar", "-xf", tarball, "-C", project / "alpine-fs"], check=True)
    (project / "alpine-fs/mark").write_text("before\n")
    return project


# --- From a file -------------------------------------------------------------------------------


def test_pull_of_a_file_fills_alpine_fs_without_a_word(pull, project, tarball):
    assert fine(pull(tarball)) == b"" and filled(project)


@pytest.mark.parametrize("packer", ["gzip", "xz", "bzip2"])
def test_the_file_may_be_packed_with(pull, project, tarball, tmp_path, packer):
    if not shutil.which(packer):
        pytest.skip(f"{packer} is not installed")
    packed = tmp_path / "root"  # tar tells by the content, not by the name
    with packed.open("wb") as file:
        subprocess.run([packer, "-1c", tarball], stdout=file, check=True)
    assert fine(pull(packed)) == b"" and filled(project)


@pytest.mark.parametrize("source", ["-", "/dev/stdin"])
def test_the_file_may_come_through_a_pipe(pull, project, tarball, source):
    with subprocess.Popen(["cat", tarball], stdout=subprocess.PIPE) as cat:
        assert fine(pull(source, stdin=cat.stdout)) == b""
    assert filled(project)


def test_a_file_that_breaks_off_is_told_in_the_packer_s_words(pull, project, tarball, tmp_path):
    packed_whole = gzip.compress(tarball.read_bytes())
    (tmp_path / "broken.tar.gz").write_bytes(packed_whole[: len(packed_whole) // 2])
    assert "unexpected end of file" in one_line(pull(tmp_path / "broken.tar.gz"))
    assert not filled(project)


def test_the_file_that_keeps_alpine_fs_in_git_stays(pull, project, tarball):
    fine(pull(tarball))
    fine(pull("--force", tarball))
    assert (project / "alpine-fs/.gitignore").read_text() == "*\n!.gitignore\n"


def test_owners_and_modes_are_as_in_the_tarball(pull, project, tarball):
    fine(pull(tarball))
    with tarfile.open(tarball) as tar:
        for entry in tar:
            s = (project / "alpine-fs" / entry.name).lstat()
            assert (s.st_uid, s.st_gid, s.st_mode & 0o7777) == (entry.uid, entry.gid, entry.mode)


def test_what_was_pulled_runs(pull, project, tarball, parent):
    fine(pull(tarball))
    words = ["run", "--cgroup-parent", parent, "cat", "/mark"]
    assert fine(go(*words, script=project / "go_container.py", cwd=project)) == b"it\n"


def test_by_a_link_to_the_script_it_is_the_same_root(pull, project, tarball, parent, tmp_path):
    fine(pull(tarball))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gc").symlink_to(project / "go_container.py")
    words = ["run", "--cgroup-parent", parent, "cat", "/mark"]
    result = go(*words, script=tmp_path / "bin/gc", cwd=tmp_path / "bin")
    assert fine(result) == b"it\n" and os.listdir(tmp_path / "bin") == ["gc"]


def packed(path: Path, **entries: str) -> Path:
    """A small tarball of a mark and of these: a text makes a file, `-> there` a symbolic link."""
    with tarfile.open(path, "w") as tar:
        for name, text in {"mark": "it\n", **entries}.items():
            entry = tarfile.TarInfo(name)
            if text.startswith("-> "):
                entry.type, entry.linkname = tarfile.SYMTYPE, text.removeprefix("-> ")
            else:
                entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return path


LINKS = {
    "etc": {"etc": "-> HOST"},
    "an existing resolv.conf": {"etc/hosts": "", "etc/resolv.conf": "-> HOST/file"},
    "a new resolv.conf": {"etc/hosts": "", "etc/resolv.conf": "-> HOST/new"},
    "an existing .gitignore": {"etc/hosts": "", ".gitignore": "-> HOST/file"},
    "a new .gitignore": {"etc/hosts": "", ".gitignore": "-> HOST/new"},
}


@pytest.mark.parametrize("entries", LINKS.values(), ids=LINKS)
def test_a_tarball_s_link_to_the_host_changes_nothing_there_as(pull, tmp_path, entries):
    (host := tmp_path / "host").mkdir()
    (host / "file").write_text("the host's\n")
    entries = {name: text.replace("HOST", str(host)) for name, text in entries.items()}
    assert fine(pull("--force", packed(tmp_path / "root.tar", **entries))) == b""
    assert [path.read_text() for path in host.iterdir()] == ["the host's\n"]


TARBALLS = {
    "that has no /etc": {"bin/sh": ""},
    "whose resolv.conf leads nowhere": {"etc/resolv.conf": "-> ../run/stub-resolv.conf"},
    "whose resolv.conf is its own": {"etc/resolv.conf": "nameserver 192.0.2.1\n"},
}


@pytest.mark.parametrize("entries", TARBALLS.values(), ids=TARBALLS)
def test_pull_takes_a_tarball(pull, project, tmp_path, entries):
    assert fine(pull(packed(tmp_path / "root.tar", **entries))) == b""
    for name, text in entries.items():
        path = project / "alpine-fs" / name
        assert text == (f"-> {os.readlink(path)}" if path.is_symlink() else path.read_text())


def test_pull_with_the_right_sum(pull, project, tarball, digest):
    assert fine(pull("--sha256", digest, tarball)) == b"" and filled(project)


def test_the_sum_may_be_in_capitals(pull, project, tarball, digest):
    assert fine(pull(f"--sha256={digest.upper()}", tarball)) == b"" and filled(project)


def test_with_a_wrong_sum_nothing_is_unpacked(pull, project, tarball):
    assert "256" in one_line(pull("--sha256", "0" * 64, tarball)) and not filled(project)


@pytest.mark.parametrize("sum", ["", "banana", "0" * 63, "0" * 65, "g" * 64])
def test_a_sum_that_is_none_is_refused(pull, project, tarball, sum):
    one_line(pull("--sha256", sum, tarball))
    assert not filled(project)


def test_what_is_there_is_kept(pull, filled_before, tarball):
    assert "--force" in one_line(pull(tarball)) and filled(filled_before, "before\n")


def test_what_is_there_is_replaced_with_force(pull, filled_before, tarball):
    (filled_before / "alpine-fs/old").touch()
    assert fine(pull("--force", tarball)) == b"" and filled(filled_before)
    assert not (filled_before / "alpine-fs/old").exists()


def test_rootfs_names_another_directory(pull, project, tarball):
    elsewhere = project / "alpine-fs/elsewhere"
    assert fine(pull("--rootfs", elsewhere, tarball)) == b""
    assert (elsewhere / "mark").read_text() == "it\n"


BAD_FILES = {
    "is missing": lambda path: None,
    "is empty": lambda path: path.touch(),
    "is no tarball": lambda path: path.write_text("<html>Not found</html>\n" * 100),
    "is a directory": lambda path: path.mkdir(),
    "is cut off": lambda path: path.write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\0"),
}


@pytest.mark.parametrize("make", BAD_FILES.values(), ids=BAD_FILES)
def test_what_is_there_survives_force_with_a_file_that(pull, filled_before, tmp_path, make):
    bad = tmp_path / "bad.tar.gz"
    make(bad)
    assert "bad.tar.gz" in one_line(pull("--force", bad)) and filled(filled_before, "before\n")


# --- From a URL --------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Serves a status, headers and a body in parts at each path; a number is a pause in seconds."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.routes: dict[str, tuple[int, dict[str, str], tuple[bytes | float, ...]]] = {}
        self.paused, self.stopped = threading.Event(), threading.Event()

    def url(
        self, path: str, *parts: bytes | float, status: int = 200, length: int = -1, **headers: str
    ) -> str:
        """Serve this from now on. Returns its URL."""
        if length < 0:
            length = sum(len(part) for part in parts if isinstance(part, bytes))
        self.routes[path] = status, {"Content-Length": str(length), **headers}, parts
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, *_: object) -> None:
        """A client that leaves early is what some tests are about."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        status, headers, parts = self.server.routes[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        for part in parts:
            if isinstance(part, bytes):
                self.wfile.write(part)
            else:
                self.server.paused.set()
                self.server.stopped.wait(part)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    with server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        yield server
        server.stopped.set()
        server.shutdown()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server(("127.0.0.1", 0), Handler)) as server:
        yield server


def test_pull_of_a_url_fills_alpine_fs_without_a_word(pull, project, server, tarball, digest):
    url = server.url("/root.tar", tarball.read_bytes())
    assert fine(pull("--sha256", digest, url)) == b"" and filled(project)


def test_a_url_needs_no_sum(pull, project, server, tarball):
    assert fine(pull(server.url("/root.tar", tarball.read_bytes()))) == b"" and filled(project)


def test_a_redirection_is_followed(pull, project, server, tarball):
    there = server.url("/there", tarball.read_bytes())
    assert fine(pull(server.url("/here", status=302, Location=there))) == b"" and filled(project)


BAD_URLS = {
    "stops early": lambda server, data: server.url("/", data[:-100_000], length=len(data)),
    "stops at once": lambda server, data: server.url("/", length=len(data)),
    "announces less than it is": lambda server, data: server.url("/", data, length=100_000),
    "is a page": lambda server, data: server.url("/", b"<html>Not found</html>"),
    "is empty": lambda server, data: server.url("/"),
    "is not there": lambda server, data: server.url("/", data, status=404),
    "is broken": lambda server, data: server.url("/", data, status=500),
    "redirects to a file": lambda server, data: server.url("/", status=302, Location="file:///etc"),
    "redirects to itself": lambda server, data: server.url("/", status=302, Location="/"),
    "is of no server": lambda server, data: "http://127.0.0.1:1/root.tar",
    "is of no known kind": lambda server, data: "gopher://127.0.0.1/root.tar",
    "is nonsense": lambda server, data: "http://",
}


@pytest.mark.parametrize("make", BAD_URLS.values(), ids=BAD_URLS)
def test_what_is_there_survives_force_with_a_url_that(pull, filled_before, server, tarball, make):
    one_line(pull("--force", make(server, tarball.read_bytes())))
    assert filled(filled_before, "before\n")


def test_more_than_was_announced_fails_the_sum(pull, project, server, tarball, digest):
    url = server.url("/root.tar", b"more" + tarball.read_bytes())
    assert "256" in one_line(pull("--sha256", digest, url)) and not filled(project)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_download_leaves_what_was_there(filled_before, server, tarball, number):
    data = tarball.read_bytes()
    url = server.url("/slow.tar", data[:100_000], 60.0, data[100_000:])
    argv = [PYTHON, filled_before / "go_container.py", "pull", "--force", url]
    with subprocess.Popen(
        argv, env=NO_PROXY, cwd=filled_before, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        begun = server.paused.wait(10)
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    assert begun and process.returncode in (-number, 128 + number, 125)
    assert out == b"" and err.count(b"\n") <= 1 and b"Traceback" not in err
    assert filled(filled_before, "before\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_download_goes_on_after_a_signal_that_the_caller_ignores(
    filled_before, server, tarball, number
):
    data = tarball.read_bytes()
    url = server.url("/slow.tar", data[:100_000], 1.0, data[100_000:])
    ignoring = ["sh", "-c", f"trap '' {number:d}; exec \"$@\"", "sh"]
    argv = [*ignoring, PYTHON, filled_before / "go_container.py", "pull", "--force", url]
    with subprocess.Popen(argv, env=NO_PROXY, cwd=filled_before) as process:
        assert server.paused.wait(10)
        process.send_signal(number)
        assert process.wait(10) == 0
    assert filled(filled_before)


def test_progress_is_shown_on_a_terminal(project, server, tarball):
    data = tarball.read_bytes()
    half = len(data) // 2
    url = server.url("/root.tar", data[:half], 1.0, data[half:])
    ours, theirs = pty.openpty()
    argv = [PYTHON, project / "go_container.py", "pull", url]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    with subprocess.Popen(argv, env=NO_PROXY, cwd=project, **streams):
        os.close(theirs)
        shown = b""
        while part := read(ours):
            shown += part
    os.close(ours)
    assert re.search(rb"#+ +50\.\d%", shown) and b"100.0%" in shown and b"\r" in shown, shown
    assert filled(project)


def read(terminal: int) -> bytes:
    """What a terminal has to say; nothing once the other side is closed."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


# --- From busybox ------------------------------------------------------------------------------

needs_busybox = pytest.mark.skipif(not shutil.which("busybox"), reason="busybox is not installed")


def instead_of_busybox(path: str) -> list[str]:
    """A `prefix` under which the host's busybox is another file."""
    found = shutil.which("busybox")
    if not found:
        return []
    script = f'mount --bind {path} {os.path.realpath(found)} && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


@needs_busybox
def test_busybox_makes_a_root_without_any_network(pull, project, parent):
    assert fine(pull("--busybox", prefix=NO_NETWORK)) == b""
    script = """set -e
        test "$(id -un)" = root; grep -q ^root: /etc/group; grep -q = /etc/os-release
        test -d /tmp; test -d /root; ls -ld /tmp | grep -q ^drwxrwxrwt
        . /etc/profile
        for applet in ash awk cat grep head hostname id ip mount ps sed sh sleep tail vi wget
        do command -v $applet >/dev/null; done; echo all"""
    words = ["run", "--cgroup-parent", parent, "/bin/sh", "-c", script]
    assert fine(go(*words, script=project / "go_container.py", cwd=project)) == b"all\n"


@needs_busybox
def test_the_root_of_busybox_has_all_applets(pull, project):
    fine(pull("--busybox"))
    applets = subprocess.run(["busybox", "--list"], capture_output=True, text=True).stdout.split()
    places = [project / "alpine-fs" / place for place in ("bin", "sbin", "usr/bin", "usr/sbin")]
    there = {entry.name for place in places if place.is_dir() for entry in place.iterdir()}
    assert set(applets) <= there | {"busybox", "linuxrc", "init"}


@needs_busybox
def test_busybox_needs_force_where_there_is_a_root(pull, filled_before):
    assert "--force" in one_line(pull("--busybox")) and filled(filled_before, "before\n")


@pytest.mark.parametrize("other", ["/dev/null", "/bin/true"], ids=["is missing", "is not static"])
def test_pull_busybox_says_so_when_busybox(pull, project, other):
    assert "busybox" in one_line(pull("--busybox", prefix=instead_of_busybox(other)))
    assert not filled(project)


# --- From Alpine's site, played by a server of the tests -----------------------------------------

MACHINE = os.uname().machine
ALPINE_PATH = f"/alpine/v3.24/releases/{MACHINE}/alpine-minirootfs-3.24.1-{MACHINE}.tar.gz"
SITE, ADDRESS = "dl-cdn.alpinelinux.org", "127.77.77.77"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Server, dict[str, Any]]]:
    """A server with Alpine's name and a certificate for it, and how to run what believes in it."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    words = f"req -x509 -nodes -days 1 -subj /CN=test -addext subjectAltName=DNS:{SITE} -newkey ec"
    words += " -pkeyopt ec_paramgen_curve:P-256 -keyout key -out certificate"
    subprocess.run(["openssl", *words.split()], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    ours = str(tmp_path / "certificate")
    believe = {**NO_PROXY, "SSL_CERT_FILE": ours, "CURL_CA_BUNDLE": ours}  # this one goes before
    prefix = host_files(tmp_path, hosts=f"{ADDRESS} {SITE}\n")
    with serving(Server((ADDRESS, 443), Handler)) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        yield server, {"env": believe, "prefix": prefix}


def test_by_default_it_is_alpine_3_24_1_and_nothing_is_unpacked_with_a_wrong_sum(
    pull, project, site, tarball
):
    server, believe = site
    server.url(ALPINE_PATH, tarball.read_bytes())
    text = one_line(pull(**believe))
    assert "SHA-256" in text and ALPINE_PATH in text and not filled(project)


def test_run_does_not_fall_back_to_busybox_from_a_wrong_sum(project, parent, site, tarball):
    server, believe = site
    server.url(ALPINE_PATH, tarball.read_bytes())
    words = ["run", "--cgroup-parent", parent, "true"]
    text = one_line(go(*words, script=project / "go_container.py", cwd=project, **believe))
    assert "SHA-256" in text and not filled(project)


def test_a_site_with_a_wrong_certificate_is_not_believed(pull, project, site, tarball):
    server, believe = site
    server.url(ALPINE_PATH, tarball.read_bytes())
    assert "certificate" in one_line(pull(prefix=believe["prefix"])) and not filled(project)


# --- Without arguments, and `run` with an empty alpine-fs, where there is no network --------------


def test_pull_without_a_network_is_one_line(pull, project):
    one_line(pull(prefix=NO_NETWORK))
    assert not filled(project)


@pytest.fixture
def run_empty(project: Path, parent: str):
    """`run` in a project whose alpine-fs is still empty, where there is no network."""

    def run_empty(*words: str, prefix: Sequence[str] = ()) -> Result:
        words = ("run", "--cgroup-parent", parent, *words)
        script = project / "go_container.py"
        return go(*words, script=script, cwd=project, prefix=[*NO_NETWORK, *prefix], env=NO_PROXY)

    return run_empty


@needs_busybox
def test_run_takes_busybox_for_an_empty_alpine_fs_and_says_so(run_empty):
    result = run_empty("echo", "it")
    assert (result.returncode, result.stdout) == (0, b"it\n")
    assert result.stderr.count(b"\n") == 1 and b"busybox" in result.stderr


@needs_busybox
def test_run_says_so_only_the_first_time(run_empty):
    run_empty("true")
    assert fine(run_empty("echo", "it")) == b"it\n"


def test_run_names_the_three_ways_out_when_there_is_no_busybox_either(run_empty, project):
    text = one_line(run_empty("true", prefix=instead_of_busybox("/dev/null")))
    assert "pull FILE" in text and "busybox" in text and re.search("network|URL|download", text)
    assert not filled(project)
