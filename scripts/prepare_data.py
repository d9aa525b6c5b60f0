"""Check data sets and freeze their splits: `python scripts/prepare_data.py datasets=drive data.root=/my/data`."""

from medsam3.command_line import run_script
from medsam3.config import PrepareConfig, register_schemas
from medsam3.preparation.export import export_nnunet
from medsam3.preparation.prepare import prepare

if __name__ == "__main__":
    register_schemas()
    run_script("prepare_data", PrepareConfig, lambda config: (export_nnunet if config.export else prepare)(config))
