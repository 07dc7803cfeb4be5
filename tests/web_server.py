"""A small web server of videos on the loopback for tests, with and without range requests, which fails on demand.

with WebServer({"/a.mp4": content}) as web:
    find_videos(f"{web.url}/a.mp4")
"""

import sys
import threading
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from tests.hub_server import Request


FIRST_TIME = 1_700_000_000  # seconds since 1970, of all files that were not written again


class WebFile(NamedTuple):
    content: bytes
    modified: int = FIRST_TIME
    kind: str = "video/mp4"


class WebServer:
    """A web server on a free port.

    Attributes:
        files (`dict[str, WebFile]`): content by path. A test may change it while the server runs.
        ranges (`bool`): whether the server sends ranges of files, or whole files only.
        with_facts (`bool`): whether it states size and time.
        redirects (`dict[str, str]`): location by path.
        statuses (`dict[str, list[int]]`): statuses of the next requests by path; 0 cuts the connection within the
            content, and -1 sends nothing until the server stops.
        user (`str`, *optional*): value of the header `Authorization` without which requests are rejected.
        requests (`list[Request]`): all requests.
        sent (`Counter[str]`): bytes of content that were sent, by path.
    """

    def __init__(self, contents: dict[str, bytes], ranges: bool = True):
        self.files = {path: WebFile(content) for path, content in contents.items()}
        self.ranges, self.with_facts, self.user = ranges, True, None
        self.redirects: dict[str, str] = {}
        self.statuses: dict[str, list[int]] = {}
        self.requests: list[Request] = []
        self.sent: Counter[str] = Counter()
        self.stopped = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.web = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "WebServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def write(self, path: str, content: bytes) -> None:
        """Replace a file, one second later."""
        self.files[path] = WebFile(content, self.files[path].modified + 1)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client keeps its connections open
    web: WebServer

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may disconnect at any time
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        web: WebServer = self.server.web
        headers = {name.lower(): value for name, value in self.headers.items()}
        web.requests.append(Request(self.command, self.path, headers.get("authorization"), headers))
        status = statuses.pop(0) if (statuses := web.statuses.get(self.path)) else 200
        if status == -1:
            web.stopped.wait(30)
            self.close_connection = True
        elif self.path in web.redirects:
            self._reply(302, b"", {"Location": web.redirects[self.path]})
        elif web.user and headers.get("authorization") != web.user:
            self._reply(401, b"", {"WWW-Authenticate": "Basic"})
        elif self.path not in web.files:
            self._reply(404, b"no such file", {})
        elif status not in (0, 200):
            self._reply(status, b"", {})
        else:
            self._serve(web, web.files[self.path], headers.get("range"), is_cut=status == 0)

    do_HEAD = do_GET

    def _serve(self, web: WebServer, file: WebFile, wanted: str | None, is_cut: bool) -> None:
        facts = {"Content-Type": file.kind, "Last-Modified": formatdate(file.modified, usegmt=True)}
        content, status = file.content, 200
        if web.ranges and wanted:
            start, _, last = wanted.removeprefix("bytes=").partition("-")
            content, status = content[int(start) : int(last) + 1 if last else None], 206
            facts["Content-Range"] = f"bytes {start}-{int(start) + len(content) - 1}/{len(file.content)}"
        self._reply(status, content, facts if web.with_facts else {"Content-Type": file.kind}, is_cut)

    def _reply(self, status: int, content: bytes, headers: dict[str, str], is_cut: bool = False) -> None:
        web: WebServer = self.server.web
        self.send_response(status)
        if web.with_facts:
            headers = headers | {"Content-Length": str(len(content))}
        else:
            self.close_connection = True
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            sent = content[: len(content) // 2] if is_cut else content
            try:
                self.wfile.write(sent)
            except ConnectionError:
                pass
            else:
                web.sent[self.path] += len(sent)
        self.close_connection = self.close_connection or is_cut
