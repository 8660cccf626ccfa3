"""The server of an exported page: types, headers, and what it refuses."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.deploy.web.serve import PAGE_FILES, PageServer
from processes import start_command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    page = tmp_path / "web"
    (page / "onnxruntime-web").mkdir(parents=True)
    for name in (*PAGE_FILES, "page.js", "style.css", "onnxruntime-web/a.mjs", "onnxruntime-web/a.wasm"):
        (page / name).write_text(name)
    (tmp_path / "secret").write_text("not served")
    return page


@pytest.fixture
def server(folder: Path) -> Iterator[PageServer]:
    with PageServer(folder, "127.0.0.1", 0) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(server: PageServer, path: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    result = response.status, dict(response.getheaders()), response.read()
    connection.close()
    return result


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/style.css", "text/css"),
        ("/model.json", "application/json"),
        ("/model.onnx", "application/octet-stream"),
        ("/onnxruntime-web/a.mjs", "text/javascript; charset=utf-8"),
        ("/onnxruntime-web/a.wasm", "application/wasm"),
    ],
)
def test_types_and_headers(server: PageServer, path: str, kind: str) -> None:
    status, headers, content = get(server, path)
    assert (status, headers["Content-type"]) == (200, kind)
    assert content.decode() == (path[1:] or "index.html")
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("path", ["/missing", "/../secret", "/%2e%2e/secret"])
def test_only_what_is_in_the_folder(server: PageServer, path: str) -> None:
    assert get(server, path)[0] == 404


def test_the_url_names_host_and_port(server: PageServer) -> None:
    assert server.url == f"http://localhost:{server.server_address[1]}/"


def test_a_taken_port_and_other_mistakes_are_one_line(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, *parts in (
            ((folder, "--port", port), f"port {port} of 127.0.0.1 is taken", "--port"),
            ((folder, "--port", "70000"), "--port is 70000", "65535"),
            ((folder, "--port", "0", "--host", "203.0.113.1"), "--host 203.0.113.1"),
            ((folder, "--port", "0", "--host", "no.such.host.invalid"), "--host no.such.host.invalid"),
            ((folder.parent, "--port", "0"), "is not an exported page", "index.html", "export MODEL --to web"),
            ((folder / "missing", "--port", "0"), "is not an exported page"),
        ):
            result = CliRunner().invoke(cli.app, ["web", *map(str, arguments)])
            assert (result.exit_code, result.stdout) == (2, ""), arguments
            assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
            for part in parts:
                assert part in result.stderr


def test_the_command_says_where_and_ends_with_ctrl_c(folder: Path) -> None:
    for option in ([], ["--json"]):
        with start_command("web", folder, "--port", "0", *option) as process:
            assert process.stdout
            assert process.stderr
            try:
                said = process.stdout.readline()
                url = json.loads(said)["url"] if option else said.split(" at ")[1].split(" until")[0]
                connection = http.client.HTTPConnection(url.split("/")[2], timeout=10)
                connection.request("GET", "/")
                assert connection.getresponse().read() == b"index.html"
                connection.close()
                process.send_signal(signal.SIGINT)
                assert process.wait(timeout=30) == 0
            finally:
                process.kill()
            assert process.stderr.read() == ""
