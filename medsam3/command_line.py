"""How every script starts: Hydra's composition, and errors that are one message instead of a traceback."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from medsam3 import checks, config, recipe
from medsam3.folders import CONFIG_FOLDER

T = TypeVar("T")
LOST = re.compile("onnection (closed|reset) by peer|onnection refused|NCCL|Broken pipe|Timed out", re.IGNORECASE)
QUOTES = "A list is key=[a,b]; brackets, commas and = within a value need quotes of their own: 'key=\"photos (2)\"'"
REMOVED = {  # words of the command line that other ones stand for
    "dataset": "the key is datasets=; in evaluate.py split=",
    "data.datasets": "the key is datasets=",
    "audit": "it is a script: python scripts/audit_data.py",
}


def run_script(config_name: str, schema: type[T], job: Callable[[T], Any]) -> None:
    """Compose configs/<config_name>.yaml with the command line's overrides and run `job` with the typed result.

    What a user can cause ends in one message and exit status 2; MEDSAM3_TRACEBACK=1 in the environment shows the
    traceback all the same. With Hydra's --multirun the job runs once for each configuration, each in a folder of its
    own. Of the processes of torchrun the first to fail speaks; the others end with the same status.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then hands its errors on instead of printing them
    composed: list[DictConfig] = []

    @hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name=config_name)
    def compose(configuration: DictConfig) -> None:
        composed.append(configuration)  # the job runs later: Hydra would add a line of its own to every error

    try:
        _refuse_removed(sys.argv[1:])
        compose()
        _give_folders(composed)
        for configuration in composed:
            job(checks.typed(configuration, schema))
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get("MEDSAM3_TRACEBACK") == "1":
            raise
        _say(f"error: {explain(error)}{_if_unexpected(error)}")
        sys.exit(2)
    except RuntimeError as error:  # the group's other processes are gone; one of them has said why
        if "WORLD_SIZE" not in os.environ or not LOST.search(str(error)):
            raise
        _say("error: the connection to another process of this run was lost: see its error, or torchrun's last lines")
        sys.exit(2)
    except KeyboardInterrupt:
        _say("interrupted: run the same command again to go on from the last checkpoint")
        sys.exit(130)


def _give_folders(composed: list[DictConfig]) -> None:
    """With --multirun: runs of one name get the folders 0, 1, ... below it, in the order of the jobs."""
    if len(composed) < 2:
        return
    if "WORLD_SIZE" in os.environ:
        raise ValueError("--multirun does not go with torchrun: start one torchrun for each configuration")
    if len({configuration.output_dir for configuration in composed}) == len(composed):
        return
    for number, configuration in enumerate(composed):
        configuration.output_dir = f"{configuration.output_dir}/{number}"
        print(f"job {number} of {len(composed)}: {configuration.output_dir}", flush=True)


def _say(text: str) -> None:
    """Print an error, once for all processes; torchrun repeats it at its end."""
    if "WORLD_SIZE" in os.environ:
        from medsam3 import distributed  # brings torch with it, so only here

        if not distributed.first_to_say(text):
            return
        rank = os.environ.get("RANK", "0")
        text += f" (said by rank {rank})" if rank != "0" else ""
        if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
            details = {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}
            Path(file).write_text(json.dumps({"message": details}), encoding="utf-8")
    print(text, file=sys.stderr, flush=True)


def _if_unexpected(error: BaseException) -> str:
    """A hint for errors that no check of this package raised."""
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = Path(frames[-1]).is_relative_to(Path(__file__).parent) if frames else False
    if ours or isinstance(error, HydraException | OmegaConfBaseException):
        return ""
    return f"\n({type(error).__name__} of {Path(frames[-1]).name}; MEDSAM3_TRACEBACK=1 before the command shows where)"


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
    owner = found and getattr(config, found.group(2), getattr(recipe, found.group(2), None))
    if found is None or not dataclasses.is_dataclass(owner):
        text = re.sub(r"See https://hydra\.cc/\S*override_grammar\S* for details", QUOTES, text)
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
