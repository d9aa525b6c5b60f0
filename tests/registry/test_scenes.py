"""What can be seen where: false negatives must not come back, and the table's mistakes must be named."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from medsam3.registry.scenes import SceneFile, SceneTable, absent_pool, shipped_scenes
from medsam3.registry.schema import build
from medsam3.registry.spec import SPEC_FOLDER, DatasetSpec, load_specs
from medsam3.registry.vocabulary import Concept, Vocabulary

SPECS = load_specs([path.stem for path in sorted(SPEC_FOLDER.glob("*.yaml"))])
ITEMS = {"segthy": ["001_P1_1_left/s002", "005/s003"], "nucmm_z": ["train/0000_0576_0768/s004", "val/000_200_200/s004"]}


def pool(name: str, present: set[str], item: str | None = None):
    """The pool of an image of a shipped data set where all of its other concepts were looked for."""
    spec = SPECS[name]
    marked = [concept for concept in spec.concept_names if concept not in present]
    return absent_pool(shipped_scenes(), spec, item or ITEMS.get(name, ["x"])[0], present, marked)


def all_of(found) -> set[str]:
    names = [*found.marked, *found.hard, *found.easy]
    assert len(names) == len(set(names))
    return set(names)


def test_every_shipped_data_set_names_scenes_that_can_show_its_concepts():
    table = shipped_scenes()
    table.check(SPECS.values())
    assert {scene for spec in SPECS.values() for scene in spec.scenes} == set(table.scenes)
    assert all(spec.scenes for spec in SPECS.values())
    assert len(table.words) >= 300 and set(Vocabulary.load().concepts) | table.words == set(table.seen_in)


@pytest.mark.parametrize("name", SPECS)
def test_every_data_set_has_hard_and_easy_negatives(name):
    for item in ITEMS.get(name, ["x"]):
        found = pool(name, set(SPECS[name].concept_names[:1]), item)
        assert len(found.hard) >= 10 and len(found.easy) >= 250
        assert not all_of(found) & (set(SPECS[name].concept_names) - set(found.marked))
        assert "car" in found.easy and not {"tissue", "blood vessel"} & all_of(found)


# What a picture shows although nobody marked it there: data set, what is marked, what must not be asked as absent.
SEEN = [
    (
        "busi",
        {"breast lesion"},
        {"breast tumor", "ductal carcinoma in situ", "skin lesion", "normal breast duct or acinus"},
    ),
    ("pannuke", {"cell nucleus"}, {"kidney", "lung", "liver", "thyroid gland", "breast lesion", "dead cell nucleus"}),
    ("monuseg", {"cell nucleus"}, {"kidney", "brain", "colon gland", "glomerulus"}),
    ("btxrd", {"bone tumor", "osteosarcoma"}, {"malignant bone tumor", "lung"}),
    ("btxrd", {"bone tumor", "osteochondroma"}, {"benign bone tumor", "multiple osteochondromas"}),
    ("btxrd", {"bone tumor", "multiple osteochondromas"}, {"benign bone tumor", "osteochondroma"}),
    (
        "bcss",
        {"lymphocytic infiltrate"},
        {"immune infiltrate", "blood vessel", "nerve", "cell nucleus", "breast lesion"},
    ),
    ("bcss", {"plasma cell infiltrate"}, {"immune infiltrate", "lymphocytic infiltrate", "plasma cell"}),
    ("bcss", {"ductal carcinoma in situ"}, {"breast tumor", "malignant breast lesion"}),
    ("m2caiseg", {"bipolar forceps"}, {"grasper", "trocar", "kidney", "gastrointestinal tract"}),
    ("cholecseg8k", {"liver"}, {"surgical scissors", "surgical clip", "intestine", "cystic duct", "spleen"}),
    ("pcmmd", {"plasma cell", "cell"}, {"non-plasma cell", "cell nucleus", "cell organelle", "red blood cell"}),
    ("kvasir_seg", {"polyp"}, {"neoplastic polyp", "non-neoplastic polyp", "intestine", "grasper"}),
    ("glas", {"colon gland"}, {"polyp", "cell nucleus", "stroma", "goblet cell", "plasma cell"}),
    ("drive", {"retinal blood vessel"}, {"optic disc", "retinal artery", "macula", "intraretinal cystoid fluid"}),
    (
        "chest_xray_masks_labels",
        {"lung"},
        {"covid-19 infection", "pneumothorax", "osteosarcoma", "liver", "breast tumor"},
    ),
    ("acouslic_ai", {"fetal abdomen"}, {"fetal head", "placental vessel", "liver", "kidney", "umbilical cord"}),
    ("us_nerve", {"brachial plexus"}, {"nerve", "carotid artery", "thyroid gland", "scalene muscle"}),
    ("urocell", {"mitochondrion"}, {"cell organelle", "cell nucleus", "endoplasmic reticulum", "urothelium"}),
    ("isic_2018", {"skin lesion"}, {"skin adnexa", "melanoma", "polyp", "blood vessel"}),
    ("pannuke", {"neoplastic cell nucleus"}, {"epithelial cell nucleus", "osteosarcoma"}),
    ("chase_db1", {"retinal blood vessel"}, {"eyelash", "eyelid", "iris"}),
    ("covid_qu_ex", {"lung"}, {"iliac bone", "skin lesion", "intramedullary nail"}),
    ("btxrd", {"bone tumor"}, {"aortic arch", "sternal wire"}),
    (
        "ct2us_kidney",
        {"kidney"},
        {"left ventricle", "bladder tumor", "surgical clip", "nasogastric tube", "esophagus", "necrosis"},
    ),
    ("fetoplac", {"placental vessel"}, {"photocoagulation scar", "necrosis"}),
    ("isic_2018", {"skin lesion"}, {"non-neoplastic polyp", "neoplastic polyp"}),
    ("btxrd", {"bone tumor"}, {"skin lesion", "dental filling", "blood pressure cuff"}),
    ("mucic_colon_tissue", {"cell nucleus"}, {"intestine", "gastrointestinal tract", "lamina propria"}),
    ("us_nerve", {"brachial plexus"}, {"lymphatic vessel", "endotracheal tube"}),
    ("busi", {"breast lesion"}, {"median nerve"}),
    ("mni152", {"brain"}, {"cervical spinal cord"}),
    ("nucmm_z", {"cell nucleus"}, {"cornea", "choroid"}),
    *((name, set(), {"black background"}) for name in ("glas", "cholecseg8k", "m2caiseg")),  # the padding is black
]


@pytest.mark.parametrize("name, present, seen", SEEN)
def test_what_may_be_in_the_picture_is_not_asked_as_absent(name, present, seen):
    assert not seen & all_of(pool(name, present))


def test_what_the_data_set_looked_for_and_did_not_find_comes_first():
    assert pool("bus_uclm", {"breast lesion", "benign breast lesion"}).marked == ("malignant breast lesion",)
    assert pool("bkai_neopolyp", {"polyp", "neoplastic polyp"}).marked == ("non-neoplastic polyp",)
    assert set(pool("btxrd", set()).marked) == set(SPECS["btxrd"].concept_names)  # a normal film
    tumors = pool("btxrd", {"bone tumor", "osteosarcoma"}).marked
    assert {"giant cell tumor of bone", "benign bone tumor"} <= set(tumors)
    assert pool("pcmmd", {"non-plasma cell", "cell"}).marked == ("plasma cell",)
    assert "stroma" in pool("bcss", {"breast tumor"}).marked


@pytest.mark.parametrize(
    "name, hard, easy",
    [
        ("kvasir_seg", {"gallbladder", "placental vessel", "gastric ulcer"}, {"lung", "femur", "optic disc"}),
        (
            "covid_qu_ex",
            {"femur", "coronary artery stenosis", "pubic symphysis", "hip prosthesis"},
            {"polyp", "cornea"},
        ),
        ("busi", {"thyroid nodule", "fetal head", "kidney"}, {"retinal vein", "polyp", "synapse"}),
        ("bcss", {"colon gland", "glomerulus", "goblet cell"}, {"femur", "optic disc", "patella"}),
        ("drive", {"placental vessel", "coronary artery", "cornea"}, {"liver", "femur", "glomerulus"}),
        ("mni152", {"brain tumor", "skull", "fetal head"}, {"polyp", "optic cup", "trocar"}),
        ("isic_2018", {"optic disc", "pressure ulcer"}, {"liver", "femur"}),
    ],
)
def test_look_alikes_and_neighbours_of_the_modality_are_hard(name, hard, easy):
    found = pool(name, {SPECS[name].concept_names[0]})
    assert hard <= set(found.hard) and easy <= set(found.easy)


def test_a_data_set_of_two_scenes_is_judged_image_by_image():
    ultrasound, mr = (pool("segthy", {"thyroid gland"}, item) for item in ITEMS["segthy"])
    assert "breast lesion" in ultrasound.hard and "coronary artery" in mr.hard and "coronary artery" in ultrasound.easy
    fish, mouse = (all_of(pool("nucmm_z", {"cell nucleus"}, item)) for item in ITEMS["nucmm_z"])
    assert "mitochondrion" in mouse - fish
    with pytest.raises(ValueError, match=r"nucmm_z.yaml: scene: no pattern fits 'x'"):
        pool("nucmm_z", set(), "x")


# Data sets of one's own


def test_without_a_scene_only_what_no_picture_of_a_body_shows_is_asked(make_spec):
    found = absent_pool(shipped_scenes(), make_spec(modality="ct", concepts={1: "spleen"}), "a", {"spleen"}, [])
    assert found.hard == () and len(found.easy) > 150
    assert {"car", "synapse", "mitochondrion"} <= set(found.easy)
    somewhere = {"liver", "tympanic membrane", "meniscus of the knee", "gastric ulcer", "sciatic nerve", "couch"}
    of_a_head = {"optic disc", "lacrimal gland", "vitreous body", "melanoma", "cornea"}
    assert not (somewhere | of_a_head | {"bronchiole"}) & set(found.easy)


def test_under_the_microscope_without_a_scene_only_everyday_things_are_asked(make_spec):
    found = absent_pool(shipped_scenes(), make_spec(modality="pathology", concepts={1: "tumor"}), "a", {"tumor"}, [])
    assert found.hard == () and len(found.easy) > 75 and "car" in found.easy
    assert not {"femur", "placenta", "bone tumor", "knee cartilage", "chloroplast"} & set(found.easy)


def test_synonyms_of_what_is_there_count_as_it_also_with_capitals(make_spec):
    spec = make_spec(modality="fundus", scene="colour_fundus", concepts={1: "Fundus vessel", 2: "coronary vessel"})
    found = absent_pool(shipped_scenes(), spec, "a", {"Fundus vessel"}, ["coronary vessel", "colorectal polyp"])
    assert found.marked == ("coronary vessel", "colorectal polyp")
    assert not {"retinal blood vessel", "coronary artery", "blood vessel"} & all_of(found)
    assert shipped_scenes().implied({"Fundus vessel"}) == {"retinal blood vessel", "blood vessel"}
    assert absent_pool(shipped_scenes(), spec, "a", {"coronary vessel"}, ["artery", "coronary artery"]).marked == ()


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"scene": "breast_ultrasond"},
            "small.yaml: scene: unknown 'breast_ultrasond'. Did you mean 'breast_ultrasound'",
        ),
        ({"scene": "colonoscopy"}, "scene: colonoscopy is of modality endoscopy, not ultrasound"),
        (
            {"scene": "kidney_ultrasound"},
            "kidney_ultrasound cannot show the concept 'breast mass' by .*complete seen_in",
        ),
    ],
)
def test_a_scene_that_does_not_fit_the_data_set_is_named(changes, message, make_spec):
    with pytest.raises(ValueError, match=message):
        shipped_scenes().check([make_spec(concepts={1: "breast mass"}, **changes)])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"scene": {"(p": "colonoscopy"}}, r"small.yaml: scene: '\(p': not a regular expression"),
        ({"partly_marked": ["left sqare"]}, "partly_marked='left sqare': .*Did you mean 'left square'"),
    ],
)
def test_wrong_keys_of_a_data_set_are_named(changes, message, make_spec):
    with pytest.raises(ValueError, match=message):
        make_spec(**changes)


# The table's own mistakes

TABLE: dict[str, Any] = {
    "scenes": {
        "film": {"modality": "x-ray", "shows": "a film"},
        "scan": {"modality": "mr", "shows": "a scan"},
        "view": {"modality": "mr", "shows": "a view"},
    },
    "groups": {"all": ["film", "scan", "view"]},
    "too_wide": ["organ"],
    "concepts": [{"names": ["lung"], "seen_in": ["film"]}, {"names": ["organ"], "seen_in": ["all"]}],
    "words": [{"names": ["brain"], "seen_in": ["scan"]}, {"names": ["car"], "seen_in": []}],
    "look_alikes": {"view": ["lung"]},
    "implies": [{"names": ["lung"], "implies": ["organ"]}],
}
VOCABULARY = Vocabulary(
    Path("vocabulary.yaml"),
    {"lung": Concept("lung", ("lung field",), None, "anatomy", {}), "organ": Concept("organ", (), None, "anatomy", {})},
)


def table(**changes: Any) -> SceneTable:
    return SceneTable(Path("scenes.yaml"), build(SceneFile, copy.deepcopy(TABLE) | changes, "scenes.yaml"), VOCABULARY)


def test_hard_is_what_looks_alike_or_is_of_the_modality():
    small = table()
    assert small.unseen("film", "x-ray") == ((), ("brain", "car"))
    assert small.unseen("view", "mr") == (("lung", "brain"), ("car",))
    assert small.unseen("scan", "mr") == ((), ("lung", "car"))
    assert small.implied({"lung field"}) == {"lung", "organ"}
    near = table(words=[{"names": ["brain"], "seen_in": [], "look_like": ["all"]}])
    assert all("brain" in near.unseen(scene, "")[0] for scene in near.scenes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"groups": {"all": ["flim"]}}, "groups: all: unknown 'flim'. Did you mean 'film'"),
        ({"groups": {"both": ["all"], "all": ["film"]}}, "groups: both: unknown 'all'"),
        ({"groups": {"film": ["scan"], "all": ["film"]}}, "film is also the name of a scene"),
        ({"concepts": [{"names": ["lung"], "seen_in": ["film"]}]}, "'organ' needs a row here with the scenes that"),
        ({"words": [{"names": ["lung"], "seen_in": []}]}, "named twice: lung"),
        ({"words": [{"names": ["lung field"], "seen_in": []}]}, "'lung field' is a name of the concept 'lung'"),
        ({"words": [{"names": ["Car"], "seen_in": []}]}, "'Car' must be in lower case"),
        ({"words": [{"names": ["car"], "seen_in": ["skan"]}]}, "car: unknown 'skan'"),
        ({"words": [{"names": ["car"], "seen": []}]}, "unknown key 'seen'"),
        ({"too_wide": ["organs"]}, "too_wide: unknown 'organs'. Did you mean 'organ'"),
        ({"look_alikes": {"film": ["lung"]}}, "look_alikes: film: 'lung' can be seen there"),
        ({"look_alikes": {"view": ["brain"]}}, "look_alikes: view: 'brain' counts as hard there already"),
        ({"look_alikes": {"veiw": ["car"]}}, "unknown 'veiw'. Did you mean 'view'"),
        ({"implies": [{"names": ["lung"], "implies": ["heart"]}]}, "implies: unknown 'heart'"),
        (
            {"scenes": TABLE["scenes"] | {"film": {"modality": "xray", "shows": ""}}},
            "unknown 'xray'. Did you mean 'x-ray'",
        ),
    ],
)
def test_mistakes_of_the_table_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        table(**{"look_alikes": {}, **changes} if "look_alikes" not in changes else changes)


def test_the_first_pattern_that_fits_tells_the_scene(make_spec):
    spec = make_spec(scene={"^p": "colonoscopy", ".": "fetoscopy"})
    assert isinstance(spec, DatasetSpec) and spec.scenes == ("colonoscopy", "fetoscopy")
    assert (spec.scene_of("p1"), spec.scene_of("q1")) == ("colonoscopy", "fetoscopy")
