"""Whatever the README says that can be checked: it is typed on a terminal, or looked up.

A box marked `console` is a session. Its prompts are the terminal's own: `$` is the host's shell,
`/ #` a container's. Where `$` follows while the first terminal is in a container, a second one is
meant. The lines below a command are what it prints, with any white space for white space, and

    …       any text; on a line of its own, any number of lines
    <word>  a word without spaces, the same one wherever it comes again in the box

The sessions are typed in a copy of the project, whose alpine-fs is filled. The cgroup `demo`,
`sleep 1234` and port 8080 go by other names there, since somebody else may have their own. Boxes of
another kind are not executed: `sh` installs packages, and runs all tests, this one too; `text` is
for engines, which test_spec.py starts.
"""

from __future__ import annotations

import html
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from containers import (
    CGROUP_SH,
    PATIENCE,
    PREFIX,
    PYTHON,
    REPOSITORY,
    SCRIPT,
    delete_cgroup,
    go,
    needs_alpine,
)

README = (REPOSITORY / "README.md").read_text()
SOURCE = SCRIPT.read_text()
CGROUP = f"{PREFIX}-readme"
OURS = {  # a cgroup, how long to sleep, and a port
    "demo": CGROUP,
    "1234": str(1000000 + os.getpid()),
    "8080": str(10000 + os.getpid() % 20000),
}
# Without udev only root may open it; pasta is nobody.
OPEN_TUN = """mount -t tmpfs -o mode=755 tmpfs /mnt && mknod -m 666 /mnt/tun c 10 200 &&
    mount --bind /mnt/tun /dev/net/tun && umount -l /mnt; exec "$@" """

PROMPT = re.compile(r"(\$|/\S* [#$]) ")
INVISIBLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\x07")
BESIDES = re.compile(  # what the README leaves out
    r"\n\nBusyBox v.*\nEnter 'help' for .*\n\n"  # Debian's greets, Alpine's does not
    r"|sudo: unable to resolve host .*\n"  # on a machine that does not know its own name
)


# --- Sessions ------------------------------------------------------------------------------------


class Step(NamedTuple):
    prompt: str
    command: str
    output: str


def boxes(kind: str) -> Iterator[tuple[str, str]]:
    """The heading above each fenced box of that kind, and the lines in it."""
    heading = ""
    for found in re.finditer(r"(?m)^#+ (.+)$|^```(\w*)\n((?s:.*?))^```$", README):
        heading = found[1] or heading
        if found[2] == kind:
            yield heading, found[3]


def session(text: str) -> list[Step]:
    """Prompt, command and output, from one prompt to the next."""
    steps: list[Step] = []
    for line in text.splitlines():
        if found := PROMPT.match(f"{line} "):
            steps.append(Step(found[1], line[found.end() :], ""))
        else:
            steps[-1] = steps[-1]._replace(output=f"{steps[-1].output}{line}\n")
    return steps


class Words(dict[str, str]):
    """What the names in < > stand for, as far as it is known."""

    def match(self, text: str, printed: str) -> bool:
        """Whether a command has printed what the README says, and what the names stood for."""
        new: set[str] = set()

        def pattern(part: str) -> str:
            name = part[1:-1]
            if part == "…":
                return ".*"
            if part.isspace():
                return r"[ \t]+"
            if not re.fullmatch("<[a-z]+>", part):
                return re.escape(part)
            if name in self:
                return re.escape(self[name])
            again = name in new
            new.add(name)
            return f"(?P={name})" if again else rf"(?P<{name}>\S+)"

        def line_pattern(line: str) -> str:
            parts = re.split(r"(…|<[a-z]+>|[ \t]+)", line)
            return r"[ \t]*" + "".join(map(pattern, parts)) + r"[ \t]*\n"

        lines = [line.strip() for line in text.strip().splitlines()]
        whole = "".join(r"(?:.*\n)*?" if line == "…" else line_pattern(line) for line in lines)
        found = re.fullmatch(whole, f"{printed.strip()}\n" if printed.strip() else "")
        self.update(found.groupdict() if found else {})
        return bool(found)

    def fill(self, command: str) -> str:
        """A command as a reader would type it, with the words for their names."""
        for name, word in self.items():
            command = command.replace(f"<{name}>", word)
        return command


def with_our_names(text: str) -> str:
    return re.sub(rf"\b({'|'.join(OURS)})\b", lambda found: OURS[found[0]], text)


class Terminal:
    """A terminal with a shell of the host's on it."""

    def __init__(self, project: Path) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(project)
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            shell = ["unshare", "--mount", "sh", "-c", OPEN_TUN, "sh"]
            shell += ["bash", "--noprofile", "--noediting", "--rcfile", "../bashrc", "-i"]
            os.execvp(shell[0], shell)
        os.set_inheritable(self.fd, False)  # another terminal's shell would keep this one open
        termios.tcsetwinsize(self.fd, (50, 400))  # so wide that no line is broken
        self.prompt = ""
        self.read()

    def read(self) -> str:
        """What comes before the next prompt."""
        data, end = b"", time.monotonic() + PATIENCE
        while True:
            text = BESIDES.sub("", INVISIBLE.sub("", data.decode(errors="replace")))
            before, _, last = text.rpartition("\n")
            if found := PROMPT.fullmatch(last):
                self.prompt = found[1]
                for name, ours in OURS.items():
                    before = before.replace(ours, name)
                return before
            ready, _, _ = select.select([self.fd], [], [], max(0, end - time.monotonic()))
            assert ready, f"no prompt after {PATIENCE} seconds, but {text!r}"
            data += os.read(self.fd, 1 << 16)

    def type(self, command: str) -> str:
        """Type a command and the Enter key. Gives what it prints."""
        os.write(self.fd, f"{with_our_names(command)}\r".encode())
        echo, _, printed = f"{self.read()}\n".partition("\n")
        assert echo == command
        if command.endswith("&"):
            time.sleep(0.2)  # what goes on behind the prompt needs time, and so does a reader
        return printed

    def close(self) -> None:
        os.close(self.fd)  # which hangs up
        os.waitpid(self.pid, 0)


@pytest.fixture(scope="module")
def project(root: Path, scratch: Path) -> Path:
    """A copy of the project, as a reader has it who has filled alpine-fs."""
    path = scratch / "readme/project"
    path.mkdir(parents=True)
    for file in (SCRIPT, CGROUP_SH):
        copy = path / file.name
        copy.write_text(with_our_names(file.read_text()))
        copy.chmod(file.stat().st_mode)
    subprocess.run(["cp", "-a", root, path / "alpine-fs"], check=True)

    # python3 is the interpreter under test, also for sudo, which has a PATH of its own.
    programs = path.parent / "bin"
    programs.mkdir()
    (programs / "python3").write_text(f'#!/bin/sh\nexec {shlex.quote(PYTHON)} "$@"\n')
    (programs / "python3").chmod(0o755)
    sudo = 'command sudo env "PATH=$PATH" ' if shutil.which("sudo") else ""
    (path.parent / "bashrc").write_text(
        f'PATH={shlex.quote(str(programs))}:$PATH LC_ALL=C.UTF-8 PS1="$ " HISTFILE=\n'
        f'sudo() {{ {sudo}"$@"; }}\n'
    )
    return path


@pytest.fixture
def terminal(project: Path) -> Iterator[Callable[[], Terminal]]:
    """`terminal()`: another terminal, in the copy of the project."""
    opened: list[Terminal] = []

    def terminal() -> Terminal:
        opened.append(Terminal(project))
        return opened[-1]

    yield terminal
    for each in opened:
        each.close()
    delete_cgroup(CGROUP)


SESSIONS = list(boxes("console"))


@pytest.mark.once
@pytest.mark.parametrize("text", [t for _, t in SESSIONS], ids=[h for h, _ in SESSIONS])
@needs_alpine
def test_a_session_goes_as_the_readme_says(terminal, text):
    terminals, words = [terminal()], Words()
    for prompt, command, output in session(text):
        if command and prompt == "$" != terminals[0].prompt and len(terminals) == 1:
            terminals.append(terminal())
        here = next((each for each in terminals if each.prompt == prompt), None)
        assert here, f"{prompt} {command}: the prompts are {[each.prompt for each in terminals]}"
        if command:
            printed = here.type(words.fill(command))
            if "has no idmapped mounts" in printed:  # the host's own /usr, say, in Docker
                pytest.skip("a volume's file system takes no idmapped mounts")
            if re.search("there is no pasta|External interface not usable", printed):
                pytest.skip(f"no way out for pasta: {printed}")
            assert words.match(output, printed), f"{prompt} {command}\n{printed}\nis not\n{output}"
    assert [each.prompt for each in terminals] == ["$"] * len(terminals)


WRONG = [
    ("a", "b"),
    ("a", ""),
    ("", "a"),
    ("a", "a\nb"),
    ("a …", "b a"),
    ("…\na", "a\nb"),
    ("a <x> b", "a  b"),
    ("<x> <x>", "1 2"),
    ("<x>\n<x>", "1\n2"),
    ("<x>", "1 2"),
]
RIGHT = [
    ("", ""),
    ("a  b", "a\tb"),
    ("a …", "a b c"),
    ("…\na\n…", "a"),
    ("…\na\n…", "b\nb\na\nc"),
    ("<x>", "17"),
    ("<x> <x>\n<x>", "17 17\n17"),
    ("(a|b)*", "(a|b)*"),
]


@pytest.mark.parametrize(("text", "printed"), [*WRONG, *RIGHT])
def test_the_comparison_tells_right_from_wrong(text, printed):
    assert Words().match(text, printed) == ((text, printed) in RIGHT)


def test_a_word_is_the_same_in_all_of_a_session():
    words = Words()
    assert words.match("I am <pid>", "I am 7")
    assert words.match("I am <pid>", "I am 7") and not words.match("I am <pid>", "I am 8")
    assert words.fill("kill <pid> <other>") == "kill 7 <other>"


# --- What is not executed ------------------------------------------------------------------------


def test_two_commands_do_all_the_set_up():
    """They install packages, so only their shape is looked at."""
    (setup,) = [text for _, text in boxes("sh")]
    packages = "curl python3 python3-prctl libseccomp2 busybox-static passt"
    start = "sudo python3 go_container.py run /bin/sh"
    install, tests = setup.splitlines()
    assert install == f"sudo apt-get update && sudo apt-get install -y {packages} && {start}"
    assert any(f"$ {start}\n" in text for _, text in boxes("console"))
    assert tests == "sudo tests/run"


def test_every_other_box_is_executed_or_an_engine_s():
    kinds = re.findall(r"(?m)^```(.*)\n(?s:.*?)^```$", README)
    assert set(kinds) == {"console", "sh", "text"} and kinds.count("text") == 1
    assert all(re.match("sudo ", line) for _, text in boxes("text") for line in text.splitlines())
    prose = re.sub(r"(?ms)^```.*?^```$", "", README)
    assert not re.findall(r"(?<=\n\n)    .*", prose)


# --- Its shape -----------------------------------------------------------------------------------

SECTIONS = [
    "What it promises, and what not", "Quick start", "Options", "The lesson", "Troubleshooting",
    "The way out", "How fast", "References",
]  # fmt: skip


def section(name: str) -> str:
    return README.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def test_it_has_what_a_stranger_asks_in_this_order():
    """First the sentence, the command and five lines of it, and the picture."""
    assert re.findall(r"^## (.+)$", README, re.MULTILINE) == SECTIONS
    opening = README.partition("\n## ")[0]
    sentence, session_at, picture = (opening.find(x) for x in ("runs a ", "```console", "![What"))
    assert 0 < sentence < session_at < picture
    ((_, command, output), *others) = session(next(text for _, text in boxes("console")))
    assert "go_container.py run" in command and output.count("\n") == 5 and not others
    assert len(re.findall(r"^- ", section(SECTIONS[0]), re.MULTILINE)) == 8
    assert len(re.findall(r"^\| (?!.*\| ms \|$)", section("How fast"), re.MULTILINE)) == 5
    assert len(re.findall(r"^- ", section("References"), re.MULTILINE)) == 5


def test_the_lesson_has_fourteen_parts_each_with_an_exercise_a_question_and_its_answer():
    parts = re.findall(r"(?ms)^### (\d+)\. .+?$(.+?)(?=^### )", section("The lesson"))
    assert [int(number) for number, _ in parts] == [*range(1, 15)]
    for number, text in parts:
        assert "```console\n$ " in text and text.count("*Question:* ") == 1, number
        assert len(text.splitlines()) <= 30, number  # a screen
    answers = section("The lesson").partition("\n### Answers\n")[2]
    assert re.findall(r"(?:^|\s)(\d+): ", answers) == [str(number) for number in range(1, 15)]


# --- What the program knows better ---------------------------------------------------------------


ASIDES = re.findall(r"`(\w+)`\s(\d)(?=[,)])", section("The lesson"))


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace: apt-get install strace")
def test_the_lesson_names_functions_with_the_stage_in_which_explain_tells_of_them(run):
    """It sends its reader to both. With calls, a step is told with its docstring's first line."""
    told = run("--explain=calls", "--network", "none", "--rm", "true").stderr.decode()
    stages = dict(re.findall(r"(?ms)^(\d) [A-Z]{2}.*?$(.*?)(?=^\d [A-Z]{2}|\Z)", told))
    assert len(ASIDES) > 15
    for name, stage in ASIDES:
        found = re.search(rf'^def {name}\(.*?\n    """(.+?)(?:"""|\n)', SOURCE, re.M | re.S)
        assert found, name
        assert [at for at, text in stages.items() if found[1] in text] == [stage], name


def test_every_part_of_the_lesson_names_a_function():
    parts = re.findall(r"(?ms)^### \d+\. .+?$(.+?)(?=^### )", section("The lesson"))
    assert all(re.search(r"\((?:`\w+`\s\d(?:,\s)?)+\)", text) for text in parts)


ERRORS = re.findall(r"^\| `(.+?)`", section("Troubleshooting"), re.MULTILINE)


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_that_is_explained_is_one_of_the_programs(error):
    """Word for word, as somebody looks for it who has just seen it."""
    words = re.sub(r'"\s*\n?\s*f?"', "", SOURCE)  # a text may go on in the next line
    pattern = re.escape(error).replace("…", r"\{[^}]*\}")
    assert re.search(pattern, words) or re.search(pattern, CGROUP_SH.read_text())


def test_errors_are_explained():
    assert len(ERRORS) > 5


def table_row(name: str) -> set[str]:
    """The options in the lines of the table that are for this command; run's have no name."""
    found: set[str] = set()
    for row, words in re.findall(r"^\| ([^|]+) \| (.+) \|$", section("Options"), re.MULTILINE):
        if row == (f"`{name}`" if name != "run" else row.strip("`")):
            found |= set(re.findall(r"`((?:-\w/)?--[a-z][a-z0-9-]*)[^`]*`", words))
    return found


@pytest.mark.parametrize("command", ["run", "pull", "spec"])
def test_the_table_has_the_options_of(command):
    """…all of them and no others, with their short names."""
    text = go(command, "--help").stdout.decode()
    found = re.findall(r"(?m)^ +(?:(-\w), )?(--[a-z][a-z0-9-]*)", text)
    options = {f"{short}/{name}" if short else name for short, name in found}
    own = table_row(command) | (table_row("run") if command == "spec" else set())
    assert own == options and len(options) >= 4


def test_every_file_that_is_named_is_there():
    named = re.findall(r"`((?:tests|\.ci)/[\w./]*|test_\w+|\w+\.(?:py|sh))`", README)
    named += re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert {"go_container.py", "tests/README.md", "tests/explain.svg", "tests/slurm"} <= set(named)
    for name in named:
        places = [REPOSITORY / name, REPOSITORY / f"tests/{name}", REPOSITORY / f"tests/{name}.py"]
        assert any(place.exists() for place in places), name


def test_the_picture_is_one_of_the_lesson(run):
    """…as it is today: the same headings, and as many lines from each process."""
    picture = (REPOSITORY / "tests/explain.svg").read_text()
    told = run("--explain", "true").stderr.decode()
    headings = re.findall(r"(?m)^\d [A-Z]{2}.*$", told)
    shown = html.unescape(picture).replace("\N{NO-BREAK SPACE}", " ")
    assert len(headings) == 6 and all(f">{heading}<" in shown for heading in headings)
    for who in ("host", "middle", "container"):
        assert shown.count(f">{who}<") == len(re.findall(rf"(?m)^  {who} ", told)) > 0


def test_the_readme_fits_its_frame():
    """Plain English does not fit into wide lines; the tables and the one install line may."""
    wide = [line for line in README.splitlines() if len(line) > 100]
    assert not [line for line in wide if not line.startswith(("|", "sudo apt-get "))]
    assert len(README.splitlines()) <= 400
    assert not re.search("[\U0001f300-\U0001faff]", README)
