"""The app's web server: the page, and the few addresses that the page asks.

It hands out no file but the page's own and the videos that a search in the index has found, named by an id that the
server made up: no path ever comes from a client. What is uploaded lies in a file without a name, which the system
removes with its last reader, however the server ends.
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
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..encoding.video_segment import VideoSegment
from ..stores.conditions import And, Condition, Not, Or, parse_where
from ..stores.index import SearchResult
from .service import SearchService


HERE = Path(__file__).parent
PAGE_FILES = {"page.html": "text/html", "style.css": "text/css", "script.js": "text/javascript"}
EXAMPLES = ("a dog runs on a beach", "two people talk at a table", "someone cuts vegetables in a kitchen")
NUM_EXAMPLES = 4  # of the captions, where there are any
MAX_RESULTS = 96
MAX_OTHERS = 8  # further windows of a file
MAX_TEXT = 1000  # characters of a sentence or of a filter
MAX_UPLOADS = 8  # at a time; they are looked at one after the other
MAX_RECEIVING = 600.0  # seconds in which an upload must have come, or its place goes to another
MAX_EXPLANATIONS = 8  # at a time: each holds one of the 40 threads that answer everything else as well
MAX_KNOWN = 50_000  # clips whose id is remembered; whoever looks at an older page searches again
# That a file is in the index is believed for so long: a player asks for a video many times, and each look scans paths.
TRUSTED_FOR = 10.0  # seconds
# Of a video that is asked for from some place to its end, so much is sent at a time. A browser asks for the rest when
# it needs it; the dozen connections that clips would hold open otherwise leave it none to search with.
PART_BYTES = 4 * 1024 * 1024
VIDEO_TYPES = {".avi": "video/x-msvideo", ".mkv": "video/x-matroska", ".mov": "video/quicktime", ".webm": "video/webm"}
LOOPBACK = ("localhost", "127.0.0.1", "::1")
USER_ERRORS = (ImportError, OSError, ValueError)
INTERNAL = "Something went wrong in the server; its terminal says what."
UNREADABLE = "The index or the model cannot be read; the server's terminal says why."
TOO_MANY = "Too many videos are being looked at: try again in a while."

logger = logging.getLogger(__name__)


class AppServer:
    """The app over a [`SearchService`]. `AppServer(...).asgi` is an ASGI application, and [`make_server`] runs it.

    Args:
        service (`SearchService`): what answers.
        max_upload_bytes (`int`): of an uploaded video.
        examples (`Sequence[str]`): sentences to begin with; by default a few of the captions, if there are any.
        is_public (`bool`): whether other machines may ask. The folders of the videos are not told then, nor can a
            filter ask for them.
        host_names (`Collection[str]`): names by which the server may be asked besides this machine's own. Others are
            refused: a site that makes its name point here could read the videos through a visitor's browser.
        frame_ancestors (`str`): sites that may show the page in a frame, as in the header of that name.
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
        self.examples = list(examples or _short_ones(service.captions) or EXAMPLES)
        self.is_public = is_public
        self._known: OrderedDict[str, tuple[VideoSegment, float]] = (
            OrderedDict()
        )  # by id, the latest last; with the time
        self._lock = threading.Lock()  # around it
        self._id_key = secrets.token_bytes(32)  # without it an id would confirm a guess of the path
        self._uploads = threading.BoundedSemaphore(MAX_UPLOADS)
        self._explanations = threading.BoundedSemaphore(MAX_EXPLANATIONS)
        routes = [Route(f"/{name}", functools.partial(_page_file, name)) for name in PAGE_FILES]
        routes += [
            Route("/", functools.partial(_page_file, "page.html")),
            Route("/about", self.about),
            Route("/search", self.search),
            Route("/video/{id}", self.video),
            Route("/why", self.why),
            Route("/upload", self.upload, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {HTTPException: _refused, Exception: _failed}
        inner = Starlette(routes=routes, exception_handlers=handlers)
        self.asgi = _Guard(inner, {name.lower() for name in host_names}, is_public, frame_ancestors)

    def about(self, request: Request) -> Response:
        return JSONResponse(
            {
                "clips": self.service.num_clips(),
                "model": self.service.model_name,
                "examples": self.examples,
                "max_results": MAX_RESULTS,
                "max_upload_bytes": self.max_upload_bytes,
                "captions": len(self.service.captions),
                "is_public": self.is_public,
            }
        )

    def search(self, request: Request) -> Response:
        text, k, where = _text(request, "text"), _count(request), self._where(request)
        try:
            results = self.service.search(text, k, where)
        except USER_ERRORS as error:
            raise _answer_to(error) from error
        return JSONResponse({"results": self._described(results)})

    def video(self, request: Request) -> Response:
        path = self._clip(request.path_params["id"]).path
        try:
            status = os.stat(path)
        except OSError:
            status = None
        if status is None or not stat.S_ISREG(status.st_mode):
            raise HTTPException(404, "The file of this video is gone.")
        media_type = VIDEO_TYPES.get(Path(path).suffix.lower(), "video/mp4")
        headers = {"Cache-Control": "private, no-cache"}
        return _VideoResponse(path, headers=headers, media_type=media_type, stat_result=status)

    def why(self, request: Request) -> Response:
        clip, text = self._clip(request.query_params.get("id", "")), _text(request, "text")
        if not self._explanations.acquire(blocking=False):
            raise HTTPException(503, TOO_MANY)
        try:
            return JSONResponse(self.service.explain(clip, text))
        except USER_ERRORS as error:
            raise _answer_to(error) from error
        finally:
            self._explanations.release()

    async def upload(self, request: Request) -> Response:
        """Answers with lines of JSON: `{"stage": ...}` for each stage of the work, then `results`, `captions` or
        `error`."""
        want, k, where = request.query_params.get("want", "videos"), _count(request), self._where(request)
        if want not in ("videos", "captions"):
            raise HTTPException(400, f"want is {want!r}; expected videos or captions.")
        if not self._uploads.acquire(blocking=False):
            raise HTTPException(503, TOO_MANY)
        try:
            file = await self._receive(request)
        except BaseException:
            self._uploads.release()
            raise
        loop = asyncio.get_running_loop()
        messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        def tell(message: dict[str, Any] | None) -> None:
            loop.call_soon_threadsafe(messages.put_nowait, message)

        def tell_stage(stage: str) -> None:
            tell({"stage": stage})

        def look() -> None:  # goes on to its end if the client leaves
            message: dict[str, Any] = {"error": INTERNAL}
            try:
                with file:  # which is gone before the answer comes
                    if want == "captions":
                        message = {"captions": self.service.fitting_captions(_path_of(file), k, tell_stage)}
                    else:
                        results = self.service.like(_path_of(file), k, where, tell_stage)
                        message = {"results": self._described(results)}
            except USER_ERRORS as error:
                message = {"error": _one_line(error)}
            finally:
                tell(message)
                tell(None)

        async def lines() -> AsyncIterator[str]:
            while (message := await messages.get()) is not None:
                yield json.dumps(message) + "\n"

        loop.run_in_executor(None, look).add_done_callback(lambda _: self._uploads.release())
        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def _receive(self, request: Request) -> IO[bytes]:
        """The body of a request in a file that no folder names."""
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
            raise HTTPException(400, "The upload was broken off.") from error
        except TimeoutError as error:
            file.close()
            reason = f"The video did not come within {MAX_RECEIVING:g} s: send a smaller one."
            raise HTTPException(408, reason, {"Connection": "close"}) from error
        except OSError as error:
            file.close()
            raise HTTPException(507, f"The file cannot be received: {error.strerror}.") from error
        except BaseException:
            file.close()
            raise
        return file

    def _described(self, results: Sequence[SearchResult]) -> list[dict[str, Any]]:
        """Results for the page, which may ask for these clips from now on."""
        described = []
        for result in results:
            clip = VideoSegment(result.path, result.start, result.end)
            clip_id = hashlib.blake2b(repr(clip).encode(), key=self._id_key, digest_size=16).hexdigest()
            self._remember(clip_id, clip)
            folder, name = os.path.split(result.path)
            facts = {key: getattr(result, key) for key in ("rank", "score", "duration", "start", "end")}
            facts |= {"id": clip_id, "name": name, "folder": "" if self.is_public else folder}
            described.append({**facts, "others": self._described(getattr(result, "others", ())[:MAX_OTHERS])})
        return described

    def _remember(self, clip_id: str, clip: VideoSegment) -> None:
        """Keeps a clip that is in the index now."""
        with self._lock:
            self._known[clip_id] = clip, time.monotonic()
            self._known.move_to_end(clip_id)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)

    def _clip(self, clip_id: str) -> VideoSegment:
        with self._lock:
            known = self._known.get(clip_id)
        if known is None:
            raise HTTPException(404, "No search has found such a video: search again.")
        clip, seen = known
        if time.monotonic() - seen > TRUSTED_FOR:
            try:
                is_held = self.service.holds(clip.path)
            except USER_ERRORS as error:
                raise _answer_to(error) from error
            if not is_held:
                raise HTTPException(404, "This video is no longer in the index: search again.")
            self._remember(clip_id, clip)
        return clip

    def _where(self, request: Request) -> str | None:
        where = _text(request, "where")
        if not where:
            return None
        try:
            fields = set(_fields(parse_where(where)))
        except ValueError as error:
            raise _answer_to(error) from error
        if self.is_public and "path" in fields:  # "like" would tell it letter by letter
            raise HTTPException(400, "This server tells no folders, so path is no filter here: filter by name.")
        return where


def _short_ones(captions: Sequence[str]) -> list[str]:
    """The shortest caption of each part of the list, so that they differ."""
    size = -(-len(captions) // NUM_EXAMPLES) or 1
    return [min(captions[first : first + size], key=len) for first in range(0, len(captions), size)]


def _fields(condition: Condition) -> Iterator[str]:
    match condition:
        case Not(negated):
            yield from _fields(negated)
        case And(conditions) | Or(conditions):
            for part in conditions:
                yield from _fields(part)
        case _:
            yield condition.field


def _page_file(name: str, request: Request) -> Response:
    return FileResponse(HERE / name, media_type=PAGE_FILES[name], headers={"Cache-Control": "no-cache"})


def _text(request: Request, name: str) -> str:
    text = request.query_params.get(name, "").strip()
    if len(text) > MAX_TEXT:
        raise HTTPException(400, f"{name} has {len(text)} characters; at most {MAX_TEXT} are read.")
    return text


def _count(request: Request) -> int:
    k = request.query_params.get("k", "12")
    if not (re.fullmatch("[0-9]{1,4}", k) and 1 <= int(k) <= MAX_RESULTS):
        raise HTTPException(400, f"k is {k[:20]!r}; expected a number from 1 to {MAX_RESULTS}.")
    return int(k)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError):  # no fault of who asks, and it names places of this machine
        logger.error("%s", error)
        return UNREADABLE
    if isinstance(error, ImportError) and error.name:  # by the import system: one of ours says what to install
        logger.error("%s", error)
        return INTERNAL
    # Not imported here: that loads transformers, which searching does without. One that was raised has done so.
    decoding_error = getattr(sys.modules.get("modeling_pig.video_decoding_pig"), "VideoDecodingError", ())
    # The reason alone: the path of an upload means nothing, that of a video need not be told to everyone.
    return error.reason if isinstance(error, decoding_error) else str(error)


def _answer_to(error: BaseException) -> HTTPException:
    told = _one_line(error)
    return HTTPException(500 if told in (UNREADABLE, INTERNAL) else 400, told)


def _refused(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": INTERNAL}, 500)


# --- files


def _unnamed_file() -> IO[bytes]:
    """A file to write and read that is gone when it is closed, or when the process ends, even by force."""
    if os.path.isdir("/proc/self/fd"):
        return tempfile.TemporaryFile()
    return tempfile.NamedTemporaryFile()  # a decoder needs a path


def _path_of(file: IO[bytes]) -> str:
    return file.name if isinstance(file.name, str) else f"/proc/self/fd/{file.fileno()}"


class _VideoResponse(FileResponse):
    """A file of which a part is sent where the rest of it is asked for, see `PART_BYTES`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = MutableHeaders(raw=list(scope["headers"]))
        if asked := re.fullmatch(r"\s*bytes\s*=([0-9]{1,18})-", headers.get("range", ""), re.IGNORECASE):
            first = int(asked[1])
            headers["range"] = f"bytes={first}-{first + PART_BYTES - 1}"
        await super().__call__({**scope, "headers": headers.raw}, receive, send)


# --- who may ask


class _Guard:
    """Refuses requests by other names of this machine or from other sites, and tells browsers what the page may do."""

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
        if not self._is_ours(_host_name(host)):
            error = f"This server does not answer to the name {host!r}. Started with --allow-host NAME, pig app does."
            await JSONResponse({"error": error}, 421)(scope, receive, send_guarded)
        elif origin and not self._is_same_site(origin, host):
            await JSONResponse({"error": "Another site may not ask this server."}, 403)(scope, receive, send_guarded)
        else:
            await self.app(scope, receive, send_guarded)

    def _is_same_site(self, origin: str, host: str) -> bool:
        """By name and port, as another port of this machine is another site. Of a name that was allowed by hand the
        port does not count: a proxy that has this name may put another one into `Host`."""
        return origin.partition("//")[2].lower() == host.lower() or _host_name(origin) in self.allowed

    def _is_ours(self, name: str) -> bool:
        if name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.is_public  # a name can be made to point here, an address cannot


def _host_name(address: str) -> str:
    """The name in `name:port`, or in an origin, `https://name:port`."""
    try:
        return (urlsplit(address if "//" in address else f"//{address}").hostname or "").lower()
    except ValueError:
        return ""


# --- running


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there; a `port` of 0 takes any that is free.

    Raises:
        OSError: one line on what is wrong with the address.
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
            f"The app cannot listen on {host}, port {port} ({error.strerror}): choose another one."
        ) from error
    return listener


def is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def make_server(app: ASGIApp) -> uvicorn.Server:
    """What runs the app: `make_server(app).run(sockets=[listener])` answers until it is interrupted."""
    # No log of requests: it would keep what people looked for.
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        timeout_graceful_shutdown=5,  # seconds
    )
    return uvicorn.Server(config)


__all__ = ["AppServer", "bind", "is_loopback", "make_server"]
