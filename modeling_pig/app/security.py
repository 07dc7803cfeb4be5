"""Decide who may send requests: host names, other sites, tokens, rates; set the security headers."""

import hashlib
import hmac
import ipaddress
import math
import socket
import threading
import time
from collections import OrderedDict
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import schemas
from .settings import MAX_BODY_BYTES, AppSettings
from .uploads import limit_body


LOOPBACK = ("localhost", "127.0.0.1", "::1")
COOKIE = "pig_session"
UPLOADS = ("/api/v1/search", "/api/v1/captions")  # routes that receive videos, which they limit themselves
BURST = 10.0  # seconds of a client's rate that it may use at once
MAX_CLIENTS = 10_000  # whose rates are remembered
# Adds the `Authorization` header to the OpenAPI description; `Access` reads it.
_bearer = HTTPBearer(auto_error=False, description="PIG_API_TOKEN reads, PIG_API_WRITE_TOKEN reads and writes.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


class Guard:
    """Reject requests with unknown host names or from other sites, and add the security headers."""

    def __init__(self, app: ASGIApp, settings: AppSettings):
        self.app = app
        self.allowed = {name.lower() for name in settings.host_names}
        self.names = self.allowed | set(LOOPBACK)
        self.is_public = settings.is_public
        if settings.is_public:
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
            "frame-ancestors": settings.frame_ancestors,
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
            await JSONResponse({"error": error, "code": "refused"}, 421)(scope, receive, send_guarded)
        elif origin and not self._is_same_site(origin, host):
            problem = {"error": "This server rejects requests from other sites.", "code": "forbidden"}
            await JSONResponse(problem, 403)(scope, receive, send_guarded)
        else:
            if not scope["path"].endswith(UPLOADS):
                receive = limit_body(receive, MAX_BODY_BYTES)
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


class Access:
    """Check tokens and rates. Its methods are dependencies of routes."""

    def __init__(self, settings: AppSettings):
        self._settings = settings
        self._limiter = settings.rate_limit and RateLimiter(settings.rate_limit)
        self.router = APIRouter(tags=["server"], responses=schemas.problems(400, 401, 403, 413, 421, 422, 429))
        self.router.add_api_route(
            "/login", self.log_in, methods=["POST"], status_code=204, dependencies=[Depends(self.limit)]
        )

    def read(self, request: Request, credentials: Credentials) -> None:
        """Require a token, if the server has one.

        Raises:
            HTTPException: the token is missing or wrong (401).
        """
        if self._settings.needs_token:
            self._level(request, credentials)

    def search(self, request: Request, credentials: Credentials) -> None:
        """Require what [`Access.read`] requires, and that the client keeps to its rate.

        Raises:
            HTTPException: the token is missing or wrong (401), or there were too many requests (429).
        """
        self.read(request, credentials)
        self.limit(request)

    def write(self, request: Request, credentials: Credentials) -> None:
        """Require the token that writes, and that the server accepts writes.

        Raises:
            HTTPException: the token is missing or wrong (401) or only reads (403), the server accepts no writes (403),
                or there were too many requests (429).
        """
        self.search(request, credentials)
        if self._settings.write_token is not None and self._level(request, credentials) != "write":
            raise HTTPException(403, "This token only reads: send the one of PIG_API_WRITE_TOKEN.")
        if not self._settings.allow_write:
            raise HTTPException(403, "This server does not change its index: restart it with --allow-write.")

    def limit(self, request: Request) -> None:
        """Require that the client keeps to its rate (429 otherwise)."""
        client = request.client.host if request.client else ""
        if self._limiter and (wait := self._limiter.take(client)):
            raise HTTPException(429, "Too many requests: try again later.", {"Retry-After": str(math.ceil(wait))})

    def log_in(self, login: schemas.Login, request: Request) -> Response:
        """Set a cookie that stands for a token: the images and videos of a page cannot send a header."""
        for known in filter(None, (self._settings.token, self._settings.write_token)):
            if _is_equal(login.token, known):
                response = Response(status_code=204)
                is_secure = request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
                response.set_cookie(COOKIE, _session(known), httponly=True, samesite="strict", secure=is_secure)
                return response
        if self._settings.needs_token:
            raise _unauthorized("The token is wrong.")
        return Response(status_code=204)  # the server needs none

    def _level(self, request: Request, credentials: HTTPAuthorizationCredentials | None) -> str:
        """Return what the token of a request allows, "read" or "write"."""
        levels = {"read": self._settings.token, "write": self._settings.write_token}
        cookie = request.cookies.get(COOKIE)
        if credentials is None and cookie is None:
            raise _unauthorized("This server needs a token: send the header Authorization: Bearer TOKEN.")
        for level, token in levels.items():
            if token is None:
                continue
            if credentials is not None and _is_equal(credentials.credentials, token):
                return level
            if credentials is None and cookie is not None and _is_equal(cookie, _session(token)):
                return level
        raise _unauthorized("The token is wrong.")


class RateLimiter:
    """Limit the requests of each client to a rate, with bursts of `BURST` seconds.

    Args:
        rate (`float`): requests per second.
    """

    def __init__(self, rate: float):
        self._rate = rate
        self._burst = max(rate * BURST, 1.0)
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, and when
        self._lock = threading.Lock()

    def take(self, client: str) -> float:
        """Count a request. Return 0 if it is within the rate, or else the seconds until the next one is."""
        now = time.monotonic()
        with self._lock:
            left, before = self._clients.pop(client, (self._burst, now))
            left = min(left + (now - before) * self._rate, self._burst)
            wait = 0.0 if left >= 1 else (1 - left) / self._rate
            self._clients[client] = (left - (wait == 0), now)
            if len(self._clients) > MAX_CLIENTS:
                self._clients.popitem(last=False)
        return wait


def _is_equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode())


def _session(token: str) -> str:
    """Return the value of the cookie for a token: all replicas accept it, and it does not reveal the token."""
    return hashlib.blake2b(b"session", key=hashlib.sha256(token.encode()).digest()).hexdigest()


def _unauthorized(message: str) -> HTTPException:
    return HTTPException(401, message, {"WWW-Authenticate": 'Bearer realm="pig"'})


__all__ = ["Access", "Guard", "RateLimiter"]
