"""A server of files on 127.0.0.1 that can be told to behave badly."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Served:
    """A file and how it is served."""

    content: bytes
    etag: str | None = '"1"'
    kind: str = "application/zip"
    breaks: int = 0  # so many answers end before they are whole
    after: int = 0  # bytes that such an answer still sends
    ranges: bool = True  # false: the server sends the whole file whatever is asked
    status: int = 200
    location: str | None = None  # of a redirect
    said_length: bool = True


@dataclass
class FileServer:
    url: str
    files: dict[str, Served] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range of every request
    sent: int = 0  # bytes


@contextmanager
def file_server() -> Iterator[FileServer]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server = FileServer(f"http://127.0.0.1:{httpd.server_address[1]}")
    httpd.state = server  # type: ignore[attr-defined]
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        state: FileServer = self.server.state  # type: ignore[attr-defined]
        asked = self.headers.get("Range")
        state.asked.append((self.path, asked))
        file = state.files.get(self.path)
        if file is None:
            self.send_error(404)
            return
        start, status, headers = 0, file.status, {"Content-Type": file.kind, "Connection": "close"}
        unchanged = self.headers.get("If-Range") in (None, file.etag)
        if asked and file.ranges and unchanged and not file.location:
            start, status = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]), 206  # type: ignore[index]
            headers["Content-Range"] = f"bytes {start}-{len(file.content) - 1}/{len(file.content)}"
        headers |= {"ETag": file.etag} if file.etag else {}
        headers |= {"Location": file.location} if file.location else {}
        body = file.content[start:]
        headers |= {"Content-Length": str(len(body))} if file.said_length else {}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if file.breaks and (asked or file.after < len(file.content)):
            file.breaks -= 1
            body = body[: file.after]
        try:
            self.wfile.write(body)
            state.sent += len(body)
        except ConnectionError:
            pass  # the client has read the headers and wants no more

    def log_message(self, *_: Any) -> None:
        pass
