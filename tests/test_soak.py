"""The soak for a minute; all of it: `sudo python3 tests/tools/soak.py --minutes 30`."""

from __future__ import annotations

import subprocess
import sys

import pytest
from containers import PYTHON, TOOLS

SOAK = TOOLS / "soak.py"


@pytest.mark.once
def test_mixed_launches_with_random_kills_are_right_and_leave_nothing(root):
    words = ["--minutes", "1", "--jobs", "8", "--rootfs", root, "--python", PYTHON]
    done = subprocess.run([sys.executable, SOAK, *words], capture_output=True, timeout=240)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
