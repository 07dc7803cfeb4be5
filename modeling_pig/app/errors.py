"""Turn errors into responses: one line for people, without paths or faults of the server."""

import logging
import sys
from typing import Literal

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..visualization.text import abridge, printable


State = Literal["ready", "no_index", "other_model", "unreadable"]  # of the server
USER_ERRORS = (ImportError, OSError, ValueError)
INTERNAL = "The server failed: see the error in its terminal."
UNREADABLE = "The index or the model cannot be read: see the error in the server's terminal."
TOO_MANY = "Too many videos are being encoded: try again later."
BUSY = "Too many searches are waiting: try again later."

logger = logging.getLogger(__name__)


CODES = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    413: "too_large",
    422: "invalid",
    429: "busy",
    503: "unavailable",
    507: "disk_full",
}


class ApiError(HTTPException):
    """Error response with a code for programs, where the status alone does not say enough."""

    def __init__(self, status_code: int, detail: str, code: str, headers: dict[str, str] | None = None):
        super().__init__(status_code, detail, headers)
        self.code = code


def busy(message: str) -> HTTPException:
    """Return the response to a request that the server has no time for now."""
    return HTTPException(429, message, {"Retry-After": "1"})


class UnavailableError(Exception):
    """Error of a server without an index that it can search. Its message is for clients.

    Args:
        state (`State`): "no_index", "other_model" or "unreadable".
        message (`str`): what to do.
    """

    def __init__(self, state: State, message: str):
        super().__init__(message)
        self.state = state


def one_line(error: BaseException) -> str:
    """Return the message for the client; log errors whose message would reveal paths or faults of the server."""
    if isinstance(error, OSError):  # not the client's fault, and it names paths of this machine
        logger.error("%s", error)
        return UNREADABLE
    # Raised by the import system: our own ImportErrors have no name and say what to install.
    if isinstance(error, ImportError) and error.name:
        logger.error("%s", error)
        return INTERNAL
    # Only the reason: the path of an upload means nothing to the client, and paths of videos may be hidden.
    return getattr(error, "reason", "") if _is_of_decoding(error) else str(error)


def _is_of_decoding(error: BaseException) -> bool:
    # Importing the class would load transformers, which searching does not need. If one was raised, it is loaded.
    return isinstance(error, getattr(sys.modules.get("modeling_pig.video_decoding_pig"), "VideoDecodingError", ()))


def http_error(error: BaseException) -> HTTPException:
    """Return the response to an error of a request: 422 if the request can be corrected, else 500."""
    message = one_line(error)
    if message in (UNREADABLE, INTERNAL):
        return ApiError(500, message, "unreadable" if message == UNREADABLE else "internal")
    return ApiError(422, message, "undecodable" if _is_of_decoding(error) else "invalid")


def refused(request: Request, error: Exception) -> Response:
    """Respond to an `HTTPException`."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed_methods(request)) or headers.get("Allow", "")
    return JSONResponse(problem_of(error), error.status_code, headers)


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of a path; Starlette names those of the first of its routes only."""
    parts, methods = request.url.path.split("/"), set()
    for path, operations in request.app.openapi()["paths"].items():
        names = path.split("/")
        if len(names) == len(parts) and all(n.startswith("{") or n == p for n, p in zip(names, parts, strict=True)):
            methods |= {method.upper() for method in operations}
    return sorted(methods)


def problem_of(error: HTTPException) -> dict[str, str]:
    """Return the body of the response to an error."""
    default = "internal" if error.status_code >= 500 else "refused"
    return {"error": error.detail, "code": getattr(error, "code", CODES.get(error.status_code, default))}


def invalid(request: Request, error: Exception) -> Response:
    """Respond to parameters that do not have their types or limits."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    # The last part names the parameter; the others say where it is: ("query", "k").
    names = [str(part) for part in first["loc"] if part not in ("query", "body", "path")]
    message = f"{'.'.join(names) or 'The request'}: {first['msg']}"
    given = first.get("input")
    if isinstance(given, (str, int, float)):
        message += f", not {abridge(str(given))!r}"
    return JSONResponse({"error": printable(f"{message}."), "code": "invalid"}, 422)


def unavailable(request: Request, error: Exception) -> Response:
    """Respond to a request that needs an index."""
    assert isinstance(error, UnavailableError)
    return JSONResponse({"error": str(error), "code": error.state}, 503, {"Retry-After": "5"})


def failed(request: Request, error: Exception) -> Response:
    """Respond to an error that is a bug."""
    return JSONResponse({"error": INTERNAL, "code": "internal"}, 500)


__all__ = ["ApiError", "INTERNAL", "UNREADABLE", "USER_ERRORS", "UnavailableError", "http_error", "one_line"]
