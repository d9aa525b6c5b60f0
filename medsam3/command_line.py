"""How every script starts: Hydra's composition, and errors that are one message instead of a traceback."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from medsam3 import config

CONFIG_FOLDER = Path(__file__).parent.parent / "configs"
T = TypeVar("T")
REMOVED = {  # words of the command line that other ones stand for
    "dataset": "the key is datasets=; in evaluate.py split=",
    "data.datasets": "the key is datasets=",
    "audit": "it is a script: python scripts/audit_data.py",
}


def run_script(config_name: str, schema: type[T], job: Callable[[T], Any]) -> None:
    """Compose configs/<config_name>.yaml with the command line's overrides and run `job` with the typed result.

    What a user can cause ends in one message and exit status 2; MEDSAM3_TRACEBACK=1 in the environment shows the
    traceback all the same. With Hydra's --multirun the job runs once for each configuration.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then hands its errors on instead of printing them
    composed: list[DictConfig] = []

    @hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name=config_name)
    def compose(configuration: DictConfig) -> None:
        composed.append(configuration)  # the job runs later: Hydra would add a line of its own to every error

    try:
        _refuse_removed(sys.argv[1:])
        compose()
        for configuration in composed:
            job(config.typed(configuration, schema))
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get("MEDSAM3_TRACEBACK") == "1":
            raise
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def _refuse_removed(arguments: list[str]) -> None:
    for argument in arguments:
        word = argument.lstrip("+~").partition("=")[0]
        if word in REMOVED:
            raise ValueError(f"{argument}: {REMOVED[word]}")


def explain(error: BaseException) -> str:
    """The message of an error, with the legal keys where Hydra or OmegaConf complain of an unknown one."""
    cause = error.__cause__ if isinstance(error, HydraException) else None
    text = f"{error}" if cause is None else f"{error}\n{cause}"
    if "in DataLoader worker process" in text:  # its message holds the traceback of the other process
        return text.rstrip().rpartition("\nValueError: ")[2]
    found = re.search(r"Key '([^']*)' not in '(\w+)'", text)
    owner = getattr(config, found.group(2), None) if found else None
    if found is None or not dataclasses.is_dataclass(owner):
        lines = [line for line in text.splitlines() if not line.lstrip().startswith(("reference_type", "object_type"))]
        return "\n".join(line for line in lines if "Config search path" not in line and "provider=" not in line)
    full_key = re.search(r"full_key: (\S+)", text)
    legal = [f.name for f in dataclasses.fields(owner)]
    close = difflib.get_close_matches(found.group(1), legal, 1)
    hint = f" Did you mean {close[0]}?" if close else ""
    if full_key and full_key.group(1) in REMOVED:
        hint = f" Today {REMOVED[full_key.group(1)]}."
    where = f" ({text.splitlines()[0].split(':')[0]})" if text.startswith("In '") else ""
    return (
        f"unknown key {full_key.group(1) if full_key else found.group(1)}{where}.{hint} Legal here: {', '.join(legal)}"
    )
