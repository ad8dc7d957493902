"""What is no root: images, as `docker save` and OCI tools write them, and roots within a folder."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import pytest
from containers import fine, go, one_line

pytestmark = pytest.mark.once  # the same with every Python


@pytest.fixture
def pull(project):
    """`pull(*words)` in a project of its own."""

    def pull(*words):
        return go("pull", *words, script=project / "go_container.py", cwd=project)

    return pull


def packed(path, entries):
    """A tarball: None makes a directory, bytes a file, text a symbolic link."""
    with tarfile.open(path, "w") as tar:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755
            if content is None:
                entry.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
            else:
                entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content if isinstance(content, bytes) else b""))
    return path


DIGEST = "5b8ed5d1b6a0f2c5b8a1d9b6c0c1f4ce8ee1d2b0d0dd6d9a1a8c7f3a7be1f0aa"
BLOBS = {
    "blobs": None,
    "blobs/sha256": None,
    f"blobs/sha256/{DIGEST}": b'{"schemaVersion":2}',
    f"blobs/sha256/{DIGEST[::-1]}": b"a layer\n" * 100,
}
MANIFEST = json.dumps([{"Config": f"{DIGEST}.json", "RepoTags": ["alpine:latest"],
                        "Layers": [f"{DIGEST}/layer.tar"]}]).encode()  # fmt: skip
INDEX = json.dumps({"schemaVersion": 2, "manifests": [{"digest": f"sha256:{DIGEST}"}]}).encode()
OCI = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": INDEX}
SAVED = {
    f"{DIGEST}.json": b'{"architecture":"amd64","rootfs":{"type":"layers"}}',
    f"{DIGEST}": None,
    f"{DIGEST}/VERSION": b"1.0",
    f"{DIGEST}/json": b"{}",
    f"{DIGEST}/layer.tar": b"a layer\n" * 100,
    "manifest.json": MANIFEST,
    "repositories": b'{"alpine":{}}',
}
IMAGES = {
    "docker save": SAVED,
    "docker save of today": {**BLOBS, **OCI, "manifest.json": MANIFEST, "repositories": b"{}"},
    "podman save": {f"{DIGEST}.tar": b"a layer\n", f"{DIGEST}.json": b"{}",
                    "manifest.json": MANIFEST, f"{DIGEST}/layer.tar": f"../{DIGEST}.tar"},
    "an OCI layout": {**BLOBS, **OCI},
    "an OCI layout, with dots": {f"./{name}": what for name, what in (BLOBS | OCI).items()},
}  # fmt: skip
ROOT = {"bin": None, "bin/sh": b"#!\n", "etc": None, "etc/passwd": b"root:x:0:0::/:/bin/sh\n"}


def below(folder, entries):
    return {f"{folder}": None, **{f"{folder}/{name}": what for name, what in entries.items()}}


FOLDERS = {
    "a folder": below("rootfs", ROOT),
    "a folder, with a dot": {".": None, **below("./alpine-3.21", ROOT)},
    "a folder of links": below("rootfs", {"bin": "usr/bin", "usr/bin/sh": b"#!\n"}),
    "two folders": below("bundle", below("rootfs", ROOT)),
}


def is_refused(pull, project, path, words):
    """…and what was there stays, with nothing beside it."""
    (project / "alpine-fs/mark").write_text("before\n")
    there = sorted(project.rglob("*"))
    text = one_line(pull("--force", path))
    assert sorted(project.rglob("*")) == there
    assert (project / "alpine-fs/mark").read_text() == "before\n"
    assert all(word in text for word in words), text
    return text


@pytest.mark.parametrize("entries", IMAGES.values(), ids=IMAGES)
def test_an_image_is_refused_with_the_way_to_a_root(pull, project, tmp_path, entries):
    path = packed(tmp_path / "image.tar", entries)
    text = is_refused(pull, project, path, ["image.tar", "image"])
    assert ("docker create" in text and "docker export" in text) or (
        "skopeo" in text and "umoci" in text
    )


def test_a_packed_image_is_refused_too(pull, project, tmp_path):
    path = packed(tmp_path / "image.tar", SAVED)
    (tmp_path / "image").write_bytes(gzip.compress(path.read_bytes()))
    is_refused(pull, project, tmp_path / "image", ["image"])


@pytest.mark.parametrize("entries", FOLDERS.values(), ids=FOLDERS)
def test_a_root_within_a_folder_is_refused(pull, project, tmp_path, entries):
    path = packed(tmp_path / "root.tar", entries)
    is_refused(pull, project, path, ["root.tar"])


def test_an_empty_alpine_fs_stays_empty(pull, project, tmp_path):
    one_line(pull(packed(tmp_path / "image.tar", SAVED)))
    assert [path.name for path in (project / "alpine-fs").iterdir()] == [".gitignore"]


RIGHT = {
    "that has a manifest.json of its own": {**ROOT, "manifest.json": b"{}"},
    "that has blobs, too": {**ROOT, **BLOBS, **OCI},
    "with a file in /bin alone": {"bin": None, "bin/sh": b"#!\n"},
    "with a file in /usr alone": {"usr": None, "usr/bin": None, "usr/bin/sh": b"#!\n"},
    "with a file in /sbin alone": {"sbin": None, "sbin/init": b"#!\n"},
    "whose folders are links": {"usr/bin/sh": b"#!\n", "bin": "usr/bin"},
    "with a static program at its top": {"hello": b"\x7fELF"},
    "with two folders": {"app": None, "app/run": b"#!\n", "data": None, "data/file": b""},
}


@pytest.mark.parametrize("entries", RIGHT.values(), ids=RIGHT)
def test_a_root_is_one(pull, project, tmp_path, entries):
    """The controls."""
    fine(pull("--force", packed(tmp_path / "root.tar", entries)))
    for name, what in entries.items():
        path = project / "alpine-fs" / name
        assert path.is_symlink() if isinstance(what, str) else path.exists()
