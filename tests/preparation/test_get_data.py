"""From an empty folder to prepared data sets, against a local server; and every way in which that can fail."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from medsam3.config import GetDataConfig
from medsam3.preparation import get_data as module
from medsam3.preparation.availability import availability
from medsam3.preparation.get_data import get_data
from medsam3.preparation.prepare import prepare
from medsam3.registry.cards import MANIFESTS, load_cards
from medsam3.registry.spec import SPEC_FOLDER, load_spec
from tests.conftest import data_config, prepare_config, save_picture
from tests.file_server import Served, file_server
from tests.preparation.test_unpack import zip_of
from tests.scripts import run_script

HOME = "https://researchdata.kingston.ac.uk/96/"  # of CHASE_DB1, whose card the tests change


@pytest.fixture
def server():
    with file_server() as server:
        yield server


class Lab:
    """One data set "small" with its description and card, an archive of it on the server, and a folder for the data."""

    def __init__(self, tmp_path, make_spec, server) -> None:
        self.server, self.make_spec, self.folder = server, make_spec, tmp_path
        self.data, self.cards = data_config(tmp_path), tmp_path / "cards"
        self.root = Path(self.data.root)
        make_spec()
        for n in range(4):
            picture = np.random.RandomState(n).randint(0, 256, (40, 60, 3)).astype(np.uint8)
            mask = np.zeros((40, 60), np.uint8)
            mask[10:20, 5:15], mask[22:30, 30:40] = 1, 2
            save_picture(tmp_path / f"own/images/{n}.png", picture)
            save_picture(tmp_path / f"own/masks/{n}.png", mask)
        self.serve(self.packed())
        self.card()

    def packed(self, skip: str = "-", **more: bytes) -> bytes:
        own = self.folder / "own"
        files = {str(path.relative_to(own)): path.read_bytes() for path in sorted(own.rglob("*.png"))}
        files = {name: content for name, content in files.items() if not name.endswith(skip)}
        return zip_of(self.folder / "made.zip", files | more).read_bytes()

    def serve(self, content: bytes, **how) -> Served:
        self.server.files["/small.zip"] = Served(content, **how)
        return self.server.files["/small.zip"]

    def card(self, *, account=None, files=True, **file) -> None:
        """Write the card; `file` changes the entry of its archive."""
        content = yaml.safe_load((MANIFESTS / "chase_db1.yaml").read_text())
        content |= {"name": "small", "title": "Small", "account_needed": bool(account) and not files}
        entry = {"name": "small.zip", "link": f"{self.server.url}/small.zip"} | file
        content["download"] = {"images": 4, "tried_on": None, "account": account}
        content["download"] |= {"files": [{k: v for k, v in entry.items() if v is not None}]} if files else {}
        self.cards.mkdir(exist_ok=True)
        (self.cards / "small.yaml").write_text(yaml.safe_dump(content))

    def run(self, datasets="small", accept=True, **changes):
        values = {"json": False, "receipts": str(self.folder / "receipts"), "keep_archives": False, "attempts": 2}
        values |= {"wait_s": 0, "timeout_s": 5} | changes
        config = GetDataConfig(
            "get", "", "", "cpu", 0, datasets=datasets, accept_licence=accept, data=self.data, **values
        )
        return get_data(config, [self.make_spec.folder], self.cards)

    @property
    def receipt(self) -> dict:
        return json.loads((self.folder / "receipts/small.json").read_text())

    def files(self) -> list[str]:
        return sorted(str(p.relative_to(self.root)) for p in self.root.rglob("*") if p.is_file())


@pytest.fixture
def lab(tmp_path, make_spec, server) -> Lab:
    return Lab(tmp_path, make_spec, server)


def test_from_an_empty_folder_to_a_prepared_set(lab, capsys):
    (before,) = lab.run(datasets=None, accept=False)
    assert (before.state, before.images, before.expected) == ("not there", 0, 4)
    assert before.next == (f"python scripts/get_data.py datasets=small accept_licence=true data.root={lab.root}",)
    assert lab.server.asked == [] and not lab.root.exists()
    (after,) = lab.run()
    assert (after.state, after.images) == ("there", 4)
    assert after.next == (f"python scripts/prepare_data.py datasets=small data.root={lab.root}",)
    printed = capsys.readouterr().out
    assert "fetched; its reader lists 4 images, and the first one is whole" in printed
    own = lab.folder / "own"
    assert lab.files() == sorted(f"small/{path.relative_to(own)}" for path in own.rglob("*.png"))
    (found,) = prepare(prepare_config(lab.data), [lab.make_spec.folder])
    assert (found.images, found.annotations) == (4, 8)


def test_nothing_is_fetched_before_the_licence_is_shown(lab, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(module, "fetch", lambda card, config: shown.append(capsys.readouterr().out))
    monkeypatch.setattr(module, "check", lambda *_: "")
    lab.run()
    assert "Small: licence: CC BY 4.0\n" in shown[0]
    assert "commercial use: allowed; publishing what is derived: allowed; passing the images on: allowed" in shown[0]
    assert HOME in shown[0] and "links: not tried from here" in shown[0]


@pytest.mark.parametrize("changes", [{"datasets": None}, {"json": True}])
def test_everything_at_once_is_not_fetched_by_mistake(lab, changes):
    with pytest.raises(ValueError, match="accept_licence=true: name the data sets"):
        lab.run(**changes)
    assert lab.server.asked == []


def test_the_first_hash_is_written_down_and_holds(lab):
    lab.run()
    (entry,) = lab.receipt["files"].values()
    content = lab.server.files["/small.zip"].content
    assert entry["sha256"] == hashlib.sha256(content).hexdigest() and entry["bytes"] == len(content)
    assert entry["from"] == f"{lab.server.url}/small.zip" and entry["entries"] == ["images", "masks"]
    first = lab.files()
    for name in first:
        (lab.root / name).unlink()
    for folder in ("images", "masks"):
        (lab.root / "small" / folder).rmdir()
    lab.serve(lab.packed(**{"new.txt": b"a new version"}))
    with pytest.raises(
        ValueError, match=rf"the first download \({entry['fetched_on']}\) knows .*it was deleted[\s\S]*96/"
    ):
        lab.run()
    assert lab.files() == []
    lab.serve(content)
    lab.run()
    assert lab.files() == first and lab.receipt["files"]["small.zip"] == entry


def test_a_hash_of_the_card_is_checked(lab):
    lab.card(hash=f"sha256:{'0' * 64}")
    with pytest.raises(ValueError, match=r"Small: small\.zip: not the file that its card knows \(sha256:0+\)"):
        lab.run()
    assert lab.files() == []
    lab.card(hash=f"md5:{hashlib.md5(lab.server.files['/small.zip'].content).hexdigest()}")
    lab.run()
    assert len(lab.files()) == 8


def test_a_set_that_is_there_is_not_fetched_again(lab):
    lab.run()
    asked = len(lab.server.asked)
    lab.run()
    assert len(lab.server.asked) == asked


def test_an_interrupted_fetch_goes_on_in_the_next_run(lab):
    size = len(lab.serve(lab.packed(), breaks=1, after=1000).content)
    with pytest.raises(ValueError, match="broke off"):
        lab.run(attempts=1)
    assert len(lab.files()) == 1 and lab.files()[0].startswith("small/.download/small.zip.")
    lab.run(attempts=1)
    assert lab.server.asked[-1] == ("/small.zip", "bytes=1000-") and size > 1000
    assert len(lab.files()) == 8


def test_a_bad_archive_touches_nothing_and_is_not_kept(lab):
    lab.serve(b"no archive")
    with pytest.raises(ValueError, match=r"small\.zip: cannot be unpacked"):
        lab.run()
    assert lab.files() == [] and not (lab.folder / "receipts/small.json").exists()
    lab.serve(lab.packed(**{"../../evil.png": b"x"}))
    with pytest.raises(ValueError, match=r"'\.\./\.\./evil\.png' leads out"):
        lab.run()
    assert lab.files() == ["small/.download/small.zip"] and not list(lab.folder.rglob("evil*"))


@pytest.mark.parametrize("way", ["dead link", "web page", "no network"])
def test_a_dead_link_names_the_home_page(lab, way):
    account = {"kind": "kaggle", "reference": "some/where", "home": "https://www.kaggle.com/x"}
    if way == "no network":
        lab.card(account=account, link="http://127.0.0.1:1/small.zip")
    else:
        lab.card(account=account)
        lab.serve(b"", **({"status": 404} if way == "dead link" else {"kind": "text/html"}))
    with pytest.raises(ValueError) as error:
        lab.run()
    assert f"Look at its home page: {HOME}" in str(error.value)
    assert f"kaggle datasets download -d some/where -p {lab.root / 'small'} --unzip" in str(error.value)
    assert lab.files() == []


def test_a_set_that_needs_an_account_gets_the_steps_and_is_not_fetched(lab, capsys):
    lab.card(account={"kind": "kaggle competition", "reference": "some-contest"}, files=False)
    for accept in (True, False):
        (row,) = lab.run(accept=accept)
        printed = capsys.readouterr().out
        assert row.way == "account" and row.account == "kaggle competition"
        for step in row.next:
            assert step in printed
        assert f"kaggle competitions download -c some-contest -p {lab.root / 'small'}" in printed
        assert "account (kaggle competition)" in printed
    assert lab.server.asked == []


def test_a_mask_that_does_not_come_along_is_said_at_once(lab):
    lab.serve(lab.packed(skip="masks/2.png"))
    with pytest.raises(ValueError, match=r"Small: fetched, but 2: images/2\.png: image without mask"):
        lab.run()


def test_a_first_image_that_cannot_be_read_is_said_at_once(lab):
    (lab.folder / "own/images/0.png").write_bytes(b"no picture")
    lab.serve(lab.packed())
    with pytest.raises(ValueError, match=r"fetched, but .*0\.png: cannot be read"):
        lab.run()


def test_one_failure_does_not_keep_others_from_being_fetched(lab):
    spec = lab.make_spec(name="broken", root="broken")
    card = yaml.safe_load((lab.cards / "small.yaml").read_text()) | {"name": spec.name, "title": "Broken"}
    card["download"]["files"][0]["link"] = f"{lab.server.url}/nowhere.zip"
    (lab.cards / "broken.yaml").write_text(yaml.safe_dump(card))
    with pytest.raises(ValueError, match=r"^Broken: small\.zip: .*404"):
        lab.run(["broken", "small"])
    assert sum(name.startswith("small/") for name in lab.files()) == 8


def test_archives_are_kept_if_asked_for_in_a_folder_that_readers_pass_over(lab):
    lab.run(keep_archives=True)
    assert "small/.download/small.zip" in lab.files()
    (row,) = lab.run(accept=False)
    assert (row.state, row.images) == ("there", 4)


@pytest.mark.parametrize(
    ("harm", "state", "images", "remark"),
    [
        (lambda root: (root / "images/0.png").unlink(), "partly there", 3, ""),
        (lambda root: [path.unlink() for path in (root / "masks").iterdir()], "partly there", 4, "no mask file"),
        (lambda root: (root / "images/copy.png").write_bytes(b""), "there", 5, "more than the set has"),
        (lambda root: [path.unlink() for path in (root / "images").iterdir()], "unclear", 0, ""),
    ],
)
def test_the_table_says_what_is_missing(lab, harm, state, images, remark, capsys):
    lab.run()
    harm(lab.root / "small")
    (row,) = lab.run(accept=False)
    assert (row.state, row.images) == (state, images) and row.remark.startswith(remark)
    if state == "partly there":
        assert f"partly there ({images} of 4 images)" in capsys.readouterr().out


def test_a_set_without_a_card_is_an_error(lab):
    lab.make_spec(name="own")
    with pytest.raises(ValueError, match="no card says where to get own; there are cards of small"):
        lab.run("own", accept=False)


def test_the_forty(tmp_path):
    """How each of the paper's sets can be had; every entry has steps, and none asks for what is not filled in."""
    rows = [availability(load_spec(SPEC_FOLDER / f"{card.name}.yaml"), card, tmp_path) for card in load_cards()]
    ways = [row.way for row in rows]
    assert [ways.count(way) for way in ("fetch", "account", "home page")] == [21, 15, 4]
    assert {row.links_tried_on for row in rows} == {None}
    for row in rows:
        assert row.state == "not there" and row.next and "{" not in "".join(row.next)
    commands = {row.name: row.next[-1] for row in rows if row.way == "account"}
    assert (
        commands["cholecseg8k"] == f"kaggle datasets download -d newslab/cholecseg8k -p {tmp_path}/cholecseg8k --unzip"
    )


def test_real_files_are_counted_by_their_names(shared_realdata):
    rows = {}
    for card in load_cards():
        if (shared_realdata / card.name).is_dir():
            rows[card.name] = availability(load_spec(SPEC_FOLDER / f"{card.name}.yaml"), card, shared_realdata)
    assert {name for name, row in rows.items() if row.state == "there"} == {"chase_db1", "drive", "kvasir_seg"}
    assert (rows["busi"].state, rows["busi"].images, rows["busi"].expected) == ("partly there", 180, 780)


def test_the_command_prints_the_table_as_json_and_makes_no_folder(tmp_path):
    done = run_script("get_data.py", "datasets=external", "json=true", "data.root=a b", cwd=tmp_path)
    rows = json.loads(done.stdout)
    assert [row["name"] for row in rows if row["way"] == "fetch"] == ["chase_db1", "hc18", "stare"]
    assert rows[0]["next"] == ["python scripts/get_data.py datasets=chase_db1 accept_licence=true data.root='a b'"]
    assert list(tmp_path.iterdir()) == []


def test_without_arguments_it_lists_all_forty(tmp_path):
    done = run_script("get_data.py", cwd=tmp_path)
    assert "40 data sets: 40 not there" in done.stdout
