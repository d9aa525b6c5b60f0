"""One file over the network, where the network or the server fails: what arrives is whole and the right one."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
from pathlib import Path

import pooch
import pytest

from medsam3.preparation.transfer import Transfer, TransferError
from tests.file_server import Served, file_server

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture
def server():
    with file_server() as server:
        yield server


@pytest.fixture
def fetch(tmp_path):
    def fetch(url: str, known: str | None = None, attempts: int = 3) -> bytes:
        transfer = Transfer(tmp_path / "a.zip", known is not None, attempts, wait_s=0, timeout_s=5)
        return Path(pooch.retrieve(url, known, "a.zip", tmp_path, downloader=transfer)).read_bytes()

    return fetch


def test_a_whole_file_is_fetched_once_and_leaves_nothing_else(server, fetch, tmp_path):
    server.files["/a.zip"] = Served(CONTENT)
    assert fetch(f"{server.url}/a.zip", SHA256) == CONTENT
    assert fetch(f"{server.url}/a.zip", SHA256) == CONTENT
    assert len(server.asked) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_an_interrupted_transfer_goes_on_where_it_stopped(server, fetch):
    server.files["/a.zip"] = Served(CONTENT, breaks=1, after=100_000)
    assert fetch(f"{server.url}/a.zip") == CONTENT
    assert server.asked[-1] == ("/a.zip", "bytes=100000-")


def test_a_later_run_goes_on_too(server, fetch, tmp_path):
    server.files["/a.zip"] = Served(CONTENT, breaks=1, after=100_000)
    with pytest.raises(TransferError, match=r"a\.zip: the transfer broke off .* \(1 attempts\)"):
        fetch(f"{server.url}/a.zip", attempts=1)
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [100_000]
    assert fetch(f"{server.url}/a.zip", attempts=1) == CONTENT
    assert server.asked[-1] == ("/a.zip", "bytes=100000-")


def test_a_server_that_ignores_ranges_gives_the_right_file(server, fetch):
    server.files["/a.zip"] = Served(CONTENT, breaks=1, after=100_000, ranges=False)
    assert fetch(f"{server.url}/a.zip") == CONTENT
    assert server.asked[-1] == ("/a.zip", "bytes=100000-")


@pytest.mark.parametrize("etag", ['"2"', None, 'W/"1"'])
def test_two_versions_of_a_file_are_never_put_together(server, fetch, tmp_path, etag):
    """A new version of the same length; no hash is known. Without a strong tag the versions cannot be told apart."""
    first = '"1"' if etag == '"2"' else etag
    server.files["/a.zip"] = Served(CONTENT[::-1], first, breaks=1, after=100_000)
    with pytest.raises(TransferError):
        fetch(f"{server.url}/a.zip", attempts=1)
    server.files["/a.zip"] = Served(CONTENT, etag)
    assert fetch(f"{server.url}/a.zip", attempts=1) == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_version_that_changes_between_two_requests_is_sent_whole(server, fetch, monkeypatch):
    server.files["/a.zip"] = Served(CONTENT[::-1], breaks=1, after=100_000)
    original = Transfer._part

    def change(self, headers):
        found = original(self, headers)
        if len(server.asked) == 2:
            server.files["/a.zip"] = Served(CONTENT, '"2"')
        return found

    monkeypatch.setattr(Transfer, "_part", change)
    assert fetch(f"{server.url}/a.zip") == CONTENT


def test_without_a_tag_a_known_hash_lets_it_go_on(server, fetch):
    server.files["/a.zip"] = Served(CONTENT, None, breaks=1, after=100_000)
    assert fetch(f"{server.url}/a.zip", SHA256) == CONTENT
    assert server.asked[-1] == ("/a.zip", "bytes=100000-")


def test_a_wrong_hash_leaves_no_file(server, fetch, tmp_path):
    server.files["/a.zip"] = Served(CONTENT[:-1] + b"x")
    with pytest.raises(ValueError, match="does not match the known hash"):
        fetch(f"{server.url}/a.zip", SHA256)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_stays_short_is_an_error(server, fetch):
    server.files["/a.zip"] = Served(CONTENT, breaks=9, after=0)
    with pytest.raises(TransferError, match=r"\(3 attempts\)"):
        fetch(f"{server.url}/a.zip")


def test_redirects_are_followed_and_ranges_with_them(server, fetch):
    server.files["/old"] = Served(b"", status=302, location="/a.zip")
    server.files["/a.zip"] = Served(CONTENT, breaks=1, after=100_000)
    assert fetch(f"{server.url}/old") == CONTENT
    assert server.asked[-1] == ("/a.zip", "bytes=100000-")


def test_a_circle_of_redirects_ends(server, fetch):
    server.files["/a.zip"] = Served(b"", status=302, location="/a.zip")
    with pytest.raises(TransferError, match="redirects"):
        fetch(f"{server.url}/a.zip")


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (202, 1), (503, 3), (429, 3)])
def test_a_dead_link_is_named_and_only_what_may_pass_is_asked_again(server, fetch, status, requests):
    server.files["/a.zip"] = Served(b"", status=status)
    with pytest.raises(TransferError, match=rf"{server.url}/a.zip: the server answers {status}"):
        fetch(f"{server.url}/a.zip")
    assert len(server.asked) == requests


def test_a_web_page_is_not_taken_for_the_file(server, fetch, tmp_path):
    server.files["/a.zip"] = Served(b"<html>log in</html>", kind="text/html; charset=utf-8")
    with pytest.raises(TransferError, match="a web page instead of the file"):
        fetch(f"{server.url}/a.zip")
    assert list(tmp_path.iterdir()) == []


def test_no_network_is_said(fetch, server):
    server.url = "http://127.0.0.1:1"  # nothing listens there
    with pytest.raises(TransferError, match="no connection: is there a network"):
        fetch(f"{server.url}/a.zip")


def test_a_file_without_length_is_fetched_whole(server, fetch):
    server.files["/a.zip"] = Served(CONTENT, said_length=False)
    assert fetch(f"{server.url}/a.zip") == CONTENT


def test_a_disk_that_is_too_small_stops_before_the_transfer(server, fetch, monkeypatch):
    server.files["/a.zip"] = Served(CONTENT)
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(TransferError, match="disk full: 300,000 bytes are to come, 1,000 are free"):
        fetch(f"{server.url}/a.zip")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_disk_that_fills_up_is_said(server, fetch, tmp_path):
    server.files["/a.zip"] = Served(CONTENT)
    part, _, _ = Transfer(tmp_path / "a.zip", False, 1, 0, 5)._part({"ETag": '"1"', "Content-Length": "300000"})
    part.symlink_to("/dev/full")
    with pytest.raises(TransferError, match=f"disk full .{os.strerror(errno.ENOSPC)}.*run the same command"):
        fetch(f"{server.url}/a.zip")


def test_a_doi_is_followed_to_the_file_of_that_name(server, fetch, tmp_path, monkeypatch):
    """The interface of a Dataverse, which pooch asks for the files of a DOI."""
    monkeypatch.setattr(pooch.downloaders, "doi_to_url", lambda doi, **options: f"{server.url}/dataset")
    listing = b'{"data": {"latestVersion": {"files": [{"dataFile": {"filename": "a.zip", "id": 7}}]}}}'
    server.files["/api/datasets/:persistentId?persistentId=doi:10.1234/abc"] = Served(listing)
    server.files["/api/access/datafile/7"] = Served(CONTENT, breaks=1, after=100_000)
    assert fetch("doi:10.1234/abc/a.zip", SHA256) == CONTENT
    assert server.asked[-1] == ("/api/access/datafile/7", "bytes=100000-")
    (tmp_path / "a.zip").unlink()
    with pytest.raises(TransferError, match=r"doi:10\.1234/abc: 'b\.zip' was not found"):
        fetch("doi:10.1234/abc/b.zip")


def test_a_doi_without_network_is_said(fetch, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    with pytest.raises(TransferError, match=r"doi:10\.1234/abc: "):
        fetch("doi:10.1234/abc/a.zip")
