"""Routes of the HTTP API under `/api/v1`."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any, TypeVar

import anyio
from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request

from modeling_pig import __version__

from ..retrieval.judging import NOTHING_FITS
from ..retrieval.search_options import SearchKeywords
from ..stores.conditions import And, Condition, Not, Or
from ..visualization.text import abridge, readable
from . import schemas, settings
from .describe import Describer
from .errors import (
    BUSY,
    INTERNAL,
    TOO_MANY,
    USER_ERRORS,
    State,
    UnavailableError,
    busy,
    http_error,
    one_line,
    problem_of,
)
from .ids import EntryIds
from .security import Access
from .service import Progress, SearchService, facet_id
from .settings import AppSettings
from .uploads import path_of, receive


T = TypeVar("T")

EXAMPLES = ("a dog runs on a beach", "two people talk at a table", "someone cuts vegetables in a kitchen")
NUM_EXAMPLES = 4  # captions offered as example queries
NDJSON = "application/x-ndjson"

Where = Annotated[
    str,
    Query(max_length=settings.MAX_TEXT, description="Condition, such as `duration < 60 and name like '%holiday%'`."),
]
Chosen = Annotated[
    list[str],
    Query(max_length=settings.MAX_CHOSEN, description="Ids of values of facets: any of the values of each column."),
]
EntryId = Annotated[str, Query(pattern="^[0-9a-f]{32}$", description="Id of an entry or of a file.")]
PageSize = Annotated[int, Query(ge=1, le=settings.MAX_RESULTS, description="Results per page.")]
Offset = Annotated[int, Query(ge=0, le=10**9, description="Results to leave out; beyond the end, the page is empty.")]
MinScore = Annotated[float | None, Query(ge=-1, le=1, allow_inf_nan=False, description="Smallest score.")]
Group = Annotated[bool, Query(description="Group the entries of a file; `k` and `offset` then count files.")]
Collapse = Annotated[bool, Query(description="Show copies of a video as one result, which names them.")]
UPLOAD = {
    "requestBody": {
        "required": True,
        "description": "The bytes of a video file. It is used once and not kept.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def where_of(service: SearchService, is_public: bool, where: str, facet: list[str]) -> str | Condition | None:
    """Return the condition of a request: its filter `where`, and the chosen values of facets.

    Raises:
        HTTPException: the filter is invalid, or names `path` on a server that hides folders (422).
    """
    given = where.strip() or None
    try:
        condition = service.narrow(given, facet)
        fields = {
            field
            for index in service.searcher.indexes
            if (parsed := index.parse_where(given)) is not None
            for field in _fields(parsed)
        }
    except USER_ERRORS as error:
        raise http_error(error) from error
    if is_public and "path" in fields:  # `like` would reveal the path letter by letter
        raise HTTPException(422, "This server hides folders and accepts no filter on path: filter by name.")
    return condition


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


class Api:
    """The routes that search and explain; `router` holds them.

    Args:
        service (`SearchService`): service that searches and explains.
        app_settings (`AppSettings`): settings.
        ids (`EntryIds`): ids of entries.
        access (`Access`): checks of tokens and rates.
    """

    def __init__(self, service: SearchService, app_settings: AppSettings, ids: EntryIds, access: Access):
        self.service = service
        self.settings = app_settings
        self.ids = ids
        self.access = access
        self.describer = Describer(ids, app_settings.is_public)
        self.examples = list(app_settings.examples or _shortest_captions(service.captions) or EXAMPLES)
        self._uploads = threading.BoundedSemaphore(settings.MAX_UPLOADS)
        self._explanations = threading.BoundedSemaphore(settings.MAX_EXPLANATIONS)
        self._searches = anyio.CapacityLimiter(app_settings.max_searches)
        self.router = APIRouter(tags=["search"], responses=schemas.problems(401, 403, 421, 422, 500, 503))
        read, search = [Depends(access.read)], [Depends(access.search)]
        route = self.router.add_api_route
        route("/about", self.about, dependencies=read)
        route("/facets", self.facets, dependencies=read)
        route("/search", self.search, dependencies=search, responses=schemas.problems(404, 429))
        upload: dict[str, Any] = {"methods": ["POST"], "dependencies": search, "openapi_extra": UPLOAD}
        upload["responses"] = schemas.problems(400, 408, 413, 429, 507)
        route("/search", self.search_by_video, response_model=schemas.SearchPage, **upload)
        route("/captions", self.find_captions, response_model=schemas.Captions, **upload)
        route("/explanation", self.explain, dependencies=search, responses=schemas.problems(404, 429))

    def about(self) -> schemas.About:
        """Return facts about the index and its model, and limits of the server."""
        service, message = self.service, ""
        state: State = "ready"
        facts: dict[str, Any] = {"clips": 0, "model": "", "columns": {}, "explains": False}
        try:
            facts = {
                "clips": service.num_clips(),
                "model": service.model_name,
                "columns": service.columns(),
                "explains": service.explains,
            }
        except UnavailableError as error:
            state, message = error.state, str(error)
        except USER_ERRORS as error:
            state, message = "unreadable", one_line(error)
        return schemas.About(
            state=state,
            message=message,
            examples=self.examples,
            captions=len(service.captions),
            is_public=self.settings.is_public,
            allow_write=self.settings.allow_write,
            max_results=settings.MAX_RESULTS,
            max_upload_bytes=self.settings.max_upload_bytes,
            version=__version__,
            **facts,
        )

    def facets(self) -> schemas.Facets:
        """Return the columns by whose values a search can be narrowed, with the number of files per value."""
        try:
            facets = self.service.facets()
        except USER_ERRORS as error:
            raise http_error(error) from error
        described = [
            schemas.Facet(
                column=facet.column,
                values=[
                    schemas.FacetValue(id=facet_id(facet, value), label=abridge(str(readable(value))), count=count)
                    for value, count in facet.counts.items()
                ],
            )
            for facet in facets
        ]
        return schemas.Facets(facets=described)

    async def search(
        self,
        request: Request,
        text: Annotated[
            str | None, Query(max_length=settings.MAX_TEXT, description="What happens in the video.")
        ] = None,
        like: Annotated[
            str | None,
            Query(
                pattern="^[0-9a-f]{32}$", description="Find what is similar to this entry or file, instead of `text`."
            ),
        ] = None,
        k: PageSize = 10,
        offset: Offset = 0,
        where: Where = "",
        facet: Chosen = [],  # noqa: B006 - FastAPI copies it
        min_score: MinScore = None,
        group: Group = False,
        rerank: Annotated[
            int | None,
            Query(
                ge=1, le=10_000, description="Rank so many of the best results again by the interaction of the model."
            ),
        ] = None,
        hybrid_text: Annotated[bool, Query(description="Search the words of `text` in columns of text too.")] = False,
        text_column: Annotated[
            list[str],
            Query(max_length=100, description="Columns that `hybrid_text` searches; by default all of text."),
        ] = [],  # noqa: B006 - FastAPI copies it
        collapse_duplicates: Collapse = False,
        judge: Annotated[
            bool,
            Query(description="Return whether probably no video fits `text`; not with `hybrid_text`."),
        ] = False,
    ) -> schemas.SearchPage:
        """Return a page of results for a sentence, or for an entry of the index, best first.

        Pages have the same order as long as nobody writes to the index.
        """
        if (text is None) == (like is None):
            raise HTTPException(422, "Give exactly one of text and like.")

        def find() -> schemas.SearchPage:
            condition = where_of(self.service, self.settings.is_public, where, facet)
            options: SearchKeywords = {
                "where": condition,
                "min_score": min_score,
                "group": group,
                "collapse_duplicates": collapse_duplicates,
                "rerank": rerank,
                "hybrid_text": hybrid_text and (text_column or True),
            }
            if like is not None:
                segment = self.ids.segment(like)
                return self._page(lambda page: self.service.more_like(segment, **options, **page), k, offset)
            sentence = (text or "").strip()
            found = self._page(lambda page: self.service.search(sentence, **options, **page), k, offset)
            if judge and not hybrid_text:
                found.nothing_fits = self.service.searcher.judge(sentence, condition).nothing_fits
                found.note = f"{NOTHING_FITS.capitalize()}." if found.nothing_fits else None
            return found

        return await self._in_turn(request, find)

    def _page(self, find: Callable[[dict[str, Any]], Any], k: int, offset: int) -> schemas.SearchPage:
        """Return a page of the results that `find` returns for `k` and `offset`."""
        try:
            if offset >= self.service.num_clips():
                return schemas.SearchPage(results=[], offset=offset, next_offset=None)
            if offset + k > settings.MAX_DEPTH:
                deepest = settings.MAX_DEPTH
                raise HTTPException(422, f"Pages reach the best {deepest} results: narrow the search with where.")
            results = find({"k": k, "offset": offset})
        except USER_ERRORS as error:
            raise http_error(error) from error
        next_offset = offset + k if len(results) == k else None
        return schemas.SearchPage(results=self.describer.results(results), offset=offset, next_offset=next_offset)

    async def search_by_video(
        self,
        request: Request,
        k: PageSize = 10,
        offset: Offset = 0,
        where: Where = "",
        facet: Chosen = [],  # noqa: B006 - FastAPI copies it
        min_score: MinScore = None,
        group: Group = False,
        collapse_duplicates: Collapse = False,
    ) -> Response:
        """Return a page of results for a video file that is sent as the body of the request, best first.

        With `Accept: application/x-ndjson`, the response is one JSON object per line: `{"stage": ...}` per stage as it
        starts, then the page or `{"error": ...}`.
        """
        condition = await run_in_threadpool(where_of, self.service, self.settings.is_public, where, facet)
        options: SearchKeywords = {"where": condition, "min_score": min_score, "group": group}
        options["collapse_duplicates"] = collapse_duplicates

        def find(path: str, report: Progress) -> schemas.SearchPage:
            return self._page(lambda page: self.service.like(path, report, **options, **page), k, offset)

        return await self._with_upload(request, find)

    async def find_captions(self, request: Request, k: PageSize = 10) -> Response:
        """Return the captions of the server that fit a video file best; it is sent as the body of the request.

        With `Accept: application/x-ndjson`, the response is one JSON object per line, as for a search.
        """

        def find(path: str, report: Progress) -> schemas.Captions:
            return schemas.Captions.model_validate({"captions": self.service.fitting_captions(path, k, report)})

        return await self._with_upload(request, find)

    def explain(
        self,
        id: EntryId,  # noqa: A002 - the name of the parameter in requests
        text: Annotated[str, Query(max_length=settings.MAX_TEXT, description="The query.")],
    ) -> schemas.Explanation:
        """Explain why a query found a segment."""
        segment = self.ids.segment(id)
        if not self._explanations.acquire(blocking=False):
            raise busy(TOO_MANY)
        try:
            return schemas.Explanation(**self.service.explain(segment, text.strip()))
        except USER_ERRORS as error:
            raise http_error(error) from error
        finally:
            self._explanations.release()

    async def _in_turn(self, request: Request, function: Callable[[], T]) -> T:
        """Run a function in a thread when it is its turn, unless the client disconnects before.

        Raises:
            HTTPException: too many requests wait (503).
        """
        if self._searches.statistics().tasks_waiting >= settings.MAX_WAITING:
            raise busy(BUSY)
        work = asyncio.ensure_future(anyio.to_thread.run_sync(function, limiter=self._searches))
        leaving = asyncio.ensure_future(_wait_for_disconnect(request))
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()  # what runs in a thread ends there
                raise HTTPException(400, "The connection was closed.")
            return work.result()
        finally:
            leaving.cancel()
            work.cancel()

    async def _with_upload(self, request: Request, find: Callable[[str, Progress], Any]) -> Response:
        """Receive a video, and respond with what `find` returns for its path."""
        if not self._uploads.acquire(blocking=False):
            raise busy(TOO_MANY)
        try:
            file = await receive(request, self.settings.max_upload_bytes)
        except BaseException:
            self._uploads.release()
            raise
        loop = asyncio.get_running_loop()
        messages: asyncio.Queue[tuple[int, dict[str, Any]] | None] = asyncio.Queue()

        def send(message: tuple[int, dict[str, Any]] | None) -> None:
            loop.call_soon_threadsafe(messages.put_nowait, message)

        def work() -> None:  # runs to its end even if the client disconnects
            status, body = 500, {"error": INTERNAL, "code": "internal"}
            try:
                with file:  # the upload is removed before the last line is sent
                    found = find(path_of(file), lambda stage: send((100, {"stage": stage})))
                    status, body = 200, found.model_dump(mode="json")
            except HTTPException as error:
                status, body = error.status_code, problem_of(error)
            except UnavailableError as error:
                status, body = 503, {"error": str(error), "code": error.state}
            except USER_ERRORS as error:
                failure = http_error(error)
                status, body = failure.status_code, problem_of(failure)
            finally:
                send((status, body))
                send(None)

        loop.run_in_executor(None, work).add_done_callback(lambda _: self._uploads.release())

        async def lines() -> AsyncIterator[str]:
            while (message := await messages.get()) is not None:
                yield json.dumps(message[1]) + "\n"

        if NDJSON in request.headers.get("accept", ""):
            return StreamingResponse(lines(), media_type=NDJSON)
        last: tuple[int, dict[str, Any]] = (500, {})
        while (message := await messages.get()) is not None:
            last = message
        return JSONResponse(last[1], last[0])


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _shortest_captions(captions: list[str]) -> list[str]:
    """Split the captions into `NUM_EXAMPLES` runs and return the shortest of each run, so that examples differ."""
    size = -(-len(captions) // NUM_EXAMPLES) or 1
    return [min(captions[first : first + size], key=len) for first in range(0, len(captions), size)]


__all__ = ["Api", "where_of"]
