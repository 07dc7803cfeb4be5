"""Search from another program: a client of the HTTP API that has the methods of [`VideoSearcher`]."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Unpack, overload

from huggingface_hub.utils import httpx

from ..retrieval.search_options import FileResult, SearchKeywords, SearchOptions
from ..stores.columns import TIME
from ..stores.results import SearchResult


PAGE = 1000  # results per request, the limit of the API


@dataclass(frozen=True)
class RemoteResult(FileResult):
    """A result of a server. With `group`, `others` holds further segments of the file.

    Args:
        entry_id (`str`): id of the entry in the API, for [`PigClient.thumbnail`] and the like. `path` is the file name
            if the server hides folders.
    """

    entry_id: str = ""


class PigClient:
    """Search an index on a server that `pig app` runs, as [`VideoSearcher`] searches one on this machine.

    Threads may share a client. Errors are those of [`VideoSearcher`]: `ValueError` for what you can correct, `OSError`
    for what the server or the connection cannot do; `PermissionError`, an `OSError`, for a token that is missing,
    wrong or only reads.

    Args:
        url (`str`): address of the app, such as `"http://127.0.0.1:7860"` or `"https://example.org/videos"`.
        token (`str`, *optional*): token of the server; by default `PIG_API_TOKEN` of the environment, if it is set.
        timeout (`float`): seconds to wait for a response. Adding a video and searching by one take long.

    Example:

    ```python
    >>> from modeling_pig import PigClient

    >>> client = PigClient("http://127.0.0.1:7860")
    >>> for result in client.search("a red circle moves left", k=5):
    ...     print(result.rank, round(result.score, 3), result.path)
    ```"""

    def __init__(self, url: str, token: str | None = None, timeout: float = 60.0):
        token = token or os.environ.get("PIG_API_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=f"{url.rstrip('/')}/api/v1/", headers=headers, timeout=timeout)
        self._times: set[str] | None = None  # columns of times

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> "PigClient":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def about(self) -> dict[str, Any]:
        """Return facts about the index and its model, and limits of the server."""
        return self._request("GET", "about")

    @overload
    def search(self, queries: str, **options: Unpack[SearchKeywords]) -> list[SearchResult]: ...

    @overload
    def search(self, queries: list[str], **options: Unpack[SearchKeywords]) -> list[list[SearchResult]]: ...

    def search(
        self, queries: str | list[str], **options: Unpack[SearchKeywords]
    ) -> list[SearchResult] | list[list[SearchResult]]:
        """Find the videos, or segments of videos, nearest to sentences; see [`VideoSearcher.search`].

        Args:
            queries (`str` or `list[str]`): sentence or sentences; each is one request, or more if `k` is above 1000.
            **options: fields of [`SearchOptions`]; `where` as a text.

        Returns:
            `list[SearchResult]`: results, best first, as [`RemoteResult`]. For a list of queries, one such list per
            query.

        Raises:
            ValueError: a sentence is empty, or an option is invalid.
            OSError: the server cannot be reached or cannot search.
        """
        texts = [queries] if isinstance(queries, str) else queries
        found = [self._pages({"text": text}, SearchOptions(**options)) for text in texts]
        return found[0] if isinstance(queries, str) else found

    def search_like(self, video: str | os.PathLike, **options: Unpack[SearchKeywords]) -> list[SearchResult]:
        """Find the videos, or segments of videos, nearest to a video file of this machine, which is sent.

        Args:
            video (`str` or `os.PathLike`): video file.
            **options: fields of [`SearchOptions`], without `rerank` and `hybrid_text`.

        Raises:
            ValueError: the file cannot be decoded, or an option is invalid.
            OSError: the file cannot be read, or the server cannot be reached or cannot search.
        """
        checked = SearchOptions(**options)
        with open(video, "rb") as file:
            page = self._request(
                "POST", "search", params=_parameters(checked, checked.k, checked.offset), content=file
            )
        return self._to_results(page["results"])

    def search_like_entry(self, entry_id: str, **options: Unpack[SearchKeywords]) -> list[SearchResult]:
        """Find the videos, or segments of videos, nearest to an entry or file of the index, without the same file."""
        return self._pages({"like": entry_id}, SearchOptions(**options))

    def videos(self, where: str = "", order: str = "newest") -> Iterator[dict[str, Any]]:
        """Yield the files of the index, as described in the documentation of the API.

        Args:
            where (`str`): condition on the files.
            order (`str`): "newest" or "path".
        """
        offset: int | None = 0
        while offset is not None:
            page = self._request("GET", "videos", params={"where": where, "order": order, "k": PAGE, "offset": offset})
            yield from page["videos"]
            offset = page["next_offset"]

    def add(self, path: str) -> dict[str, Any]:
        """Add a video file of the server to its index, and return its description. Encoding it takes seconds."""
        return self._request("POST", "videos", json={"path": path})

    def set_metadata(self, video_id: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Set values of your own columns of a file, and return its description."""
        values = {name: _to_json(value) for name, value in metadata.items()}
        return self._request("PATCH", f"videos/{video_id}", json={"metadata": values})

    def delete(self, video_id: str) -> int:
        """Remove a file from the index, and return the number of removed entries."""
        return self._request("DELETE", f"videos/{video_id}")["deleted"]

    def thumbnail(self, entry_id: str) -> bytes:
        """Return a picture of an entry or file, as WebP."""
        with self._stream("GET", "thumbnail", params={"id": entry_id}) as response:
            return response.read()

    def download(self, entry_id: str, file: str | os.PathLike) -> None:
        """Write the video file of an entry to a file of this machine."""
        with self._stream("GET", "clip", params={"id": entry_id}) as response, open(file, "wb") as output:
            for part in response.iter_bytes():
                output.write(part)

    def _pages(self, query: dict[str, str], options: SearchOptions) -> list[SearchResult]:
        """Request `k` results, in pages if they are more than a page holds."""
        found: list[SearchResult] = []
        offset: int | None = options.offset
        while offset is not None and len(found) < options.k:
            k = min(options.k - len(found), PAGE)
            page = self._request("GET", "search", params=query | _parameters(options, k, offset))
            found += self._to_results(page["results"])
            offset = page["next_offset"]
        return found

    def _to_results(self, results: Sequence[dict[str, Any]]) -> list[SearchResult]:
        return [self._to_result(result, {}) for result in results]

    def _to_result(self, result: dict[str, Any], first: Mapping[str, Any]) -> RemoteResult:
        """Convert a result; further segments of a file are described by what differs from the first."""
        values = {**first, **result["metadata"]}
        if values and self._times is None:
            self._times = {name for name, kind in self.about()["columns"].items() if kind == TIME}
        metadata = {
            name: datetime.fromisoformat(value) if name in (self._times or ()) else value
            for name, value in values.items()
            if value is not None
        }
        others = tuple(self._to_result(other, values) for other in result["others"])
        path = result["path"] if result["path"] is not None else result["name"]
        facts = {name: result[name] for name in ("rank", "score", "duration", "start", "end")}
        facts["duplicates"] = tuple(result["duplicates"])
        return RemoteResult(path=path, metadata=metadata, others=others, entry_id=result["id"], **facts)

    def _request(self, method: str, path: str, **arguments: Any) -> Any:
        with self._stream(method, path, **arguments) as response:
            response.read()
            return response.json()

    @contextmanager
    def _stream(self, method: str, path: str, **arguments: Any) -> Iterator[Any]:
        """Send a request, and yield its response.

        Raises:
            ValueError, OSError: see [`PigClient`].
        """
        try:
            with self._http.stream(method, path, **arguments) as response:
                if response.is_error:
                    response.read()
                    raise _error_of(response)
                yield response
        except httpx.InvalidURL as error:
            raise ValueError(f"{self._http.base_url} is not a valid address: {error}.") from error
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise OSError(f"The server {self._http.base_url} cannot be reached: {reason}.") from error


def _parameters(options: SearchOptions, k: int, offset: int) -> dict[str, Any]:
    if not isinstance(options.where, str | None):
        raise ValueError("where is a Condition, which cannot be sent: give it as a text.")
    if options.refine:
        raise ValueError("refine needs the videos and their model: search with a VideoSearcher.")
    if not isinstance(options.collapse_duplicates, bool):
        raise ValueError("The server decides what a copy is: give collapse_duplicates=True.")
    names = options.hybrid_text
    columns = [] if isinstance(names, bool) else [names] if isinstance(names, str) else list(names)
    parameters = {
        "k": k,
        "offset": offset,
        "where": options.where,
        "min_score": options.min_score,
        "group": options.group,
        "collapse_duplicates": bool(options.collapse_duplicates),
        "rerank": options.rerank,
        "hybrid_text": bool(names),
        "text_column": columns,
    }
    return {name: value for name, value in parameters.items() if value not in (None, False, [])}


def _to_json(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _error_of(response: Any) -> Exception:
    """Return the error that a response reports."""
    try:
        message = response.json()["error"]
    except (ValueError, KeyError, TypeError):  # not a response of this server
        message = f"The server responds with status {response.status_code}: check its address."
    if response.status_code in (401, 403):
        return PermissionError(message)
    return ValueError(message) if response.status_code == 422 else OSError(message)


__all__ = ["PigClient", "RemoteResult"]
