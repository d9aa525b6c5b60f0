"""Where a data set's files come from: what can be fetched, what needs an account, and what to type or click."""

from __future__ import annotations

import datetime
import re
import shlex
from dataclasses import dataclass

from medsam3.messages import one_of

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")  # what the standard library unpacks
HASH_DIGITS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}
# Steps for each kind of account; {home}, {reference} and {folder} are filled in. A step that is a command stands alone.
ACCOUNTS = {
    "kaggle": (
        "make a free account and an API token on kaggle.com (Settings, API); read the licence on {home}",
        "pip install kaggle",
        "kaggle datasets download -d {reference} -p {folder} --unzip",
    ),
    "kaggle competition": (
        "make a free account and an API token on kaggle.com (Settings, API); join and accept the rules on {home}",
        "pip install kaggle",
        "kaggle competitions download -c {reference} -p {folder}",
        "python -m zipfile -e {folder}/{reference}.zip {folder}",
    ),
    "grand challenge": (
        "make a free account on grand-challenge.org, log in, open {home} and join",
        "download {reference} there and unpack it into {folder}",
    ),
    "synapse": (
        "make a free account and an access token on synapse.org; read the terms on {home}",
        "pip install synapseclient",
        "synapse config",
        "synapse get -r {reference} --downloadLocation {folder}",
    ),
}


@dataclass(frozen=True)
class RemoteFile:
    """An archive, by its DOI (Zenodo, figshare or Dataverse) or by a link."""

    name: str  # at its home, where it has a DOI; else what it is saved as
    doi: str | None = None
    link: str | None = None
    hash: str | None = None  # "sha256:<digits>" or another of HASH_DIGITS; None: that of the first download counts
    bytes: int | None = None
    into: str | None = None  # a folder to unpack it in, where archives hold the same names

    @property
    def url(self) -> str:
        return self.link if self.link is not None else f"doi:{self.doi}/{self.name}"


@dataclass(frozen=True)
class Account:
    kind: str  # one of ACCOUNTS
    reference: str  # what the kind's steps call for: a data set's or competition's name, an id, names of files
    home: str | None = None  # where that is not the first home of the card


@dataclass(frozen=True)
class Download:
    """A card's `download`: files (fetched), else an account (steps), else steps from the home page."""

    images: int | None  # image files that the reader finds in the whole set; a volume or an array is one
    tried_on: str | None  # the day on which the links were last tried; None: not tried from here
    files: tuple[RemoteFile, ...] = ()
    account: Account | None = None  # beside files: the way out where a link is dead
    steps: tuple[str, ...] = ()  # what else must be done by hand; {folder} is filled in

    @property
    def way(self) -> str:
        """fetch | account | home page."""
        return "fetch" if self.files else "account" if self.account else "home page"

    def by_hand(self, home: str, folder: str) -> list[str]:
        """What to type or click to get the set without `get_data.py`, in order.

        Args:
            home: the page of the data set.
            folder: where its files belong.
        """
        steps = [*(ACCOUNTS[self.account.kind] if self.account else ()), *self.steps]
        values = {"home": home, "reference": "", "folder": shlex.quote(folder)}
        if self.account:
            values |= {"home": self.account.home or home, "reference": self.account.reference}
        return [step.format(**values) for step in steps] or [f"open {home}"]


def check_download(download: Download, account_needed: bool, where: str) -> None:
    """Raise a ValueError that names the key if an entry cannot be right."""
    if download.account:
        one_of(f"{where}.account.kind", download.account.kind, ACCOUNTS)
    if account_needed != (download.way == "account"):
        raise ValueError(f"{where}: its way is {download.way!r}, which does not fit account_needed={account_needed}")
    if download.tried_on is not None:
        try:
            datetime.date.fromisoformat(download.tried_on)
        except ValueError as error:
            raise ValueError(f"{where}.tried_on={download.tried_on!r}: expected a day, as in '2026-01-31'") from error
    for file in download.files:
        _check_file(file, f"{where}.files: {file.name}")
    names = [file.name for file in download.files]
    if len(set(names)) < len(names):
        raise ValueError(f"{where}.files: a name stands there twice: {', '.join(names)}")


def _check_file(file: RemoteFile, where: str) -> None:
    if not re.fullmatch(r"[^./\\][^/\\]*", file.name) or not file.name.lower().endswith(ARCHIVES):
        raise ValueError(f"{where}: name: expected the name of an archive ({', '.join(ARCHIVES)})")
    if (file.doi is None) == (file.link is None):
        raise ValueError(f"{where}: expected either doi or link, got doi={file.doi!r}, link={file.link!r}")
    if file.link is not None and not file.link.startswith(("https://", "http://")):
        raise ValueError(f"{where}: link={file.link!r}: expected https:// or http://")
    if file.doi is not None and not re.fullmatch(r"10\.\d+/\S+", file.doi):
        raise ValueError(f"{where}: doi={file.doi!r}: expected 10.<number>/<name>")
    kind, _, digits = (file.hash or "").partition(":")
    if file.hash is not None and not re.fullmatch(f"[0-9a-f]{{{HASH_DIGITS.get(kind, 0)}}}", digits or "-"):
        raise ValueError(f"{where}: hash={file.hash!r}: expected <kind>:<digits>, kind one of {', '.join(HASH_DIGITS)}")
    if file.into is not None and not re.fullmatch(r"[^./\\][^/\\]*", file.into):
        raise ValueError(f"{where}: into={file.into!r}: expected the name of a folder")
