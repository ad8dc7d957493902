"""The terminal: when a container has one of its own, and that it is a real one."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import termios
import time

import pytest
from containers import PYTHON, SCRIPT, SLOWER, comm, fine, one_line, wait_until

MEGABYTES = int(os.environ.get("GO_CONTAINER_TEST_MEGABYTES", "20"))  # the full test: 200
PROMPT = rb"/ # "
WHOSE_TERMINAL = "[ -c /dev/pts/0 ] && echo own terminal || echo no terminal"

# --- When there is one -------------------------------------------------------------------------

WITH = [  # options, standard input, standard output
    ("", "terminal", "terminal"),
    ("-t", "terminal", "terminal"),
    ("-t", "terminal", "pipe"),
    ("-t", "pipe", "terminal"),
    ("-t", "pipe", "pipe"),
    ("-it", "terminal", "terminal"),
    ("-ti", "terminal", "terminal"),
    ("-i -t", "terminal", "terminal"),
    ("--interactive --tty", "terminal", "terminal"),
    ("-it", "terminal", "pipe"),
]
WITHOUT = [
    ("", "terminal", "pipe"),
    ("", "pipe", "terminal"),
    ("", "pipe", "pipe"),
    ("-i", "terminal", "terminal"),
    ("-i", "terminal", "pipe"),
    ("-i", "pipe", "pipe"),
]


def pipes(stdin: str, stdout: str) -> list[int]:
    return [number for number, kind in enumerate((stdin, stdout)) if kind == "pipe"]


@pytest.mark.parametrize(
    "options, stdin, stdout, answer",
    [(*case, b"own terminal") for case in WITH] + [(*case, b"no terminal") for case in WITHOUT],
)
def test_docker_s_rules_say_who_gets_one_of_its_own(terminal, options, stdin, stdout, answer):
    caller = terminal(*options.split(), "sh", "-c", WHOSE_TERMINAL, pipes=pipes(stdin, stdout))
    assert caller.wait() == 0
    said = caller.piped(1) if stdout == "pipe" else bytes(caller.output)
    assert said.rstrip() == answer


@pytest.mark.parametrize("stdout", ["terminal", "pipe"])
def test_an_interactive_terminal_without_one_on_standard_input_is_refused(terminal, stdout):
    caller = terminal("-it", "true", pipes=pipes("pipe", stdout))
    assert caller.wait() == 125
    assert caller.output.startswith(b"go_container: the input device is not a TTY")
    assert caller.output.count(b"\n") == 1


def test_the_refusal_is_one_line_where_there_is_no_terminal_at_all(run):
    assert "the input device is not a TTY" in one_line(run("-it", "true"))


def test_a_terminal_without_i_does_not_get_what_is_on_standard_input(run):
    said = fine(run("-t", "sh", "-c", "read -t 1 word; echo got $word.", input=b"secret\n"))
    assert said == b"got .\r\n"


def test_a_terminal_of_its_own_does_not_need_the_caller_to_have_one(background):
    """…nor the size of that."""
    script = "trap 'echo got; exit 3' USR1; echo ready; while :; do sleep 0.02; done"
    container = background("-t", "sh", "-c", script)
    container.expect(b"ready\r\n")
    container.signal(signal.SIGWINCH)
    container.signal(signal.SIGUSR1)
    container.expect(b"got\r\n")
    assert container.wait() == 3


def test_pipes_stay_pipes(shell):
    """…the very same: not one byte goes through us."""
    reading, writing = os.pipe()
    inode = os.fstat(writing).st_ino
    result = shell("readlink /proc/self/fd/3 3>&1 >&2", stdout=writing)
    os.close(reading), os.close(writing)
    assert result.stderr == b"pipe:[%d]\n" % inode


def test_without_a_terminal_output_and_errors_stay_apart(shell):
    result = shell("echo out; echo err >&2")
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")


def test_without_a_terminal_there_is_no_controlling_one(terminal):
    """…though standard input is the caller's terminal."""
    caller = terminal("sh", "-c", "cut -d' ' -f7 /proc/1/stat; cat /dev/tty", pipes=[1])
    assert caller.wait() == 1
    assert caller.piped(1) == b"0\n"
    assert b"No such device or address" in caller.output


def test_with_a_terminal_standard_error_is_on_it_too(terminal):
    caller = terminal("sh", "-c", "echo to-$((1 + 1)) >&2", pipes=[2])
    assert caller.wait() == 0
    assert (bytes(caller.output), caller.piped(2)) == (b"to-2\r\n", b"")


# --- What it is --------------------------------------------------------------------------------


def test_tty_prints_dev_pts_0(terminal):
    caller = terminal("tty")
    assert caller.wait() == 0
    assert caller.output == b"/dev/pts/0\r\n"


def test_it_is_the_only_one_of_its_own_devpts(terminal):
    caller = terminal("sh", "-c", "echo /dev/pts/*")
    assert caller.wait() == 0
    assert caller.output == b"/dev/pts/0 /dev/pts/ptmx\r\n"


def test_it_is_the_controlling_terminal_of_pid_1(terminal):
    """/proc/PID/stat: process group, session, terminal, and the group in its foreground."""
    caller = terminal("sh", "-c", "cut -d' ' -f5-8 /proc/1/stat; :")
    assert caller.wait() == 0
    assert caller.output == b"1 1 %d 1\r\n" % os.makedev(136, 0)


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_the_standard_streams_are_on_it(terminal, stream):
    caller = terminal("readlink", f"/proc/self/fd/{stream}")
    assert caller.wait() == 0
    assert caller.output == b"/dev/pts/0\r\n"


@pytest.mark.parametrize("device", ["/dev/console", "/dev/tty"])
def test_console_and_tty_are_it(terminal, device):
    caller = terminal("sh", "-c", f"echo w-$((1 + 1)); read x; echo got-$x >{device}")
    caller.expect(b"w-2")
    caller.send(b"this\r")
    assert caller.wait() == 0
    assert caller.output.endswith(b"got-this\r\n")


@pytest.mark.parametrize("device", ["/dev/console", "/dev/tty"])
def test_console_and_tty_can_be_read(terminal, device):
    caller = terminal("sh", "-c", f"echo w-$((1 + 1)); read x <{device}; echo got-$x")
    caller.expect(b"w-2")
    caller.send(b"this\r")
    assert caller.wait() == 0
    assert caller.output.endswith(b"got-this\r\n")


def test_what_is_typed_is_echoed_once(terminal):
    caller = terminal("cat")
    assert wait_until(lambda: not caller.attributes[3] & termios.ICANON)
    caller.send(b"word\r")
    caller.expect(b"word\r\nword\r\n")
    caller.ctrl("D")
    assert caller.wait() == 0
    assert caller.output == b"word\r\nword\r\n"


def test_the_caller_s_terminal_is_raw_meanwhile(terminal):
    caller = terminal("sh", "-c", "echo r-$((1 + 1)); read _")
    caller.expect(b"r-2")
    _, output, _, local, *_ = caller.attributes
    assert not output & termios.OPOST
    assert not local & (termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN)


# --- Its size ----------------------------------------------------------------------------------

FOLLOW = "trap 'stty size' WINCH; echo r-$((1 + 1)); while :; do sleep 0.02; done"


def test_its_size_is_the_caller_s(terminal):
    caller = terminal("stty", "size", size=(33, 101))
    assert caller.wait() == 0
    assert caller.output == b"33 101\r\n"


def test_its_size_follows_the_caller_s(terminal):
    caller = terminal("sh", "-c", FOLLOW)
    caller.expect(b"r-2")
    for rows, columns in [(50, 132), (24, 80), (10, 20)]:
        caller.resize(rows, columns)
        caller.expect(b"%d %d\r\n" % (rows, columns))


def test_without_one_on_standard_input_its_size_is_that_of_standard_output(terminal):
    caller = terminal("-t", "sh", "-c", f"stty size; {FOLLOW}", pipes=[0], size=(33, 101))
    caller.expect(rb"33 101\r+\nr-2\r+\n")  # not raw, as Docker leaves it then
    caller.resize(50, 132)
    caller.expect(rb"50 132\r+\n")


@pytest.mark.parametrize("milliseconds", range(0, 60, 6))
def test_a_resize_during_the_start_is_not_lost(terminal, milliseconds):
    """…nor one while run is stopped and the command begins: it would not hear of that."""
    script = "until [ \"$(stty size)\" = '44 99' ]; do sleep 0.02; done"
    caller = terminal("sh", "-c", script)
    time.sleep(SLOWER * milliseconds / 1000)
    caller.signal(signal.SIGSTOP)
    wait_until(lambda: any(comm(pid) == "sleep" for pid in caller.processes()), 0.1)
    caller.resize(44, 99)
    caller.signal(signal.SIGCONT)
    assert caller.wait() == 0


def test_a_new_size_after_the_end_does_not_change_the_code(terminal):
    """What it wrote last is still shown then, to a reader that is slow."""
    caller = terminal("-t", "sh", "-c", "head -c 66000 /dev/zero; exit 3", pipes=[1])
    time.sleep(1)  # more than the pipe takes: run waits for the reader, and PID 1 has ended
    caller.resize(44, 99)
    time.sleep(0.2)
    assert len(caller.piped(1)) == 66000
    assert caller.wait() == 3


# --- A shell on it -----------------------------------------------------------------------------


@pytest.fixture
def ash(terminal):
    """An interactive shell of a container, at its prompt."""
    caller = terminal("/bin/sh")
    caller.expect(PROMPT)
    return caller


def foreground(ash):
    """Start a command in the shell's foreground that goes on, and wait until it answers."""
    ash.send(b"sh -c 'echo $((40 + 2)); exec cat'\r")
    ash.expect(rb"\n42\r\n")
    answers(ash, b"ready")


def answers(ash, word):
    """A cat in the foreground gives back what the terminal has echoed."""
    ash.send(word + b"\r")
    ash.expect(word + b"\r\n" + word + b"\r\n")


def test_an_interactive_shell_has_job_control(ash):
    ash.send(b"exit\r")
    assert ash.wait() == 0
    assert b"can't access tty" not in ash.output
    assert b"job control" not in ash.output


@pytest.mark.parametrize("key, code", [("C", 130), ("\\", 131)])
def test_ctrl_c_stops_the_command_and_not_the_shell(ash, key, code):
    foreground(ash)
    ash.ctrl(key)
    ash.expect(PROMPT)
    ash.send(b"echo code-$?\r")
    ash.expect(b"code-%d\r\n" % code)


def test_ctrl_z_jobs_and_fg_work(ash):
    foreground(ash)
    ash.ctrl("Z")
    ash.expect(rb"\[1\]\+ +Stopped")
    ash.send(b"jobs\r")
    ash.expect(rb"jobs\r\n\[1\]\+ +Stopped +sh -c")
    ash.send(b"fg\r")
    ash.expect(rb"fg\r\nsh -c[^\n]*\n")
    answers(ash, b"again")
    ash.ctrl("C")
    ash.expect(PROMPT)
    ash.send(b"jobs; echo none-$((1 + 1))\r")
    ash.expect(rb"; echo none[^\n]*\nnone-2\r\n")


def test_a_job_in_the_background_goes_on(ash):
    ash.send(b"sleep 1000 &\r")
    ash.expect(PROMPT)
    ash.send(b"jobs\r")
    ash.expect(rb"\[1\]\+ +Running +sleep 1000")


def test_ctrl_d_ends_the_shell(ash):
    ash.send(b"(exit 7)\r")
    ash.expect(PROMPT)
    ash.ctrl("D")
    assert ash.wait() == 7
    assert ash.is_gone()


def test_vi_draws_the_whole_screen_and_saves(terminal, fresh_root):
    caller = terminal("vi", "/tmp/text", rootfs=fresh_root, size=(20, 60))
    caller.expect(rb"(~[^~]*){18}/tmp/text")  # an empty file: a line, 18 tildes, the status
    caller.send(b"ihello\x1b")
    caller.expect(rb"\[Modified\]")
    caller.send(b":wq\r")
    assert caller.wait() == 0
    assert (fresh_root / "tmp/text").read_text() == "hello\n"


def test_top_draws_the_two_processes_and_ends_with_q(terminal):
    caller = terminal("sh", "-c", "top; echo code-$?", size=(24, 100))
    caller.expect(rb"Mem: ")
    caller.expect(rb"PID +PPID +USER")
    caller.expect(rb" 1 +0 +\S+ +SN? .*sh -c top")
    caller.expect(rb" 1 +\S+ +RN? .*top")
    caller.send(b"q")
    caller.expect(rb"code-0\r\n")
    assert caller.wait() == 0


# --- Every byte --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 1_000, 4_096, 65_536, 300_000])
def test_the_last_bytes_before_the_end_arrive(terminal, size):
    for _ in range(5):
        caller = terminal("sh", "-c", f"head -c {size} /dev/zero | tr '\\0' x; echo; echo last")
        assert caller.wait() == 0
        assert caller.output == b"x" * size + b"\r\nlast\r\n"


@pytest.mark.parametrize("size", [15_000, 20_000, 30_000, 40_000, 50_000, 2_000_000])
def test_the_last_bytes_arrive_at_a_reader_that_is_slow(terminal, size):
    """…also what the two terminals hold between them when the command has ended."""
    caller = terminal("sh", "-c", f"head -c {size} /dev/zero | tr '\\0' x; echo; echo last")
    caller.is_gone(0.3)
    assert caller.wait() == 0
    assert caller.output == b"x" * size + b"\r\nlast\r\n"


def test_what_the_last_process_wrote_before_it_was_killed_arrives(terminal):
    caller = terminal("--init", "sh", "-c", "seq 20000; kill -KILL $$")
    assert caller.wait() == 137
    assert caller.output.endswith(b"19999\r\n20000\r\n")


def test_megabytes_through_the_terminal_arrive_whole(terminal, fresh_root):
    lines = base64.encodebytes(os.urandom(MEGABYTES * 1_000_000 * 3 // 4))
    (fresh_root / "lines").write_bytes(lines)
    caller = terminal("cat", "/lines", rootfs=fresh_root)
    assert caller.wait(20 + MEGABYTES) == 0
    expected = lines.replace(b"\n", b"\r\n")
    assert len(caller.output) == len(expected)
    assert hashlib.sha256(caller.output).digest() == hashlib.sha256(expected).digest()


def test_a_megabyte_typed_arrives_whole_while_it_comes_back(terminal):
    """…both ways at once, so that a relay that blocks on one of them stands still for ever."""
    size = 1_000_000
    script = f"stty raw -echo; echo r-$((1 + 1)); head -c {size} | tee /dev/tty | sha256sum"
    caller = terminal("sh", "-c", script)
    caller.expect(rb"r-2\n")
    typed = secrets.token_bytes(size)
    caller.send(typed, seconds=60)
    assert caller.wait(60) == 0
    body = caller.output[caller.seen :]
    assert body[:size] == typed
    assert body[size:].split()[0].decode() == hashlib.sha256(typed).hexdigest()


# --- Callers -----------------------------------------------------------------------------------


def words(root, parent, *command: str) -> str:
    """A command line for somebody else's shell."""
    argv = [PYTHON, SCRIPT, "run", "--rootfs", root, "--cgroup-parent", parent, *command]
    return shlex.join(map(str, argv))


@pytest.mark.skipif(not shutil.which("script"), reason="needs script(1)")
def test_script_is_fine_as_a_caller(root, parent):
    line = words(root, parent, "sh", "-c", "tty; stty size; exit 7")
    reading, writing = os.pipe()  # an input that does not end: script would type that
    with open(reading), open(writing, "wb"):
        result = subprocess.run(
            ["script", "-qec", f"stty rows 31 cols 97; {line}", "/dev/null"],
            stdin=reading, capture_output=True, timeout=60,
        )  # fmt: skip
    assert (result.returncode, result.stdout) == (7, b"/dev/pts/0\r\n31 97\r\n")


@pytest.fixture
def tmux(tmp_path):
    """`tmux(*words)`: a command of a server of its own."""
    if not shutil.which("tmux"):
        pytest.skip("needs tmux(1)")
    server = ["tmux", "-f", "/dev/null", "-S", str(tmp_path / "tmux")]

    def tmux(*words: str) -> str:
        return subprocess.run([*server, *words], capture_output=True, text=True, timeout=60).stdout

    yield tmux
    tmux("kill-server")


def test_tmux_is_fine_as_a_caller(tmux, root, parent):
    def shows(text: str) -> None:
        assert wait_until(lambda: text in tmux("capture-pane", "-p"), 20), text

    line = words(root, parent, "sh", "-c", "tty; stty size; read word; stty size; exit 7")
    tmux("new-session", "-d", "-x", "90", "-y", "30", f"{line}; echo code-$?; exec sleep 1000")
    shows("/dev/pts/0\n30 90\n")
    tmux("resize-window", "-x", "70", "-y", "20")
    tmux("send-keys", "word", "Enter")
    shows("/dev/pts/0\n30 90\nword\n20 70\ncode-7\n")


# --- Left as it was, also when nothing came of it ----------------------------------------------


@pytest.mark.parametrize(
    "command, code",
    [(["no-such-command"], 127), (["/etc"], 126), (["-w", "/etc/passwd", "true"], 125)],
)
def test_the_terminal_is_as_it_was_after_a_start_that_failed(terminal, command, code):
    caller = terminal(*command)
    assert caller.wait() == code
    assert caller.is_restored(0)
    assert caller.output.startswith(b"go_container: ")
    assert caller.output.endswith(b"\r\n")  # it was cooked already


def test_what_run_reports_at_the_end_begins_at_the_left(terminal):
    """On a terminal that is still raw, a line would begin where the one above it ends."""
    shown = terminal("--pids-limit", "4", "sh", "-c", "for i in 1 2 3 4 5 6; do sleep 9 & done")
    shown.wait()
    assert b"processes was hit" in shown.output
    assert shown.output.count(b"\n") == shown.output.count(b"\r\n")


def test_a_terminal_that_somebody_outside_holds_is_no_reason_to_stay(terminal):
    """It can have been handed out by a message (SCM_RIGHTS); here the host has opened it."""
    shown = terminal("sh", "-c", "echo ready; read _; seq 2000; exit 7")
    shown.expect(rb"ready\r\n")
    held = os.open(f"/proc/{shown.pid_1}/fd/0", os.O_RDWR | os.O_NOCTTY)
    shown.send(b"\r")
    assert shown.wait(10) == 7 and b"\r\n2000\r\n" in shown.output
    assert shown.is_restored(0)
    os.close(held)
