"""Write the report of an evaluation or a training: `scripts/report.py results=runs/evaluation`, or `run=runs/dev`."""

import dataclasses
from pathlib import Path

from hydra import compose, initialize_config_dir

from medsam3.checks import typed
from medsam3.command_line import CONFIG_FOLDER, run_script
from medsam3.config import ReportConfig, TrainConfig, register_schemas
from medsam3.reports.page import write_report
from medsam3.reports.run_page import write_run_report


def report(config: ReportConfig) -> None:
    """Write report.html and say where it lies. Raises as `write_report` and `write_run_report`."""
    if config.run is not None:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            defaults = dataclasses.asdict(typed(compose("train"), TrainConfig))
        path = write_run_report(Path(config.run), defaults)
    else:
        path = write_report(Path(str(config.results)), Path(config.baseline) if config.baseline else None)
    print(f"report   {path}")


if __name__ == "__main__":
    register_schemas()
    run_script("report", ReportConfig, report)
