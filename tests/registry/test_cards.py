"""The data set cards: all forty, the paper's numbers, what the loader must refuse, and the README made from them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from medsam3.layouts.readers import READERS, check_reader
from medsam3.registry import cards as cards_module
from medsam3.registry.cards import (
    MANIFESTS,
    DatasetCard,
    Fact,
    generated_parts,
    load_card,
    load_cards,
    with_generated_parts,
)
from medsam3.registry.spec import SPEC_FOLDER, load_spec
from medsam3.registry.vocabulary import Vocabulary
from tests.conftest import ROOT

# Table 1 of the paper: images, annotations, median area in px.
TABLE_1 = {
    "COVID-QU-Ex": (33920, 67839, 7542),
    "Chest Xray Masks and Labels": (704, 1415, 1022508),
    "Chest X-Ray Pneumothorax": (290, 370, 7183),
    "BTXRD": (3746, 2273, 14746),
    "ARCADE": (1500, 2316, 1472),
    "BUSI": (647, 647, 17348),
    "BUS-UCLM": (264, 281, 24102),
    "US-Nerve": (2323, 2323, 6954),
    "ACOUSLIC": (300, 300, 58330),
    "ps-fh-aop-2023": (4000, 3999, 8048),
    "CT2USforKidneySeg": (4586, 4601, 11807),
    "SegThy": (59, 130, 2118),
    "CholecSeg8k": (8080, 112521, 749),
    "m2caiSeg": (614, 804, 102493),
    "PolypGen": (1710, 2003, 70698),
    "BKAI-IGH NeoPolyp": (1000, 1117, 39138),
    "Kvasir-SEG": (1000, 1060, 34489),
    "PanNuke": (2540, 21978, 811),
    "MonuSeg": (82, 2887, 172),
    "Breast Cancer Segmentation": (151, 3495, 15524),
    "GlaS@MICCAI'2015": (165, 1538, 10904),
    "MUCIC Colon Tissue": (60, 12396, 1688),
    "MUCIC HL60 Granulocytes": (240, 3987, 4857),
    "NucMM-Z": (62, 581, 58),
    "UroCell": (5, 163, 241),
    "PCMMD": (3517, 3519, 26227),
    "Intraretinal Cystoid Fluid": (1459, 4601, 202),
    "PAPILA": (488, 488, 172486),
    "COph100": (324, 324, 7168),
    "RAVIR Dataset": (23, 141, 3638),
    "DRIVE": (20, 20, 28176),
    "ISIC_2018": (2594, 2594, 429033),
    "FetoPlac": (483, 994, 6456),
}
INTERNAL = {
    "PS-FH-AOP'23",
    "DRIVE",
    "COPh100",
    "Breast Cancer",
    "Intraretinal Fluid",
    "M2CAI",
    "FetoPlac",
    "GlaS'15",
    "SegThy",
    "PAPILA",
}
EXTERNAL = {"TN3K", "HC18", "CVC", "ETIS", "PH2", "CHASE", "STARE"}


@pytest.fixture(scope="module")
def cards() -> list[DatasetCard]:
    return load_cards()


def test_every_card_has_a_data_set_file_and_they_agree(cards):
    files = {path.stem for path in SPEC_FOLDER.glob("*.yaml")}
    assert files == {card.name for card in cards} | {"mni152"} and len(cards) == 40
    for card in cards:
        spec = load_spec(SPEC_FOLDER / f"{card.name}.yaml")
        assert set(spec.concept_names) == set(card.concepts), card.name
        assert (spec.title, spec.used_for) == (card.title, card.used_for)


def changed(tmp_path: Path, old: str, new: str, name: str = "drive") -> Path:
    """A folder with one card in which a text is replaced."""
    text = (MANIFESTS / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.count(old) == 1, old
    (tmp_path / f"{name}.yaml").write_text(text.replace(old, new), encoding="utf-8")
    return tmp_path


def test_there_are_33_training_and_7_external_sets(cards: list[DatasetCard]) -> None:
    assert len(cards) == 40
    assert sum("train" in card.used_for for card in cards) == 33
    assert sum(card.used_for == ("external",) for card in cards) == 7


def test_every_training_set_has_its_row_of_table_1(cards: list[DatasetCard]) -> None:
    rows = [card.paper for card in cards if "train" in card.used_for]
    found = {row.table1_name: (row.images, row.annotations, row.median_area_px) for row in rows}
    assert found == TABLE_1


def test_the_rows_of_table_1_add_up_to_the_totals_of_the_paper(cards: list[DatasetCard]) -> None:
    assert sum(card.paper.images or 0 for card in cards) == 76956
    assert sum(card.paper.annotations or 0 for card in cards) == 263705


def test_the_groups_add_up_to_the_sums_in_the_text_of_the_paper(cards: list[DatasetCard]) -> None:
    images: Counter[str] = Counter()
    for card in cards:
        images[card.paper.group] += card.paper.images or 0
    assert images["CXR"] + images["X-ray"] == 40160
    assert images["Ultrasound"] == 12179
    fetoscopy = next(card.paper.images or 0 for card in cards if card.name == "fetoplac")
    assert images["Endoscopy"] + fetoscopy == 12887
    sets = Counter(card.paper.group for card in cards)
    assert sets["Endoscopy"] == 5  # the heading of Table 1 says 6


def test_the_sets_of_table_3(cards: list[DatasetCard]) -> None:
    assert {card.paper.table3_name for card in cards if "internal" in card.used_for} == INTERNAL
    assert {card.paper.table3_name for card in cards if "external" in card.used_for} == EXTERNAL


def test_unconfirmed_values_stay_marked(cards: list[DatasetCard]) -> None:
    by_name = {card.name: card for card in cards}
    assert by_name["covid_qu_ex"].licence.confidence == "unsure"
    assert by_name["drive"].licence.confidence == "unsure"
    assert by_name["segthy"].counts.confidence == "unsure"
    assert by_name["ps_fh_aop_2023"].layout.confidence == "likely"
    assert by_name["drive"].counts.confidence == "confirmed"
    segments = [label for label in by_name["arcade"].labels if label.name.startswith("SYNTAX")]
    assert len(segments) == 25 and {label.confidence for label in segments} == {"unsure"}


def test_labels_without_a_concept_are_the_ones_that_are_never_prompted(cards: list[DatasetCard]) -> None:
    silent = {(card.name, label.value) for card in cards for label in card.labels if label.concept is None}
    assert silent == {
        ("bcss", "0"),
        ("bcss", "7"),
        ("bcss", "15"),
        ("bcss", "21"),
        ("cholecseg8k", "0, 255"),
        ("m2caiseg", "0,0,0"),
        ("m2caiseg", "170,0,85"),
        ("pannuke", "channel 5"),
    }


def test_a_card_reads_as_written() -> None:
    drive = load_card("drive")
    assert drive.concepts == ("retinal blood vessel",)
    assert drive.year == Fact("2004")
    assert drive.licence == Fact("not stated clearly; one list says CC BY 4.0", "unsure")
    assert drive.size is not None and load_card("stare").size is None
    assert drive.layout.value.startswith("training/\n  images/21_training.tif")


def test_an_unknown_name_gets_an_answer() -> None:
    with pytest.raises(ValueError, match=r"no data set card 'kvasir'\. Did you mean 'kvasir_seg'"):
        load_card("kvasir")


@pytest.mark.parametrize(
    ("old", "new", "answer"),
    [
        ("licence:", "license:", "unknown key 'license'"),
        ("title: DRIVE\n", "", "the key 'title' is missing"),
        ("year: 2004", "year: 2004\nyear: 2005", "cannot be read as YAML"),
        ("name: drive", "name: dirve", "must be the name of the file"),
        ("confidence: unsure", "confidence: perhaps", "licence: confidence='perhaps': must be one of confirmed"),
        ("confidence: unsure", "certainty: unsure", "licence: unknown key 'certainty'"),
        ("account_needed: true", "account_needed: maybe", "account_needed='maybe'"),
        ("used_for: [train, internal]", "used_for: [train, inner]", "used_for='inner'"),
        ("used_for: [train, internal]", "used_for: [external]", "a training set has all four"),
        ("used_for: [train, internal]", "used_for: [train]", "table3_name='DRIVE' does not fit"),
        ("images: 20,", "", "a training set has all four"),
        ("group: Fundus/OCT", "group: Eyes", "paper.group='Eyes'"),
        ("concept: retinal blood vessel", "prompt: vessel", "labels: unknown key 'prompt'"),
        ("access: Grand", 'access: ""  # Grand', "access: empty"),
    ],
)
def test_a_wrong_card_is_refused_with_file_and_key(tmp_path: Path, old: str, new: str, answer: str) -> None:
    folder = changed(tmp_path, old, new)
    with pytest.raises(ValueError, match=answer) as error:
        load_card("drive", folder)
    assert str(folder / "drive.yaml") in str(error.value)


def test_the_readme_is_up_to_date(cards: list[DatasetCard]) -> None:
    text = (MANIFESTS / "README.md").read_text(encoding="utf-8")
    parts = generated_parts(cards, Vocabulary.load())
    assert with_generated_parts(text, parts) == text, "run: python -m medsam3.registry.cards --write"


def test_the_readme_table_has_a_row_for_every_set(cards: list[DatasetCard]) -> None:
    rows = [line for line in generated_parts(cards, Vocabulary.load())["table"].splitlines() if ".yaml)" in line]
    assert len(rows) == 40
    drive = next(row for row in rows if "(drive.yaml)" in row)
    cells = [cell.strip() for cell in drive.strip("|").split("|")]
    assert cells[3:6] == ["account", "20", "20"]
    assert cells[7:] == ["retinal blood vessel", '"Retinal Blood Vessel"']
    assert {row.count("|") for row in rows} == {10}


def test_the_readme_is_rewritten_only_between_its_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "manifests"
    folder.mkdir()
    text = "# own words\n\n<!-- generated: table -->\nold\n<!-- end of table -->\nmore words\n"
    text += "".join(f"<!-- generated: {name} -->\n<!-- end of {name} -->\n" for name in ("counts", "traps"))
    (folder / "README.md").write_text(text, encoding="utf-8")
    monkeypatch.setattr(cards_module, "MANIFESTS", folder)
    monkeypatch.setattr("sys.argv", ["cards", "--write"])
    cards_module.main()
    result = (folder / "README.md").read_text(encoding="utf-8")
    assert result.startswith("# own words\n\n<!-- generated: table -->\n\n| Data set |")
    assert "old" not in result.splitlines() and "more words" in result
    assert [path.name for path in folder.iterdir()] == ["README.md"]


PAGES = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/data_sets.md"))
EXAMPLES = {yaml.safe_load(text)["name"]: text for text in re.findall(r"```yaml\n(.*?)```", PAGES, re.DOTALL)}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_worked_examples_are_valid(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.yaml"
    path.write_text(EXAMPLES[name], encoding="utf-8")
    spec = load_spec(path)
    check_reader(spec)
    Vocabulary.load().check(spec.concept_names)


def test_there_is_a_worked_example_of_every_reader() -> None:
    assert {yaml.safe_load(text)["reader"] for text in EXAMPLES.values()} == set(READERS)


def test_a_readme_without_its_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="generated: table"):
        with_generated_parts("nothing here", {"table": "x"})


def test_no_card_speaks_of_private_places(cards: list[DatasetCard]) -> None:
    for path in MANIFESTS.glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        for word in ("/work/", "/home/", "/tmp/", "realdata", "index id", "torch-em", "TODO"):
            assert word not in text, f"{path.name}: {word}"
