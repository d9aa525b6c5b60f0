"""What the page can show without a file: slices of the MNI152 template, which the nilearn wheel ships."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from medsam3.config import DemoConfig
from medsam3.demo.study import Study
from medsam3.scans.picture_files import Shown
from medsam3.scans.scan import read_scan

FILE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
PROMPTS = "brain, gray matter, white matter"
SLICE = 88  # of the quick start's validation slices


def example(config: DemoConfig, volume: bool) -> Study:
    """The template, or one axial slice of it as a picture."""
    nilearn = find_spec("nilearn")
    assert nilearn is not None and nilearn.submodule_search_locations
    scan = read_scan(Path(nilearn.submodule_search_locations[0]) / FILE, config.scan)
    if volume:
        return Study("MNI152 template", None, scan)
    return Study(f"MNI152 template, slice {SLICE + 1}", None, Shown(scan[SLICE], 1, ()))
