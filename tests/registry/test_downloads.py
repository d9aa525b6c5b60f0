"""The `download` of the cards: what it may hold, and the steps it turns into."""

from __future__ import annotations

import pytest
import yaml

from medsam3.registry.cards import MANIFESTS, load_card, load_cards


def changed(tmp_path, name, **changes):
    """A folder with one card whose `download` has some keys changed; of its first file with `file`."""
    content = yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text(encoding="utf-8"))
    content["download"]["files"][0] |= changes.pop("file", {})
    content["download"] |= changes
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def test_a_doi_and_a_link():
    assert load_card("hc18").download.files[0].url == "doi:10.5281/zenodo.1327317/training_set.zip"
    assert load_card("chase_db1").download.files[0].url == "https://researchdata.kingston.ac.uk/96/1/CHASEDB1.zip"


def test_every_link_is_that_of_a_set_whose_page_is_named():
    """No address stands in a card twice, and whatever cannot be fetched has a page to open."""
    cards = load_cards()
    urls = [file.url for card in cards for file in card.download.files]
    assert len(urls) == len(set(urls)) == 35
    assert all(card.home[0].value.startswith("https://") for card in cards)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("drive", ["download training.zip there and unpack it into 'my data/drive'"]),
        ("polypgen", ["synapse get -r syn26376615 --downloadLocation 'my data/drive'"]),
        (
            "us_nerve",
            [
                "kaggle competitions download -c ultrasound-nerve-segmentation -p 'my data/drive'",
                "python -m zipfile -e 'my data/drive'/ultrasound-nerve-segmentation.zip 'my data/drive'",
            ],
        ),
    ],
)
def test_steps_name_page_command_and_folder(name, steps):
    card = load_card(name)
    found = card.download.by_hand(card.home[0].value, "my data/drive")
    assert found[-len(steps) :] == steps and card.home[0].value in found[0]


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"file": {"link": None}}, "expected either doi or link"),
        ({"file": {"doi": "10.1/x"}}, "expected either doi or link"),
        ({"file": {"link": "ftp://x/y.zip"}}, "link='ftp://x/y.zip': expected https"),
        ({"file": {"link": None, "doi": "zenodo.1"}}, "doi='zenodo.1': expected 10"),
        ({"file": {"hash": "0" * 64}}, "hash='0+': expected <kind>:<digits>"),
        ({"file": {"hash": "sha256:abc"}}, "hash='sha256:abc'"),
        ({"file": {"hash": ""}}, "hash=''"),
        ({"file": {"name": "../a.zip"}}, "expected the name of an archive"),
        ({"file": {"name": "a.rar"}}, "expected the name of an archive"),
        ({"file": {"into": "../x"}}, "into='../x'"),
        ({"file": {"sha256": "x"}}, "unknown key 'sha256'"),
        ({"tried_on": "yesterday"}, "tried_on='yesterday': expected a day"),
        ({"account": {"kind": "kagle", "reference": "a/b"}}, "account.kind='kagle': must be one of kaggle"),
        ({"files": []}, "its way is 'account', which does not fit account_needed=False"),
    ],
)
def test_an_entry_that_cannot_be_right_is_refused(tmp_path, changes, answer):
    name = "busi" if "files" in changes else "chase_db1"
    folder = changed(tmp_path, name, **changes)
    with pytest.raises(ValueError, match=answer) as error:
        load_card(name, folder)
    assert str(folder / f"{name}.yaml") in str(error.value)
