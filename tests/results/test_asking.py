"""What is asked of an image as absent is absent."""

from __future__ import annotations

import dataclasses

import pytest
from hydra import compose, initialize_config_dir

from medsam3.checks import typed
from medsam3.command_line import CONFIG_FOLDER
from medsam3.config import EvaluateConfig, EvaluationConfig, register_schemas
from medsam3.data.manifest import ImageRows
from medsam3.registry.spec import load_specs
from medsam3.results.asking import check_concepts, concepts_asked


def settings_of(*overrides: str) -> EvaluationConfig:
    register_schemas()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return typed(compose("evaluate", ["checkpoint=tiny", "split=internal", *overrides]), EvaluateConfig).evaluation


def test_some_concepts_alone():
    settings = settings_of("evaluation.concepts=[liver,spleen]")
    specs = load_specs(["m2caiseg"])
    rows = ImageRows("m2caiseg", "x", "x", "val", ("liver", "grasper"), ("bile",))
    assert concepts_asked(rows, specs["m2caiseg"], settings) == {"liver": ("liver",)}
    with pytest.raises(ValueError, match=r"evaluation\.concepts='spleen': must be one of grasper, .*tissue"):
        check_concepts(specs.values(), settings)
    check_concepts(specs.values(), dataclasses.replace(settings, concepts=["liver"]))
    for wrong in ("theirs", "[]", "null"):
        with pytest.raises(ValueError, match=r"evaluation\.concepts=.*: must be ours, paper, or a list of concepts"):
            settings_of(f"evaluation.concepts={wrong}")


def test_false_negatives_of_the_annotations_are_not_asked():
    settings = settings_of("evaluation.ask=all")
    specs = load_specs(["btxrd", "bcss", "m2caiseg"])

    def asked(name: str, *present: str) -> set[str]:
        absent = tuple(concept for concept in specs[name].concept_names if concept not in present)
        rows = ImageRows(name, "x", "x", "val", present, absent)
        assert set(concepts_asked(rows, specs[name], dataclasses.replace(settings, ask="present"))) == set(present)
        return set(concepts_asked(rows, specs[name], settings)) - set(present)

    sarcoma = asked("btxrd", "bone tumor", "osteosarcoma")
    assert {"osteochondroma", "benign bone tumor"} <= sarcoma and "malignant bone tumor" not in sarcoma
    assert "malignant bone tumor" in asked("btxrd")  # a normal film
    infiltrate = asked("bcss", "lymphocytic infiltrate")
    assert "breast tumor" in infiltrate and not {"immune infiltrate", "nerve", "blood"} & infiltrate
    assert not {"grasper", "tissue"} & asked("m2caiseg", "bipolar forceps", "liver")
