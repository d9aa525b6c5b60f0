"""Masks as crops on their way to the device: what is painted is what was packed, in little room, and none waits."""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from medsam3.data.batch import Query, Sample, collate, one_ahead
from medsam3.data.corpus import open_corpus
from medsam3.data.dataset import QueryDataset
from medsam3.data.mask_crops import MaskCrops
from medsam3.data.prompts import PromptDraw
from medsam3.data.transforms import Frame, framed, normalised, to_query
from medsam3.layouts.instances import Instances
from medsam3.preparation.prepare import prepare
from medsam3.training.matching import packed
from tests.conftest import data_config, prepare_config
from tests.data.test_dataset import fake_tokenizer


@pytest.mark.parametrize("size", [(16, 16), (13, 21), (5, 3)])
def test_what_is_painted_is_what_was_packed(size):
    draw = np.random.default_rng(0)
    masks = draw.random((40, *size)) < 0.5
    pieces = []
    for n, mask in enumerate(masks):  # a piece of every place and width, one of them empty, one the whole image
        top, left = int(draw.integers(size[0])), int(draw.integers(size[1]))
        bottom, right = int(draw.integers(top, size[0] + 1)), int(draw.integers(left, size[1] + 1))
        top, left, bottom, right = (0, 0, *size) if n == 0 else (top, left, bottom, right)
        pieces.append((top, left, mask[top:bottom, left:right].copy()))
        mask[:top], mask[bottom:], mask[:, :left], mask[:, right:] = False, False, False, False
    halves = [MaskCrops.packed(part, size) for part in (pieces[:7], [], pieces[7:])]
    painted = MaskCrops.together(halves).paint()
    assert painted.dtype == torch.bool and np.array_equal(painted.numpy(), masks)
    assert halves[1].paint().shape == (0, *size)


@pytest.mark.parametrize("size", [(16, 16), (5, 3)])
def test_the_union_is_that_of_the_masks_of_each_query(size):
    masks = np.random.default_rng(2).random((300, *size)) < 0.05  # 256 ones must not add up to none
    masks[:260, 0, 0] = True
    counts = [0, 290, 0, 3, 7]
    crops = MaskCrops.packed([(0, 0, mask) for mask in masks], size)
    expected = [own.any(axis=0) for own in np.split(masks, np.cumsum(counts)[:-1])]
    assert np.array_equal(crops.united(torch.tensor(counts)).numpy(), np.stack(expected))
    assert not MaskCrops.packed([], size).united(torch.tensor([0, 0])).any()


@pytest.mark.parametrize("frame", [Frame.full(60), Frame(60, 41, left=13, top=6)])
def test_targets_are_the_resized_masks_where_the_image_lies(frame):
    masks = np.random.default_rng(1).random((50, 70, 90)) < 0.02
    masks[:, 20:30, 5:70] |= np.arange(50)[:, None, None] % 3 == 0
    found = Instances.separate(masks, masks.shape[1:])
    expected = np.zeros((50, 60, 60), bool)
    expected[frame.place] = found.resized((frame.side, frame.side))
    assert np.array_equal(to_query("a/b/c", "c", found, frame).masks.paint().numpy(), expected)
    pixels = torch.randint(0, 256, (3, frame.side, frame.side), dtype=torch.uint8)
    canvas = torch.full((3, 60, 60), -1.0)  # black
    canvas[frame.place] = normalised(pixels)
    assert torch.equal(normalised(framed(pixels, frame)), canvas)


def test_a_sample_with_hundreds_of_nuclei_is_small(shared_realdata, tmp_path):
    """Whole masks made it 363 MB; 4 processes with 2 batches ahead would need 40 times the 64 MB of a container."""
    config = data_config(tmp_path, shared_realdata)
    prepare(prepare_config(config, ["monuseg"]))
    corpus = open_corpus(config, ["monuseg"])
    dataset = QueryDataset(corpus, "train", 1008, PromptDraw(corpus, 1), seed=0)
    (query,) = (sample := dataset[0]).queries
    tensors = (sample.image, query.boxes, query.masks.windows, query.masks.bits)
    assert len(query.masks) > 200 and 3e6 < sum(tensor.nbytes for tensor in tensors) < 3.2e6


class Transfers(TorchFunctionMode):
    """Copies to a GPU that is not there, and pinned memory: the tensors stay where they are, what was asked is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned: list[Tensor] = []
        self.sent = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is Tensor.pin_memory:
            self.pinned.append(args[0])
            return args[0]
        if function is Tensor.to and args[1] == torch.device("cuda"):
            assert any(args[0] is tensor for tensor in self.pinned) and kwargs == {"non_blocking": True}
            self.sent += 1
            return args[0]
        return function(*args, **(kwargs or {}))


def batch_of(value: int):
    masks = MaskCrops.packed([(0, 0, np.ones((8, 8), bool))], (8, 8))
    query = Query("a/b/c", "c", torch.zeros(1, 4), masks, "present")
    return collate([Sample(torch.full((3, 8, 8), value, dtype=torch.uint8), [query])], fake_tokenizer)


def test_everything_goes_to_the_device_from_pinned_memory():
    device = torch.device("cuda")
    with Transfers() as transfers:
        batch_of(0).pin_memory().to(device)
        assert transfers.sent == 9
        packed([[(np.array([3]), np.array([0]))]], [1], device)
        assert transfers.sent == 10


def test_a_batch_leaves_its_process_by_value():
    """Not through /dev/shm, which is small in a container."""
    batch = batch_of(7)
    sent = bytes(ForkingPickler.dumps(batch))
    assert sent.count(bytes([7]) * 3 * 8 * 8) == 1
    received = ForkingPickler.loads(sent)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(batch.inputs, received.inputs, strict=True))
    assert torch.equal(batch.targets.masks.paint(), received.targets.masks.paint())
    assert received.targets.sample_ids == ["a/b/c"] and torch.equal(batch.targets.boxes, received.targets.boxes)


def test_one_batch_is_ahead_and_none_is_lost():
    fetched: list[int] = []

    def batches():
        for value in range(4):
            fetched.append(value)
            yield batch_of(value)

    for number, batch in enumerate(one_ahead(batches(), torch.device("cpu"))):
        assert int(batch.pixel_values[0, 0, 0, 0]) == number and fetched[-1] == min(number + 1, 3)
    assert number == 3
