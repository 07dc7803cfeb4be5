"""Web server of the app: serves the page and the HTTP API.

The server serves only the page's files, the documentation of the API, and videos of the index. Clients name a video by
an opaque id; the one path that a client may send, that of a video to add, must be below a folder that the owner named.
An upload is kept in an unnamed file, which the operating system removes when it is closed, even if the server is
killed.
"""

import functools
import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import ASGIApp

from modeling_pig import __version__

from .api import Api
from .documentation import add_documentation
from .errors import UnavailableError, failed, invalid, refused, unavailable
from .ids import EntryIds
from .library_routes import LibraryRoutes
from .media import MediaCache, media_folder
from .media_routes import MediaRoutes
from .security import Access, Guard
from .service import SearchService
from .settings import AppSettings
from .telemetry import Telemetry


HERE = Path(__file__).parent
PAGE_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
PAGE_FILES = {file.name: PAGE_TYPES[file.suffix] for file in sorted(HERE.iterdir()) if file.suffix in PAGE_TYPES}
API = "/api/v1"
DESCRIPTION = "Search videos by sentences and by other videos. Errors are JSON objects with one line, `error`."


class AppServer:
    """Serve the app over a [`SearchService`]. `AppServer(...).asgi` is an ASGI application; [`make_server`] runs it.

    Args:
        service (`SearchService`): service that searches and explains.
        **settings: fields of [`AppSettings`].
    """

    def __init__(self, service: SearchService, **settings: Any):
        self.service = service
        self.settings = AppSettings(**settings)
        self.ids = EntryIds(service, self.settings.id_key)
        access = Access(self.settings)
        self.api = api = Api(service, self.settings, self.ids, access)
        self.media = media = MediaCache(self.settings.media_folder or media_folder(service.searcher.indexes[0].uri))
        app = FastAPI(
            title="modeling-pig",
            version=__version__,
            description=DESCRIPTION,
            docs_url=None,  # FastAPI's page loads its code from another site
            redoc_url=None,
            openapi_url="/api/openapi.json",
            servers=[{"url": ".."}],  # relative to the description: the app may be served below a path
            redirect_slashes=False,
            generate_unique_id_function=lambda route: route.name,  # names of functions in generated clients
        )
        library = LibraryRoutes(service, self.settings, self.ids, access)
        for router in (api.router, library.router, MediaRoutes(self.ids, access, media).router, access.router):
            app.include_router(router, prefix=API)
        self.telemetry = Telemetry(app, service, self.settings, access)
        app.include_router(self.telemetry.router)
        add_documentation(app)
        for name in PAGE_FILES:
            app.add_route(f"/{name}", functools.partial(_page_file, name))
        app.add_route("/", functools.partial(_page_file, "page.html"))
        handlers: dict[Any, Any] = {
            HTTPException: refused,
            RequestValidationError: invalid,
            UnavailableError: unavailable,
            Exception: failed,
        }
        for kind, handler in handlers.items():
            app.add_exception_handler(kind, handler)
        self.fastapi = app
        self.asgi: ASGIApp = Guard(self.telemetry, self.settings)

    def close(self) -> None:
        """Drop the pictures and clips that wait to be made."""
        self.media.close()


def _page_file(name: str, request: Request) -> Response:
    return FileResponse(HERE / name, media_type=PAGE_FILES[name], headers={"Cache-Control": "no-cache"})


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
            listener.listen(1024)
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
