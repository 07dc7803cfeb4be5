"""Stream remote videos to browsers, by the ranges that they ask for."""

import re
from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ..remote import file_state, open_source


CHUNK_BYTES = 256 * 1024
_RANGE = re.compile(r"\s*bytes\s*=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})\s*", re.IGNORECASE)


def stream_remote_video(
    address: str, request: Request, media_type: str, part_bytes: int, state: tuple[int, ...] | None = None
) -> Response:
    """Return a response with a remote video, or with the range of it that a request asks for.

    The server of the video sees this machine, and the browser neither its address nor the credentials. Memory holds
    some blocks of the video, see [`RemoteFile`]. A request for several ranges gets the whole video, as HTTP allows.

    Args:
        address (`str`): address of the video, from the index.
        request (`Request`): request with the headers `Range` and `If-Range`, if any.
        media_type (`str`): value of `Content-Type`.
        part_bytes (`int`): largest answer to an open range (`bytes=N-`).
        state (`tuple`, *optional*): result of [`file_state`], if you have just read it.

    Raises:
        RemoteError: the video does not exist or cannot be read.
        VideoDecodingError: the same, found when it is opened.
    """
    state = file_state(address) if state is None else state
    size = state[0]
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "ETag": f'"{size:x}-{state[1]:x}"',
    }
    wanted = _RANGE.fullmatch(request.headers.get("range", ""))
    if request.headers.get("if-range", headers["ETag"]) != headers["ETag"]:
        wanted = None  # the browser has parts of an earlier state
    first, last, status = 0, size - 1, 200
    if wanted and (wanted[1] or wanted[2]):
        status = 206
        if not wanted[1]:  # the last bytes
            first = max(size - int(wanted[2]), 0)
        else:
            first = int(wanted[1])
            last = min(int(wanted[2]) if wanted[2] else first + part_bytes - 1, last)
        if first > last:
            return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    headers["Content-Length"] = str(last + 1 - first)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    content = _read(address, state, first, last + 1)
    next(content)  # opens the video: a failure is raised here, before the response begins
    return StreamingResponse(content, status, headers, media_type)


def _read(address: str, state: tuple[int, ...], start: int, end: int) -> Iterator[bytes]:
    """Yield nothing once the video is open, then the bytes from `start` to `end`, which is excluded."""
    with open_source(address, state, whole=False) as file:
        file.seek(start)
        yield b""
        while start < end:
            content = file.read(min(CHUNK_BYTES, end - start))
            if not content:
                return
            start += len(content)
            yield content


__all__ = ["stream_remote_video"]
