"""Write the owner's columns into an index: values of a table, words of subtitle files, tags of video files."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..stores.index import VideoIndex
from ..stores.results import FileState
from .find_videos import FoundVideos
from .subtitles import SUBTITLE_COLUMNS, SubtitleReader
from .tags import TAG_COLUMNS, read_tags


def write_own_columns(
    index: VideoIndex,
    found: FoundVideos,
    known: Mapping[str, FileState],
    table: Mapping[str, Mapping[str, Any]],
    table_columns: Mapping[str, str],
    *,
    with_subtitles: bool = False,
    with_tags: bool = False,
    num_threads: int | None = None,
) -> list[str]:
    """Set values of the owner's columns in one pass over an index, and write only the entries whose values change.

    Memory holds the paths and these columns of all entries.

    Args:
        index (`VideoIndex`): index that holds the videos.
        found (`FoundVideos`): videos whose subtitles and tags are read.
        known (`Mapping[str, FileState]`): files of the index before the videos were indexed. A tag replaces a value
            only if its file has changed since.
        table (`Mapping[str, Mapping[str, Any]]`): path -> values by column, see [`read_metadata`]. Files that the
            index does not hold are ignored.
        table_columns (`Mapping[str, str]`): columns of the table, name -> type.
        with_subtitles (`bool`): read the subtitle files beside the videos, see [`SubtitleReader`].
        with_tags (`bool`): read the tags of the video files, see [`read_tags`].
        num_threads (`int`, *optional*): files whose tags are read at the same time.

    Returns:
        `list[str]`: subtitle files and tags that cannot be used, one line each. The values in the index stay.

    Raises:
        ValueError: a column exists with another type, or a value is not valid.
        OSError: the index cannot be read or written.
    """
    columns = dict(table_columns)
    videos = {video.path: video for video in found.videos}
    reader = SubtitleReader()
    tags: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    if with_subtitles:
        columns |= SUBTITLE_COLUMNS
    if with_tags:
        columns |= TAG_COLUMNS
        with ThreadPoolExecutor(num_threads) as pool:
            for path, (values, problems_of_file) in zip(videos, pool.map(read_tags, videos), strict=True):
                tags[path] = values
                problems += problems_of_file

    def find_values(row: Mapping[str, Any]) -> dict[str, Any]:
        path, values = row["path"], dict(table.get(row["path"], {}))
        if path in videos:
            if with_subtitles:
                values |= reader.values(path, row["start"], row["end"])
            is_changed = path in known and known[path][:2] != (videos[path].size, videos[path].modified)
            values |= {name: tag for name, tag in tags.get(path, {}).items() if is_changed or row[name] is None}
        return values

    index.add_columns(columns)
    # All are read before the first write: the versions that writes replace are removed from the disk after a while.
    for batch in list(index.scan(["key", "path", "start", "end", *columns])):
        changed = {}
        for row in batch.to_pylist():
            held = {name: row[name] for name in columns}
            if (new := {**held, **find_values(row)}) != held:
                changed[row["key"]] = new
        index.set_entry_metadata(changed)
    return [*problems, *(f"{file}: {reason}" for file, reason in reader.problems.items())]


__all__ = ["write_own_columns"]
