"""Routes that serve videos and pictures of them."""

import asyncio
import re
import stat
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import FileResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from ..encoding.video_segment import VideoSegment
from ..remote import is_remote
from . import schemas
from .errors import ApiError, busy, http_error
from .ids import EntryIds
from .media import IMAGE_TYPE, BusyError, MediaCache, StorageOfflineError, check_remote, stat_video
from .remote_video import stream_remote_video
from .security import Access


# Bytes per response to an open range ("from byte N on"). A browser requests the rest when it needs it. Without this
# limit, a dozen videos would hold all of the browser's connections, and a search would have to wait.
PART_BYTES = 4 * 1024 * 1024
VIDEO_TYPES = {".avi": "video/x-msvideo", ".mkv": "video/x-matroska", ".mov": "video/quicktime", ".webm": "video/webm"}

EntryId = Annotated[str, Query(pattern="^[0-9a-f]{32}$", description="Id of an entry or of a file.")]
Seconds = Annotated[
    float | None, Query(ge=0, le=1e9, allow_inf_nan=False, description="Seconds, instead of the id's.")
]


class MediaRoutes:
    """The routes of videos and pictures; `router` holds them.

    Args:
        ids (`EntryIds`): ids of entries.
        access (`Access`): checks of tokens.
        media (`MediaCache`): pictures and playable clips.
    """

    def __init__(self, ids: EntryIds, access: Access, media: MediaCache):
        self._ids = ids
        self._media = media
        self.router = APIRouter(
            tags=["pictures"],
            responses=schemas.problems(401, 403, 404, 421, 422, 429, 500, 503),
            dependencies=[Depends(access.read)],
        )
        video = {"content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}}
        picture = {"content": {IMAGE_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
        route = self.router.add_api_route
        route("/thumbnail", self.thumbnail, response_class=Response, responses={200: picture})
        clip = {200: video, 206: video, **schemas.problems(400, 416, 507)}
        route("/clip", self.clip, response_class=FileResponse, responses=clip)
        route("/clip", self.clip, methods=["HEAD"], include_in_schema=False)

    async def thumbnail(
        self,
        id: EntryId,  # noqa: A002 - the name of the parameter in requests
        kind: Annotated[
            Literal["thumbnail", "preview"], Query(description="The middle frame, or 8 frames side by side.")
        ] = "thumbnail",
    ) -> Response:
        """Return a picture of a video or of its segment."""
        segment = await run_in_threadpool(self._ids.segment, id)
        make = self._media.thumbnail if kind == "thumbnail" else self._media.preview
        try:
            picture = await asyncio.shield(asyncio.wrap_future(await run_in_threadpool(make, *segment)))
        except (OSError, ValueError) as error:
            raise _media_error(error) from error
        return Response(picture, media_type=IMAGE_TYPE, headers={"Cache-Control": "private, max-age=3600"})

    async def clip(
        self,
        request: Request,
        id: EntryId,  # noqa: A002 - the name of the parameter in requests
        format: Annotated[  # noqa: A002 - the name of the parameter in requests
            Literal["original", "mp4"],
            Query(
                description="The file as it is, or up to 120 s of the video or segment in a format that browsers play."
            ),
        ] = "original",
        start: Seconds = None,
        end: Seconds = None,
    ) -> Response:
        """Return a video, or the requested byte range of it. `start` and `end` are for the format mp4."""
        segment = await run_in_threadpool(self._ids.segment, id)
        try:
            if format == "original":
                return await run_in_threadpool(_serve, segment.path, request)
            if start is not None or end is not None:
                if end is not None and end <= (start or 0.0):
                    raise ApiError(422, f"end is {end}: expected more than start.", "invalid")
                segment = VideoSegment(segment.path, start, end)
            making: Future[Path] = await run_in_threadpool(self._media.playable, *segment)
            clip = await asyncio.shield(asyncio.wrap_future(making))
            return await run_in_threadpool(_serve, str(clip), request)
        except BusyError as error:
            raise busy(str(error)) from error
        except (OSError, ValueError) as error:
            raise _media_error(error) from error


def _serve(path: str, request: Request) -> Response:
    """Return the response with a file.

    Raises:
        OSError: the file is gone, or its folder or server cannot be reached.
        VideoDecodingError: a remote file changed, or its server failed, when it was opened.
    """
    media_type = VIDEO_TYPES.get(Path(path).suffix.lower(), "video/mp4")
    if is_remote(path):
        return stream_remote_video(path, request, media_type, PART_BYTES, check_remote(path))
    status = stat_video(path)
    if not stat.S_ISREG(status.st_mode):
        raise ApiError(404, "This video is not a single file.", "deleted")
    headers = {"Cache-Control": "private, no-cache"}
    return _VideoResponse(path, headers=headers, media_type=media_type, stat_result=status)


def _media_error(error: OSError | ValueError) -> ApiError:
    if isinstance(error, FileNotFoundError):
        return ApiError(404, "The file of this video no longer exists.", "deleted")
    if isinstance(error, StorageOfflineError):
        return ApiError(503, "The folder of this video cannot be reached.", "offline")
    if isinstance(error, OSError):
        return ApiError(507, f"The clip cannot be made: {error.strerror or error}", "disk_full")
    failure = http_error(error)
    assert isinstance(failure, ApiError)
    return failure


class _VideoResponse(FileResponse):
    """File response that limits open ranges (`bytes=N-`) to `PART_BYTES`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = MutableHeaders(raw=list(scope["headers"]))
        if open_range := re.fullmatch(r"\s*bytes\s*=([0-9]{1,18})-", headers.get("range", ""), re.IGNORECASE):
            first = int(open_range[1])
            headers["range"] = f"bytes={first}-{first + PART_BYTES - 1}"
        await super().__call__({**scope, "headers": headers.raw}, receive, send)


__all__ = ["MediaRoutes"]
