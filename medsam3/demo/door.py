"""What may be asked of the page's server: its own pages and events, and the archives of masks.

Gradio answers more: it hands out files of the machine and fetches other addresses, within rules that had holes before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

HOSTS = ("127.0.0.1", "localhost")  # a page elsewhere whose name leads to this machine is refused
PAGES = ("/", "/config", "/config/", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt")
FOLDERS = ("/assets/", "/static/", "/svelte/")
API = "/gradio_api/"
EVENTS = (
    "upload",
    "upload_progress",
    "queue/",
    "heartbeat/",
    "startup-events",
    "app_id",
    "theme.css",
    "reset",
    "cancel",
)
FILE = f"{API}file="
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'self'; object-src 'none'"
)
HEADERS = {"content-security-policy": POLICY, "referrer-policy": "no-referrer", "cache-control": "no-store"}


class Door:
    """ASGI middleware around the server; everything else is answered with 404."""

    def __init__(self, app: Any, files: Path) -> None:
        """
        Args:
            files: the folder whose files may be downloaded.
        """
        self.app = app
        self.files = files.resolve()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if host.rpartition(":")[0] not in HOSTS or not self._open(scope["path"]):
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"not here"})
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        await self.app(scope, receive, with_headers)

    def _open(self, path: str) -> bool:
        if path.startswith(FILE):
            return Path(path.removeprefix(FILE)).resolve().is_relative_to(self.files)
        return path in PAGES or path.startswith((*FOLDERS, *(API + event for event in EVENTS)))
