"""Routes that list, add, change and delete the videos of the index."""

import threading
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response

from ..encoding.video_segment import VideoSegment
from . import schemas, settings
from .api import Chosen, Offset, PageSize, Where, where_of
from .describe import Describer, format_time
from .errors import TOO_MANY, USER_ERRORS, ApiError, busy, http_error
from .ids import EntryIds
from .library import IndexedFile, Library, Order
from .security import Access
from .service import SearchService
from .settings import AppSettings


EntryId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="Id of a file, or of one of its entries.")]


class LibraryRoutes:
    """The routes of videos; `router` holds them.

    Args:
        service (`SearchService`): service with the indexes.
        app_settings (`AppSettings`): settings.
        ids (`EntryIds`): ids of entries.
        access (`Access`): checks of tokens and rates.
    """

    def __init__(self, service: SearchService, app_settings: AppSettings, ids: EntryIds, access: Access):
        self._service = service
        self._settings = app_settings
        self._ids = ids
        self._library = Library(service, app_settings.video_roots)
        self._describer = Describer(ids, app_settings.is_public)
        self._adding = threading.BoundedSemaphore(settings.MAX_UPLOADS)
        self.router = APIRouter(tags=["videos"], responses=schemas.problems(401, 403, 421, 422, 500, 503))
        read, write = [Depends(access.read)], [Depends(access.write)]
        known, written = schemas.problems(404), schemas.problems(400, 404, 413, 429)
        route = self.router.add_api_route
        route("/videos", self.list, name="list_videos", dependencies=read)
        added = {200: {"model": schemas.VideoDetails, "description": "The index held the file."}, **written}
        route(
            "/videos",
            self.add,
            name="add_video",
            methods=["POST"],
            dependencies=write,
            status_code=201,
            responses=added,
        )
        route("/videos/{id}", self.get, name="get_video", dependencies=read, responses=known)
        route(
            "/videos/{id}", self.change, name="change_video", methods=["PATCH"], dependencies=write, responses=written
        )
        route(
            "/videos/{id}", self.delete, name="delete_video", methods=["DELETE"], dependencies=write, responses=written
        )

    def list(
        self,
        where: Where = "",
        facet: Chosen = [],  # noqa: B006 - FastAPI copies it
        order: Annotated[Order, Query(description="By time of the last change, or by path.")] = "newest",
        k: PageSize = 50,
        offset: Offset = 0,
    ) -> schemas.VideoPage:
        """Return a page of the files of the index."""
        condition = where_of(self._service, self._settings.is_public, where, facet)
        try:
            files, total = self._library.page(condition, order, k, offset)
        except USER_ERRORS as error:
            raise http_error(error) from error
        videos = [schemas.Video(**self._describe(file)) for file in files]
        next_offset = offset + k if offset + k < total else None
        return schemas.VideoPage(videos=videos, total=total, offset=offset, next_offset=next_offset)

    def get(self, id: EntryId) -> schemas.VideoDetails:  # noqa: A002 - the name of the parameter in requests
        """Return a file of the index with its segments."""
        return self._details(self._ids.segment(id).path)

    def add(self, new: schemas.NewVideo, response: Response) -> schemas.VideoDetails:
        """Add a video file of the server to the index. Encoding it takes seconds."""
        if not self._adding.acquire(blocking=False):
            raise busy(TOO_MANY)
        try:
            path = self._library.resolve(new.path)
            if not self._library.add(path):
                response.status_code = 200
            return self._details(path)
        except PermissionError as error:
            raise ApiError(403, str(error), "forbidden") from error
        except USER_ERRORS as error:
            raise http_error(error) from error
        finally:
            self._adding.release()

    def change(self, id: EntryId, new: schemas.NewMetadata) -> schemas.VideoDetails:  # noqa: A002 - as in `get`
        """Set values of your own columns of a file."""
        path = self._ids.segment(id).path
        try:
            self._library.set_metadata(path, new.metadata)
        except USER_ERRORS as error:
            raise http_error(error) from error
        return self._details(path)

    def delete(self, id: EntryId) -> schemas.Deleted:  # noqa: A002 - as in `get`
        """Remove a file from the index; it stays on the disk."""
        path = self._ids.segment(id).path
        try:
            deleted = self._library.delete(path)
        except USER_ERRORS as error:
            raise http_error(error) from error
        self._ids.forget(path)
        return schemas.Deleted(deleted=deleted)

    def _details(self, path: str) -> schemas.VideoDetails:
        try:
            file = self._library.get(path)
        except USER_ERRORS as error:
            raise http_error(error) from error
        if file is None:
            raise ApiError(404, "The index no longer holds this video.", "unknown_id")
        segments = [
            schemas.Segment(id=self._ids.make(segment), start=segment.start, end=segment.end)
            for segment in file.segments
        ]
        return schemas.VideoDetails(**self._describe(file), segments=segments)

    def _describe(self, file: IndexedFile) -> dict:
        return {
            "id": self._ids.make(VideoSegment(file.path)),
            "duration": file.duration,
            "size": file.size,
            "modified": format_time(file.modified),
            "entries": file.num_entries,
            **self._describer.names(file.path),
            **self._describer.values(file.metadata),
        }


__all__ = ["LibraryRoutes"]
