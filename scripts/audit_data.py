"""Look for leaks between the parts of prepared data sets: `python scripts/audit_data.py data.root=/my/data`."""

from medsam3.command_line import run_script
from medsam3.config import AuditConfig, register_schemas
from medsam3.preparation.audit import audit

if __name__ == "__main__":
    register_schemas()
    run_script("audit", AuditConfig, audit)
