"""The page in a headless Chromium, and its server asked directly for what it must not give."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import nibabel
import numpy as np
import pytest
import requests

from medsam3.demo import page
from medsam3.prediction.image import ImagePredictor
from tests.conftest import save_picture
from tests.demo.demo_config import demo_config
from tests.demo.test_study import pixels_of, save_two_series

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'medsam3[page]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PICTURE = np.random.RandomState(0).randint(0, 256, (48, 60, 3)).astype(np.uint8)
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The page with a tiny model; every connection that this process makes is kept."""
    folder = tmp_path_factory.mktemp("page")
    with socket.socket() as free:
        free.bind((page.HOST, 0))
        port = free.getsockname()[1]
    called, asked = [], []
    patch = pytest.MonkeyPatch()
    for name in ("GRADIO_TEMP_DIR", *page.SETTINGS, *page.UNWANTED):
        patch.setenv(name, os.environ.get(name, ""))  # so that they are as before afterwards
    connect, ask = socket.socket.connect, ImagePredictor.ask
    patch.setattr(socket.socket, "connect", lambda self, to: (called.append(to), connect(self, to))[1])
    patch.setattr(ImagePredictor, "ask", lambda *a, **k: (asked.append(a), ask(*a, **k))[1])
    config = demo_config(port=port, upload_mb=1)
    config.volume.tracker, config.prediction.tile, config.prediction.tile_overlap = "tiny", 50, 20
    blocks, options = page.build(config, folder)
    blocks.launch(**options, prevent_thread_lock=True)
    yield SimpleNamespace(url=f"http://{page.HOST}:{port}", folder=folder, called=called, asked=asked)
    blocks.close(verbose=False)
    patch.undo()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("the browser test needs Chromium on the PATH")
    with api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def tab(browser, server):
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    opened.set_default_timeout(PATIENCE_MS)
    requested = []
    opened.on("request", lambda request: requested.append(request.url))
    opened.goto(server.url)
    yield opened
    opened.close()
    assert requested and all(url.startswith((server.url, "data:", "blob:")) for url in requested), requested
    assert all(to[0] in (page.HOST, "localhost") for to in server.called if isinstance(to, tuple)), server.called


def shown(tab) -> np.ndarray:
    return pixels_of(tab.locator("#picture img").get_attribute("src"))


def until(condition) -> None:
    """Wait for a truth."""
    end = time.monotonic() + PATIENCE_MS / 1000
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def upload(tab, path: Path) -> None:
    tab.locator("#upload input[type=file]").set_input_files(path)


def segment(tab, words: str) -> None:
    tab.locator("#prompts textarea").fill(words)
    tab.get_by_role("button", name="Segment").click()
    tab.locator("#scores td").first.wait_for()


def kept(server) -> list[Path]:
    """Files of visitors."""
    return [path for path in server.folder.rglob("*") if path.is_file() and path.stat().st_size]


def slide(tab, label: str, value: float) -> None:
    field = tab.get_by_label(f"number input for {label}")
    field.fill(str(value))
    field.press("Enter")


def test_a_picture_is_uploaded_asked_shown_and_downloaded(tab, server, tmp_path):
    upload(tab, save_picture(tmp_path / "photo.png", PICTURE))
    tab.locator("#picture img").wait_for()
    assert np.array_equal(shown(tab), PICTURE)
    before = len(server.asked)
    segment(tab, "polyp, <b>liver</b>")
    assert tab.locator("#scores tbody tr").count() == 2 and tab.locator("#scores tbody b").count() == 0
    assert "photo.png: 60 x 48 px" in tab.locator("#picture figcaption").inner_text()
    until(lambda: not np.array_equal(shown(tab), PICTURE))
    covered = shown(tab)
    slide(tab, "Opacity", 0)
    until(lambda: np.array_equal(shown(tab), PICTURE))
    slide(tab, "Opacity", 0.45)
    until(lambda: np.array_equal(shown(tab), covered))
    slide(tab, "Threshold of the score", 1)
    until(lambda: np.array_equal(shown(tab), PICTURE))
    assert tab.locator("#scores tbody").inner_text().count("not found") == 2
    slide(tab, "Threshold of the score", 0.05)
    until(lambda: np.array_equal(shown(tab), covered))
    assert len(server.asked) == before + 2, "one question per tile; sliders do not ask the model"
    assert "asked in 2 tiles of 50 px" in tab.locator("#status").inner_text()
    tab.get_by_role("button", name="Make files").click()
    with tab.expect_download() as waiting:
        tab.locator("#masks a[download]").first.click()
    waiting.value.save_as(tmp_path / "masks.zip")
    with zipfile.ZipFile(tmp_path / "masks.zip") as files:
        assert sorted(name for name in files.namelist() if name.endswith("g")) == [
            "masks/1_polyp.png",
            "masks/2__b_liver__b_.png",
            "overlay.png",
        ]
        record = json.loads(files.read("prediction.json"))
    assert record["threshold"] == 0.05 and [said["found"] for said in record["prompts"]] == [True, True]


def test_the_slice_of_a_volume_is_moved_without_the_model_and_files_go_with_the_tab(tab, server, tmp_path):
    voxels = np.random.RandomState(1).randint(0, 256, (40, 30, 6)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1, -1, 3, 1.0])), tmp_path / "v.nii.gz")
    upload(tab, tmp_path / "v.nii.gz")
    tab.locator("#slice").wait_for()
    segment(tab, "polyp")
    before = len(server.asked)
    slide(tab, "Opacity", 0)
    for number in (2, 6):
        slide(tab, "Slice", number)
        until(lambda number=number: np.array_equal(shown(tab)[..., 0], voxels[:, :, number - 1].T))
        assert f"slice {number} of 6" in tab.locator("#picture figcaption").inner_text()
    assert len(server.asked) == before
    tab.get_by_role("button", name="Make files").click()
    link = tab.locator("#masks a[download]").first
    link.wait_for()
    address = link.get_attribute("href")
    assert requests.get(address, timeout=9).content[:2] == b"PK"
    assert sorted(path.name for path in kept(server)) == ["masks_v_nii.zip", "v.nii.gz"]
    for path in kept(server):
        answer = requests.get(f"{server.url}/gradio_api/file={quote(str(path))}", timeout=9)
        assert (answer.status_code == 200) == path.name.startswith("masks"), path
    tab.goto("about:blank")
    until(lambda: not kept(server))


def test_another_dicom_series_of_an_upload_is_chosen_and_followed(tab, tmp_path):
    names = save_two_series(tmp_path)
    tab.locator("#upload input[type=file]").set_input_files([tmp_path / name for name in names])
    tab.get_by_text("slice 4 of 6").wait_for()
    tab.locator("#series input").click()
    tab.get_by_role("option", name="4 of").click()
    tab.get_by_text("slice 3 of 4").wait_for()
    tab.get_by_label("followed from slice to slice").click()
    segment(tab, "polyp")
    assert "followed at a threshold of 0.05" in tab.locator("#status").inner_text()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("bad.png", b"no picture", "bad.png: cannot be read"),
        ("bad.nii.gz", b"no volume", "bad.nii.gz: cannot be read"),
        ("four.nii", nibabel.Nifti1Image(np.zeros((4, 5, 6, 2), np.uint8), np.eye(4)).to_bytes(), "has 4 axes"),
        (
            "short.dcm",
            bytes(128) + b"DICM" + b"\x08\x00\x05\x00CS\x0a\x00ISO",
            "short.dcm: cannot be read|no DICOM image",
        ),
        ("many.zip", b"PK\x03\x04 nonsense", "type|format"),
        ("large.png", b"0" * 2**21, "size"),
        ("page.html", b"<script>alert(1)</script>", "type|format"),
    ],
)
def test_what_cannot_be_taken_is_said_in_words(name, content, expected, tab, server, tmp_path):
    (tmp_path / name).write_bytes(content)
    upload(tab, tmp_path / name)
    message = tab.locator(".toast-body").first
    message.wait_for()
    text = message.inner_text()
    assert re.search(expected, text) and "Traceback" not in text and str(server.folder) not in text, text
    assert [path.name for path in kept(server) if path.name != "page.html"] == []


def test_nothing_to_do_is_said_in_words(tab):
    tab.get_by_role("button", name="Segment").click()
    message = tab.locator(".toast-body").first
    message.wait_for()
    assert "upload a picture or volume first" in message.inner_text()


@pytest.mark.parametrize(
    "path",
    [
        "file=/etc/passwd",
        "file=../../../../../../etc/passwd",
        "file=%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "file={cache}/../secret.txt",
        "file={cache}/%2e%2e/secret.txt",
        "file={folder}/secret.txt",
        "file=http://127.0.0.1:1/",
        "file=C:/Windows/win.ini",
        "proxy=http://127.0.0.1:1/",
        "file/etc/passwd",
        "info",
        "openapi.json",
        "run-history/buckets",
        "custom_component/1/client/component/..%2f..%2f..%2fetc%2fpasswd",
    ],
)
def test_nothing_else_can_be_reached(path, server):
    (server.folder / "secret.txt").write_text("secret")
    path = path.format(folder=server.folder, cache=server.folder / "gradio")
    with socket.create_connection(server.url.removeprefix("http://").split(":")) as line:  # as it is, not normalised
        line.sendall(f"GET /gradio_api/{path} HTTP/1.1\r\nHost: 127.0.0.1:1\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: line.recv(2**16), b"")).decode()
    assert answer.startswith("HTTP/1.1 404") and "not here" in answer
    (server.folder / "secret.txt").unlink()


def test_a_path_in_place_of_an_upload_is_refused(server):
    """What the page's own events accept as a file: only what came by upload."""
    config = requests.get(f"{server.url}/config", timeout=9).json()
    event = next(
        d for d in config["dependencies"] if any(target[1] == "upload" for target in d["targets"]) and d["inputs"]
    )
    stolen = [{"path": "/etc/hostname", "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}]
    asked = {"data": [stolen, 0.5, 0.5], "fn_index": event["id"], "session_hash": "x"}
    requests.post(f"{server.url}/gradio_api/queue/join", json=asked, timeout=9)
    lines = requests.get(f"{server.url}/gradio_api/queue/data?session_hash=x", timeout=30).text
    (done,) = [json.loads(line.removeprefix("data: ")) for line in lines.splitlines() if "process_completed" in line]
    assert done["success"] is False and Path("/etc/hostname").exists(), done


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil:80"])
def test_another_name_for_this_machine_is_refused(host, server):
    assert requests.get(server.url, headers={"Host": host}, timeout=9).status_code == 404


def test_the_page_names_what_it_may_load(server):
    answer = requests.get(server.url, timeout=9)
    assert "default-src 'self'" in answer.headers["content-security-policy"] and answer.status_code == 200
