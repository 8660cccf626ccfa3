"""A static file server for an exported page, built on the standard library."""

from __future__ import annotations

import errno
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

#: A folder with these files is an exported page.
PAGE_FILES = ("index.html", "model.json", "model.onnx")


class PageHandler(SimpleHTTPRequestHandler):
    """Serves files with the MIME types that browsers require and the headers that allow threads."""

    protocol_version = "HTTP/1.1"
    extensions_map = {  # noqa: RUF012  as its base class has it
        **SimpleHTTPRequestHandler.extensions_map,
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".mjs": "text/javascript; charset=utf-8",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")  # cached but revalidated, so that a new export shows at once
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


class PageServer(ThreadingHTTPServer):
    """Serves `folder` on `host`:`port` after a call of `serve_forever`. Port 0 takes a free port.

    Raises:
        ValueError: if the folder is not an exported page, or the port is taken, reserved or out of range.
        OSError: if the host is not an address of this machine.
    """

    def __init__(self, folder: Path, host: str, port: int) -> None:
        missing = [name for name in PAGE_FILES if not (folder / name).is_file()]
        if missing:
            raise ValueError(
                f"{folder} is not an exported page (it lacks {', '.join(missing)}): "
                f"make one with hybrid-mobilenet export MODEL --to web"
            )
        if not 0 <= port <= 65535:
            raise ValueError(f"--port is {port}, but must be between 0 and 65535; 0 takes a free one")
        try:
            super().__init__((host, port), partial(PageHandler, directory=str(folder)))
        except OSError as error:
            reasons = {
                errno.EADDRINUSE: "is taken: stop what uses it, or name another with --port (0: a free one)",
                errno.EACCES: "needs administrator rights: name one above 1023 with --port",
            }
            if error.errno not in reasons:
                raise OSError(error.errno, error.strerror or str(error), f"--host {host}") from None
            raise ValueError(f"port {port} of {host} {reasons[error.errno]}") from None

    @property
    def url(self) -> str:
        """The address of the page for a browser on this machine."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{'localhost' if host in ('127.0.0.1', '0.0.0.0') else host}:{port}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore browsers that close the connection."""
