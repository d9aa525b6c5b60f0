"""Which planted faults do the tests find? `python tests/mutants.py` plants those of mutants.txt, one at a time;
`python tests/mutants.py losses optim` only those whose line holds one of the words.

Run by hand, about 10 seconds each. Every fault is planted in a copy of the repository, so a run that is killed leaves
nothing to restore. A fault is found if a test of its file fails or never ends; tests that cannot run are an error.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers  # noqa: F401  imported once, and inherited by the process of every fault

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests/mutants.txt"
OUTCOMES = {0: "SURVIVED", 1: "found"}  # of pytest's exit status
LIMIT_S = 900  # of a fault that makes a loop endless


@dataclass(frozen=True)
class Mutant:
    file: str
    tests: tuple[str, ...]
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.file}: {self.old} => {self.new}"


def read_table(text: str) -> list[Mutant]:
    mutants: list[Mutant] = []
    file, tests = "", ""
    for line in text.splitlines():
        if line.startswith(" "):
            old, new = line.strip().split(" => ")
            mutants.append(Mutant(file, tuple(tests.split()), old, new))
        elif re.match(r"\w", line):
            file, tests = line.split(": ")
    return mutants


def copy_repository(folder: Path) -> None:
    """Tracked and new files, without what git ignores; data beside the checkout stay away, and their tests skip."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)


def run_tests(folder: Path, tests: tuple[str, ...], log: Path) -> None:
    """In a process of its own: the package and the tests are those of the copy."""
    os.setsid()  # so that what the tests start can be ended with them
    output = os.open(log, os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)  # for the processes that tests start
    sys.path[:0] = [str(folder)]
    for which in ("not slow", "slow"):  # the slow ones only where the others find nothing
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}.tmp", "-m", which, *tests])
        if status not in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
            os._exit(status)
    os._exit(0)


def outcome(tests: tuple[str, ...], mutant: Mutant | None, log: Path) -> str:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "copy"
        copy_repository(folder)
        if mutant is not None:
            source = (folder / mutant.file).read_text()
            if source.count(mutant.old) != 1:
                return f"ERROR: {source.count(mutant.old)} places"
            (folder / mutant.file).write_text(source.replace(mutant.old, mutant.new))
        process = multiprocessing.get_context("fork").Process(target=run_tests, args=(folder, tests, log))
        process.start()
        process.join(LIMIT_S)
        if process.exitcode is None:
            assert process.pid
            os.killpg(process.pid, signal.SIGKILL)
            return "found"
        return OUTCOMES.get(process.exitcode or 0, f"ERROR: pytest ended with {process.exitcode}, see {log}")


def main(words: list[str]) -> int:
    torch.set_num_threads(1)
    assert "medsam3" not in sys.modules  # else the copy's would not be read
    mutants = [m for m in read_table(TABLE.read_text()) if not words or any(word in str(m) for word in words)]
    logs = Path(tempfile.mkdtemp(prefix="mutants_"))
    found = 0
    for number, mutant in enumerate(mutants):
        result = outcome(mutant.tests, mutant, logs / f"{number}.txt")
        found += result == "found"
        print(f"{result:9} {mutant}", flush=True)
    tests = tuple(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    clean = outcome(tests, None, logs / "without.txt") == OUTCOMES[0]
    print(f"{found} of {len(mutants)} found; without a fault the tests {'pass' if clean else 'do NOT pass'} ({logs})")
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
