"""Getting the data sets: a table of what is there, what to do for the rest, and the open ones fetched and checked."""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pooch

from medsam3.config import GetDataConfig
from medsam3.files import file_hash, writable_folder, write_text
from medsam3.layouts.readers import open_reader
from medsam3.messages import listed
from medsam3.preparation.availability import Availability, as_json, as_table, availability
from medsam3.preparation.prepare import check_item
from medsam3.preparation.transfer import Transfer, TransferError
from medsam3.preparation.unpack import DamagedError, unpack
from medsam3.registry.cards import DatasetCard, card_names, load_card
from medsam3.registry.downloads import RemoteFile
from medsam3.registry.spec import SPEC_FOLDER, USES, DatasetSpec, load_specs
from medsam3.registry.vocabulary import MANIFESTS

ARCHIVES = ".download"  # in the data set's folder; readers pass over names that begin with a dot


def get_data(
    config: GetDataConfig, folders: Iterable[Path] = (SPEC_FOLDER,), cards: Path = MANIFESTS
) -> list[Availability]:
    """Print what is there and how to get the rest; with `accept_licence` fetch the open ones of the data sets named.

    Args:
        folders: where the YAML files of the data sets lie.
        cards: the folder of their cards.

    Raises:
        ValueError: an unknown data set or one without a card; with `accept_licence`: none named, or one that could not
            be fetched or read (the others are fetched all the same).
    """
    if config.accept_licence and (config.datasets is None or config.json):
        raise ValueError(
            "accept_licence=true: name the data sets, datasets=[...]; and json=true is for the table alone"
        )
    names = card_names(cards)
    specs = load_specs(names if config.datasets is None else config.datasets, folders)
    bare = [name for name in specs if name not in names]
    if bare:
        raise ValueError(f"{cards}: no card says where to get {', '.join(bare)}; there are cards of {', '.join(names)}")
    sets = [(spec, load_card(name, cards)) for name, spec in specs.items()]
    if config.accept_licence:
        _fetch_all(sets, config)
    rows = [availability(spec, card, Path(config.data.root)) for spec, card in sets]
    print(as_json(rows) if config.json else as_table(rows))
    if not (config.json or config.accept_licence or config.datasets is None or config.datasets in USES):
        for (_, card), row in zip(sets, rows, strict=True):
            print("\n".join(["", conditions(card), *_steps(row.next)]))
    return rows


def conditions(card: DatasetCard) -> str:
    """What has to be known before a set is fetched: licence, what it allows, source, citation, age of the links."""
    tried = card.download.tried_on
    return "\n".join(
        [
            f"{card.title}: licence: {card.licence}",
            f"  commercial use: {card.terms.commercial}; publishing what is derived: {card.terms.derivatives}; "
            f"passing the images on: {card.terms.sharing}",
            f"  from {'; '.join(str(home) for home in card.home)} (access: {card.access})",
            f"  cite: {card.citation}",
            *([f"  links: {f'tried on {tried}' if tried else 'not tried from here'}"] if card.download.files else []),
        ]
    )


def _steps(steps: Iterable[str]) -> list[str]:
    return [f"  {number}. {step}" for number, step in enumerate(steps, 1)]


def _fetch_all(sets: list[tuple[DatasetSpec, DatasetCard]], config: GetDataConfig) -> None:
    pooch.get_logger().setLevel(logging.WARNING)
    writable_folder(config.data.root, "data.root", "data.root")
    writable_folder(config.receipts, "receipts", "receipts")
    errors = []
    for spec, card in sets:
        row = availability(spec, card, Path(config.data.root))
        if row.state == "there":
            continue
        print(conditions(card), flush=True)
        if card.download.way != "fetch":
            print("\n".join(["  cannot be fetched from here:", *_steps(row.next)]), flush=True)
            continue
        try:
            fetch(card, config)
            print(f"  {check(spec, card, config)}", flush=True)
        except ValueError as error:
            errors.append(f"{card.title}: {error}")
        except OSError as error:
            errors.append(f"{card.title}: {error.filename or config.data.root}: {error.strerror or error}")
    if errors:
        raise ValueError("\n\n".join(errors))


def fetch(card: DatasetCard, config: GetDataConfig) -> None:
    """Fetch and unpack the files of a set that are not there yet, into <data.root>/<name>.

    Raises:
        ValueError: a file could not be fetched, is not the one known by its hash, or cannot be unpacked.
    """
    folder = Path(config.data.root) / card.name
    receipt = Path(config.receipts) / f"{card.name}.json"
    done: dict[str, Any] = json.loads(receipt.read_text(encoding="utf-8"))["files"] if receipt.is_file() else {}
    for file in card.download.files:
        target = folder / file.into if file.into else folder
        first = done.get(file.name)
        if first and all((target / name).exists() for name in first["entries"]):
            continue
        archive = _retrieve(file, card, folder / ARCHIVES, first, config)
        target.mkdir(parents=True, exist_ok=True)
        try:
            entries = unpack(archive, target)
        except DamagedError:
            archive.unlink()  # or the next run would take it for the file
            raise
        done[file.name] = {
            "from": file.url,
            "sha256": file_hash(archive),
            "bytes": archive.stat().st_size,
            "fetched_on": first["fetched_on"] if first else datetime.date.today().isoformat(),
            "entries": entries,
        }
        content = {"name": card.name, "licence": str(card.licence), "home": card.home[0].value, "files": done}
        write_text(receipt, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        if not config.keep_archives:
            archive.unlink()
    if (folder / ARCHIVES).is_dir() and not any((folder / ARCHIVES).iterdir()):
        (folder / ARCHIVES).rmdir()


def _retrieve(file: RemoteFile, card: DatasetCard, folder: Path, first: Any, config: GetDataConfig) -> Path:
    """The archive, whole and with the right hash."""
    folder.mkdir(parents=True, exist_ok=True)
    known = file.hash or (f"sha256:{first['sha256']}" if first else None)
    source = "its card" if file.hash else f"the first download ({first['fetched_on']})" if first else ""
    transfer = Transfer(folder / file.name, known is not None, config.attempts, config.wait_s, config.timeout_s)
    try:
        archive = Path(pooch.retrieve(file.url, known, file.name, folder, downloader=transfer))
    except TransferError as error:
        steps = card.download.by_hand(card.home[0].value, str(folder.parent)) if card.download.account else []
        way_out = "\n".join([f"Look at its home page: {card.home[0]}", *_steps(steps)])
        raise ValueError(f"{file.name}: {error}\n{way_out}") from error
    except ValueError as error:
        raise ValueError(
            f"{file.name}: not the file that {source} knows ({known}); it was deleted. Damaged on the way, or a new "
            f"version? Look at its home page: {card.home[0]}"
        ) from error
    if file.bytes is not None and archive.stat().st_size != file.bytes:
        raise ValueError(f"{archive}: {archive.stat().st_size:,} bytes; its card says {file.bytes:,}")
    return archive


def check(spec: DatasetSpec, card: DatasetCard, config: GetDataConfig) -> str:
    """List a set with its reader and read the first image; returns what was found.

    Raises:
        ValueError: nothing fits, or something is broken or without its partner.
    """
    todo = "".join(f"\n  still to do: {step}" for step in card.download.by_hand("", "")) if card.download.steps else ""
    try:
        reader = open_reader(spec, Path(config.data.root), Path(config.data.cache))
        listing = reader.listing()
        broken = [f"{problem.item}: {problem.reason}" for problem in listing.problems if not problem.expected]
        reason = check_item(reader, listing.items[0]).broken if listing.items else "no image"
        if reason or broken:
            raise ValueError("fetched, but " + listed([*([reason] if reason else []), *broken], 3))
    except ValueError as error:
        raise ValueError(f"{error}{todo}") from error
    return f"fetched; its reader lists {len(listing.items):,} images, and the first one is whole"
