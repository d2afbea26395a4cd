"""A web server on the loopback range whose answers can be made to fail; it passes for one of s3, too."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit


class Request(NamedTuple):
    """What was asked for: bytes ``begin`` up to ``end`` of ``path``, which includes the query."""

    method: str
    path: str
    begin: int
    end: int


class WebServer(ThreadingHTTPServer):
    """Serves the files of a folder, ranges too. A query chooses a file whose name ends with it, if there is one.

    Attributes:
        requests: those that came, in order.
        fault: called with each request; a status in place of the answer, "cut": half of the answer, "whole": the whole
            file in place of a range, or None.
        delay: seconds before each answer.
        served: bytes of answers.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.requests: list[Request] = []
        self.fault: Callable[[Request], int | str | None] = lambda _: None
        self.delay, self.served = 0.0, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """A client that has closed its connection is no error."""

    def ranges(self) -> list[Request]:
        """The requests for parts of files."""
        return [request for request in self.requests if request.method == "GET"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        file = self.server.root / self.path.lstrip("/")
        if not file.is_file():
            file = self.server.root / self.path.partition("?")[0].lstrip("/")
        if file.is_dir() and "list-type=2" in self.path:
            self.list_bucket(file)
            return
        if not file.is_file():
            self.empty(404)
            return
        content, text = file.read_bytes(), self.headers.get("Range")
        begin, last = (int(number) for number in text.removeprefix("bytes=").split("-")) if text else (0, len(content))
        request = Request(self.command, self.path, begin, last + 1)
        self.server.requests.append(request)
        time.sleep(self.server.delay)
        fault = self.server.fault(request)
        if isinstance(fault, int):
            self.empty(fault)
            return
        is_part = text is not None and fault != "whole"
        data = content[begin : last + 1] if is_part else content
        self.send_response(206 if is_part else 200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", formatdate(file.stat().st_mtime_ns // 10**9, usegmt=True))
        self.send_header("ETag", etag(file))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
            self.server.served += len(data)
        if fault == "cut":
            self.close_connection = True

    def list_bucket(self, folder: Path) -> None:
        """The answer of s3: the names and sizes of a bucket's files."""
        paths = sorted(folder.rglob("*.tar"))
        names = [(path.relative_to(folder).as_posix(), path.stat().st_size, etag(path)) for path in paths]
        prefix = parse_qs(urlsplit(self.path).query).get("prefix", [""])[0]
        files = "".join(
            f"<Contents><Key>{name}</Key><Size>{size}</Size><ETag>{tag}</ETag></Contents>"
            for name, size, tag in names
            if name.startswith(prefix)
        )
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{files}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def empty(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def etag(file: Path) -> str:
    """What changes with a file's content."""
    return f'"{file.stat().st_mtime_ns}"'


@contextmanager
def serving(root: Path) -> Iterator[WebServer]:
    """A server of a folder for the block."""
    with WebServer(root) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
