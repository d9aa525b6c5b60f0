"""Is the second result better than the first? Paired by image and concept, tested by patients.

python scripts/compare.py runs/sam3 runs/ours                       two evaluations, or more: all against the first
python scripts/compare.py runs/sam3 runs/s1,runs/s2,runs/s3         with commas: runs of one configuration
python scripts/compare.py runs/text runs/box --allow prompt         what is compared may differ, all else may not
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medsam3.files import write_text
from medsam3.reports.comparison_tables import comparison_json, comparison_markdown
from medsam3.results.comparison import Contestant, Settings, compare
from medsam3.results.folder import is_of_volumes, pick, read_results, read_volumes


def main() -> None:
    """Compare, print and write; an error is one message on stderr and exit status 2."""
    arguments = parse_arguments()
    try:
        run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="folders of evaluate.py; with commas: runs")
    parser.add_argument("--names", nargs="+", help="in the tables, as many as there are results")
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=["dice"],
        help="columns of results.csv (of volumes: results_volumes.csv); f1, pq of instances.csv",
    )
    parser.add_argument("--rule", help="mask rule; without: each that all results have")
    parser.add_argument("--datasets", nargs="+", help="without: all, and they must be the same")
    parser.add_argument("--absent", action="store_true", help="also rows whose concept is not in the image")
    parser.add_argument("--allow", nargs="+", default=[], metavar="KEY", help="what may be asked differently")
    parser.add_argument("--level", type=float, default=0.95, help="of the intervals")
    parser.add_argument("--draws", type=int, default=10_000, help="of bootstrap and permutation")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--output", type=Path, default=Path("comparison"), help="folder for comparison.md and .json")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: see `read_results` and `compare`; not as many names as results, or one twice.
    """
    names = arguments.names or arguments.results
    if len(names) != len(arguments.results) or len(set(names)) < len(names):
        raise ValueError(f"{len(arguments.results)} results need as many different names, not {', '.join(names)}")
    every = [path for paths in arguments.results for path in paths.split(",")]
    read = read_volumes if any(map(is_of_volumes, every)) else read_results  # a folder may hold both
    contestants = [
        Contestant(name, [pick(read(path), arguments.datasets) for path in paths.split(",")])
        for name, paths in zip(names, arguments.results, strict=True)
    ]
    settings = Settings(
        metrics=arguments.metrics,
        rule=arguments.rule,
        absent=arguments.absent,
        allow=arguments.allow,
        level=arguments.level,
        draws=arguments.draws,
        seed=arguments.seed,
    )
    found = contestants, *compare(contestants, settings), settings
    text = comparison_markdown(*found)
    write_text(arguments.output / "comparison.md", text)
    write_text(arguments.output / "comparison.json", comparison_json(*found))
    print(f"{text}\ncomparison.md and comparison.json lie in {arguments.output}")


if __name__ == "__main__":
    main()
