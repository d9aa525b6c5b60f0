"""Reader `mat`: masks that are matrices in MATLAB files."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy import io as scipy_io
from scipy.io.matlab import MatReadError

from medsam3.layouts.instances import Instances
from medsam3.layouts.mask_coding import MaskCoding, NamedPixels
from medsam3.layouts.pairing import annotated_concepts, check_missing_mask, pair_files
from medsam3.layouts.pixels import read_image, size_of, unreadable
from medsam3.layouts.reader import Item, Listing, Reader
from medsam3.registry.spec import DatasetSpec


@dataclass(frozen=True, kw_only=True)
class MatOptions:
    """See MaskCoding for threshold and ignore_values, `pair_files` for missing_mask, `to_8_bit` for the last two."""

    key: str  # variable of the mask; "a/b": the field b of the structure a
    threshold: dict[int | str, float] | float | None = None
    ignore_values: tuple[int | str, ...] = ()
    missing_mask: str = "error"
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None


class MatReader(Reader):
    """Image files, and for each a MAT file with its mask."""

    Options: ClassVar[type] = MatOptions

    def __init__(self, spec: DatasetSpec, root: Path, cache: Path) -> None:
        super().__init__(spec, root, cache)
        self._coding = MaskCoding(spec, self.options.threshold, self.options.ignore_values)

    @classmethod
    def check(cls, spec: DatasetSpec) -> MatOptions:
        options: MatOptions = super().check(spec)
        if spec.masks is None:
            raise ValueError("masks: the reader mat needs a pattern, or one per concept")
        check_missing_mask(options.missing_mask)
        MaskCoding(spec, options.threshold, options.ignore_values)
        return options

    def find(self) -> Listing:
        pairs, problems = pair_files(self.spec, self.root, self.options.missing_mask)
        return Listing([Item(pair.id, group=pair.id, image=pair.image, masks=pair.masks) for pair in pairs], problems)

    def image(self, item: Item) -> NDArray[np.uint8]:
        return read_image(self.root / item.image, self.options.window, self.options.percentiles)

    def masks(self, item: Item) -> dict[str, Instances]:
        size = size_of(self.root / item.image)
        files = [
            NamedPixels(mask.key, read_mat(self.root / path, self.options.key), str(self.root / path))
            for mask in item.masks
            for path in mask.paths
        ]
        absent = {concept: Instances.separate([], size) for concept in annotated_concepts(self.spec, item.masks)}
        return absent | self._coding.decode(files, size)


def read_mat(path: Path, key: str) -> NDArray[Any]:
    """A variable of a MAT file (any version), [H, W]; whole numbers stored as floating point become integers.

    Args:
        key: name of the variable; "a/b" for the field b of the structure a.

    Raises:
        ValueError: the file cannot be read, has no such variable, or it is no matrix.
    """
    try:
        if h5py.is_hdf5(path):  # version 7.3, which holds the axes in reverse
            with h5py.File(path) as file:
                value = file[key][()].T
        else:
            first, *fields = key.split("/")
            value = scipy_io.loadmat(path)[first]
            for field in fields:
                value = value[field][0, 0]
    except (KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{path}: no variable {key!r}; there are: {', '.join(_mat_names(path))}") from error
    except (OSError, ValueError, TypeError, zlib.error, MatReadError) as error:
        raise unreadable(path, error) from error
    if value.ndim != 2 or value.dtype.kind not in "biuf":
        raise ValueError(f"{path}: {key!r} is {value.dtype} of shape {value.shape}, not a matrix of numbers")
    if np.issubdtype(value.dtype, np.floating) and (value == np.rint(value)).all():
        return value.astype(np.int64)
    return value


def _mat_names(path: Path) -> list[str]:
    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            return [name for name in file if not name.startswith("#")]
    return [name for name, _, _ in scipy_io.whosmat(path)]
