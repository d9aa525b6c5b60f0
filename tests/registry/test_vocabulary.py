"""The vocabulary: what it must hold, and what its loader must refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsam3.registry.cards import DatasetCard, load_cards
from medsam3.registry.vocabulary import Vocabulary

# The authors' wording, read from their released evaluation (external sets) and from the log of a later one.
AUTHORS_PROMPTS = {
    "arcade": "coronary artery segment",
    "bkai_neopolyp": "Polyp",
    "kvasir_seg": "Polyp",
    "polypgen": "polyp",
    "btxrd": "Bone Tumor",
    "busi": "Breast Ultrasound Lesion",
    "bus_uclm": "Breast Ultrasound Lesion",
    "ct2us_kidney": "Kidney",
    "chest_xray_pneumothorax": "Pneumothorax",
    "chest_xray_masks_labels": "Lung",
    "cholecseg8k": "liver",
    "drive": "Retinal Blood Vessel",
    "fetoplac": "Placental Vessel",
    "glas": "Gland",
    "isic_2018": "Skin Lesion",
    "intraretinal_cystoid_fluid": "Cystoid Macular Edema",
    "mucic_colon_tissue": "cell",
    "mucic_hl60_granulocytes": "cell",
    "pcmmd": "cell",
    "pannuke": "cell",
    "monuseg": "cell nucleus",
    "nucmm_z": "cell nucleus",
    "papila": "optic disc and cup",
    "ravir": "retinal artery and vein",
    "segthy": "thyroid nodule",
    "us_nerve": "nerve",
    "urocell": "cell organelle",
    "m2caiseg": "Tissue",
    "ps_fh_aop_2023": "fetal head",
    "tn3k": "thyroid nodule",
    "hc18": "fetal head",
    "cvc_clinicdb": "Polyp",
    "etis_larib": "Polyp",
    "ph2": "Skin Lesion",
    "chase_db1": "Retinal Blood Vessel",
    "stare": "Retinal Blood Vessel",
}
# Concept ids that the DICOM standard gives in its context groups (PS3.16), by the names used there.
DICOM_SNOMED = {
    "brain": 12738006,
    "white matter": 389080008,
    "lung": 39607008,
    "liver": 10200004,
    "kidney": 64033007,
    "gallbladder": 28231008,
    "thyroid gland": 69748006,
    "carotid artery": 69105007,
    "coronary artery": 41801008,
    "left main coronary artery": 3227004,
    "first diagonal branch": 91750005,
    "pneumothorax": 36118008,
    "polyp": 68496003,
    "thyroid nodule": 237495005,
    "adipose tissue": 55603005,
    "blood vessel": 59820001,
    "brachial plexus": 36582005,
    "optic disc": 81016008,
}


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.load()


@pytest.fixture(scope="module")
def cards() -> dict[str, DatasetCard]:
    return {card.name: card for card in load_cards()}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "vocabulary.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_label_of_every_data_set_has_a_concept(vocabulary: Vocabulary, cards: dict[str, DatasetCard]) -> None:
    for card in cards.values():
        assert card.concepts, card.name
        vocabulary.check(card.concepts)


def test_every_concept_has_a_user(vocabulary: Vocabulary, cards: dict[str, DatasetCard]) -> None:
    used = {concept for card in cards.values() for concept in card.concepts}
    assert set(vocabulary.concepts) - used == {"brain", "gray matter", "white matter"}


def test_every_concept_has_three_to_five_synonyms(vocabulary: Vocabulary) -> None:
    counts = {name: len(vocabulary.synonyms(name)) for name in vocabulary.concepts}
    assert {name: count for name, count in counts.items() if not 3 <= count <= 5} == {}


def test_concepts_are_shared_between_data_sets(cards: dict[str, DatasetCard]) -> None:
    users: dict[str, set[str]] = {}
    for card in cards.values():
        for concept in card.concepts:
            users.setdefault(concept, set()).add(card.name)
    assert users["polyp"] == {"polypgen", "bkai_neopolyp", "kvasir_seg", "cvc_clinicdb", "etis_larib"}
    assert users["retinal blood vessel"] == {"drive", "chase_db1", "stare", "coph100", "ravir"}
    assert users["cell nucleus"] == {
        "pannuke",
        "monuseg",
        "mucic_colon_tissue",
        "mucic_hl60_granulocytes",
        "nucmm_z",
    }
    assert users["lung"] == {"covid_qu_ex", "chest_xray_masks_labels"}
    assert users["liver"] == {"cholecseg8k", "m2caiseg"}


@pytest.mark.parametrize("dataset", sorted(AUTHORS_PROMPTS))
def test_the_paper_style_gives_the_authors_words(
    vocabulary: Vocabulary, cards: dict[str, DatasetCard], dataset: str
) -> None:
    theirs = [c for c in cards[dataset].concepts if dataset in vocabulary.concepts[c].paper]
    assert [vocabulary.prompt(concept, dataset, "paper") for concept in theirs] == [AUTHORS_PROMPTS[dataset]]


def test_no_prompt_of_theirs_is_invented(vocabulary: Vocabulary) -> None:
    written_down = {name: prompt for c in vocabulary.concepts.values() for name, prompt in c.paper.items()}
    assert written_down == AUTHORS_PROMPTS


def test_canonical_style_is_the_concept_itself(vocabulary: Vocabulary) -> None:
    assert vocabulary.prompt("retinal blood vessel", "ravir") == "retinal blood vessel"
    assert vocabulary.prompt("retinal blood vessel", "ravir", "paper") == "retinal artery and vein"
    assert vocabulary.prompt("retinal blood vessel", "coph100", "paper") == "retinal blood vessel"


def test_snomed_ids_agree_with_the_dicom_standard(vocabulary: Vocabulary) -> None:
    assert {name: vocabulary.concepts[name].snomed for name in DICOM_SNOMED} == DICOM_SNOMED


def test_no_snomed_id_is_used_twice(vocabulary: Vocabulary) -> None:
    ids = [concept.snomed for concept in vocabulary.concepts.values() if concept.snomed]
    assert len(ids) == len(set(ids))


def test_an_unknown_style_lists_the_legal_ones(vocabulary: Vocabulary) -> None:
    with pytest.raises(ValueError, match=r"'papers'.*canonical, paper"):
        vocabulary.prompt("polyp", "kvasir_seg", "papers")


@pytest.mark.parametrize(
    ("phrase", "answer"),
    [
        ("retinal blod vessel", "did you mean 'retinal blood vessel'"),
        ("Polyp", "write 'polyp'"),
        ("cystoid macular edema", "write 'intraretinal cystoid fluid'"),
        ("zzzz", "add it there with its synonyms"),
    ],
)
def test_an_unknown_concept_gets_an_answer(vocabulary: Vocabulary, phrase: str, answer: str) -> None:
    with pytest.raises(ValueError, match=answer):
        vocabulary.check(["polyp", phrase])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("concepts: {polyp: {}, polyp: {}}", "polyp"),
        ("concepts: {nerve: {}, plexus: {synonyms: [nerve]}}", "'nerve' is also the concept 'nerve'"),
        ("concepts: {a: {synonyms: [c]}, b: {synonyms: [c]}}", "'c' is also a synonym of 'a'"),
        ("concepts: {a: {synonyms: [c, c]}}", "'c' is also a synonym of 'a'"),
        ("concepts: {a: {synonyms: [a]}}", "'a' is also the concept 'a'"),
        ("concepts: {Polyp: {}}", "'Polyp' must be in lower case"),
        ("concepts: {polyp: {synonyms: [colon  polyp]}}", "single blanks"),
        ("concepts: {polyp: {synonym: [x]}}", "key='synonym': must be one of"),
        ("concepts: {polyp: {synonyms: x}}", "must be a list of phrases"),
        ("concepts: {polyp: {snomed: many}}", "snomed='many' must be a number"),
        ("concepts: {polyp: {paper: [x]}}", "must map data sets to prompts"),
        ("concepts: {a: {paper: {drive: V}}, b: {paper: {drive: v}}}", "two concepts of a data set need two prompts"),
        ("names: {}", "one mapping under the key concepts"),
        ("concepts: [polyp]", "one mapping under the key concepts"),
        ("- polyp", "must hold a mapping"),
        ("concepts: {", "cannot be read as YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(tmp_path: Path, text: str, answer: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=answer) as error:
        Vocabulary.load(path)
    assert str(path) in str(error.value)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.yaml: cannot be read"):
        Vocabulary.load(tmp_path / "absent.yaml")
