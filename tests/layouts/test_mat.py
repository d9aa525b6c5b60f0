"""Reader of masks in MATLAB files of both kinds."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from scipy import io as scipy_io

from tests.annotation_files import stacked
from tests.conftest import BAR, GREY, SQUARE


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_index_masks_in_mat_files_of_both_kinds(version, folder, reader_of, save):
    values = np.where(SQUARE, 1.0, np.where(BAR, 2.0, 0.0))  # MATLAB's numbers are floating point unless told
    save(folder / "images/a.png", GREY)
    path = folder / "masks/a.mat"
    path.parent.mkdir(parents=True)
    if version == "5":
        scipy_io.savemat(path, {"layers": values, "info": {"type": values.astype(np.uint8)}, "x": np.zeros((2, 2, 2))})
    else:
        with h5py.File(path, "w", userblock_size=512) as file:  # where MATLAB puts its own heading
            file["layers"], file["info/type"], file["x"] = values.T, values.T.astype(np.uint8), np.zeros((2, 2, 2))
    for key in ("layers", "info/type"):
        reader = reader_of(reader="mat", masks="masks/{id}.mat", options={"key": key})
        masks = stacked(reader, "a")
        assert (masks["left square"] == SQUARE[None]).all() and (masks["right square"] == BAR[None]).all()
    for key, reason in (("layer", r"a\.mat: no variable 'layer'; there are: .*layers"), ("x", "not a matrix")):
        reader = reader_of(reader="mat", masks="masks/{id}.mat", options={"key": key})
        with pytest.raises(ValueError, match=reason):
            reader.masks(reader.item("a"))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"a\.mat: cannot be read"):
        reader.masks(reader.item("a"))
