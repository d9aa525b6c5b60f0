"""Check data sets and freeze their splits: `python scripts/prepare_data.py data.root=/my/data dataset=drive`.

Then `python scripts/prepare_data.py audit data.root=/my/data` looks for leaks between their parts.
"""

import sys

from medsam3.command_line import run_script
from medsam3.config import AuditConfig, PrepareConfig, register_schemas
from medsam3.preparation.audit import audit
from medsam3.preparation.prepare import prepare

if __name__ == "__main__":
    register_schemas()
    # To Hydra, `dataset=` means a file of the group configs/dataset; here it means the key `datasets`.
    sys.argv[1:] = [f"datasets={a.removeprefix('dataset=')}" if a.startswith("dataset=") else a for a in sys.argv[1:]]
    if "audit" in sys.argv[1:]:
        sys.argv.remove("audit")
        run_script("audit", AuditConfig, audit)
    else:
        run_script("prepare_data", PrepareConfig, prepare)
