"""The page itself (Gradio): for one machine, without analytics, sharing, or anything from the network."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from medsam3.command_line import run_script
from medsam3.config import DemoConfig, register_schemas
from medsam3.demo.door import Door
from medsam3.demo.layout import STYLE, lay_out
from medsam3.demo.visits import Visits

HOST = "127.0.0.1"
SETTINGS = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
UNWANTED = ("GRADIO_SHARE", "GRADIO_ALLOWED_PATHS", "GRADIO_ROOT_PATH", "GRADIO_NODE_PATH")  # would open the page


def main() -> None:
    """The command line."""
    register_schemas()
    run_script("demo", DemoConfig, serve)


def serve(config: DemoConfig) -> None:
    """Load the model and serve the page until Ctrl-C; then all files of visitors are deleted.

    Raises:
        ValueError: gradio is missing, a checkpoint that cannot be loaded, a port that is taken.
    """
    folder = Path(tempfile.mkdtemp(prefix="medsam3_page_"))
    try:
        blocks, options = build(config, folder)
        print(f"page     http://{HOST}:{config.port}   (Ctrl-C ends it)", flush=True)
        blocks.launch(**options, prevent_thread_lock=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def build(config: DemoConfig, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The page and how it has to be launched.

    Args:
        folder: for the files of visitors.

    Raises:
        ValueError: see `serve`.
    """
    cache = folder / "gradio"
    os.environ |= SETTINGS | {"GRADIO_TEMP_DIR": str(cache)}
    for name in UNWANTED:
        os.environ.pop(name, None)
    try:
        import gradio
        from starlette.middleware import Middleware
    except ImportError as error:
        raise ValueError(f"the page needs gradio 6.16 or later: pip install 'medsam3[page]' ({error})") from error
    blocks = lay_out(gradio, Visits.open(config, folder, cache))
    options = {
        "server_name": HOST,
        "server_port": config.port,
        "share": False,
        "allowed_paths": [],
        "max_file_size": int(config.upload_mb * 2**20),
        "enable_monitoring": False,
        "run_history": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "strict_cors": True,
        "show_error": False,
        "footer_links": [],
        "quiet": True,
        "inbrowser": False,
        "css": STYLE,
        "theme": gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        "app_kwargs": {
            "middleware": [Middleware(Door, files=cache)],
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
        },
    }
    return blocks, options
