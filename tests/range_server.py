"""Web server for one file that supports range requests.

It is a process of its own: GDAL holds Python's lock while it requests the neighbours of a file, so a thread could not
answer.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass(frozen=True)
class Server:
    """Running web server.

    Attributes:
        address: address of the file.
        overloaded: file that makes the server answer 503 to ranges beyond the header while it exists, or as often as
            the number in it.
        parts: log with a line for each range that was sent: first and last byte.
    """

    address: str
    overloaded: Path
    parts: Path


@contextmanager
def run_range_server(file: Path, control: Path) -> Iterator[Server]:
    """Serve a file as /stack.tif; `control` is a folder for the other files."""
    control.mkdir(exist_ok=True)
    command = [sys.executable, __file__, str(file), str(control)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        port = int(process.stdout.readline())
        try:
            yield Server(f"http://127.0.0.1:{port}/stack.tif", control / "overloaded", control / "parts")
        finally:
            process.kill()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    content: bytes
    control: Path

    def do_HEAD(self) -> None:
        self._answer(200 if self.path.startswith("/stack.tif") else 404, self.content, send=False)

    def do_GET(self) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not re.match(r"/stack\.tif(\?|$)", self.path):
            self._answer(404, b"")
        elif not match:
            self._answer(200, self.content)
        else:
            self._part(int(match[1]), min(int(match[2]), len(self.content) - 1))

    def _part(self, first: int, last: int) -> None:
        if first > 0 and self._overloaded():
            self._answer(503, b"")
            return
        with (self.control / "parts").open("a") as stream:
            print(first, last, file=stream)
        self._answer(206, self.content[first : last + 1], f"bytes {first}-{last}/{len(self.content)}")

    def _overloaded(self) -> bool:
        try:
            times = (self.control / "overloaded").read_text()
        except FileNotFoundError:
            return False
        if times:
            left = int(times) - 1
            (self.control / "overloaded").write_text(str(left)) if left else (self.control / "overloaded").unlink()
        return True

    def _answer(self, status: int, body: bytes, part: str = "", send: bool = True) -> None:
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        if part:
            self.send_header("Content-Range", part)
        self.end_headers()
        if send:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    _Handler.content, _Handler.control = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
