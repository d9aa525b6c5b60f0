"""The order of images in an epoch, shared by processes and data sets; data loading processes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from medsam3.data.sampler import EndlessSampler, ImageSampler
from tests.data.conftest import queries


def batches(
    dataset, weights="size", per_batch=2, seed=0, rank=0, world_size=1, position=(0, 0), max_repeats=None
) -> list[list[int]]:
    sampler = ImageSampler(dataset, weights, per_batch, seed, rank, world_size, max_repeats)
    sampler.set_position(*position)
    result = list(sampler)
    assert len(sampler) == len(result)
    return [[index for index, _, _ in batch] for batch in result]


def test_every_image_comes_once_in_an_order_of_seed_and_epoch(corpus):
    dataset = queries(corpus)
    order = [i for batch in batches(dataset) for i in batch]
    assert sorted(order) == list(range(10))
    assert order == [i for batch in batches(dataset) for i in batch]
    assert order != [i for batch in batches(dataset, position=(1, 0)) for i in batch]
    assert order != [i for batch in batches(dataset, seed=1) for i in batch]


def test_ranks_share_the_epoch_and_get_equally_many_full_batches(corpus):
    dataset = queries(corpus)
    shares = [batches(dataset, per_batch=3, rank=rank, world_size=2) for rank in range(2)]
    assert [len(share) for share in shares] == [2, 2]
    assert all(len(batch) == 3 for share in shares for batch in share)
    joined = [i for step in zip(*shares, strict=True) for batch in step for i in batch]
    alone = [i for batch in batches(dataset, per_batch=1) for i in batch]
    assert joined == alone + alone[:2]  # what is missing is filled from the beginning


def test_an_epoch_goes_on_where_it_stopped(corpus):
    dataset = queries(corpus)
    assert batches(dataset, position=(3, 4)) == batches(dataset, position=(3, 0))[2:]


def test_after_an_interruption_more_ranks_share_what_is_left_of_the_epoch(corpus):
    """Two images by one rank, then two ranks with two each: every image of the epoch once."""
    dataset = queries(corpus)
    alone = [i for batch in batches(dataset, per_batch=1) for i in batch]
    shares = [batches(dataset, per_batch=2, rank=rank, world_size=2, position=(0, 2)) for rank in range(2)]
    assert alone[:2] + [i for step in zip(*shares, strict=True) for batch in step for i in batch] == alone


@pytest.mark.parametrize(
    "weights, expected",
    [
        ("size", {"small": 10, "eyes": 3, "scope": 3}),
        ("uniform", {"small": 6, "eyes": 5, "scope": 5}),
        ("sqrt", {"small": 8, "eyes": 4, "scope": 4}),  # 16 x 3.162 / 6.626 = 7.6, 4.2, 4.2
        ({"small": 0, "eyes": 1, "scope": 3}, {"eyes": 4, "scope": 12}),
    ],
)
def test_weights_give_each_data_set_its_share(weights, expected, two_families):
    dataset = queries(two_families)
    order = [i for batch in batches(dataset, weights, per_batch=1) for i in batch]
    found: dict[str, list[int]] = {}
    for i in order:
        found.setdefault(dataset.images[i].dataset, []).append(i)
    assert {name: len(indices) for name, indices in found.items()} == expected
    for indices in found.values():
        times = np.unique(indices, return_counts=True)[1]
        assert times.max() - times.min() <= 1  # in turn


@pytest.mark.parametrize(
    "weights, most, expected",
    [
        ("uniform", 1, {"small": 10, "eyes": 3, "scope": 3}),
        ("sqrt", 1, {"small": 10, "eyes": 3, "scope": 3}),
        ({"small": 1, "eyes": 10, "scope": 1}, 2, {"small": 5, "eyes": 6, "scope": 5}),  # 10 left, in equal parts
        ({"small": 1, "eyes": 9, "scope": 3}, 2, {"small": 4, "eyes": 6, "scope": 6}),  # scope is full in its turn
        ({"small": 0, "eyes": 1, "scope": 3}, 2, {"eyes": 6, "scope": 6}),  # nobody else may fill the epoch
    ],
)
def test_no_image_comes_more_often_than_max_repeats(weights, most, expected, two_families):
    dataset = queries(two_families)
    order = [i for batch in batches(dataset, weights, per_batch=1, max_repeats=most) for i in batch]
    assert Counter(dataset.images[i].dataset for i in order) == expected
    assert max(Counter(order).values()) <= most


def test_a_repeated_image_says_so_and_the_sampler_how_often(two_families):
    sampler = ImageSampler(queries(two_families), "uniform", 1, seed=0, rank=0, world_size=1)
    turns: dict[int, list[int]] = {}
    for ((index, before, _),) in sampler:
        turns.setdefault(index, []).append(before)
    assert all(sorted(found) == list(range(len(found))) for found in turns.values())
    assert max(len(found) for found in turns.values()) == 2
    assert sampler.describe() == (
        "an image comes so many times in an epoch of 16: scope 1.67 (3 images), eyes 1.67 (3 images), "
        "small 0.6 (10 images)"
    )


@pytest.mark.parametrize(
    "weights, message",
    [
        ({"smal": 1}, "unknown data set 'smal'. Did you mean 'small'"),
        ({"small": 1}, "no weight for eyes, scope"),
        ({"small": 0, "eyes": 0, "scope": 0}, "nor all zero"),
        ({"small": -1, "eyes": 1, "scope": 1}, "must not be negative"),
        ({"small": "abc", "eyes": 1, "scope": 1}, "data.weights: small: 'abc': must be a number"),
        ({"small": float("nan"), "eyes": 1, "scope": 1}, "must not be negative"),
    ],
)
def test_wrong_weights_are_named(weights, message, two_families):
    with pytest.raises(ValueError, match=message):
        batches(queries(two_families), weights)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_data_loading_processes_give_the_samples_of_the_parent_and_go_on_with_the_next_epoch(start_method, corpus):
    dataset = queries(corpus, absent_concepts=1)
    sampler = ImageSampler(dataset, "size", 2, seed=0, rank=0, world_size=1)
    sampler.set_position(2, 6)  # as a run that is resumed
    loader = DataLoader(
        dataset,
        batch_sampler=EndlessSampler(sampler),
        collate_fn=list,
        num_workers=1,
        multiprocessing_context=start_method,
    )
    batches = [*sampler.of_epoch(2, first_image=6), *sampler.of_epoch(3)]
    assert len(batches) == 2 + 5
    for places, samples in zip(batches, loader, strict=False):
        for (index, before, epoch), sample in zip(places, samples, strict=True):
            dataset.set_epoch(epoch)
            expected = dataset[index, before]
            assert torch.equal(sample.image, expected.image)
            assert [q.sample_id for q in sample.queries] == [q.sample_id for q in expected.queries]
