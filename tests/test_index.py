"""Test `VideoIndex` on LanceDB: results, replacement of files, invalid input, concurrent processes, full disks."""

import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from multiprocessing.process import BaseProcess

import lancedb
import numpy as np
import pyarrow as pa
import pytest
import torch

from modeling_pig.stores import lance_store
from modeling_pig.stores.index import FORMAT, FORMAT_OF_SHOTS, IndexInfo, VideoEntry, VideoIndex
from modeling_pig.stores.records import row_schema
from modeling_pig.stores.results import FileState


INFO = IndexInfo("org/pig", "abc", 8, num_frames=4, model_revision="0123abc")
# Metadata of an index and of a Parquet file as version 0.1.0 wrote them, when `embedding_dim` was named `width`.
RECORD = (
    '{"model": "org/pig", "model_fingerprint": "abc", "width": 8, "num_frames": 4, "model_revision": "0123abc", '
    '"storage": "float16", "created": "2026-11-29T00:55:39.494+00:00", "version": "0.1.0", "format": 2}'
)
UNUSUAL_PATHS = [
    "/v/it's.mp4",
    "/v/100%_[x]*?.mp4",
    '/v/a\nb\t"c".mp4',
    "/v/back\\slash.mp4",
    "/v/日本🎬.mp4",
    "/v/' OR 1=1 --",
]


def random_embeddings(count: int, seed: int = 0) -> torch.Tensor:
    """Draw normalised embeddings (count, 8) that float16 represents exactly, to compare stored values for equality."""
    embeddings = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(embeddings, dim=-1).half().float()


def entries_of(*paths: str) -> list[VideoEntry]:
    return [VideoEntry(path) for path in paths]


def segments_of(path: str, count: int) -> list[VideoEntry]:
    return [VideoEntry(path, 30.0 * i, 30.0 * (i + 1), 30.0 * count, 1, 2) for i in range(count)]


def contents(index: VideoIndex) -> dict[VideoEntry, tuple[float, ...]]:
    return {found.entry: tuple(found.embedding) for batch in index.batches() for found in batch.embedded()}


def test_restored_versions_are_searched(index, monkeypatch):
    """Rows that were deleted, changed or compacted come back in an index that others have open."""
    monkeypatch.setattr(lance_store, "_KEEP_VERSIONS", timedelta(0))
    videos, query = random_embeddings(40), random_embeddings(1, seed=7)
    entries = entries_of(*(f"/{number:02}.mp4" for number in range(40)))
    index.upsert(entries[:20], videos[:20])
    index.upsert(entries[20:], videos[20:])
    expected, reader = index.search(query, 50), VideoIndex(index.uri)
    index.keep_version("before")
    number = index.versions()[-1].number
    assert (index.versions()[-1].num_entries, index.versions()[-1].names) == (40, ["before"])
    assert reader.search(query, 50) == expected

    index.delete([entry.path for entry in entries[5:25]])
    index.upsert(entries[:2], -videos[:2])
    index.upsert(entries_of("/new.mp4"), query)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a time of 0
        index.optimize()
    assert index.versions()[-1].num_entries == len(reader.search(query, 50)[0]) == 21
    reader.restore("before")
    assert index.search(query, 50) == reader.search(query, 50) == expected and len(index) == 40
    index.upsert(entries_of("/new.mp4"), query)
    assert reader.search(query, 1)[0][0].path == "/new.mp4" and len(reader.search(query, 50)[0]) == 41
    index.restore(number)
    assert reader.search(query, 50) == expected

    for name, problem in (("before", "has a version 'before'"), ("7", "cannot be the name"), ("a b", "cannot be")):
        with pytest.raises(ValueError, match=problem):
            index.keep_version(name)
    with pytest.raises(ValueError, match="no version 'after': its named versions are before"):
        index.release_version("after")
    index.release_version("before")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        index.optimize()
    assert number not in [version.number for version in index.versions()] and index.search(query, 50) == expected


def as_contents(entries: list[VideoEntry], embeddings: torch.Tensor) -> dict[VideoEntry, tuple[float, ...]]:
    return {entry: tuple(embedding) for entry, embedding in zip(entries, embeddings.numpy(), strict=True)}


@pytest.fixture
def index(location):
    return VideoIndex(f"{location}/v.lance", INFO)


# A test that takes too long in object storage, or holds for disks only.
in_a_folder = pytest.mark.parametrize("location", ["folder"], indirect=True)


# Results


def test_search_equals_brute_force(index):
    videos, queries = random_embeddings(200), random_embeddings(5, seed=1)
    entries = [VideoEntry(f"{i}.mp4", duration=1.5) for i in range(200)]
    for start in range(0, 200, 50):
        index.upsert(entries[start : start + 50], videos[start : start + 50])
    index.optimize()
    for query, results in zip(queries, index.search(queries, k=7), strict=True):
        scores = torch.cosine_similarity(videos, query[None])
        assert [result.path for result in results] == [f"{i}.mp4" for i in scores.topk(7).indices.tolist()]
        assert [result.score for result in results] == pytest.approx(scores.topk(7).values.tolist(), abs=1e-5)
        assert [result.rank for result in results] == list(range(1, 8))
        assert results[0].duration == 1.5
    assert index.search_method["method"] == "exact"
    assert [len(results) for results in index.search(queries, k=500)] == [200] * 5


def test_equal_scores_are_in_order_of_path_and_start(index):
    entries = [*segments_of("/d #.mp4", 12), *entries_of("c", "a", "/d")]
    index.upsert(entries, random_embeddings(1).expand(15, 8))
    expected = [("/d", None), *(("/d #.mp4", 30.0 * number) for number in range(12)), ("a", None), ("c", None)]
    for k in (15, 1, 4, 12):
        found = index.search(random_embeddings(1), k=k)[0]
        assert [(result.path, result.start) for result in found] == expected[:k]


def test_search_where(index):
    videos = random_embeddings(60)
    entries = [VideoEntry(f"/v/{'odd' if i % 2 else 'even'}/{i}.mp4", duration=float(i)) for i in range(60)]
    index.upsert(entries, videos)
    query = random_embeddings(1, seed=1)
    results = index.search(query, k=5, where="path like '%/odd/%' and duration < 40")[0]
    allowed = [i for i in range(60) if i % 2 and i < 40]
    best = sorted(allowed, key=lambda i: -float(videos[i] @ query[0]))[:5]
    assert [result.path for result in results] == [f"/v/odd/{i}.mp4" for i in best]
    assert index.search(query, where="duration > 1000") == [[]]
    with pytest.raises(ValueError, match="column 1: expected a field"):
        index.search(query, where="1 = 1")
    assert len(index) == 60


def test_empty_index_returns_no_results(index):
    assert len(index) == 0
    assert index.search(random_embeddings(2)) == [[], []]
    assert index.search(np.empty((0, 8))) == []
    assert (index.files(), index.get("a"), list(index.batches()), index.delete(["/a"])) == ({}, [], [], 0)
    index.upsert([], torch.empty(0, 8))
    index.optimize()
    assert len(index) == 0


# Stored entries


def test_upsert_replaces_all_entries_of_a_file(index):
    videos = random_embeddings(8)
    index.upsert([*segments_of("long.mp4", 3), *entries_of("a", "b")], videos[:5])
    index.upsert(segments_of("long.mp4", 2), videos[5:7])
    assert [(found.entry.start, found.entry.end) for found in index.get("long.mp4")] == [(0.0, 30.0), (30.0, 60.0)]
    np.testing.assert_array_equal([found.embedding for found in index.get("long.mp4")], videos[5:7])
    index.upsert(entries_of("long.mp4", "a"), videos[[7, 0]])
    assert len(index) == 3
    assert index.files().keys() == {"long.mp4", "a", "b"}
    result = index.search(videos[7:], k=1)[0][0]
    assert (result.path, result.start, result.end) == ("long.mp4", None, None)


def test_unusual_paths_are_stored_and_deleted_one_by_one(index):
    videos = random_embeddings(len(UNUSUAL_PATHS))
    index.upsert(entries_of(*UNUSUAL_PATHS), videos)
    index.upsert(segments_of(UNUSUAL_PATHS[0], 2), videos[:2])  # also removes the entry of the whole file
    assert index.files().keys() == set(UNUSUAL_PATHS)
    for number, path in enumerate(UNUSUAL_PATHS):
        assert index.get(path)[0][0].path == path
        assert index.delete([path, "/unknown"]) == (2 if number == 0 else 1)
        assert index.files().keys() == set(UNUSUAL_PATHS[number + 1 :])
    with pytest.raises(ValueError, match="not valid Unicode"):
        index.upsert(entries_of("/v/\udce9.mp4"), videos[:1])


def test_files_returns_the_state_of_each_file(index):
    index.upsert([*segments_of("long.mp4", 3), VideoEntry("a", size=5, content_hash="00ff")], random_embeddings(4))
    assert index.files() == {"long.mp4": FileState(1, 2, None, 3), "a": FileState(5, None, "00ff", 1)}


def test_batches_yield_all_entries(index):
    videos = random_embeddings(25)
    entries = [VideoEntry(str(i), duration=float(i), modified=2**62 + i) for i in range(25)]
    for start in range(0, 25, 5):
        index.upsert(entries[start : start + 5], videos[start : start + 5])
    sizes = [len(batch.entries) for batch in index.batches(10)]
    assert max(sizes) <= 10 and sum(sizes) == 25
    assert contents(index) == as_contents(entries, videos)


def test_embeddings_are_drawn_without_repetition(index):
    assert index.draw_embeddings(5).shape == (0, 8)
    for part in range(3):
        index.upsert(entries_of(*(f"{part}{n}" for n in range(20))), random_embeddings(20, seed=part))
    index.delete(["05"])
    held = np.concatenate([batch.embeddings for batch in index.batches()])
    drawn = index.draw_embeddings(40)
    positions = [int((held == row).all(axis=1).nonzero()[0][0]) for row in drawn]
    assert len(set(positions)) == 40 and positions != sorted(positions)
    assert len(np.unique(index.draw_embeddings(1000), axis=0)) == 59
    np.testing.assert_array_equal(index.draw_embeddings(40), drawn)


def test_keys_are_media_fragments():
    assert VideoEntry("/a b.mp4").key == "/a b.mp4"
    assert VideoEntry("/a.mp4", 30.0, 60.5).key == "/a.mp4#t=30,60.5"
    assert VideoEntry("/a.mp4", 100000.25, None).key == "/a.mp4#t=100000.25,"


# Reopening, and invalid input


def test_index_can_be_reopened(index):
    index.upsert(entries_of("a"), random_embeddings(1))
    again = VideoIndex(index.uri)
    assert (index.is_new, again.is_new) == (True, False)
    assert len(again) == 1
    assert again.info == index.info == replace(INFO, storage="float16", created=index.info.created)
    assert index.info.created and index.info.format == FORMAT


def test_index_of_version_0_1_0_opens(new_uri):
    schema = row_schema(8, "float16").with_metadata({"pig": RECORD})
    lancedb.connect(new_uri).create_table("videos", schema=schema)
    index = VideoIndex(new_uri, INFO)
    assert index.info == replace(INFO, storage="float16", created="2026-11-29T00:55:39.494+00:00", version="0.1.0")
    index.upsert(entries_of("a"), random_embeddings(1))
    assert index.search(random_embeddings(1))[0][0].path == "a"


def test_new_index_has_the_metadata_of_version_0_1_0(index):
    record = lancedb.connect(index.uri).open_table("videos").schema.metadata[b"pig"]
    old = {**json.loads(RECORD), "created": index.info.created, "version": index.info.version}
    assert record.decode() == json.dumps(old)


def test_index_of_another_model_is_refused(index):
    index.upsert(entries_of("a"), random_embeddings(1))
    for other in ({"model_fingerprint": "other"}, {"embedding_dim": 16}, {"num_frames": 8}):
        with pytest.raises(ValueError, match="was made by the model org/pig"):
            VideoIndex(index.uri, replace(INFO, **other))
    assert len(VideoIndex(index.uri, replace(INFO, num_frames=None, model="copy"))) == 1


def test_upsert_refuses_invalid_embeddings_and_repeated_entries(index):
    not_normalised = [
        torch.full((1, 8), torch.nan),
        torch.full((1, 8), torch.inf),
        torch.ones(1, 8),
        torch.zeros(1, 8),
    ]
    for embeddings in (*not_normalised, torch.ones(1, 4) / 2, torch.ones(8) / 8**0.5, torch.ones(2, 8) / 8**0.5):
        with pytest.raises(ValueError, match="[Ee]mbeddings"):
            index.upsert(entries_of("a"), embeddings)
    with pytest.raises(ValueError, match="'b' occurs twice"):
        index.upsert(entries_of("a", "b", "b"), random_embeddings(3))
    assert len(index) == 0


def test_search_refuses_invalid_arguments(index):
    with pytest.raises(ValueError, match="k is 0"):
        index.search(random_embeddings(1), k=0)
    with pytest.raises(ValueError, match="shape"):
        index.search(np.ones((1, 3)), k=1)
    for value in (np.nan, np.inf, 0.0):
        with pytest.raises(ValueError, match="must be finite and not zero"):
            index.search(np.array([[1.0] * 8, [value] * 8]))


def test_missing_and_foreign_data_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no index"):
        VideoIndex(tmp_path / "v.lance")
    assert not (tmp_path / "v.lance").exists()
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match="is not an index"):
            VideoIndex(path, INFO)
        with pytest.raises(FileNotFoundError, match="There is no index"):
            VideoIndex(path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    lancedb.connect(tmp_path / "theirs").create_table("videos", pa.table({"id": [1]}))
    with pytest.raises(ValueError, match="a LanceDB table that is not an index"):
        VideoIndex(tmp_path / "theirs", INFO)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({}, "older modeling-pig .* pig index FOLDER --model org/pig --index NEW"),
        ({"format": FORMAT_OF_SHOTS + 1, "more": 1}, "newer modeling-pig .* Install the version that wrote it"),
    ],
)
def test_index_of_another_format_is_refused_with_advice(new_uri, stored, message):
    record = {"model": "org/pig", "model_fingerprint": "abc", "width": 8, "version": "0.0.9", **stored}
    schema = pa.schema([pa.field("path", pa.string())], metadata={"pig": json.dumps(record)})
    lancedb.connect(new_uri).create_table("videos", schema=schema)
    for info in (None, INFO):
        with pytest.raises(ValueError, match=message):
            VideoIndex(new_uri, info)


def test_drop_if_new_deletes_only_empty_indexes(index, new_uri):
    VideoIndex(index.uri).drop_if_new()
    assert VideoIndex(index.uri).info.embedding_dim == 8
    VideoIndex(index.uri).upsert(entries_of("a"), random_embeddings(1))
    index.drop_if_new()
    assert len(VideoIndex(index.uri)) == 1
    VideoIndex(new_uri, INFO).drop_if_new()
    with pytest.raises(FileNotFoundError):
        VideoIndex(new_uri)
    assert not os.path.exists(new_uri)


# Many writes, many processes


@in_a_folder
def test_small_files_are_merged(index):
    videos = random_embeddings(200)
    for i in range(200):
        index.upsert(entries_of(str(i)), videos[i : i + 1])
    assert number_of_fragments(index) < 100
    index.optimize()
    assert number_of_fragments(index) == 1
    assert len(index) == len(index.files()) == 200


def number_of_fragments(index: VideoIndex) -> int:
    return lancedb.connect(index.uri).open_table("videos").stats()["fragment_stats"]["num_fragments"]


FILES = [f"/v/it's {i}.mp4" for i in range(24)]


def embeddings_by_name(paths: list[str]) -> torch.Tensor:
    return torch.cat([random_embeddings(2, seed=sum(path.encode())) for path in paths])


def write_all(uri: str, files: list[str], environment: Mapping[str, str] | None = None) -> None:
    """Write two segments per file, four files per write. Runs in a process of a test."""
    os.environ.update(environment or {})
    index = VideoIndex(uri, INFO)
    for start in range(0, len(files), 4):
        paths = files[start : start + 4]
        index.upsert([entry for path in paths for entry in segments_of(path, 2)], embeddings_by_name(paths))
        if start % 8 == 0:
            index.optimize()


def start_writer(uri: str, files: list[str]) -> BaseProcess:
    """Start a process that runs `write_all`.

    The fork server imports torch once: importing it in every process would take most of the test's time. A plain fork
    is not possible, because LanceDB does not survive it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    process = context.Process(target=write_all, args=(uri, files, dict(os.environ)))
    process.start()
    return process


def assert_complete(index: VideoIndex) -> None:
    entries = [entry for path in FILES for entry in segments_of(path, 2)]
    assert contents(index) == as_contents(entries, embeddings_by_name(FILES))
    assert len(index) == len(entries)


@pytest.mark.parametrize(
    ("location", "same"), [("folder", True), ("folder", False), ("s3", True)], indirect=["location"]
)
def test_concurrent_writers_neither_lose_nor_duplicate_entries(new_uri, same):
    processes = [start_writer(new_uri, FILES if same else FILES[i::3]) for i in range(3)]
    while any(process.is_alive() for process in processes):
        with suppress(FileNotFoundError):  # not created yet
            states = VideoIndex(new_uri).files().values()  # readers see whole files only
            assert {state.num_entries for state in states} <= {2}
        time.sleep(0.3)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert_complete(VideoIndex(new_uri))


def test_killed_writer_leaves_whole_files_and_the_next_writer_completes_them(index):
    for held_before_kill in (4, 12):
        process = start_writer(index.uri, FILES)
        while len(index.files()) < held_before_kill:
            assert process.is_alive()
            time.sleep(0.005)
        process.kill()
        process.join()
        assert {state.num_entries for state in index.files().values()} == {2}
    write_all(index.uri, FILES)
    assert_complete(index)


def test_conflicting_write_is_retried(index, monkeypatch):
    errors = [RuntimeError("lance error: Too many concurrent writers"), OSError("Retryable commit conflict")]
    merge = lancedb.table.LanceTable._do_merge

    def conflict(table, *arguments):
        if errors:
            raise errors.pop()
        return merge(table, *arguments)

    monkeypatch.setattr(lancedb.table.LanceTable, "_do_merge", conflict)
    index.upsert(entries_of("a"), random_embeddings(1))
    assert (errors, len(index)) == ([], 1)


def make_compaction_due(monkeypatch, error: Exception) -> None:
    """Make every write compact the table; the first compaction raises `error`."""
    errors, optimize = [error], lancedb.table.LanceTable.optimize

    def failing(table, **options):
        if errors:
            raise errors.pop()
        return optimize(table, **options)

    monkeypatch.setattr(lancedb.table.LanceTable, "optimize", failing)
    monkeypatch.setattr(lance_store.random, "uniform", lambda *_: 0)


@pytest.mark.parametrize(
    ("error", "warnings"),
    [
        (OSError("No space left on device (os error 28)\nmore"), ["files could not be merged: the disk is full"]),
        (RuntimeError("something else\nmore"), ["files could not be merged: something else"]),
        (OSError("Retryable commit conflict for version 3"), []),
    ],
)
@in_a_folder
def test_failed_compaction_does_not_undo_the_write(index, monkeypatch, caplog, error, warnings):
    make_compaction_due(monkeypatch, error)
    with caplog.at_level(logging.WARNING):
        index.upsert(entries_of("a"), random_embeddings(1))
    assert index.files().keys() == {"a"}
    for message, warning in zip(caplog.messages, warnings, strict=True):
        assert warning in message and "more" not in message


def test_conflicting_optimize_is_retried(index, monkeypatch):
    index.upsert(entries_of("a"), random_embeddings(1))
    index.upsert(entries_of("b"), random_embeddings(1))
    make_compaction_due(monkeypatch, RuntimeError("lance error: Commit conflict for version 3"))
    assert index.optimize() == {"method": "exact"}
    assert number_of_fragments(index) == 1


@pytest.mark.parametrize("relative", [True, False])
def test_words_in_a_path_do_not_count_as_a_conflict(tmp_path, monkeypatch, relative):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lance_store, "_GIVE_UP_AFTER", 2.0)
    folder = "my concurrent conflict/v.lance"
    index = VideoIndex(folder if relative else tmp_path / folder, INFO)
    calls = []

    def refused(*_):
        calls.append(1)
        raise OSError(f"lance error: Permission denied: {tmp_path / folder}/videos.lance/data/conflict.lance")

    monkeypatch.setattr(lancedb.table.LanceTable, "_do_merge", refused)
    with pytest.raises(OSError, match="cannot be written: .*Permission denied"):
        index.upsert(entries_of("a"), random_embeddings(1))
    assert len(calls) == 1


@in_a_folder
def test_full_disk_raises_a_one_line_error_and_keeps_the_index(index, monkeypatch):
    index.upsert(entries_of("a"), random_embeddings(1))

    def full(*_):
        raise OSError("lance error: LanceError(IO): No space left on device (os error 28), /some/where.rs:1:2\nmore")

    monkeypatch.setattr(lancedb.table.LanceTable, "_do_merge", full)
    with pytest.raises(OSError) as caught:
        index.upsert(entries_of("b"), random_embeddings(1))
    assert str(caught.value) == (
        f"The index {index.uri} cannot be written: the disk is full. Earlier writes are kept; free some space and run "
        "the same command again"
    )
    assert index.files().keys() == {"a"}


NO_HARD_LINKS = """
#include <errno.h>
int link(const char *a, const char *b) { errno = EPERM; return -1; }
int linkat(int a, const char *b, int c, const char *d, int e) { errno = EPERM; return -1; }
"""
# Arguments: an index with one entry, and paths where it creates indexes, each twice.
USE_DISK = """
import sys
import numpy as np
from modeling_pig.stores.index import IndexInfo, VideoEntry, VideoIndex

info = IndexInfo("org/pig", "abc", 8, num_frames=4)
embedding = np.eye(1, 8, dtype=np.float32)
index = VideoIndex(sys.argv[1], info)
changes = [lambda: index.upsert([VideoEntry("b.mp4")], embedding), lambda: index.delete(["/a.mp4"])]
creations = [lambda uri=uri: VideoIndex(uri, info) for uri in sys.argv[2:] for _ in range(2)]
for call in changes + creations:
    try:
        call()
        print("no error")
    except OSError as error:
        print(error)
index.optimize()
print([(result.path, result.score) for result in VideoIndex(sys.argv[1]).search(embedding, k=5)[0]])
"""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("gcc"), reason="needs Linux and gcc, to refuse links")
@in_a_folder
def test_a_disk_without_hard_links_is_named_and_left_clean(index, tmp_path):
    """As exFAT and many FUSE disks, on which LanceDB cannot commit. An index that was copied there can be read."""
    index.upsert(entries_of("/a.mp4"), torch.eye(1, 8))
    source, library = tmp_path / "no_links.c", tmp_path / "no_links.so"
    source.write_text(NO_HARD_LINKS)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    half_made = tmp_path / "half_made.lance"  # as earlier versions left it
    (half_made / "videos.lance/_versions").mkdir(parents=True)
    command = [sys.executable, "-c", USE_DISK, index.uri, str(tmp_path / "new.lance"), str(half_made)]
    before = sorted(tmp_path.iterdir())
    run = subprocess.run(command, env={**os.environ, "LD_PRELOAD": str(library)}, capture_output=True, text=True)
    *errors, results = run.stdout.splitlines()
    assert len(errors) == 6 and results == "[('/a.mp4', 1.0)]", run.stderr
    for error in errors:
        assert "no hard links" in error and "put the index on another disk" in error
    assert sorted(tmp_path.iterdir()) == before and not list(half_made.iterdir())
    assert VideoIndex(half_made, INFO).is_new
    index.upsert(entries_of("/b.mp4"), torch.eye(1, 8))  # once moved to another disk
    assert index.files().keys() == {"/a.mp4", "/b.mp4"}


def test_missing_lancedb_raises_an_error_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(ImportError, match='pip install .*"lancedb>='):
        lance_store.LanceStore(str(tmp_path / "v.lance"), None)
