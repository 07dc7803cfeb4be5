"""Describe results and files as objects of the HTTP API."""

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ..encoding.video_segment import VideoSegment
from ..stores.results import SearchResult
from ..visualization.text import readable
from . import schemas
from .ids import EntryIds
from .settings import MAX_OTHERS


class Describer:
    """Describe results and files.

    Args:
        ids (`EntryIds`): ids of entries.
        is_public (`bool`): hide the folders.
    """

    def __init__(self, ids: EntryIds, is_public: bool):
        self._ids = ids
        self._is_public = is_public

    def results(self, results: Sequence[SearchResult]) -> list[schemas.Result]:
        """Describe results; of further segments, only the columns and metadata that differ from the first."""
        return [self._result(result) for result in results]

    def _result(self, result: SearchResult) -> schemas.Result:
        others = self.results(getattr(result, "others", ())[:MAX_OTHERS])
        values = self.values(result.metadata)
        columns, metadata = values["columns"], values["metadata"]
        for other in others:  # texts may be long
            other.columns = _difference(other.columns, columns)
            other.metadata = _difference(other.metadata, metadata)
        return schemas.Result(
            id=self._ids.make(VideoSegment(result.path, result.start, result.end)),
            rank=result.rank,
            score=result.score,
            duration=result.duration,
            start=result.start,
            end=result.end,
            columns=columns,
            metadata=metadata,
            duplicates=[os.path.basename(path) if self._is_public else path for path in result.duplicates],
            others=others,
            **self.names(result.path),
        )

    def names(self, path: str) -> dict[str, Any]:
        """Return the fields that name a file."""
        folder, name = os.path.split(path)
        hidden = self._is_public
        return {"path": None if hidden else path, "name": name, "folder": "" if hidden else folder}

    @staticmethod
    def values(metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that hold values of columns: texts to show, and values for programs."""
        result = SearchResult(1, 0.0, "", None, metadata=metadata)
        return {
            "columns": {name: readable(value) for name, value in result.shown_metadata.items()},
            "metadata": {
                name: value.isoformat() if isinstance(value, datetime) else value for name, value in metadata.items()
            },
        }


def _difference(values: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that differ from the first; `None` for those that only the first has."""
    names = [*first, *(name for name in values if name not in first)]
    return {name: values.get(name) for name in names if values.get(name) != first.get(name)}


def format_time(nanoseconds: int | None) -> str | None:
    """Return a time in ns since 1970 as ISO 8601 in UTC."""
    if nanoseconds is None:
        return None
    try:
        return datetime.fromtimestamp(nanoseconds // 10**9, UTC).isoformat()
    except (OverflowError, ValueError, OSError):  # no year that a calendar has
        return None


__all__ = ["Describer", "format_time"]
