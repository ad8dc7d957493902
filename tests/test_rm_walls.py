"""--rm is no way out: the tests of walls and of hostile roots once more, on a fresh root."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from test_hostile_root import *  # noqa: F403
from test_walls import *  # noqa: F403

pytest_plugins = ["attempts"]
pytestmark = pytest.mark.once  # Python makes no mounts


@pytest.fixture
def run(run):
    return lambda *words, **more: run("--rm", *words, **more)


@pytest.fixture
def start(start):
    @contextmanager
    def start_fresh(*words, **more):
        with start("--rm", *words, **more) as container:
            yield container

    return start_fresh


def test_they_run_on_a_fresh_root(run, start, fresh_root):
    """Or all of this would be in vain."""
    assert run("touch", "/mark", rootfs=fresh_root).returncode == 0
    with start(script="touch /mark && test -e /mark", rootfs=fresh_root):
        assert not (fresh_root / "mark").exists()
