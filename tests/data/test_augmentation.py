"""Augmentation: image, masks and boxes move together, by rules of the modality, the same from the same seed."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as tvf

from medsam3.checks import typed
from medsam3.command_line import CONFIG_FOLDER
from medsam3.config import AugmentationConfig, LookConfig, TrainConfig, register_schemas
from medsam3.data.augmentation import Augmentation, restained, thinned, toned, window_around
from medsam3.data.dataset import MAX_TARGETS
from medsam3.data.sampler import ImageSampler
from medsam3.layouts.instances import Instances
from medsam3.registry.spec import MODALITIES, SPEC_FOLDER, load_specs
from medsam3.registry.vocabulary import Vocabulary
from tests.conftest import data_config
from tests.data.conftest import prepared, queries

SIZE = 48
PLAIN = LookConfig("none", crop=1.0, brightness=0.0, contrast=0.0, gamma=0.0, blur=0.0, noise=0.0, stain=0.0)


@pytest.fixture(scope="module")
def shipped() -> AugmentationConfig:
    register_schemas()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return typed(compose("train", ["augmentation=by_modality"]), TrainConfig).data.augmentation


@pytest.fixture
def dots(save, make_spec, tmp_path):
    """Two images whose pixels are white where the concept is; 300 dots in one, three in the other."""
    for name, places in (("many", range(300)), ("few", (7, 130, 299))):
        mask = np.zeros((120, 90), np.uint8)
        for place in places:
            y, x = 2 + 6 * (place // 15), 1 + 6 * (place % 15)
            mask[y : y + 3, x : x + 2] = 1
        save(tmp_path / f"data/dots/images/{name}.png", np.repeat(mask[..., None], 3, axis=2) * 255)
        save(tmp_path / f"data/dots/masks/{name}.png", mask)

    def corpus(concept="cell nucleus", **changes):
        look = {"modality": "pathology", "scene": "he_breast", "concepts": {1: concept}}
        spec = make_spec(name="dots", root="dots", instances="components", used_for=["external"], **(look | changes))
        return prepared(data_config(tmp_path), make_spec.folder, spec.name)

    return corpus


def moving(config: AugmentationConfig, corpus, **look) -> Augmentation:
    """Positions alone, always."""
    looks = {modality: dataclasses.replace(PLAIN, **look) for modality in MODALITIES}
    return Augmentation(dataclasses.replace(config, chance=1.0, modalities=looks), corpus.specs)


@pytest.mark.parametrize(
    "look", [{"orientation": "mirror"}, {"orientation": "all"}, {"crop": 0.5}, {"orientation": "all", "crop": 0.3}]
)
def test_masks_and_boxes_lie_where_the_image_shows_the_concept(look, shipped, dots):
    corpus = dots()
    dataset = queries(corpus, part="external", augmentation=moving(shipped, corpus, **look))
    dataset.image_size = side = 240
    seen = set()
    for epoch in range(12):
        dataset.set_epoch(epoch)
        for i in range(2):
            sample = dataset[i]
            (query,) = sample.queries
            assert sample.image.shape == (3, side, side) and len(query.boxes) == len(query.masks) > 0
            masks = query.masks.paint()
            bright = sample.image[0] > 127  # half covered, as a mask is
            assert (bright ^ masks.any(dim=0)).sum() < 0.15 * bright.sum()  # ties
            for (cx, cy, w, h), mask in zip(query.boxes * side, masks, strict=True):
                rows, columns = torch.nonzero(mask, as_tuple=True)
                assert cx - w / 2 - 1 <= columns.min() and columns.max() <= cx + w / 2 + 1
                assert cy - h / 2 - 1 <= rows.min() and rows.max() <= cy + h / 2 + 1
            seen.add(tuple(query.boxes.flatten().tolist()))
    assert len(seen) == 24  # every epoch another view


def test_the_picture_is_at_least_as_large_as_said_and_black_around(shipped, dots):
    corpus = dots()
    augmentation = moving(shipped, corpus)
    frames = [augmentation.frame("dots", 1008, random.Random(seed)) for seed in range(300)]
    assert min(frame.side for frame in frames) < 500 and max(frame.side for frame in frames) > 990
    assert all(480 <= frame.side <= 1008 and frame.left + frame.side <= 1008 for frame in frames)
    assert len({(frame.left, frame.top) for frame in frames}) > 250
    sample = queries(corpus, part="external", augmentation=augmentation)[0]
    frame = augmentation.frame("dots", SIZE, random.Random("view:1:0:dots/few"))
    assert frame.side <= SIZE and sample.image.min() == 0


def test_black_background_is_never_padded_with_black(shipped):
    specs = load_specs(["cholecseg8k", "kvasir_seg"])
    augmentation = Augmentation(shipped, specs)
    sides = {name: {augmentation.frame(name, 1008, random.Random(n)).side for n in range(20)} for name in specs}
    assert sides["cholecseg8k"] == {1008} and len(sides["kvasir_seg"]) > 10


def test_what_has_a_side_is_never_mirrored_or_turned(shipped, make_spec):
    names = [path.stem for path in SPEC_FOLDER.glob("*.yaml")]
    specs = load_specs(names) | {"mine": make_spec(modality="mr", concepts={1: "left-sided hippocampus"})}
    augmentation = Augmentation(shipped, specs)
    image = np.arange(12 * 9 * 3, dtype=np.uint8).reshape(12, 9, 3)
    for name, spec in specs.items():
        fixed = spec.modality == "x-ray" or name in ("arcade", "mine")
        views = {augmentation.moved(name, image, {}, random.Random(seed))[0].tobytes() for seed in range(40)}
        still = Augmentation(dataclasses.replace(shipped, chance=0.0), {name: spec})
        views = {still.moved(name, image, {}, random.Random(seed))[0].tobytes() for seed in range(40)}
        expected = 1 if fixed else 2 if spec.modality in ("mr", "ultrasound", "oct") else 8
        assert len(views) == expected, name
    assert shipped.modalities.keys() == MODALITIES.keys()
    assert {m for m, look in shipped.modalities.items() if look.stain} == {"pathology"}


def test_a_concept_that_is_cut_off_is_absent_from_the_piece_or_not_asked_for(shipped, small_set, make_spec):
    corpus = prepared(small_set[1], make_spec.folder, "small")
    augmentation = moving(shipped, corpus, crop=0.3)

    def kinds(dataset):
        found = set()
        for epoch in range(20):
            dataset.set_epoch(epoch)
            for i in range(len(dataset)):
                asked = dataset[i].queries
                assert any(query.kind == "present" for query in asked)
                assert all(bool(len(query.boxes)) == (query.kind == "present") for query in asked)
                found |= {(query.kind, query.text) for query in asked}
        return found

    assert kinds(queries(corpus, augmentation=augmentation)) == {
        ("present", "left square"),
        ("present", "right square"),
    }
    with_absent = kinds(queries(corpus, augmentation=augmentation, absent_concepts=1))
    assert {("cut off", "left square"), ("cut off", "right square")} <= with_absent
    make_spec(group=r"^(p\d+)_", partly_marked=["left square"])
    corpus = prepared(small_set[1], make_spec.folder, "small")
    partly = kinds(queries(corpus, augmentation=augmentation, absent_concepts=1))
    assert ("cut off", "right square") in partly and ("cut off", "left square") not in partly


def test_what_is_left_in_specks_is_not_asked_as_cut_off(shipped, save, make_spec, tmp_path):
    """A large one at the left and a speck below min_area_px at the right, of each of two concepts."""
    mask = np.zeros((40, 80), np.uint8)
    mask[2:12, 2:12], mask[20:30, 60:70], mask[4:6, 70:72] = 1, 2, 1
    save(tmp_path / "data/specks/images/a.png", np.zeros((40, 80, 3), np.uint8))
    save(tmp_path / "data/specks/masks/a.png", mask)
    look = {"concepts": {1: "thyroid nodule", 2: "carotid artery"}, "instances": "components", "min_area_px": 20}
    make_spec(name="specks", root="specks", used_for=["external"], scene="thyroid_ultrasound", **look)
    corpus = prepared(data_config(tmp_path), make_spec.folder, "specks")
    crop = moving(shipped, corpus, crop=0.4)
    dataset = queries(corpus, "external", augmentation=crop, absent_concepts=1, synonyms=1.0)
    seen = set()
    for epoch in range(30):
        dataset.set_epoch(epoch)
        seen |= {(q.kind, q.text) for q in dataset[0].queries if q.kind in ("present", "cut off")}
    known = Vocabulary.load()
    there = {("present", word) for name in look["concepts"].values() for word in known.synonyms(name)}
    assert seen == {*there, ("cut off", "carotid artery")}  # by its name: a synonym may be wider


def test_more_targets_than_answers_are_kept_dropped_or_cropped(dots):
    corpus = dots()
    few, many = sorted(range(2), key=lambda i: corpus.manifest[i].item != "few")

    def counts(rule):
        dataset = queries(corpus, "external", max_targets=rule)
        return [len(query.boxes) for i in (few, many) for query in dataset[i].queries]

    assert counts("keep") == [3, 300]
    assert counts("crop")[0] == 3 and 50 < counts("crop")[1] <= MAX_TARGETS
    dropped = queries(corpus, "external", max_targets="drop")
    assert [dropped.images[i].item for i in range(len(dropped))] == ["few"]
    with_absent = queries(corpus, "external", max_targets="drop", absent_concepts=1)
    assert [query.kind for query in with_absent[many].queries] == ["easy"] or len(with_absent[many].queries) == 1
    assert {query.text for query in with_absent[many].queries}.isdisjoint({"cell nucleus"})
    nest = Instances((50, 50), np.tile(np.array([[0, 0, 50, 50]], np.int32), (3, 1)), (np.ones((50, 50), bool),) * 3)
    image, masks = thinned(np.zeros((50, 50, 3), np.uint8), {"a": nest}, 3, random.Random(0))
    assert image.shape[:2] == (50, 50) and len(masks["a"]) == 3
    with pytest.raises(ValueError, match=r"3 instances within \d+ x \d+ px: do masks come twice"):
        thinned(np.zeros((50, 50, 3), np.uint8), {"a": nest}, 2, random.Random(0))


def test_samples_are_the_same_from_any_process_and_differ_between_repeats(shipped, dots):
    corpus = dots()
    augmentation = Augmentation(dataclasses.replace(shipped, chance=1.0), corpus.specs)
    dataset = queries(corpus, "external", absent_concepts=2, hard_negatives=1, synonyms=0.5, augmentation=augmentation)
    sampler = ImageSampler(dataset, {"dots": 1}, 2, seed=0, rank=0, world_size=1)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=list, num_workers=1, multiprocessing_context="spawn")
    torch.manual_seed(5)
    for samples, places in zip(loader, sampler, strict=True):
        for sample, place in zip(samples, places, strict=True):
            torch.manual_seed(6)  # the run's own generator has no say
            expected = dataset[place]
            assert torch.equal(sample.image, expected.image)
            for query, other in zip(sample.queries, expected.queries, strict=True):
                assert (query.text, query.kind) == (other.text, other.kind)
                assert torch.equal(query.masks.paint(), other.masks.paint()) and torch.equal(query.boxes, other.boxes)
    assert not torch.equal(dataset[0, 0].image, dataset[0, 1].image)
    first = dataset[0].image
    dataset.set_epoch(1)
    assert not torch.equal(first, dataset[0].image)


def test_windows_hold_a_pixel_of_an_instance():
    mask = np.zeros((40, 60), bool)
    mask[38, 57] = True
    for seed in range(50):
        x0, y0, x1, y1 = window_around([Instances.whole(mask)], (40, 60), 0.25, random.Random(seed))
        assert (x1 - x0, y1 - y0) == (15, 10) and mask[y0:y1, x0:x1].any()
        x0, y0, x1, y1 = window_around([], (40, 60), 0.25, random.Random(seed))
        assert 0 <= x0 < x1 <= 60 and 0 <= y0 < y1 <= 40


def test_each_step_changes_what_it_should(shipped, make_spec):
    spec = make_spec(modality="pathology", scene="he_breast")
    pixels = torch.from_numpy(np.random.RandomState(0).randint(40, 200, (3, 64, 64)).astype(np.uint8))
    changed = {}
    for step in ("brightness", "contrast", "gamma", "blur", "noise", "stain"):
        look = {"pathology": dataclasses.replace(PLAIN, **{step: 0.6 if step == "blur" else 0.1})}
        augmentation = Augmentation(dataclasses.replace(shipped, chance=1.0, modalities=look), {"a": spec})
        changed[step] = augmentation.repainted("a", pixels, random.Random(1)).float()
        assert changed[step].shape == pixels.shape and not torch.equal(changed[step], pixels.float())
    before = pixels.float()
    ratio = changed["brightness"] / before
    assert ratio.std() < 0.02 and abs(ratio.mean() - 1) > 0.01
    assert changed["blur"].std() < 0.7 * before.std() and abs(changed["blur"].mean() - before.mean()) < 1
    noise = changed["noise"] - before
    assert (noise[0] - noise[1]).abs().mean() < 0.5  # a grey stays grey
    assert 1 < noise.std() < 26 and abs(noise.mean()) < 1
    chain = tvf.adjust_gamma(tvf.adjust_contrast(tvf.adjust_brightness(pixels, 1.2), 0.7), 1.3)
    assert (toned(pixels, 1.2, 0.7, 1.3).int() - chain.int()).abs().max() <= 2  # which rounds after each step
    white = torch.full((3, 4, 4), 255, dtype=torch.uint8)
    assert torch.equal(restained(white, [0.5, 1.5, 1.0]), white)
    assert (restained(pixels, [1.0, 1.0, 1.0]).int() - pixels.int()).abs().max() <= 1
    bluish = torch.exp(-torch.tensor([0.65, 0.70, 0.29])).mul(255).round().to(torch.uint8)[:, None, None]
    twice = restained(bluish, [2.0, 1.0, 1.0]).flatten() / 255
    assert torch.allclose(-torch.log(twice), 2 * torch.tensor([0.65, 0.70, 0.29]), atol=0.05)  # haematoxylin alone


@pytest.mark.parametrize(
    "modalities, message",
    [
        ({"ultrasound": PLAIN, "xray": PLAIN}, "modalities='xray': .*Did you mean 'x-ray'"),
        (
            {"ultrasound": dataclasses.replace(PLAIN, orientation="flip")},
            "ultrasound.orientation='flip': must be one of none",
        ),
        ({"mr": PLAIN}, "small is of modality='ultrasound': must be one of mr"),
    ],
)
def test_wrong_modalities_are_named(modalities, message, shipped, make_spec):
    with pytest.raises(ValueError, match=message):
        Augmentation(dataclasses.replace(shipped, modalities=modalities), {"small": make_spec()})
