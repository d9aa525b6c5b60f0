"""The configuration: the paper's numbers, and errors that name the key and the legal values."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from medsam3.bounds import range_of
from medsam3.checks import check, differing_keys, typed
from medsam3.command_line import explain, run_script
from medsam3.config import (
    AuditConfig,
    EvaluateConfig,
    GetDataConfig,
    PredictConfig,
    PrepareConfig,
    TrainConfig,
    register_schemas,
)

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs/experiment").glob("*.yaml"))
register_schemas()


def load(*overrides: str, name: str = "train"):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return typed(compose(name, list(overrides)), TrainConfig if name == "train" else EvaluateConfig)


def error_of(*overrides: str) -> str:
    with pytest.raises((HydraException, ValueError)) as caught:
        load(*overrides)
    return explain(caught.value)


def test_full_finetune_has_every_number_of_table_2():
    loss = load("experiment=full_finetune").loss
    assert (loss.matcher.class_cost, loss.matcher.box_cost, loss.matcher.giou_cost) == (2.0, 5.0, 2.0)
    assert (loss.matcher.alpha, loss.matcher.gamma) == (0.25, 2.0)
    assert (loss.one_to_many.top_k, loss.one_to_many.threshold) == (4, 0.4)
    assert (loss.one_to_many.alpha, loss.one_to_many.weight) == (0.3, 2.0)
    assert (loss.find.class_weight, loss.find.presence_weight) == (20.0, 20.0)
    assert (loss.find.alpha, loss.find.gamma, loss.find.positive_weight) == (0.25, 2.0, 10.0)
    assert (loss.find.padded_queries, loss.find.box_weight, loss.find.giou_weight) == (200, 5.0, 2.0)
    assert (loss.semantic.alpha, loss.semantic.gamma) == (0.6, 2.0)
    assert (loss.semantic.focal_weight, loss.semantic.dice_weight, loss.semantic.presence_weight) == (20.0, 30.0, 1.0)
    assert loss.variant == "paper"


def test_full_finetune_has_every_number_of_section_4():
    config = load("experiment=full_finetune")
    rates = config.optim.lr
    assert (rates.decoder, rates.mask_head, rates.scoring) == (3e-4, 3e-4, 3e-4)
    assert (rates.vision, rates.text, rates.geometry) == (5e-5, 5e-5, 1e-4)
    assert config.optim.betas == [0.9, 0.999] and config.optim.layer_decay == 0.85
    assert config.trainer.epochs == 10 and config.model.image_size == 1008
    assert (config.data.split.train_fraction, config.data.split.seed, config.data.split.by) == (0.85, 42, "image")
    assert config.model.checkpoint == "facebook/sam3" and config.datasets == "train"
    data = config.data
    assert (data.absent_concepts, data.own_negatives, data.synonyms) == (0, 0, 0)
    assert (data.max_targets, data.max_repeats) == ("keep", None)
    assert data.augmentation.modalities == {} and data.weights == "size"


NOT_IN_THE_PAPER = {  # the authors' later configuration, Meta's settings, or our own choice: config files say which
    "data.absent_concepts": 0,
    "data.max_queries": 8,
    "data.weights": "size",
    "data.prompts": "canonical",
    "model.one_to_many_queries": True,
    "model.activation_checkpointing": "all",
    "model.compile": "auto",
    "loss.scale_by_batch": True,
    "loss.one_to_many.on_auxiliary_layers": False,
    "loss.find.presence_alpha": 0.5,
    "loss.mask": {"focal_weight": 200.0, "dice_weight": 10.0, "alpha": 0.25, "gamma": 2.0},
    "optim.lr.encoder": 1e-5,
    "optim.layer_decay_depth": None,
    "optim.weight_decay": 0.05,
    "optim.clip_norm": 0.1,
    "optim.reference_batch": None,
    "optim.schedule": {"warmup": 100, "timescale": 10, "cooldown": 50, "constant_parts": ["encoder"]},
    "model.regularisation": {"stochastic_depth": 0, "attention_dropout": 0, "feed_forward_dropout": 0},
    "trainer.average_decay": None,
    "trainer.keep_states": 1,
    "trainer.timeout_minutes": 30,
    "trainer.images_per_process": 1,
    "trainer.accumulation_steps": 1,
    "trainer.bf16": True,
    "trainer.max_steps": None,
    "trainer.max_skipped_steps": 10,
    "trainer.save_every_steps": 1000,
    "prediction.score_threshold": 0,
    "prediction.resolve_overlaps": True,
    "prediction.queries_per_pass": 8,
    "prediction.tile": None,
    "evaluation.images": None,
}


def test_every_default_that_is_not_in_the_paper():
    config = OmegaConf.structured(load("experiment=full_finetune"))
    found = {key: OmegaConf.select(config, key, throw_on_missing=True) for key in NOT_IN_THE_PAPER}
    plain = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in found.items()}
    assert plain == NOT_IN_THE_PAPER


def test_recommended_supervises_masks_asks_for_absent_concepts_and_keeps_patients_together():
    config = load("experiment=recommended")
    assert config.loss.variant == "sam3" and config.data.split.by == "group" and config.data.absent_concepts > 0


def test_own_data_is_recommended_on_a_single_gpu_and_names_its_sets():
    with pytest.raises(ValueError, match="datasets=None: must be a name, or a list of names"):
        load("experiment=own_data")  # and not the 33 of the paper
    own, recommended = load("experiment=own_data", "datasets=drive"), load("experiment=recommended")
    assert (own.loss, own.optim, own.prediction) == (recommended.loss, recommended.optim, recommended.prediction)
    assert (own.data.split.by, own.data.split.test_fraction, own.data.absent_concepts) == ("group", 0.075, 2)
    assert own.data.augmentation.modalities and own.trainer.patience == 20
    batch = own.trainer.images_per_process * own.trainer.accumulation_steps
    assert [min(100 * images // batch, own.trainer.max_steps) for images in (17, 17_000)] == [425, 20_000]


@pytest.mark.parametrize("hardware", sorted(path.stem for path in (ROOT / "configs/hardware").glob("*.yaml")))
def test_settings_for_a_card_win_over_those_of_the_experiment(hardware):
    config = load("experiment=recommended", f"hardware={hardware}")
    assert config.name == "recommended" and config.loss.variant == "sam3"
    small = hardware in ("gpu_16gb", "gpu_12gb")
    assert config.model.adapt.mode == ("lora" if small else "full")
    assert config.trainer.images_per_process == (4 if hardware in ("gpu_80gb", "gpu_48gb") else 1)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_under_its_own_name(experiment):
    config = load(f"experiment={experiment}", *(["datasets=drive"] if experiment == "own_data" else []))
    assert config.name == experiment and config.output_dir == f"runs/{experiment}"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("modle.image_size=224", ["modle", "Did you mean model?", "loss"]),
        ("model.imagesize=224", ["model.imagesize", "Did you mean image_size?", "checkpoint"]),
        ("optim.lr.foo=1", ["optim.lr.foo", "decoder, mask_head, scoring"]),
        ("seed=many", ["seed", "many", "Integer"]),
        ("experiment=nope", ["experiment/nope", *EXPERIMENTS]),
        ("loss.variant=sam2", ["loss.variant='sam2'", "paper, sam3, box_only"]),
        ("data.split.by=patient", ["data.split.by='patient'", "image, group"]),
        ("data.split.train_fraction=85", ["data.split.train_fraction=85", "between 0 and 1"]),
        ("data.weights=log", ["data.weights='log'", "size, sqrt, uniform"]),
        ("trainer.epochs=0", ["trainer.epochs=0", "greater than 0"]),
        ("optim.schedule.constant_parts=[backbone]", ["'backbone'", "vision, text, geometry"]),
        ("model.one_to_many_queries=false", ["model.one_to_many_queries", "loss.one_to_many.weight"]),
        ("optim.betas=[0.9]", ["optim.betas=[0.9]", "two numbers"]),
        ("optim.betas=[0.9,1.0]", ["optim.betas[1]=1.0", "less than 1"]),
        ("data.weights={drive: abc}", ["data.weights={'drive': 'abc'}", "size, sqrt, uniform"]),
        ("data.weights={drive: nan}", ["data.weights.drive=nan", "finite"]),
        ("datasets=3", ["datasets=3", "a list of names"]),
        ("datasets=[drive,3]", ["datasets=['drive', 3]", "a list of names"]),
        ("name=''", ["name=''", "folder's name"]),
        ("name=a/../../b", ["name='a/../../b'", "without . and .."]),
        ("name=/a", ["name='/a'"]),
        ("model.image_size=14", ["model.image_size=14", "28 or more"]),
        ("model.image_size=1000", ["model.image_size=1000", "a multiple of 14"]),
        ("seed=-1", ["seed=-1", "from 0 to 4294967295"]),
        ("+trainer.epoch=3", ["unknown key trainer.epoch", "Did you mean 'epochs'?", "max_steps"]),
        ("+foo=3", ["unknown key foo", "model, loss, optim"]),
        ("+optim.lr.decodr=1", ["unknown key optim.lr.decodr", "Did you mean 'decoder'?"]),
    ],
)
def test_a_wrong_setting_is_named_with_the_legal_values(override, expected):
    message = error_of(override)
    for part in expected:
        assert part in message
    assert "Config search path" not in message and "reference_type" not in message


def numbers_of(schema: type, prefix: str = "") -> list[str]:
    """Dotted keys of a dataclass that hold a number."""
    keys = []
    for field in dataclasses.fields(schema):
        if isinstance(field.default_factory, type) and dataclasses.is_dataclass(field.default_factory):
            keys += numbers_of(field.default_factory, f"{prefix}{field.name}.")
        elif re.search(r"\b(int|float)\b", str(field.type)):
            keys.append(prefix + field.name)
    return keys


SCHEMAS = (TrainConfig, EvaluateConfig, PredictConfig, PrepareConfig, GetDataConfig, AuditConfig)
NUMBERS = sorted({key for schema in SCHEMAS for key in numbers_of(schema)})


def test_every_number_of_every_script_has_a_range():
    assert len(NUMBERS) > 60
    assert [key for key in NUMBERS if range_of(key) is None] == []


def with_value(config: TrainConfig, key: str, value: float) -> TrainConfig:
    """A copy of the configuration with one number, or the first of a list of numbers, replaced."""
    changed = copy.deepcopy(config)
    *path, name = key.split(".")
    owner = functools.reduce(getattr, path, changed)
    old = getattr(owner, name)
    setattr(owner, name, [value, *old[1:]] if isinstance(old, list) else value)
    return changed


@pytest.mark.parametrize(("value", "expected"), [(-1, "must be"), (math.nan, "finite"), (math.inf, "finite")])
def test_a_number_out_of_its_range_is_refused_with_key_and_value(value, expected):
    config = load()
    for key in numbers_of(TrainConfig):
        with pytest.raises(ValueError, match=rf"^{key}(\[0\])?={value}: .*{expected}"):
            check(with_value(config, key, value))


def test_absent_prompts_that_leave_no_room_for_present_ones_are_refused():
    assert "data.max_queries=2" in error_of("data.absent_concepts=2", "data.max_queries=2")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [("dataset=drive", "datasets="), ("data.datasets=drive", "datasets="), ("audit", "python scripts/audit_data.py")],
)
def test_a_word_of_an_earlier_version_is_answered_with_todays(argument, expected, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", argument])
    with pytest.raises(SystemExit, match="2"):
        run_script("prepare_data", PrepareConfig, None)
    message = capsys.readouterr().err
    assert message.startswith(f"error: {argument}: ") and expected in message


def test_paths_of_this_machine_come_from_a_local_file_and_the_command_line_comes_after(tmp_path):
    shutil.copytree(ROOT / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("local.yaml"))
    (tmp_path / "configs/local.yaml").write_text("data: {root: /my/data}\noutput_root: /my/runs\n")
    for name in ("train", "evaluate", "prepare_data", "get_data", "audit"):
        with initialize_config_dir(str(tmp_path / "configs"), version_base="1.3"):
            config = compose(name, ["output_root=/other", "data.cache=c"])
        assert (config.data.root, config.output_root, config.data.cache) == ("/my/data", "/other", "c")
    (tmp_path / "configs/local.yaml").write_text("data: {rot: /my/data}\n")
    with initialize_config_dir(str(tmp_path / "configs"), version_base="1.3"), pytest.raises(HydraException) as caught:
        compose("train")
    assert explain(caught.value).startswith("unknown key data.rot (In 'dataset/../local'). Did you mean root?")


def test_differing_keys_name_the_leaf_and_both_values():
    stored = {"seed": 1, "loss": {"variant": "paper", "find": {"alpha": 0.25}}, "old": 1}
    current = {"seed": 1, "loss": {"variant": "sam3", "find": {"alpha": 0.25}}}
    assert differing_keys(stored, current) == ["loss.variant: paper -> sam3", "old: 1 -> (absent)"]


@pytest.mark.slow
def test_a_script_ends_with_one_message_and_status_2(tmp_path):
    command = [sys.executable, str(ROOT / "scripts/train.py"), "loss.variant=sam2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: loss.variant='sam2': must be one of paper, sam3, box_only" in done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())
