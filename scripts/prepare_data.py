"""Check data sets and freeze their splits: `python scripts/prepare_data.py data.root=/my/data dataset=drive`."""

import sys

from medsam3.command_line import run_script
from medsam3.config import PrepareConfig, register_schemas
from medsam3.prepare import prepare

if __name__ == "__main__":
    register_schemas()
    # To Hydra, `dataset=` means a file of the group configs/dataset; here it means the key `datasets`.
    sys.argv[1:] = [f"datasets={a.removeprefix('dataset=')}" if a.startswith("dataset=") else a for a in sys.argv[1:]]
    run_script("prepare_data", PrepareConfig, prepare)
