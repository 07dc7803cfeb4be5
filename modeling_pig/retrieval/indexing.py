"""Update an index from video files: encode new and changed files, remove deleted files."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import BinaryIO

import torch
from tqdm import tqdm

from ..encoding.encoder import Encoder
from ..encoding.video_segment import ShotRule
from ..encoding.videos import EncodedFile, encode_files
from ..files import hash_file, is_content_id, make_content_id
from ..remote import is_gone, read_with
from ..stores.columns import ID
from ..stores.index import VideoEntry, VideoIndex, upsert_whole_files
from ..stores.results import FileState
from ..video_decoding_pig import VideoDecodingError
from .find_videos import FoundVideo, FoundVideos, find_videos
from .segments import Segmentation, segmentation_of


# Encoded files are written together. Seconds between two writes: PAUSE times the seconds since the start of the run,
# within MIN_PAUSE and MAX_PAUSE. So a kill loses little work, and a long run leaves few versions of the index.
MIN_PAUSE, PAUSE, MAX_PAUSE = 0.5, 0.02, 30.0
MAX_WAITING = 10_000  # entries that may wait to be written; beyond that, encoding pauses
FILES_PER_WRITE = 1000  # for writes without encoding


@dataclass
class IndexingReport:
    """Result of [`index_videos`].

    Attributes:
        new, changed, unchanged (`int`): files encoded for the first time, encoded again, and not encoded.
        moved (`int`): files that were moved or renamed, and keep their embeddings.
        removed (`int`): deleted files whose entries were removed from the index.
        deleted (`int`): deleted files whose entries are still in the index.
        failures (`list[VideoDecodingError]`): files that failed, with the reasons.
        kept (`int`): failed files whose previous entries are still in the index.
        passed_over (`Counter[str]`): number of files that are not videos, by extension, see [`FoundVideos`].
        interrupted (`bool`): whether Ctrl-C stopped the run. Then files that were not reached are not counted, nor are
            the files of other processes.
    """

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    moved: int = 0
    removed: int = 0
    deleted: int = 0
    failures: list[VideoDecodingError] = field(default_factory=list)
    kept: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)
    interrupted: bool = False


def index_videos(
    encoder: Encoder,
    index: VideoIndex,
    sources: FoundVideos | str | os.PathLike | Iterable[str | os.PathLike],
    *,
    segmentation: Segmentation | ShotRule | None = None,
    by_hash: bool = False,
    again: Collection[str] = (),
    prune: bool = False,
    ann_index: bool = True,
    batch_size: int = 16,
    num_threads: int | None = None,
    progress: bool = False,
    known: dict[str, FileState] | None = None,
) -> IndexingReport:
    """Encode the videos that are not in an index or have changed, in bounded memory.

    A file that was moved or renamed keeps its embeddings: a new file with the content of an indexed one that is gone.
    The content is known by its hash, or, if the index holds none, by size and time, or by [`make_content_id`].

    Each file has an `id` in the index: its owner's ([`VideoIndex.set_metadata`]), else [`make_content_id`].

    However a run ends, all files written so far stay in the index, and the next run encodes the others. If
    `torch.distributed` is initialised, each process encodes its share of the files and writes it into the same index;
    call this function with the same arguments in all processes.

    Args:
        encoder (`Encoder`): model, see [`load_encoder`].
        index (`VideoIndex`): index of the same model. If it stores context tokens, they are written too.
        sources (`FoundVideos`, or the argument of [`find_videos`]): videos that the index is to hold.
        segmentation (`Segmentation` or `ShotRule`, *optional*): rule by which videos are split; by default the one
            of the index ([`segmentation_of`]). Unchanged files keep their segments.
        by_hash (`bool`): detect changed files by content instead of size and time. Reads all files that are in the
            index.
        again (`Collection[str]`): absolute paths of files that are encoded again, even if they are unchanged.
        prune (`bool`): remove deleted files from the index: those that `sources` covers but that do not exist. All
            other files stay in any case.
        ann_index (`bool`): build the ANN index at the end, if there are enough entries.
        batch_size (`int`): segments per forward pass.
        num_threads (`int`, *optional*): files decoded at the same time, one per core by default.
        progress (`bool`): show a progress bar.
        known (`dict[str, FileState]`, *optional*): `index.files()`, if you have just read them.

    Returns:
        [`IndexingReport`]: counts of all processes in the process of rank 0; counts of this process in the others.

    Raises:
        ValueError: a source contains no videos.
        OSError: this process cannot write the index; at rank 0, also if another process failed.
    """
    found = sources if isinstance(sources, FoundVideos) else find_videos(sources)
    rank, world_size = _rank_and_world_size()
    known = index.files() if known is None else known
    share = [video for video in found.videos if _hash_path(video.path) % world_size == rank]
    progress = progress and rank == 0
    rule = segmentation or segmentation_of(index.info)
    report, problem = IndexingReport(), None
    try:
        outdated = _find_outdated(index, share, known, by_hash, progress)
        encode_again = set(again).difference(outdated)
        outdated += [video.path for video in share if video.path in encode_again and video.path in known]
        unchanged = {video.path for video in share}.difference(outdated)
        report.unchanged = len(unchanged)
        moved = _find_moved([video for video in share if video.path not in known], known)
        _move(index, moved, {video.path: video.modified for video in share})
        report.moved = len(moved)
        new_paths = set(moved.values())
        outdated = [path for path in outdated if path not in new_paths]
        _add_ids(index, [path for path in unchanged if known[path].id is None])
        encoded = encode_files(
            encoder,
            outdated,
            report.failures,
            rule if isinstance(rule, ShotRule) else rule.split,
            by_hash,
            batch_size,
            num_threads,
            with_context=index.info.num_context_tokens is not None,
        )
        title = "indexing" if world_size == 1 else f"indexing, share 1 of {world_size}"
        with tqdm(total=len(outdated), desc=title, unit="video", disable=not progress) as bar:
            writer = _Writer(index, known, report, bar)
            try:
                with closing(encoded):
                    for file in encoded:
                        writer.add(file)
            except KeyboardInterrupt:
                report.interrupted = True
            writer.close()
    except OSError as error:
        num_done = report.new + report.changed
        problem = OSError(f"{error} ({num_done} videos are indexed; run the same command again to resume)")
    if world_size > 1 and not report.interrupted:  # Ctrl-C also reaches the other processes, which may have ended
        problem = _gather(report, problem)
    if problem is not None:
        raise problem
    if rank == 0:
        report.failures += found.failures
        report.passed_over = found.passed_over
        report.kept = sum(failure.path in known for failure in report.failures)
        existing = {video.path for video in found.videos}
        gone = set(known) if world_size == 1 else set(index.files())  # another process may have moved files
        deleted = [path for path in gone - moved.keys() if path not in existing and found.covers(path)]
        _finish(index, deleted, prune, ann_index, report)
    return report


def _rank_and_world_size() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; (0, 1) without `torch.distributed`."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _find_outdated(
    index: VideoIndex, videos: list[FoundVideo], known: dict[str, FileState], by_hash: bool, progress: bool
) -> list[str]:
    """Return the paths of the videos that must be encoded.

    With `by_hash`, also update size, time and hash of unchanged files in the index.
    """
    if not by_hash:
        return [v.path for v in videos if v.path not in known or known[v.path][:2] != (v.size, v.modified)]
    indexed = [video for video in videos if video.path in known]
    outdated = [video.path for video in videos if video.path not in known]
    updates: dict[str, dict] = {}  # new values of the entries of unchanged files, by path
    with ThreadPoolExecutor() as pool:
        try:
            hashes = pool.map(partial(_or_none, hash_file), [video.path for video in indexed])
            bar = tqdm(indexed, "hashing", unit="video", disable=not progress)
            for video, content_hash in zip(bar, hashes, strict=True):
                state = known[video.path]
                if content_hash is None or not _is_same(state, video, content_hash):
                    outdated.append(video.path)
                elif state[:3] != (video.size, video.modified, content_hash):
                    updates[video.path] = {
                        "size": video.size,
                        "modified": video.modified,
                        "content_hash": content_hash,
                    }
        finally:
            pool.shutdown(cancel_futures=True)
    if updates:
        _update_entries(index, known, updates)
    return outdated


def _find_moved(new: list[FoundVideo], known: dict[str, FileState]) -> dict[str, str]:
    """Return the files that were moved: path in the index -> new path.

    Only files whose size fits are hashed, or compared by an identifier made from their content.
    """
    sizes = {video.size for video in new}
    gone: dict[int, list[str]] = {}  # size -> paths in the index whose files are gone
    for path, state in known.items():
        if state.size is not None and state.size in sizes and is_gone(path):
            gone.setdefault(state.size, []).append(path)
    moved: dict[str, str] = {}
    for video in new:
        candidates = [path for path in gone.get(video.size, ()) if path not in moved]
        by_hash = any(_is_hash(known[path].content_hash) for path in candidates)
        content_hash = _or_none(hash_file, video.path) if by_hash else None
        content_id = _or_none(make_content_id, video.path) if candidates else None
        for path in candidates:
            if _is_same(known[path], video, content_hash, content_id):
                moved[path] = video.path
                break
    return moved


def _move(index: VideoIndex, moved: dict[str, str], modified: dict[str, int]) -> None:
    """Write the entries of moved files under their new paths, with their new times, then remove the old ones."""
    paths = list(moved)
    for start in range(0, len(paths), FILES_PER_WRITE):
        old = paths[start : start + FILES_PER_WRITE]
        batch = index.entries(old)
        entries = [
            replace(entry, path=moved[entry.path], modified=modified[moved[entry.path]]) for entry in batch.entries
        ]
        index.upsert(entries, batch.embeddings, batch.context_embeds)
        index.delete(old)


def _add_ids(index: VideoIndex, paths: list[str]) -> None:
    """Give files of an index that an earlier version wrote their `id`."""
    if paths and index.adds_ids():
        ids = {path: _or_none(make_content_id, path) for path in paths}
        index.set_metadata({path: {ID: content_id} for path, content_id in ids.items() if content_id is not None})


def _update_entries(index: VideoIndex, known: dict[str, FileState], updates: dict[str, dict]) -> None:
    """Change fields of the entries of files, in one pass over the index.

    A file that another process writes at the same time may be missed; the next run updates it.
    """
    embedded = (
        found._replace(entry=replace(found.entry, **updates[found.entry.path]))
        for batch in index.batches()
        for found in batch.embedded()
        if found.entry.path in updates
    )
    upsert_whole_files(index, embedded, {path: known[path].num_entries for path in updates}, FILES_PER_WRITE)


def _is_same(state: FileState, video: FoundVideo, content_hash: str | None, content_id: str | None = None) -> bool:
    """Return whether a file has the indexed content: by its hash, else by size and time or [`make_content_id`]."""
    if _is_hash(state.content_hash):
        return state.content_hash == content_hash
    has_same_id = content_id is not None and state.content_hash == content_id
    return has_same_id or state[:2] == (video.size, video.modified)


def _is_hash(content_hash: str | None) -> bool:
    return content_hash is not None and not is_content_id(content_hash)


def _or_none(hash_function: Callable[[str | BinaryIO], str], path: str) -> str | None:
    try:
        return read_with(hash_function, path)
    except (OSError, VideoDecodingError):
        return None  # decoding the file will report the reason


def make_entries(file: EncodedFile) -> list[VideoEntry]:
    """Return the index entries of an encoded file, one per segment."""
    return [
        VideoEntry(*segment, file.duration, file.size, file.modified, file.content_hash or file.content_id)
        for segment in file.segments
    ]


class _Writer:
    """Write encoded files into an index, many per write, in a separate thread while the model encodes.

    The report and the progress bar count files once they are written.

    Args:
        index (`VideoIndex`): index to write.
        known (`dict[str, FileState]`): files in the index before the run.
        report (`IndexingReport`): report whose counts are increased.
        bar (`tqdm`): progress bar.
    """

    def __init__(self, index: VideoIndex, known: dict[str, FileState], report: IndexingReport, bar: tqdm):
        self._index, self._known, self._report, self._bar = index, known, report, bar
        self._thread = ThreadPoolExecutor(1)
        self._waiting: list[EncodedFile] = []
        self._num_waiting = 0  # entries of the files in `_waiting`
        self._write_in_progress: Future[list[EncodedFile]] | None = None
        self._first_time = self._last_time = time.monotonic()

    def add(self, file: EncodedFile) -> None:
        """Add a file to the next write; start the write if it is due.

        Raises:
            OSError: a previous write failed.
        """
        self._waiting.append(file)
        self._num_waiting += len(file.segments)
        if self._write_in_progress is not None and self._write_in_progress.done():
            self._finish_write()
        now = time.monotonic()
        pause = min(max(MIN_PAUSE, PAUSE * (now - self._first_time)), MAX_PAUSE)
        is_due = self._write_in_progress is None and now >= self._last_time + pause
        if is_due or self._num_waiting >= MAX_WAITING:
            self._start_write()

    def close(self) -> None:
        """Write all files that wait, and return when they are written."""
        self._start_write()
        self._finish_write()
        self._thread.shutdown()

    def _start_write(self) -> None:
        self._finish_write()
        files, self._waiting, self._num_waiting = self._waiting, [], 0
        self._last_time = time.monotonic()
        self._write_in_progress = self._thread.submit(self._write, files)

    def _write(self, files: list[EncodedFile]) -> list[EncodedFile]:
        entries = [entry for file in files for entry in make_entries(file)]
        if entries:
            contexts = [file.context_embeds for file in files if file.context_embeds is not None]
            self._index.upsert(
                entries,
                torch.cat([file.embeddings for file in files]),
                torch.cat(contexts) if contexts else None,
                content_ids={file.path: file.content_id for file in files},
            )
        return files

    def _finish_write(self) -> None:
        """Wait for the write in progress, and count its files."""
        if self._write_in_progress is None:
            return
        write, self._write_in_progress = self._write_in_progress, None
        files = write.result()
        num_changed = sum(file.path in self._known for file in files)
        self._report.changed += num_changed
        self._report.new += len(files) - num_changed
        num_failed = len(self._report.failures)
        self._bar.set_postfix_str(f"{num_failed} failed", refresh=False)
        self._bar.update(self._report.new + self._report.changed + num_failed - self._bar.n)


def _gather(report: IndexingReport, problem: OSError | None) -> OSError | None:
    """Add the reports of all processes to the report of rank 0.

    Returns:
        `OSError`, *optional*: the error to raise. At rank 0, that of another process if this process has none.
    """
    rank, world_size = _rank_and_world_size()
    gathered: list = [None] * world_size
    try:
        torch.distributed.gather_object((report, problem and str(problem)), gathered if rank == 0 else None)
    except RuntimeError as error:  # the connection is closed
        return problem or OSError(f"Another process has stopped ({str(error).splitlines()[0]})")
    for other, message in gathered[1:] if rank == 0 else []:
        for name in ("new", "changed", "unchanged", "moved"):
            setattr(report, name, getattr(report, name) + getattr(other, name))
        report.failures += other.failures
        if message and problem is None:
            problem = OSError(f"Another process failed: {message}")
    return problem


def _finish(index: VideoIndex, deleted: list[str], prune: bool, ann_index: bool, report: IndexingReport) -> None:
    """Remove deleted files from the index or count them, and optimise the index."""
    if report.interrupted:
        report.deleted = len(deleted)
        return
    if prune:
        for start in range(0, len(deleted), FILES_PER_WRITE):
            index.delete(deleted[start : start + FILES_PER_WRITE])
        report.removed = len(deleted)
    else:
        report.deleted = len(deleted)
    index.optimize(ann_index)


def _hash_path(path: str) -> int:
    """Hash a path, equally in all processes.

    A cryptographic hash spreads consecutive names evenly over the processes; a checksum does not.
    """
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest())


__all__ = ["IndexingReport", "index_videos", "make_entries"]
