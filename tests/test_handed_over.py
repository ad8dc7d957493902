"""Nothing is left behind, whoever prepared the cgroup: here a user did, by sudo ./cgroup.sh.

The cgroup is that user's then, and who removes a leaf from it needs more than root's number. The
control is the same in a cgroup of root's: test_endings.py.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from containers import CGROUP_SH, HIERARCHIES, fine, leaves
from test_endings import CROWD, ENDINGS, UNANSWERED, nothing
from test_worlds import end_of, is_right, needs_uml, pytest_there, start_world

pytestmark = pytest.mark.once  # the same with every Python

USER = 54321


@pytest.fixture
def handed(own_parent):
    sudo = {"SUDO_UID": f"{USER}", "SUDO_GID": f"{USER}", "SUDO_USER": "somebody"}
    argv = [CGROUP_SH, "--name", own_parent]
    subprocess.run(argv, check=True, capture_output=True, env=os.environ | sudo)
    assert (HIERARCHIES["pids"] / own_parent).stat().st_uid == USER
    return own_parent


@pytest.mark.parametrize("kind", ["background", "terminal"])
@pytest.mark.parametrize("how", ENDINGS)
def test_no_leaf_is_left_in_a_cgroup_of_a_user_s_after(request, run, handed, kind, how):
    ending = ENDINGS[how]
    own_group = {"start_new_session": True} if kind == "background" else {}
    script = f"{CROWD}; trap 'exit 5' {ending.handles}; echo ready; {ending.script}"
    start = request.getfixturevalue(kind)
    container = start(*ending.options, "sh", "-c", script, parent=handed, **own_group)
    container.expect(rb"ready\r?\n")
    if ending.act is not nothing:  # else it may have ended by itself already
        assert leaves(handed)
    ending.act(container)
    assert container.is_gone(ending.seconds)
    assert container.wait(2) in ending.codes
    if how in UNANSWERED:
        fine(run("true", parent=handed))  # which sweeps
    assert not leaves(handed)


@needs_uml
@pytest.mark.once
def test_in_another_world_all_of_this_is_the_same_with_cgroups_of_v2(tmp_path):
    # Without the memory that runs out: to fill it takes that world longer than a second.
    which = "not another_world and background and not memory"
    words = [*pytest_there(Path(__file__).name), "-k", which]
    assert is_right(*end_of(start_world("v2", *words, ext4=tmp_path)))
