"""Routes that serve videos and pictures of them."""

import os
import re
import stat
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import FileResponse, Response
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from . import schemas
from .ids import EntryIds
from .security import Access


# Bytes per response to an open range ("from byte N on"). A browser requests the rest when it needs it. Without this
# limit, a dozen videos would hold all of the browser's connections, and a search would have to wait.
PART_BYTES = 4 * 1024 * 1024
VIDEO_TYPES = {".avi": "video/x-msvideo", ".mkv": "video/x-matroska", ".mov": "video/quicktime", ".webm": "video/webm"}

EntryId = Annotated[str, Query(pattern="^[0-9a-f]{32}$", description="Id of an entry or of a file.")]


class MediaRoutes:
    """The routes of videos and pictures; `router` holds them.

    Args:
        ids (`EntryIds`): ids of entries.
        access (`Access`): checks of tokens.
    """

    def __init__(self, ids: EntryIds, access: Access):
        self._ids = ids
        problems: dict[int | str, dict[str, Any]] = {
            status: {"model": schemas.Problem} for status in (400, 401, 403, 404, 416, 421, 422, 500, 503)
        }
        self.router = APIRouter(responses=problems, dependencies=[Depends(access.read)])
        clip: dict[int | str, dict[str, Any]] = {200: {"content": {"video/*": {}}}, 206: {"content": {"video/*": {}}}}
        self.router.add_api_route(
            "/clip", self.clip, methods=["GET", "HEAD"], response_class=FileResponse, responses=clip
        )

    def clip(
        self,
        id: EntryId,  # noqa: A002 - the name of the parameter in requests
        format: Annotated[Literal["original"], Query(description="The file as it is.")] = "original",  # noqa: A002
    ) -> Response:
        """Return the file of a video, or the requested byte range of it."""
        path = self._ids.segment(id).path
        try:
            status = os.stat(path)
        except OSError:
            status = None
        if status is None or not stat.S_ISREG(status.st_mode):
            raise HTTPException(404, "The file of this video no longer exists.")
        media_type = VIDEO_TYPES.get(Path(path).suffix.lower(), "video/mp4")
        headers = {"Cache-Control": "private, no-cache"}
        return _VideoResponse(path, headers=headers, media_type=media_type, stat_result=status)


class _VideoResponse(FileResponse):
    """File response that limits open ranges (`bytes=N-`) to `PART_BYTES`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = MutableHeaders(raw=list(scope["headers"]))
        if open_range := re.fullmatch(r"\s*bytes\s*=([0-9]{1,18})-", headers.get("range", ""), re.IGNORECASE):
            first = int(open_range[1])
            headers["range"] = f"bytes={first}-{first + PART_BYTES - 1}"
        await super().__call__({**scope, "headers": headers.raw}, receive, send)


__all__ = ["MediaRoutes"]
