"""Images with their queries: content, absent concepts, words, batches."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from medsam3.data.batch import collate, normalised
from medsam3.data.dataset import QueryDataset
from medsam3.data.transforms import image_to_tensor
from medsam3.registry.scenes import shipped_scenes
from medsam3.registry.vocabulary import Vocabulary
from tests.conftest import data_config, save_picture
from tests.data.conftest import SIZE, prepared, queries


def names_of(dataset: QueryDataset) -> list[str]:
    return [dataset.images[i].item for i in range(len(dataset))]


def fake_tokenizer(texts):
    return torch.tensor([[len(text)] * 32 for text in texts]), torch.ones(len(texts), 32, dtype=torch.int64)


def test_a_sample_holds_the_resized_image_and_its_concepts(corpus):
    dataset = queries(corpus)
    index = next(i for i in range(len(dataset)) if len(dataset.images[i].present) == 2)
    item = dataset.images[index].item
    number = int(item[-2:])
    sample = dataset[index]
    with Image.open(corpus.readers["small"].root / f"images/{item}.png") as file:
        assert torch.equal(normalised(sample.image), image_to_tensor(np.array(file), SIZE))
    left, right = sample.queries
    assert (left.sample_id, left.text) == (f"small/{item}/left square", "left square")
    assert left.boxes.tolist() == [pytest.approx([10 / 60, 15 / 40, 10 / 60, 10 / 40])]
    assert right.boxes.tolist() == [pytest.approx([(35 + number) / 60, 26 / 40, 10 / 60, 8 / 40])]
    (mask,) = left.masks.paint()
    assert mask.shape == (SIZE, SIZE) and mask.dtype == torch.bool
    rows = np.flatnonzero(mask.any(dim=1).numpy())
    assert rows.tolist() == [r for r in range(SIZE) if 10 <= int((r + 0.5) * 40 / SIZE) < 20]
    assert (left.kind, right.kind) == ("present", "present")


def test_the_image_is_scaled_like_metas():
    """Mean and std 0.5 over 0..1; a square of the wanted side; equal to torchvision's documented pipeline."""
    from torchvision.transforms import v2

    image = np.random.RandomState(0).randint(0, 256, (37, 91, 3)).astype(np.uint8)
    steps = [
        v2.ToImage(),
        v2.Resize((64, 64)),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ]
    expected = v2.Compose(steps)(image)
    assert torch.allclose(image_to_tensor(image, 64), expected, atol=1e-6)
    assert image_to_tensor(np.full((5, 5, 3), 255, np.uint8), 8).unique().tolist() == [1.0]


def test_images_without_concept_come_only_with_absent_queries(corpus, small_set, make_spec, tmp_path):
    for name in [p.name for p in sorted((tmp_path / "data/small/masks").iterdir())][:6]:
        save_picture(tmp_path / "data/small/masks" / name, np.zeros((40, 60), np.uint8))
    corpus = prepared(small_set[1], make_spec.folder, "small")
    everything = len(corpus.manifest.select("train"))
    with_concepts = queries(corpus)
    assert 0 < len(with_concepts) < everything == len(queries(corpus, absent_concepts=1))
    assert all(len(with_concepts[i].queries) for i in range(len(with_concepts)))
    asked = [q for i in range(everything) for q in queries(corpus, absent_concepts=2)[i].queries]
    assert {len(q.boxes) for q in asked} == {0, 1} and all(len(q.boxes) == len(q.masks) for q in asked)


def absent_of(dataset: QueryDataset, *images: int) -> Counter[tuple[str, str]]:
    """Kind and text of what was asked as absent."""
    asked = [query for i in images or range(len(dataset)) for query in dataset[i].queries if query.kind != "present"]
    assert not any(len(query.boxes) or len(query.masks) for query in asked)
    return Counter((query.kind, query.text) for query in asked)


def test_what_the_data_set_marked_absent_is_the_first_of_the_hard_ones(corpus):
    dataset = queries(corpus, absent_concepts=1, hard_negatives=0)
    assert {kind for kind, _ in absent_of(dataset)} <= {"marked", "easy"}
    with pytest.raises(ValueError, match=r"nothing is hard to refuse in a picture of small: .*scene: one of chest_rad"):
        queries(corpus, absent_concepts=1, hard_negatives=1)


def test_too_few_hard_ones_are_said_before_the_first_image(two_families):
    for name in ("small", "scope"):
        del two_families.specs[name]
    with pytest.raises(ValueError, match=r"hard_negatives=40: only \d+ names are hard to refuse in a picture of eyes"):
        queries(two_families, max_queries=50, absent_concepts=41, hard_negatives=40)


def test_absent_concepts_are_of_the_whole_vocabulary_and_hard_ones_are_always_there(two_families):
    names = list(two_families.specs)
    dataset = queries(two_families, absent_concepts=4, hard_negatives=0)
    eyes = [i for i in range(len(dataset)) if dataset.images[i].dataset == "eyes"]
    kinds = Counter()
    for epoch in range(30):
        dataset.set_epoch(epoch)
        asked = absent_of(dataset, *eyes)
        kinds.update(kind for kind, _ in asked.elements())
        shown = {"optic disc", "optic cup", "retinal blood vessel", "macula", "blood vessel"}
        assert asked.total() == 4 * len(eyes) and not shown & {text for _, text in asked}
    assert names == ["small", "eyes", "scope"] and kinds["easy"] > kinds["hard"] > 0
    del two_families.specs["small"]  # its scene is not told
    dataset = queries(two_families, absent_concepts=2, hard_negatives=1)
    for i in eyes:
        assert {query.kind for query in dataset[i].queries} in ({"present", "hard", "easy"}, {"present", "hard"})


def test_concepts_of_other_images_of_the_run_are_asked_as_absent_more_often(two_families):
    """Beyond the hard ones; of 500 names those of the run would hardly ever come."""
    eyes = [i for i in range(len(queries(two_families))) if queries(two_families).images[i].dataset == "eyes"]

    def polyps(own_negatives: float) -> int:
        dataset = queries(two_families, absent_concepts=2, own_negatives=own_negatives)
        found: Counter[tuple[str, str]] = Counter()
        for epoch in range(40):
            dataset.set_epoch(epoch)
            found += absent_of(dataset, *eyes)
        assert found.total() == 2 * 40 * len(eyes) and not {text for _, text in found} & {"optic disc", "left square"}
        return sum(count for (_, text), count in found.items() if text == "polyp")

    asked = 40 * len(eyes)
    assert polyps(1.0) == asked and 0.6 * asked < polyps(0.5) < 0.9 * asked and polyps(0.0) < 0.05 * asked


def test_false_negatives_of_the_family_rule_are_gone(make_spec, save, tmp_path):
    """BTXRD's malignant bone tumor beside an osteosarcoma, and a breast tumor on a breast ultrasound."""
    mask = np.zeros((20, 20), np.uint8)
    mask[2:8, 2:8] = 1
    for name, spec in (
        ("bones", {"modality": "x-ray", "scene": "limb_radiograph",
                   "concepts": {1: "osteosarcoma", 2: "malignant bone tumor", 3: "osteofibroma"}}),
        ("breasts", {"modality": "ultrasound", "scene": "breast_ultrasound", "concepts": {1: "breast lesion"}}),
    ):  # fmt: skip
        for n in range(8):
            save(tmp_path / f"data/{name}/images/{n}.png", np.full((20, 20, 3), n, np.uint8))
            save(tmp_path / f"data/{name}/masks/{n}.png", mask)
        make_spec(name=name, root=name, **spec)
    corpus = prepared(data_config(tmp_path), make_spec.folder, "bones", "breasts")
    assert corpus.images("bones", "all")[0].absent == ("malignant bone tumor", "osteofibroma")
    assert corpus.absent_pool(corpus.images("bones", "all")[0]).marked == ("osteofibroma",)
    dataset = queries(corpus, max_queries=100, absent_concepts=99, hard_negatives=20)
    texts: dict[str, set[str]] = {"bones": set(), "breasts": set()}
    for i in range(len(dataset)):
        texts[dataset.images[i].dataset] |= {text for _, text in absent_of(dataset, i)}
    assert "osteofibroma" in texts["bones"] and not {"malignant bone tumor", "bone tumor"} & texts["bones"]
    assert "thyroid nodule" in texts["breasts"] and "breast tumor" not in texts["breasts"]


def test_synonyms_ask_for_what_is_there_and_names_for_what_is_not(two_families):
    dataset = queries(two_families, absent_concepts=2, synonyms=1.0)
    vocabulary = Vocabulary.load().concepts
    scope = next(i for i in range(len(dataset)) if dataset.images[i].dataset == "scope")
    texts = set()
    for epoch in range(20):
        dataset.set_epoch(epoch)
        present, *absent = dataset[scope].queries
        texts.add(present.text)
        assert present.sample_id.endswith("/polyp") and len(present.boxes) == 1
        assert all(query.text in shipped_scenes().seen_in for query in absent)
    assert texts == set(vocabulary["polyp"].synonyms)
    small = next(i for i in range(len(dataset)) if dataset.images[i].dataset == "small")
    assert dataset[small].queries[0].text == "left square"  # not in the vocabulary


def test_a_synonym_that_is_another_concept_of_the_data_set_is_not_used(small_set, make_spec):
    make_spec(concepts={1: "polyp", 2: "colonic polyp"}, scene="colonoscopy", modality="endoscopy")
    dataset = queries(prepared(small_set[1], make_spec.folder, "small"), synonyms=1.0)
    texts: dict[str, set[str]] = {}
    for epoch in range(40):
        dataset.set_epoch(epoch)
        for query in dataset[0].queries + dataset[1].queries:
            texts.setdefault(query.sample_id.rsplit("/", 1)[1], set()).add(query.text)
    assert texts["polyp"] == set(Vocabulary.load().synonyms("polyp")) - {"colonic polyp"}
    assert texts.get("colonic polyp", {"colonic polyp"}) == {"colonic polyp"}


@pytest.mark.parametrize(
    "scene, message",
    [
        ({"^p0": "colonoscopy"}, r"scene: no pattern fits 'p[123]_\d\d': \^p0"),
        ({"^p0": "macular_oct", ".": "colonoscopy"}, r"p0_\d\d is macular_oct by its patterns, .* the concept 'polyp'"),
    ],
)
def test_every_image_has_a_scene_that_can_show_what_is_there(scene, message, small_set, make_spec):
    """Before the first step: a pattern that misses an image would stop a run in the middle of an epoch."""
    make_spec(concepts={1: "polyp", 2: "mine"}, modality="endoscopy", scene=scene)
    corpus = prepared(small_set[1], make_spec.folder, "small")
    queries(corpus)
    with pytest.raises(ValueError, match=message):
        queries(corpus, absent_concepts=1)


def test_the_number_of_queries_is_limited_and_keeps_a_present_one(two_families):
    dataset = queries(two_families, absent_concepts=2, max_queries=3)
    for i in range(len(dataset)):
        found = dataset[i].queries
        assert len(found) <= 3 and any(len(query.boxes) for query in found)


def test_draws_depend_on_seed_epoch_and_image_alone(two_families):
    def asked(seed, epoch):
        dataset = queries(two_families, absent_concepts=1, max_queries=2, seed=seed)
        dataset.set_epoch(epoch)
        return [[query.text for query in dataset[i].queries] for i in range(len(dataset))]

    assert asked(1, 0) == asked(1, 0)
    assert asked(1, 0) != asked(1, 1) and asked(1, 0) != asked(2, 0)
    dataset = queries(two_families, absent_concepts=1)
    again = [[query.text for query in dataset[i, 1].queries] for i in range(len(dataset))]
    assert again != [[query.text for query in dataset[i].queries] for i in range(len(dataset))]
    assert [q.text for q in dataset[0, 0].queries] == [q.text for q in dataset[0].queries]


def test_a_mask_changed_after_prepare_is_noticed(corpus, tmp_path):
    dataset = queries(corpus)
    save_picture(tmp_path / f"data/small/masks/{dataset.images[0].item}.png", np.zeros((40, 60), np.uint8))
    with pytest.raises(ValueError, match=r"small/.*/left square: the masks have changed since .*small\.csv"):
        dataset[0]


def test_a_part_without_images_is_an_error(corpus):
    with pytest.raises(ValueError, match=r"small\.csv: no image with a concept in part 'external'"):
        queries(corpus, part="external")


def test_a_batch_packs_queries_over_images(corpus):
    dataset = queries(corpus, absent_concepts=1)
    samples = [dataset[i] for i in range(4)]
    batch = collate(samples, fake_tokenizer)
    texts = [query.text for sample in samples for query in sample.queries]
    assert batch.pixel_values.shape == (4, 3, SIZE, SIZE) and batch.pixel_values.is_contiguous()
    assert batch.image_index.tolist() == [i for i, sample in enumerate(samples) for _ in sample.queries]
    assert batch.input_ids[:, 0].tolist() == [len(text) for text in dict.fromkeys(texts)]  # each phrase once
    assert batch.input_ids[batch.text_index, 0].tolist() == [len(text) for text in texts]
    counts = batch.targets.counts.tolist()
    assert 0 in counts and sum(counts) == len(batch.targets.boxes) == len(batch.targets.masks)
    assert len(batch.targets.sample_ids) == len(texts) == len(counts)
    start, masks = 0, batch.targets.masks.paint()
    for query, count in zip([q for s in samples for q in s.queries], counts, strict=True):
        assert torch.equal(masks[start : start + count], query.masks.paint())
        assert torch.equal(batch.targets.boxes[start : start + count], query.boxes)
        start += count
