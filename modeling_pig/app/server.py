"""Web server of the app: serves the page and answers its requests.

The server serves only the page's files and the videos that a search has found. Clients name a video by an opaque id;
no path comes from a client. An upload is kept in an unnamed file, which the operating system removes when it is
closed, even if the server is killed.
"""

import asyncio
import functools
import hashlib
import ipaddress
import json
import logging
import os
import re
import secrets
import socket
import stat
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..encoding.video_segment import VideoSegment
from ..stores.conditions import And, Condition, Not, Or
from ..stores.index import SearchResult
from ..visualization.text import abridge, readable
from .service import SearchService, facet_id


HERE = Path(__file__).parent
PAGE_FILES = {"page.html": "text/html", "style.css": "text/css", "script.js": "text/javascript"}
EXAMPLES = ("a dog runs on a beach", "two people talk at a table", "someone cuts vegetables in a kitchen")
NUM_EXAMPLES = 4  # captions offered as example queries
MAX_RESULTS = 96
MAX_OTHERS = 8  # further segments per file
MAX_TEXT = 1000  # characters per query or filter
MAX_CHOSEN = 200  # values of facets per search
MAX_UPLOADS = 8  # concurrent uploads; their videos are encoded one at a time
MAX_RECEIVING = 600.0  # seconds to receive an upload; a slower upload is rejected
MAX_EXPLANATIONS = 8  # concurrent explanations: each holds one of the 40 threads that answer all requests
MAX_KNOWN = 50_000  # segments whose id is kept; an older page must search again
# How long a lookup in the index stays valid: a player requests a video many times, and each lookup scans paths.
TRUSTED_FOR = 10.0  # seconds
# Bytes per response to an open range ("from byte N on"). A browser requests the rest when it needs it. Without this
# limit, a dozen videos would hold all of the browser's connections, and a search would have to wait.
PART_BYTES = 4 * 1024 * 1024
VIDEO_TYPES = {".avi": "video/x-msvideo", ".mkv": "video/x-matroska", ".mov": "video/quicktime", ".webm": "video/webm"}
LOOPBACK = ("localhost", "127.0.0.1", "::1")
USER_ERRORS = (ImportError, OSError, ValueError)
INTERNAL = "The server failed: see the error in its terminal."
UNREADABLE = "The index or the model cannot be read: see the error in the server's terminal."
TOO_MANY = "Too many videos are being encoded: try again later."

logger = logging.getLogger(__name__)


class AppServer:
    """Serve the app over a [`SearchService`]. `AppServer(...).asgi` is an ASGI application; [`make_server`] runs it.

    Args:
        service (`SearchService`): service that searches and explains.
        max_upload_bytes (`int`, *optional*, defaults to 200,000,000): largest accepted upload in bytes.
        examples (`Sequence[str]`, *optional*): example queries; by default some of the captions.
        is_public (`bool`, *optional*, defaults to `False`): whether other machines may send requests. A public server
            hides the folders of the videos and rejects filters on `path`.
        host_names (`Collection[str]`, *optional*): accepted host names besides those of this machine. Requests with
            other names are rejected: a site whose name resolves to this machine could otherwise read the videos
            through a visitor's browser (DNS rebinding).
        frame_ancestors (`str`, *optional*, defaults to `"'self'"`): sites that may show the page in a frame; value of
            the directive of the same name in `Content-Security-Policy`.
    """

    def __init__(
        self,
        service: SearchService,
        *,
        max_upload_bytes: int = 200_000_000,
        examples: Sequence[str] = (),
        is_public: bool = False,
        host_names: Collection[str] = (),
        frame_ancestors: str = "'self'",
    ):
        self.service = service
        self.max_upload_bytes = max_upload_bytes
        self.examples = list(examples or _shortest_captions(service.captions) or EXAMPLES)
        self.is_public = is_public
        # id -> segment and time of its last lookup in the index; the latest lookup is last
        self._known: OrderedDict[str, tuple[VideoSegment, float]] = OrderedDict()
        self._lock = threading.Lock()  # guards `_known`
        self._id_key = secrets.token_bytes(32)  # without a secret key, an id would confirm a guessed path
        self._uploads = threading.BoundedSemaphore(MAX_UPLOADS)
        self._explanations = threading.BoundedSemaphore(MAX_EXPLANATIONS)
        routes = [Route(f"/{name}", functools.partial(_page_file, name)) for name in PAGE_FILES]
        routes += [
            Route("/", functools.partial(_page_file, "page.html")),
            Route("/about", self.about),
            Route("/facets", self.facets),
            Route("/search", self.search),
            Route("/video/{id}", self.video),
            Route("/why", self.why),
            Route("/upload", self.upload, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {HTTPException: _refused, Exception: _failed}
        inner = Starlette(routes=routes, exception_handlers=handlers)
        self.asgi = _Guard(inner, {name.lower() for name in host_names}, is_public, frame_ancestors)

    def about(self, request: Request) -> Response:
        """Return the facts that the page shows: number of entries, model, examples and limits."""
        return JSONResponse(
            {
                "clips": self.service.num_clips(),
                "model": self.service.model_name,
                "examples": self.examples,
                "max_results": MAX_RESULTS,
                "max_upload_bytes": self.max_upload_bytes,
                "captions": len(self.service.captions),
                "explains": self.service.explains,
                "is_public": self.is_public,
            }
        )

    def facets(self, request: Request) -> Response:
        """Return the columns by whose values a search can be narrowed, with the number of files per value."""
        try:
            facets = self.service.facets()
        except USER_ERRORS as error:
            raise _http_error(error) from error
        described = [
            {
                "column": facet.column,
                "values": [
                    {"id": facet_id(facet, value), "label": abridge(str(readable(value))), "count": count}
                    for value, count in facet.counts.items()
                ],
            }
            for facet in facets
        ]
        return JSONResponse({"facets": described})

    def search(self, request: Request) -> Response:
        """Return the best files for the query `text`."""
        text, k, where = _text(request, "text"), _count(request), self._where(request)
        try:
            results = self.service.search(text, k, where)
        except USER_ERRORS as error:
            raise _http_error(error) from error
        return JSONResponse({"results": self._to_json(results)})

    def video(self, request: Request) -> Response:
        """Return the file, or the requested byte range, of a video that a search has found."""
        path = self._segment(request.path_params["id"]).path
        try:
            status = os.stat(path)
        except OSError:
            status = None
        if status is None or not stat.S_ISREG(status.st_mode):
            raise HTTPException(404, "The file of this video no longer exists.")
        media_type = VIDEO_TYPES.get(Path(path).suffix.lower(), "video/mp4")
        headers = {"Cache-Control": "private, no-cache"}
        return _VideoResponse(path, headers=headers, media_type=media_type, stat_result=status)

    def why(self, request: Request) -> Response:
        """Explain why the query `text` found the segment `id`."""
        segment, text = self._segment(request.query_params.get("id", "")), _text(request, "text")
        if not self._explanations.acquire(blocking=False):
            raise HTTPException(503, TOO_MANY)
        try:
            return JSONResponse(self.service.explain(segment, text))
        except USER_ERRORS as error:
            raise _http_error(error) from error
        finally:
            self._explanations.release()

    async def upload(self, request: Request) -> Response:
        """Receive a video and stream JSON lines: `{"stage": ...}` per stage, then `results`, `captions` or `error`."""
        want, k = request.query_params.get("want", "videos"), _count(request)
        where = await run_in_threadpool(self._where, request)
        if want not in ("videos", "captions"):
            raise HTTPException(400, f"want is {want!r}: pass videos or captions.")
        if not self._uploads.acquire(blocking=False):
            raise HTTPException(503, TOO_MANY)
        try:
            file = await self._receive(request)
        except BaseException:
            self._uploads.release()
            raise
        loop = asyncio.get_running_loop()
        messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        def send(message: dict[str, Any] | None) -> None:
            loop.call_soon_threadsafe(messages.put_nowait, message)

        def report_stage(stage: str) -> None:
            send({"stage": stage})

        def encode_and_search() -> None:  # runs to its end even if the client disconnects
            message: dict[str, Any] = {"error": INTERNAL}
            try:
                with file:  # the upload is removed before the last line is sent
                    if want == "captions":
                        message = {"captions": self.service.fitting_captions(_path_of(file), k, report_stage)}
                    else:
                        results = self.service.like(_path_of(file), k, where, report_stage)
                        message = {"results": self._to_json(results)}
            except USER_ERRORS as error:
                message = {"error": _one_line(error)}
            finally:
                send(message)
                send(None)

        async def lines() -> AsyncIterator[str]:
            while (message := await messages.get()) is not None:
                yield json.dumps(message) + "\n"

        loop.run_in_executor(None, encode_and_search).add_done_callback(lambda _: self._uploads.release())
        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def _receive(self, request: Request) -> IO[bytes]:
        """Write the body of a request to an unnamed file."""
        limit = self.max_upload_bytes
        too_large = HTTPException(413, f"The file is too large: at most {limit / 1e6:g} MB can be uploaded.")
        if int(request.headers.get("content-length", 0)) > limit:
            raise too_large
        file = _unnamed_file()
        try:
            async with asyncio.timeout(MAX_RECEIVING):
                async for chunk in request.stream():
                    file.write(chunk)
                    if file.tell() > limit:
                        raise too_large
            file.flush()
            if file.tell() == 0:
                raise HTTPException(400, "The file is empty: choose a video.")
        except ClientDisconnect as error:
            file.close()
            raise HTTPException(400, "The connection closed before the upload was complete.") from error
        except TimeoutError as error:
            file.close()
            reason = f"The upload took longer than {MAX_RECEIVING:g} s: send a smaller video."
            raise HTTPException(408, reason, {"Connection": "close"}) from error
        except OSError as error:
            file.close()
            raise HTTPException(507, f"The file cannot be received: {error.strerror}.") from error
        except BaseException:
            file.close()
            raise
        return file

    def _to_json(self, results: Sequence[SearchResult]) -> list[dict[str, Any]]:
        """Convert results to JSON objects, and remember their segments so that the page may request them."""
        described = []
        for result in results:
            segment = VideoSegment(result.path, result.start, result.end)
            segment_id = hashlib.blake2b(repr(segment).encode(), key=self._id_key, digest_size=16).hexdigest()
            self._remember(segment_id, segment)
            folder, name = os.path.split(result.path)
            facts = {key: getattr(result, key) for key in ("rank", "score", "duration", "start", "end")}
            facts |= {"id": segment_id, "name": name, "folder": "" if self.is_public else folder}
            facts["columns"] = {name: readable(value) for name, value in result.shown_metadata.items()}
            facts["others"] = others = self._to_json(getattr(result, "others", ())[:MAX_OTHERS])
            for other in others:  # only what differs from the first segment, because texts may be long
                names = [*facts["columns"], *(name for name in other["columns"] if name not in facts["columns"])]
                values = ((name, other["columns"].get(name)) for name in names)
                other["columns"] = {name: value for name, value in values if value != facts["columns"].get(name)}
            described.append(facts)
        return described

    def _remember(self, segment_id: str, segment: VideoSegment) -> None:
        """Remember a segment that the index holds now."""
        with self._lock:
            self._known[segment_id] = segment, time.monotonic()
            self._known.move_to_end(segment_id)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)

    def _segment(self, segment_id: str) -> VideoSegment:
        """Return the segment of an id.

        Raises:
            HTTPException: no search has found the segment, or the index no longer holds its file (404).
        """
        with self._lock:
            known = self._known.get(segment_id)
        if known is None:
            raise HTTPException(404, "No search has found a video with this id: search again.")
        segment, seen = known
        if time.monotonic() - seen > TRUSTED_FOR:
            try:
                is_held = self.service.holds(segment.path)
            except USER_ERRORS as error:
                raise _http_error(error) from error
            if not is_held:
                raise HTTPException(404, "This video is no longer in the index: search again.")
            self._remember(segment_id, segment)
        return segment

    def _where(self, request: Request) -> str | Condition | None:
        """Return the condition of a request: its filter `where`, and the chosen values of facets, `facet`."""
        where, chosen = _text(request, "where") or None, request.query_params.getlist("facet")
        if len(chosen) > MAX_CHOSEN:
            raise HTTPException(400, f"{len(chosen)} values are chosen: choose at most {MAX_CHOSEN}.")
        try:
            condition = self.service.narrow(where, chosen)
            fields = {
                field
                for index in self.service.searcher.indexes
                if (parsed := index.parse_where(where)) is not None
                for field in _fields(parsed)
            }
        except USER_ERRORS as error:
            raise _http_error(error) from error
        if self.is_public and "path" in fields:  # `like` would reveal the path letter by letter
            raise HTTPException(400, "This server hides folders and accepts no filter on path: filter by name.")
        return condition


def _shortest_captions(captions: Sequence[str]) -> list[str]:
    """Split the captions into `NUM_EXAMPLES` runs and return the shortest of each run, so that examples differ."""
    size = -(-len(captions) // NUM_EXAMPLES) or 1
    return [min(captions[first : first + size], key=len) for first in range(0, len(captions), size)]


def _fields(condition: Condition) -> Iterator[str]:
    """Iterate over the fields that a condition names."""
    match condition:
        case Not(negated):
            yield from _fields(negated)
        case And(conditions) | Or(conditions):
            for operand in conditions:
                yield from _fields(operand)
        case _:
            yield condition.field


def _page_file(name: str, request: Request) -> Response:
    return FileResponse(HERE / name, media_type=PAGE_FILES[name], headers={"Cache-Control": "no-cache"})


def _text(request: Request, name: str) -> str:
    text = request.query_params.get(name, "").strip()
    if len(text) > MAX_TEXT:
        raise HTTPException(400, f"{name} has {len(text)} characters: shorten it to at most {MAX_TEXT}.")
    return text


def _count(request: Request) -> int:
    k = request.query_params.get("k", "12")
    if not (re.fullmatch("[0-9]{1,4}", k) and 1 <= int(k) <= MAX_RESULTS):
        raise HTTPException(400, f"k is {k[:20]!r}; expected an integer from 1 to {MAX_RESULTS}.")
    return int(k)


def _one_line(error: BaseException) -> str:
    """Return the message for the client; log errors whose message would reveal paths or faults of the server."""
    if isinstance(error, OSError):  # not the client's fault, and it names paths of this machine
        logger.error("%s", error)
        return UNREADABLE
    # Raised by the import system: our own ImportErrors have no name and say what to install.
    if isinstance(error, ImportError) and error.name:
        logger.error("%s", error)
        return INTERNAL
    # Importing the class would load transformers, which searching does not need. If one was raised, it is loaded.
    decoding_error = getattr(sys.modules.get("modeling_pig.video_decoding_pig"), "VideoDecodingError", ())
    # Only the reason: the path of an upload means nothing to the client, and paths of videos may be hidden.
    return error.reason if isinstance(error, decoding_error) else str(error)


def _http_error(error: BaseException) -> HTTPException:
    message = _one_line(error)
    return HTTPException(500 if message in (UNREADABLE, INTERNAL) else 400, message)


def _refused(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": INTERNAL}, 500)


# --- files


def _unnamed_file() -> IO[bytes]:
    """Open a temporary file that is removed when it is closed, or when the process ends (on Linux, even if killed)."""
    if os.path.isdir("/proc/self/fd"):
        return tempfile.TemporaryFile()
    return tempfile.NamedTemporaryFile()  # a decoder needs a path


def _path_of(file: IO[bytes]) -> str:
    return file.name if isinstance(file.name, str) else f"/proc/self/fd/{file.fileno()}"


class _VideoResponse(FileResponse):
    """File response that limits open ranges (`bytes=N-`) to `PART_BYTES`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = MutableHeaders(raw=list(scope["headers"]))
        if open_range := re.fullmatch(r"\s*bytes\s*=([0-9]{1,18})-", headers.get("range", ""), re.IGNORECASE):
            first = int(open_range[1])
            headers["range"] = f"bytes={first}-{first + PART_BYTES - 1}"
        await super().__call__({**scope, "headers": headers.raw}, receive, send)


# --- access


class _Guard:
    """Reject requests with unknown host names or from other sites, and add the security headers."""

    def __init__(self, app: ASGIApp, names: set[str], is_public: bool, frame_ancestors: str):
        self.app = app
        self.allowed = names
        self.names = names | set(LOOPBACK)
        self.is_public = is_public
        if is_public:
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        policy = {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": "'self' data:",
            "media-src": "'self'",
            "connect-src": "'self'",
            "form-action": "'self'",
            "base-uri": "'none'",
            "frame-ancestors": frame_ancestors,
        }
        self.headers = {
            "Content-Security-Policy": "; ".join(f"{kind} {sources}" for kind, sources in policy.items()),
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_allowed(_host_name(host)):
            error = f"This server rejects the host name {host!r}: start pig app with --allow-host NAME to accept it."
            await JSONResponse({"error": error}, 421)(scope, receive, send_guarded)
        elif origin and not self._is_same_site(origin, host):
            await JSONResponse({"error": "This server rejects requests from other sites."}, 403)(
                scope, receive, send_guarded
            )
        else:
            await self.app(scope, receive, send_guarded)

    def _is_same_site(self, origin: str, host: str) -> bool:
        """Return whether an origin is this server's: same name and port, as another port is another site.

        The port of a name from `host_names` is ignored: a proxy with this name may send another port in `Host`.
        """
        return origin.partition("//")[2].lower() == host.lower() or _host_name(origin) in self.allowed

    def _is_allowed(self, name: str) -> bool:
        if name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.is_public  # a foreign name can resolve to this machine, an address cannot be forged so


def _host_name(address: str) -> str:
    """Return the host name of `name:port` or of an origin (`https://name:port`)."""
    try:
        return (urlsplit(address if "//" in address else f"//{address}").hostname or "").lower()
    except ValueError:
        return ""


# --- running


def bind(host: str, port: int) -> socket.socket:
    """Open a listening socket on an address; port 0 selects a free port.

    Raises:
        OSError: the address is unknown or in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise OSError(
            f"The app cannot listen on {host}, port {port} ({error.strerror}): choose another address or port."
        ) from error
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Return whether only this machine can reach a listening socket."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


class _Server(uvicorn.Server):
    """Server that calls a function once it serves and Ctrl-C ends it."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]):
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()


def make_server(app: ASGIApp, on_start: Callable[[], None] = lambda: None) -> uvicorn.Server:
    """Create the server: `make_server(app).run(sockets=[listener])` serves until it is interrupted.

    `on_start` is called once it serves.
    """
    # No access log: it would record the queries of users.
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        timeout_graceful_shutdown=5,  # seconds
    )
    return _Server(config, on_start)


__all__ = ["AppServer", "bind", "is_loopback", "make_server"]
