"""Fetching one file so that an interrupted transfer goes on where it stopped, and what arrives is whole.

pooch finds the link of a DOI, checks the hash and moves the file to its place; it begins every transfer anew, so the
transfer itself is here (RFC 9110, sections 13.1.5 and 14: If-Range, Range, Content-Range).
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pooch
import pooch.downloaders
import requests
import urllib3
from tqdm import tqdm

CHUNK_BYTES = 1 << 20
HEADERS = {"User-Agent": f"medsam3 (pooch/{pooch.__version__.lstrip('v')})", "Accept-Encoding": "identity"}
BROKEN_OFF = (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError)


class TransferError(ValueError):
    """A file that cannot be fetched; the message says why and, where it helps, what to do."""


class _BrokenOffError(Exception):
    """A transfer ended early; another attempt may go on."""


@dataclass(frozen=True)
class Transfer:
    """A downloader for `pooch.retrieve`: called with the address and the file to write."""

    partial: Path  # what has arrived is kept in <partial>.<version>.part until it is whole
    verified: bool  # its hash is known: then even a file without tag and date may be put together from two transfers
    attempts: int
    wait_s: float  # before the second attempt; doubled before each further one
    timeout_s: float  # without a byte

    def __call__(self, url: str, output_file: str, pooch_instance: object) -> None:
        address = self._link_of_doi(url.removeprefix("doi:")) if url.startswith("doi:") else url
        for attempt in range(1, self.attempts + 1):
            try:
                os.replace(self._attempt(address), output_file)
                return
            except _BrokenOffError as error:
                if attempt == self.attempts:
                    raise TransferError(f"{address}: {error} ({attempt} attempts)") from error
                time.sleep(self.wait_s * 2 ** (attempt - 1))

    def _link_of_doi(self, place: str) -> str:
        doi, _, name = place.rpartition("/")
        try:
            repository = pooch.downloaders.doi_to_repository(doi, headers=HEADERS, timeout=self.timeout_s)
            return str(repository.download_url(name))
        except BROKEN_OFF as error:
            raise TransferError(f"doi:{doi}: {_reason(error)}") from error
        except (requests.RequestException, ValueError, LookupError, TypeError) as error:
            raise TransferError(f"doi:{doi}: {name!r} was not found by it: {error}") from error

    def _attempt(self, url: str) -> Path:
        """Fetch what is missing; returns the whole file."""
        try:
            with self._open(url) as response:
                part, total, validator = self._part(response.headers)
                there = part.stat().st_size if part.is_file() else 0
                if total is None or there > total or not (validator or self.verified):
                    there = 0
                if not there:
                    self._write(response, part, 0, total)
            if there and there < (total or 0):
                ask = {"Range": f"bytes={there}-"} | ({"If-Range": validator} if validator else {})
                with self._open(url, ask) as response:
                    goes_on = response.headers.get("Content-Range", "") == f"bytes {there}-{(total or 0) - 1}/{total}"
                    self._write(response, part, there if response.status_code == 206 and goes_on else 0, total)
        except BROKEN_OFF as error:
            raise _BrokenOffError(_reason(error)) from error
        except requests.RequestException as error:
            raise TransferError(f"{url}: {error}") from error
        if total is not None and part.stat().st_size != total:
            raise _BrokenOffError(f"{part.stat().st_size:,} of {total:,} bytes arrived")
        return part

    def _open(self, url: str, headers: Mapping[str, str] | None = None) -> requests.Response:
        response = requests.get(url, headers=HEADERS | dict(headers or {}), stream=True, timeout=self.timeout_s)
        if response.status_code >= 500 or response.status_code == 429:
            raise _BrokenOffError(f"the server answers {response.status_code} {response.reason}")
        if response.status_code not in (200, 206):
            raise TransferError(f"{url}: the server answers {response.status_code} {response.reason}")
        if response.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml")):
            raise TransferError(f"{url}: the server sends a web page instead of the file (a form or a log-in?)")
        return response

    def _part(self, headers: Mapping[str, str]) -> tuple[Path, int | None, str | None]:
        """The partial file of this very version of the file, its size in bytes, and what to ask for it by.

        Without a strong entity tag or a date the server cannot tell whether its file is still the same.
        """
        length = headers.get("Content-Length", "")
        tag = headers.get("ETag", "")
        validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
        version = hashlib.sha256(f"{validator} {length}".encode()).hexdigest()[:12]
        part = self.partial.with_name(f"{self.partial.name}.{version}.part")
        for other in self.partial.parent.glob(f"{self.partial.name.replace('[', '[[]')}.*.part"):
            if other != part:
                other.unlink()  # of an older version
        return part, int(length) if length.isdigit() else None, validator

    def _write(self, response: requests.Response, part: Path, there: int, total: int | None) -> None:
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - there > free:
            raise TransferError(
                f"{part.parent}: disk full: {total - there:,} bytes are to come, {free:,} are free. Make room, and run "
                "the same command again"
            )
        bar = tqdm(total=total, initial=there, unit="B", unit_scale=True, desc=self.partial.name, leave=False)
        try:
            with part.open("ab" if there else "wb") as file, bar:
                for chunk in response.raw.stream(CHUNK_BYTES, decode_content=False):
                    file.write(chunk)
                    bar.update(len(chunk))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise TransferError(
                f"{part.parent}: disk full ({error.strerror}). What has arrived is kept: make room, and run the same "
                "command again"
            ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, requests.ConnectionError) and "Failed to" in str(error):
        return "no connection: is there a network, and does this machine reach it?"
    return f"the transfer broke off ({type(error).__name__})"
