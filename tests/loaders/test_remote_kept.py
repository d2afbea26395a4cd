"""Kept indices and copies of remote files: which are used, replaced or made anew."""

import json
import os
import re
from pathlib import Path
from weakref import WeakSet

import pytest
from remote_fixtures import caches, folder, server
from tar_files import make_jpeg, write_tar
from web_server import WebServer

from saga_fast.loaders import listing, open_source
from saga_fast.loaders.remote import index
from saga_fast.loaders.remote.shards import RemoteShards
from saga_fast.loaders.remote.signed import unsigned
from saga_fast.loaders.remote.store import Stat
from saga_fast.loaders.shards import Member

__all__ = ["caches", "folder", "server"]
pytestmark = pytest.mark.usefixtures("caches")

TARS = "{00000..00002}.tar"


def test_a_kept_index_spares_the_headers(server: WebServer, caches: Path) -> None:
    first = open_source("folder", f"{server.url}/{TARS}")
    assert {request.method for request in server.requests} == {"HEAD", "GET"}
    assert len(list(caches.glob("*.json"))) == 3
    assert {path.suffix for path in caches.iterdir()} == {".json"}  # no lock is left
    server.requests.clear()
    second = open_source("folder", f"{server.url}/{TARS}")
    assert sorted((request.method, request.path) for request in server.requests) == [
        ("HEAD", f"/0000{number}.tar") for number in range(3)
    ]
    assert (second.paths, second.classes, second.fingerprint) == (first.paths, first.classes, first.fingerprint)
    assert second.read(15) == first.read(15)


@pytest.mark.parametrize("change", ["version", "size"])
def test_the_index_of_a_changed_file_is_not_used(server: WebServer, caches: Path, change: str) -> None:
    open_source("folder", f"{server.url}/{TARS}")
    tar = server.root / "00001.tar"
    before = tar.stat()
    members = {"new/a.jpg": make_jpeg(50)} | ({"more": bytes(2**14)} if change == "size" else {})
    write_tar(tar, members)
    if change == "size":
        os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (tar.stat().st_size == before.st_size) is (change == "version")
    source = open_source("folder", f"{server.url}/{TARS}")
    assert source.paths[10] == "new/a.jpg"
    assert source.read(10) == make_jpeg(50)
    assert len(list(caches.iterdir())) == 3  # it is replaced


SIGNATURES = {
    "X-Amz-Algorithm=A&X-Amz-Credential=k%2Fr&X-Amz-Date={0}&X-Amz-Expires=9&X-Amz-SignedHeaders=host"
    "&X-Amz-Security-Token={0}&X-Amz-Signature={0}": "",
    "versionId=5&X-Amz-Credential=k&X-Amz-Signature={0}": "?versionId=5",
    "X-Goog-Algorithm=A&X-Goog-Credential=k&X-Goog-Date={0}&X-Goog-Signature={0}": "",
    "AWSAccessKeyId=k&Signature={0}&Expires={0}": "",
    "GoogleAccessId=k&Expires={0}&Signature={0}": "",
    "Policy={0}&Signature={0}&Key-Pair-Id=k&file=7": "?file=7",
    "sv=2024&se={0}&sr=b&sp=r&sig={0}&snapshot=3": "?snapshot=3",
    "signature=3": "?signature=3",
    "sig=3&sr=4": "?sig=3&sr=4",
    "id=1": "?id=1",
}


@pytest.mark.parametrize("query", SIGNATURES)
def test_only_a_signature_is_no_part_of_an_address(query: str) -> None:
    assert {unsigned(f"https://h/a?{query.format(n)}") for n in range(3)} == {f"https://h/a{SIGNATURES[query]}"}
    assert unsigned(f"s3://b/a?{query}") == f"s3://b/a?{query}"


def test_signed_anew_it_is_the_same_file(
    server: WebServer, tmp_path: Path, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MAPPED_BYTES", 0)
    for number in range(3):
        server.requests.clear()
        address = f"{server.url}/{TARS}?X-Amz-Credential=k&X-Amz-Signature={number}"
        assert len(open_source("folder", address)) == 23
        open_source("folder", address, cache=tmp_path / "copies")
        assert all(request.path.endswith(f"Signature={number}") for request in server.requests)
    assert {request.method for request in server.requests} == {"HEAD"}
    assert len(list(caches.iterdir())) == len(list((tmp_path / "copies").iterdir())) == 3
    assert len(list((tmp_path / "caches" / "listings").iterdir())) == 2  # streamed, and of the copies


def test_files_that_differ_by_their_query(server: WebServer, caches: Path) -> None:
    for name in "ab":
        tar = write_tar(server.root / f"x.tar?id={name}", {f"{name}.jpg": make_jpeg(0)})
        os.utime(tar, (0, 0))  # their sizes and ETags are the same
    for _ in range(2):
        assert [open_source("folder", f"{server.url}/x.tar?id={name}").paths for name in "ab"] == [["a.jpg"], ["b.jpg"]]
    assert len(list(caches.iterdir())) == 2


CONTENTS = ["", "{", "[1]", "[" * 10**5, '{"a": 1}']
IMAGES: list[object] = [[["a.jpg", 0, 99999999, 0]], [["a.jpg", -5, 1, 0]], [["a.jpg"]], [1], 1, None]


@pytest.mark.parametrize("content", [*CONTENTS, *IMAGES], ids=lambda content: str(content)[:20])
def test_a_damaged_index_is_made_anew(server: WebServer, caches: Path, content: object) -> None:
    first = open_source("folder", f"{server.url}/{TARS}")
    entries = {entry: entry.read_bytes() for entry in caches.iterdir()}
    for entry in entries:
        kept = json.loads(entry.read_bytes())
        entry.write_text(content if isinstance(content, str) else json.dumps(kept | {"images": content}))
    again = open_source("folder", f"{server.url}/{TARS}")
    assert again.fingerprint == first.fingerprint
    assert {entry: entry.read_bytes() for entry in caches.iterdir()} == entries


def test_a_cache_that_cannot_be_written_is_no_error(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAGA_FAST_CACHE", str(tmp_path / "file"))
    assert len(open_source("folder", f"{server.url}/{TARS}")) == 23
    assert caplog.text.count("the index of remote shards is not kept") == 1


def test_copies_belong_to_a_version_of_a_file(server: WebServer, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    open_source("folder", f"{server.url}/{TARS}", cache=copies)
    assert len(list(copies.iterdir())) == 3  # no lock or part of a file is left
    server.requests.clear()
    open_source("folder", f"{server.url}/{TARS}", cache=copies)
    assert {request.method for request in server.requests} == {"HEAD"}
    write_tar(server.root / "00001.tar", {"new/a.jpg": make_jpeg(50)})
    assert open_source("folder", f"{server.url}/{TARS}", cache=copies).read(10) == make_jpeg(50)
    short = next(copies.glob("*-00000.tar"))
    short.write_bytes(short.read_bytes()[:100])
    assert open_source("folder", f"{server.url}/{TARS}", cache=copies).read(0) == make_jpeg(0)


class Found(list[Member]):
    """The images of a shard, of which a weak reference can be taken."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def test_the_members_of_few_shards_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alive, most = WeakSet[Found](), 0

    def members(*_: object) -> Found:
        nonlocal most
        found = Found((f"{number}.jpg", 512, 10, -1) for number in range(3))
        alive.add(found)
        most = max(most, len(alive))
        return found

    monkeypatch.setattr(index, "_members", members)
    addresses = [f"http://h/{number}.tar" for number in range(300)]
    source = RemoteShards("http://h/{0..299}.tar", addresses, [Stat(1, "")] * 300)
    assert len(source) == 900
    assert source.paths[899] == "2.jpg"
    assert most <= 2 * index.THREADS + 1  # and that of which rows are made


def test_the_index_does_not_hold_what_a_hostile_tar_names_as_paths(server: WebServer, caches: Path) -> None:
    names = ["/etc/passwd.jpg", "../../outside.jpg", "a\nb.jpg"]
    write_tar(server.root / "x.tar", {name: make_jpeg(0) for name in names})
    assert open_source("folder", f"{server.url}/x.tar").paths == names
    assert re.fullmatch(r"[0-9a-f]{32}\.json", next(caches.iterdir()).name)
    assert [row[0] for row in json.loads(next(caches.iterdir()).read_bytes())["images"]] == names
