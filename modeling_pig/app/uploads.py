"""Receive the body of a request into an unnamed file, which the operating system removes when it is closed."""

import asyncio
import os
import tempfile
from typing import IO

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive


MAX_RECEIVING = 600.0  # seconds to receive an upload; a slower upload is rejected


async def receive(request: Request, max_bytes: int) -> IO[bytes]:
    """Write the body of a request to an unnamed file.

    Raises:
        HTTPException: the body is empty (422), larger than `max_bytes` (413), or slow (408), the connection closed
            (400), or the disk is full (507).
    """
    too_large = HTTPException(413, f"The file is too large: at most {max_bytes / 1e6:g} MB can be uploaded.")
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise too_large
    file = _unnamed_file()
    try:
        async with asyncio.timeout(MAX_RECEIVING):
            async for chunk in request.stream():
                file.write(chunk)
                if file.tell() > max_bytes:
                    raise too_large
        file.flush()
        if file.tell() == 0:
            raise HTTPException(422, "The file is empty: choose a video.")
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


def limit_body(receive: Receive, max_bytes: int) -> Receive:
    """Return a function that receives a request, and raises `HTTPException` (413) if its body is larger."""
    num_bytes = 0

    async def receive_limited() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > max_bytes:
            raise HTTPException(413, f"The body of the request is too large: at most {max_bytes} bytes are accepted.")
        return message

    return receive_limited


def _unnamed_file() -> IO[bytes]:
    """Open a temporary file that is removed when it is closed, or when the process ends (on Linux, even if killed)."""
    if os.path.isdir("/proc/self/fd"):
        return tempfile.TemporaryFile()
    return tempfile.NamedTemporaryFile()  # a decoder needs a path


def path_of(file: IO[bytes]) -> str:
    """Return a path under which a decoder can open a received file."""
    return file.name if isinstance(file.name, str) else f"/proc/self/fd/{file.fileno()}"


__all__ = ["limit_body", "path_of", "receive"]
