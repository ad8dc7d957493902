"""The tool that plants faults: it names those that are let through, and no others."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest
from containers import PATIENCE, REPOSITORY, TOOLS

pytestmark = pytest.mark.once

FAULT = """
[[fault]]
name = "{}"
file = "cgroup.sh"
old = "mkdir -m 1755"
new = "{}"
tests = "test_cgroup_sh.py -k '{}'"
"""


def plant(place, *faults: tuple[str, str, str]) -> subprocess.CompletedProcess[str]:
    (place / "list.toml").write_text("".join(FAULT.format(*fault) for fault in faults))
    words = [sys.executable, TOOLS / "plant", "--list", place / "list.toml", "--place", place]
    return subprocess.run(words, capture_output=True, text=True, timeout=2 * PATIENCE)


def test_a_fault_that_tests_let_through_is_named_and_another_is_not(place):
    faults = ("harmless", "mkdir -m 01755", "umask"), ("harmful", "mkdir -m 1750", "umask")
    done = plant(place, *faults)
    assert done.returncode == 1, done
    assert done.stdout.endswith("2 planted, 1 let through\n  harmless\n"), done


@pytest.mark.parametrize("tests", ["no such test", "(", "garbage and a_normal_user and umask"])
def test_a_fault_that_no_test_looks_at_is_no_fault_let_through(place, tests):
    assert plant(place, ("a name", "mkdir -m 1750", tests)).returncode == 2


def test_every_fault_of_the_list_can_be_planted():
    faults = tomllib.loads((TOOLS / "plant.toml").read_text())["fault"]
    times = {each["name"]: (REPOSITORY / each["file"]).read_text().count(each["old"])
             for each in faults}  # fmt: skip
    assert {name: count for name, count in times.items() if count != 1} == {}
