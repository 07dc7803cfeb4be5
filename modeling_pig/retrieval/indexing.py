"""Keeps an index in step with the videos on disk: encodes what is new or changed, and removes what is gone."""

import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch
from tqdm import tqdm

from modeling_pig import PigForRetrieval, PigProcessor, PigVideoModel

from ..encoding.videos import EncodedFile, encode_files
from ..files import hash_file
from ..stores.index import FileState, VideoEntry, VideoIndex, upsert_whole_files
from ..video_decoding_pig import VideoDecodingError
from .find_videos import FoundVideo, FoundVideos, find_videos
from .segments import Segmentation


# Files are written together once this many seconds have passed since the last time, or this part of the run until then
# if it is more: a kill costs little, and a long run does not leave more versions of the index than it needs.
MIN_PAUSE, PAUSE, MAX_PAUSE = 0.5, 0.02, 30.0
MAX_WAITING = 10_000  # entries that wait to be written; then the model does
FILES_PER_WRITE = 1000  # where nothing has to be encoded


@dataclass
class IndexingReport:
    """What became of the videos.

    new, changed, unchanged (`int`): files encoded for the first time or once more, and those left as they are.
    removed (`int`): files taken out of the index, because they are gone.
    gone (`int`): files that are gone and still in the index.
    failures (`list[VideoDecodingError]`): files that were set aside.
    kept (`int`): those of them of which the index still holds what it held before.
    interrupted (`bool`): by Ctrl-C; what was not reached is in none of the counts, nor, where several processes
        encode, what others than this one did.
    """

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    gone: int = 0
    failures: list[VideoDecodingError] = field(default_factory=list)
    kept: int = 0
    interrupted: bool = False


def index_videos(
    model: PigVideoModel | PigForRetrieval,
    processor: PigProcessor,
    index: VideoIndex,
    videos: FoundVideos | str | os.PathLike | Iterable[str | os.PathLike],
    *,
    segmentation: Segmentation | None = None,
    by_hash: bool = False,
    prune: bool = False,
    batch_size: int = 16,
    num_threads: int | None = None,
    progress: bool = False,
) -> IndexingReport:
    """Encodes the videos that an index does not hold, or holds in another state, in bounded memory.

    What is written stays, however the run ends, and the next one goes on from there. Where `torch.distributed` is
    initialised, each process encodes its share and writes it into the one index; all must be given the same.

    Args:
        index (`VideoIndex`): made for the same model.
        videos (`FoundVideos`, or what [`find_videos`] takes): the videos that the index is to hold.
        segmentation (`Segmentation`, *optional*): what makes windows of long videos. Unchanged files keep theirs.
        by_hash (`bool`): tell by its content whether a file has changed, not by size and time. Reads all files that
            the index holds.
        prune (`bool`): remove files from the index that are gone from the places searched. Others stay in any case.
        batch_size (`int`): windows a forward pass.
        num_threads (`int`, *optional*): files decoded at a time; by default one a core.
        progress (`bool`): show a bar.

    Returns:
        [`IndexingReport`]: in the first process that of all of them, in the others their own.

    Raises:
        ValueError: a place without videos.
        OSError: the index cannot be written; or, in the first process, in another one.
    """
    found = videos if isinstance(videos, FoundVideos) else find_videos(videos)
    rank, num_processes = _place_among_processes()
    held = index.files()
    mine = [video for video in found.videos if _hash(video.path) % num_processes == rank]
    progress = progress and rank == 0
    report, problem = IndexingReport(), None
    try:
        wanted = _compare(index, mine, held, by_hash, progress)
        report.unchanged = len(mine) - len(wanted)
        encoded = encode_files(
            model,
            processor,
            wanted,
            report.failures,
            (segmentation or Segmentation()).split,
            by_hash,
            batch_size,
            num_threads,
        )
        title = "indexing" if num_processes == 1 else f"indexing, share 1 of {num_processes}"
        with tqdm(total=len(wanted), desc=title, unit="video", disable=not progress) as bar:
            writer = _Writer(index, held, report, bar)
            try:
                with closing(encoded):
                    for file in encoded:
                        writer.add(file)
            except KeyboardInterrupt:
                report.interrupted = True
            writer.close()
    except OSError as error:
        done = report.new + report.changed
        problem = OSError(f"{error} ({done} videos are done, and the same command goes on from there)")
    if num_processes > 1 and not report.interrupted:  # Ctrl-C reaches the others as well: they may be gone
        problem = _gather(report, problem)
    if problem is not None:
        raise problem
    if rank == 0:
        report.failures += found.failures
        report.kept = sum(failure.path in held for failure in report.failures)
        _finish(index, found, held, prune, report)
    return report


def _place_among_processes() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _compare(
    index: VideoIndex, videos: list[FoundVideo], held: dict[str, FileState], by_hash: bool, progress: bool
) -> list[str]:
    """The videos that are to be encoded. With hashes, what is otherwise known of the unchanged ones is set right."""
    if not by_hash:
        return [v.path for v in videos if v.path not in held or held[v.path][:2] != (v.size, v.modified)]
    known = [video for video in videos if video.path in held]
    wanted = [video.path for video in videos if video.path not in held]
    facts: dict[str, dict] = {}  # of unchanged files, where the index holds others
    with ThreadPoolExecutor() as pool:
        try:
            hashes = pool.map(_hash_or_none, [video.path for video in known])
            for video, digest in zip(tqdm(known, "hashing", unit="video", disable=not progress), hashes, strict=True):
                state = held[video.path]
                if digest is None or not _is_same(state, video, digest):
                    wanted.append(video.path)
                elif state[:3] != (video.size, video.modified, digest):
                    facts[video.path] = {"size": video.size, "modified": video.modified, "content_hash": digest}
        finally:
            pool.shutdown(cancel_futures=True)
    if facts:
        _renew(index, held, facts)
    return wanted


def _renew(index: VideoIndex, held: dict[str, FileState], facts: dict[str, dict]) -> None:
    """Sets right what is known of these files, in one pass over the index. One that another process is writing
    meanwhile may be passed over, for the next run."""
    pairs = (
        (replace(entry, **facts[entry.path]), embed)
        for batch in index.batches()
        for entry, embed in zip(*batch, strict=True)
        if entry.path in facts
    )
    upsert_whole_files(index, pairs, {path: held[path].num_entries for path in facts}, FILES_PER_WRITE)


def _is_same(known: FileState, video: FoundVideo, digest: str) -> bool:
    """Whether a file has the content that was indexed; where no hash of that is known, size and time have to do."""
    if known.content_hash is None:
        return known[:2] == (video.size, video.modified)
    return known.content_hash == digest


def _hash_or_none(path: str) -> str | None:
    try:
        return hash_file(path)
    except (OSError, VideoDecodingError):
        return None  # decoding it will tell what is wrong


def make_entries(file: EncodedFile) -> list[VideoEntry]:
    """Return the index entries of an encoded file, one per segment."""
    return [
        VideoEntry(*segment, file.duration, file.size, file.modified, file.content_hash) for segment in file.segments
    ]


class _Writer:
    """Writes encoded files into the index, many at a time, in a thread of its own: the model need not wait.

    Counts in the report, and shows, what has been written, and nothing before.
    """

    def __init__(self, index: VideoIndex, held: dict[str, FileState], report: IndexingReport, bar: tqdm):
        self._index, self._held, self._report, self._bar = index, held, report, bar
        self._thread = ThreadPoolExecutor(1)
        self._waiting: list[EncodedFile] = []
        self._num_waiting = 0  # entries
        self._writing: Future[list[EncodedFile]] | None = None
        self._started = self._last = time.monotonic()

    def add(self, file: EncodedFile) -> None:
        """Raises `OSError` where what was added before could not be written."""
        self._waiting.append(file)
        self._num_waiting += len(file.segments)
        if self._writing is not None and self._writing.done():
            self._settle()
        now = time.monotonic()
        pause = min(max(MIN_PAUSE, PAUSE * (now - self._started)), MAX_PAUSE)
        if self._num_waiting >= MAX_WAITING or (self._writing is None and now >= self._last + pause):
            self._start()

    def close(self) -> None:
        """Writes what is waiting, and returns when it is written."""
        self._start()
        self._settle()
        self._thread.shutdown()

    def _start(self) -> None:
        self._settle()
        files, self._waiting, self._num_waiting = self._waiting, [], 0
        self._last = time.monotonic()
        self._writing = self._thread.submit(self._write, files)

    def _write(self, files: list[EncodedFile]) -> list[EncodedFile]:
        entries = [entry for file in files for entry in make_entries(file)]
        if entries:
            self._index.upsert(entries, torch.cat([file.embeddings for file in files]))
        return files

    def _settle(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            files = writing.result()
            num_changed = sum(file.path in self._held for file in files)
            self._report.changed += num_changed
            self._report.new += len(files) - num_changed
            num_failures = len(self._report.failures)
            self._bar.set_postfix_str(f"{num_failures} set aside", refresh=False)
            self._bar.update(self._report.new + self._report.changed + num_failures - self._bar.n)


def _gather(report: IndexingReport, problem: OSError | None) -> OSError | None:
    """Adds the reports of the other processes to that of the first. The problem to raise: one's own, or in the first
    process that of another."""
    rank, num_processes = _place_among_processes()
    gathered: list = [None] * num_processes
    try:
        torch.distributed.gather_object((report, problem and str(problem)), gathered if rank == 0 else None)
    except RuntimeError as error:  # the connection is closed
        return problem or OSError(f"Another process has stopped ({str(error).splitlines()[0]})")
    for other, message in gathered[1:] if rank == 0 else []:
        for name in ("new", "changed", "unchanged"):
            setattr(report, name, getattr(report, name) + getattr(other, name))
        report.failures += other.failures
        if message and problem is None:
            problem = OSError(f"Another process failed: {message}")
    return problem


def _finish(
    index: VideoIndex, found: FoundVideos, held: dict[str, FileState], prune: bool, report: IndexingReport
) -> None:
    listed = {video.path for video in found.videos}
    gone = [path for path in held if path not in listed and found.would_hold(path)]
    if report.interrupted or not prune:
        report.gone = len(gone)
    else:
        for start in range(0, len(gone), FILES_PER_WRITE):
            index.delete(gone[start : start + FILES_PER_WRITE])
        report.removed = len(gone)
    if not report.interrupted:
        index.optimize()


def _hash(path: str) -> int:
    """The same in every process; consecutive names are spread evenly, as by a checksum they are not."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest())


__all__ = ["IndexingReport", "index_videos"]
