"""Write the report of an evaluation anew: `python scripts/report.py results=runs/evaluation`."""

from pathlib import Path

from medsam3.command_line import run_script
from medsam3.config import ReportConfig, register_schemas
from medsam3.reports.page import write_report


def report(config: ReportConfig) -> None:
    """Write report.html and say where it lies. Raises as `write_report`."""
    print(f"report   {write_report(Path(config.results), Path(config.baseline) if config.baseline else None)}")


if __name__ == "__main__":
    register_schemas()
    run_script("report", ReportConfig, report)
