"""Test `VideoIndex` on a real Milvus server (Milvus Lite): the tests of LanceDB, and lost connections."""

import itertools
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pymilvus
import pytest
import torch

from modeling_pig import VideoSearcher
from modeling_pig.encoding.lazy_model import LazyEncoder
from modeling_pig.stores import milvus_store
from modeling_pig.stores.index import VideoEntry, VideoIndex
from modeling_pig.stores.transfer import export_index, import_index

from . import test_columns, test_index
from .test_conditions import CONDITIONS, ROWS, find_paths_with_sqlite
from .test_index import (
    FILES,
    INFO,
    RECORD,
    UNUSUAL_PATHS,
    as_contents,
    assert_complete,
    contents,
    entries_of,
    random_embeddings,
    segments_of,
    write_all,
)


_names = itertools.count()


class Server:
    """Run Milvus Lite's server in a separate process; it keeps its port when it is restarted."""

    def __init__(self, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = folder
        self.start()

    def start(self):
        command = [sys.executable, "-m", "milvus_lite", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        with open(f"{self.folder}.log", "a") as log:
            self.process = subprocess.Popen([*command, "--data-dir", self.folder], stdout=log, stderr=log)
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                assert self.process.poll() is None, "the server did not start"
                time.sleep(0.05)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def client(self) -> pymilvus.MilvusClient:
        return pymilvus.MilvusClient(f"http://127.0.0.1:{self.port}")

    def uri(self) -> str:
        """Return the URI of a new collection."""
        return f"http://127.0.0.1:{self.port}/test_{next(_names)}"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("milvus") / "data")
    yield server
    server.kill()


@pytest.fixture
def new_uri(server):
    return server.uri()


@pytest.fixture
def index(server):
    return VideoIndex(server.uri(), INFO)


# Tests that hold for every store: here they run with the fixture `index` of this file.
for _test in (
    test_index.test_search_equals_brute_force,
    test_index.test_equal_scores_are_in_order_of_path_and_start,
    test_index.test_search_where,
    test_index.test_empty_index_returns_no_results,
    test_index.test_upsert_replaces_all_entries_of_a_file,
    test_index.test_unusual_paths_are_stored_and_deleted_one_by_one,
    test_index.test_files_returns_the_state_of_each_file,
    test_index.test_batches_yield_all_entries,
    test_index.test_embeddings_are_drawn_without_repetition,
    test_index.test_index_of_another_model_is_refused,
    test_index.test_drop_if_new_deletes_only_empty_indexes,
    test_columns.test_columns_are_filtered_by_and_returned,
    test_columns.test_values_change_without_new_embeddings,
    test_columns.test_each_entry_has_its_own_values,
    test_columns.test_facets_count_files_and_find_them,
    test_columns.test_subtitles_of_each_segment_are_written,
    test_columns.test_invalid_columns_change_nothing,
    test_columns.test_ids_made_from_the_content_give_way_to_the_owner,
    test_columns.test_columns_survive_export_and_import,
):
    globals()[_test.__name__] = _test


def test_there_are_no_versions(index):
    for call in (index.versions, lambda: index.keep_version("a"), lambda: index.restore(1)):
        with pytest.raises(ValueError, match="is a Milvus collection, which has no versions: `pig export`"):
            call()


def test_index_persists_after_the_server_was_killed(server, index):
    videos = random_embeddings(5)
    index.upsert(segments_of("a", 5), videos)
    server.kill()
    server.start()
    again = VideoIndex(index.uri)
    assert (index.is_new, again.is_new, len(index), len(again)) == (True, False, 5, 5)
    assert again.info == index.info == replace(INFO, storage="float32", created=index.info.created)
    np.testing.assert_array_equal([found.embedding for found in index.get("a")], videos)
    assert index.search(videos[:1], k=1)[0][0].start == 0.0


def test_open_index_keeps_its_collection_when_an_alias_is_switched(server, index):
    videos = random_embeddings(6)
    index.upsert(entries_of("old"), videos[:1])
    client = server.client()
    alias, collection = server.uri(), index.uri.rpartition("/")[2]
    client.create_alias(collection, alias.rpartition("/")[2])
    opened = VideoIndex(alias)
    new = VideoIndex(server.uri(), replace(INFO, model_fingerprint="another"))
    new.upsert(entries_of("new"), videos[1:2])
    client.alter_alias(new.uri.rpartition("/")[2], alias.rpartition("/")[2])
    assert [result.path for result in opened.search(videos[:1])[0]] == ["old"]
    assert [result.path for result in VideoIndex(alias).search(videos[:1])[0]] == ["new"]
    client.drop_collection(collection)
    with pytest.raises(OSError, match="cannot be searched"):
        opened.search(videos[:1])


def test_first_k_of_many_equal_scores_have_the_lowest_paths(index):
    names = [f"{i:03}" for i in range(120)]
    index.upsert(entries_of(*names), random_embeddings(1).expand(120, 8))
    assert [result.path for result in index.search(random_embeddings(1), k=5)[0]] == names[:5]


def test_score_does_not_depend_on_the_length(index):
    query = np.eye(1, 8)
    near, far = np.array([[0.8, 0.6] + [0.0] * 6]), np.array([[0.7996, 0.60053303] + [0.0] * 6])
    index.upsert(entries_of("near", "far"), np.concatenate([near * 0.9992, far * 1.0008]))
    assert [(r.path, r.score) for r in index.search(query, k=2)[0]] == [
        ("near", pytest.approx(0.8)),
        ("far", pytest.approx(0.7996)),
    ]


def test_pages_yield_every_row_once(index, monkeypatch):
    monkeypatch.setattr(milvus_store, "_MAX_ROWS", 7)
    names = [f'{i % 3}"\\\n\t日{i}' for i in range(40)] + UNUSUAL_PATHS
    index.upsert(entries_of(*names), random_embeddings(len(names)))
    for size in (3, 7, 1000):
        assert sorted(entry.path for batch in index.batches(size) for entry in batch.entries) == sorted(names)
    assert index.files().keys() == set(names)


def test_writes_are_split_between_files(index, monkeypatch):
    monkeypatch.setattr(milvus_store, "_WRITE_BYTES", 700)
    writes, upsert = [], index._store._client.upsert

    def record_write(*arguments, data, **options):
        writes.append([row["path"] for row in data])
        return upsert(*arguments, data=data, **options)

    monkeypatch.setattr(index._store._client, "upsert", record_write)
    entries = [entry for name in "abcdefgh" for entry in segments_of(name, 2)] + segments_of("long", 11)
    order = np.random.default_rng(0).permutation(len(entries))
    videos = random_embeddings(len(entries))
    index.upsert([entries[i] for i in order], videos[order])
    assert max(map(len, writes)) <= 5 and len(writes) >= 5
    borders = [(first[-1], second[0]) for first, second in itertools.pairwise(writes)]
    assert all(last != following or last == "long" for last, following in borders)
    counts = {path: state.num_entries for path, state in index.files().items()}
    assert counts == dict.fromkeys("abcdefgh", 2) | {"long": 11}
    np.testing.assert_array_equal([found.embedding for found in index.get("c")], videos[4:6])


# Conditions


def test_results_equal_those_of_sqlite(index):
    entries = [
        VideoEntry(path, start, end, duration, size, time) for path, _, duration, start, end, size, time in ROWS
    ]
    index.upsert(entries, random_embeddings(len(ROWS)))
    for text in (
        *CONDITIONS,
        "duration < 1e22 and duration > -1e-7",
        "name like 'A%'",
        "name = 'b\n[x].mov'",
        "path = '\" or 1 == 1 or path == \"'",
        "path = '\\\" or 1 == 1 //'",
    ):
        results = index.search(random_embeddings(1), k=10, where=text)[0]
        assert {result.path for result in results} == find_paths_with_sqlite(text), text


# Foreign collections, invalid URIs, versions


def test_missing_and_foreign_collections_are_refused(server):
    uri = server.uri()
    with pytest.raises(FileNotFoundError, match=f"There is no index {uri}: create it with `pig index`"):
        VideoIndex(uri)
    client = server.client()
    assert not client.has_collection(uri.rsplit("/")[-1])
    client.create_collection("theirs", dimension=8)
    with pytest.raises(ValueError, match="is a Milvus collection that is not an index"):
        VideoIndex(f"http://127.0.0.1:{server.port}/theirs", INFO)


def test_index_of_version_0_1_0_opens(server, index):
    index.upsert(entries_of("a"), random_embeddings(1))
    client, name = server.client(), index.uri.rsplit("/")[-1]
    record = client.describe_collection(name)["properties"]["pig"]
    assert json.loads(record).keys() == json.loads(RECORD).keys()
    client.alter_collection_properties(name, properties={"pig": RECORD.replace("float16", "float32")})
    opened = VideoIndex(index.uri, INFO)
    assert (opened.info.embedding_dim, opened.info.version, len(opened)) == (8, "0.1.0", 1)


def test_invalid_uris_are_refused():
    for uri in ("http://127.0.0.1:1/a-b", "http://127.0.0.1:1/a/b", "http:///a", "http://h:1/a?b=c"):
        with pytest.raises(ValueError, match="expected http://HOST:19530/COLLECTION"):
            VideoIndex(uri)


def test_login_is_read_from_the_environment_only(monkeypatch):
    with pytest.raises(ValueError, match="set MILVUS_TOKEN=USER:PASSWORD") as caught:
        VideoIndex("http://me:secret@127.0.0.1:1/videos")
    assert "secret" not in str(caught.value)
    given = {}
    monkeypatch.setenv("MILVUS_TOKEN", "me:secret")
    monkeypatch.setattr(pymilvus, "MilvusClient", lambda uri, **options: given.update(options) or 1 / 0)
    with pytest.raises(OSError) as caught:
        VideoIndex("http://127.0.0.1:1/videos")
    assert given["token"] == "me:secret" and "secret" not in str(caught.value)


def test_missing_pymilvus_raises_an_error_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ImportError, match='pip install .*"pymilvus>='):
        VideoIndex("http://127.0.0.1:1/videos")


# Servers that are down or slow, lost connections


@pytest.fixture
def silent_port():
    """Accept connections without ever answering."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_server_that_is_down_raises_a_one_line_error(silent_port, monkeypatch, capfd):
    monkeypatch.setattr(milvus_store, "_CONNECT_TIMEOUT", 1.0)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        for port in (unused.getsockname()[1], silent_port):
            with pytest.raises(OSError) as caught:
                VideoIndex(f"http://127.0.0.1:{port}/videos", INFO)
            assert f"no Milvus server answers at http://127.0.0.1:{port} within 2 s" in str(caught.value)
            assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


class Proxy:
    """Forward bytes between clients and a server; cut a connection after the next number of bytes in `cut_after`."""

    def __init__(self, port: int):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.target = self.listener.getsockname()[1], port
        self.cut_after: list[int] = []
        self.num_cuts = 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self.forward, args=pair, daemon=True).start()

    def forward(self, source, target):
        count = 0
        try:
            while data := source.recv(4096):
                target.sendall(data)
                count += len(data)
                if self.cut_after and count > self.cut_after[0]:
                    self.cut_after.pop(0)
                    self.num_cuts += 1
                    break
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


@pytest.fixture
def proxy(server):
    proxy = Proxy(server.port)
    yield proxy
    proxy.listener.close()


def test_lost_connections_are_restored_during_a_write(server, index, proxy, monkeypatch, capfd):
    monkeypatch.setattr(milvus_store, "_WRITE_BYTES", 100_000)
    through = VideoIndex(index.uri.replace(str(server.port), str(proxy.port)))
    videos = random_embeddings(1500)
    entries = [entry for number in range(500) for entry in segments_of(f"{number:03}", 3)]
    index.upsert([VideoEntry("000", 7.0, 8.0)], videos[:1])
    proxy.cut_after = [30_000, 50_000, 20_000]
    through.upsert(entries, videos)
    assert proxy.num_cuts == 3
    assert contents(index) == as_contents(entries, videos)
    assert capfd.readouterr().err == ""


def test_writes_survive_a_restart_of_the_server(server, index):
    videos = random_embeddings(2000)

    def write():
        for i in range(0, 2000, 200):
            index.upsert(entries_of(*map(str, range(i, i + 200))), videos[i : i + 200])

    writing = threading.Thread(target=write)
    writing.start()
    while len(index) < 600:
        time.sleep(0.01)
    server.kill()
    time.sleep(0.5)
    server.start()
    assert len(index.search(videos[:1], k=3)[0]) == 3
    writing.join()
    assert len(index) == len(index.files()) == 2000
    assert contents(index) == as_contents(entries_of(*map(str, range(2000))), videos)


def test_server_that_stays_down_raises_a_one_line_error(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(milvus_store, "_CONNECT_TIMEOUT", 1.0)
    monkeypatch.setattr(milvus_store, "_REQUEST_TIMEOUT", 1.0)
    monkeypatch.setattr(milvus_store, "_GIVE_UP_AFTER", 1.0)
    server = Server(tmp_path / "data")
    index = VideoIndex(server.uri(), INFO)
    os.kill(server.process.pid, signal.SIGSTOP)  # accepts requests without answering
    for _ in ("stopped", "killed"):
        for request in (lambda: index.upsert(entries_of("a"), random_embeddings(1)), lambda: len(index)):
            with pytest.raises(OSError, match="Retried for 1 s: check the server") as caught:
                request()
            assert str(caught.value).startswith(f"The index {index.uri} cannot be ")
            assert "\n" not in str(caught.value)
        server.kill()
    assert capfd.readouterr().err == ""


# ANN index


def test_ann_index_replaces_exact_search_of_many_entries(index, monkeypatch):
    monkeypatch.setattr(milvus_store, "EXACT_UP_TO", 300)
    videos = random_embeddings(400)
    index.upsert(entries_of(*map(str, range(300))), videos[:300])
    assert index.optimize() == index.search_method == {"method": "exact"}
    index.upsert(entries_of(*map(str, range(300, 400))), videos[300:])
    done = index.optimize()
    assert done["method"] == "HNSW" and done["recall@10"] > 0.95
    method = VideoIndex(index.uri).search_method
    assert method == {"method": "HNSW", "M": 16, "efConstruction": 200, "ef": 256} | {
        "recall@10": done["recall@10"],
        "queries": 100,
    }
    assert index.optimize() == method
    index.upsert(entries_of("new"), -videos[:1])
    assert index.search(-videos[:1], k=1)[0][0].path == "new"
    (longest,) = index.search(videos[:1], k=200)
    assert len({result.path for result in longest}) == 200
    assert [index.search(videos[:1], k=k)[0] for k in (1, 10, 11, 150)] == [longest[:k] for k in (1, 10, 11, 150)]
    found = [results[0].path for results in index.search(videos, k=1)]
    assert np.mean([path == str(i) for i, path in enumerate(found)]) > 0.95
    assert len(index) == 401


def test_embeddings_are_drawn_from_all_pages(index, monkeypatch):
    monkeypatch.setattr(milvus_store, "_MAX_ROWS", 10)
    videos = random_embeddings(120)
    index.upsert(entries_of(*(f"{i:03}" for i in range(120))), videos)
    rows = [int((videos.numpy() == drawn).all(axis=1).argmax()) for drawn in index.draw_embeddings(40)]
    assert len(set(rows)) == 40 and min(rows) < 30 and max(rows) > 90 and rows != sorted(rows)
    assert len(index.draw_embeddings(200)) == 120


def test_optimize_does_nothing_while_another_process_builds_the_ann_index(index, monkeypatch):
    monkeypatch.setattr(milvus_store, "EXACT_UP_TO", 0)
    index.upsert(entries_of("a"), random_embeddings(1))
    monkeypatch.setattr(index._store._client, "describe_index", lambda *_, **__: None)
    assert index.optimize() == {"method": "none"}


def test_search_and_write_while_the_ann_index_is_built(index, monkeypatch):
    monkeypatch.setattr(milvus_store, "EXACT_UP_TO", 200)
    videos = random_embeddings(300)
    index.upsert(entries_of(*map(str, range(250))), videos[:250])
    others, stop, found = VideoIndex(index.uri), threading.Event(), []

    def search():
        while not stop.is_set():
            found.append(others.search(videos[7:8], k=1)[0][0].path)

    searching = threading.Thread(target=search)
    searching.start()
    writing = threading.Thread(target=lambda: others.upsert(entries_of(*map(str, range(250, 300))), videos[250:]))
    writing.start()
    assert index.optimize()["method"] == "HNSW"
    writing.join()
    stop.set()
    searching.join()
    assert set(found) == {"7"} and len(index) == 300


def test_copies_are_one_result_and_queries_are_judged(index):
    videos = random_embeddings(30)
    index.upsert(entries_of(*(f"{n:02}" for n in range(30)), "copy"), torch.cat([videos, videos[:1]]))
    searcher = VideoSearcher(LazyEncoder("none"), lambda texts: random_embeddings(len(texts), seed=5).numpy(), [index])
    results = searcher.search("a", k=31, collapse_duplicates=0.999)
    assert len(results) == 30 and [r.path for r in results if r.duplicates] == ["00"]
    assert searcher.judge("a").excess is not None
    assert searcher.judge("a", threshold=1e6).nothing_fits


def test_words_of_columns_are_not_searched(index):
    index.upsert(entries_of("/a.mp4"), random_embeddings(1), metadata=[{"title": "Zorvex"}])
    with pytest.raises(ValueError, match="is on a Milvus server, where words of columns are not searched: move it to"):
        index.search_text("zorvex", random_embeddings(1)[0].numpy())


# Many processes, and other stores


def test_columns_that_two_writers_add_at_once_are_kept(server, index, monkeypatch):
    client, name = server.client(), index.uri.rsplit("/")[-1]
    client.alter_collection_properties(name, properties={"pig.columns": '{"title": "text"}'})  # by an earlier version
    other, request = VideoIndex(index.uri), milvus_store.MilvusStore._request

    def request_second(store, method, *arguments, **options):
        if method == "alter_collection_properties":
            monkeypatch.setattr(milvus_store.MilvusStore, "_request", request)
            other.add_columns({"views": "integer"})
        return request(store, method, *arguments, **options)

    monkeypatch.setattr(milvus_store.MilvusStore, "_request", request_second)
    index.add_columns({"category": "text"})
    assert index.columns == other.columns == {"title": "text", "category": "text", "views": "integer"}


def test_concurrent_writers_neither_lose_nor_duplicate_entries(server):
    context, uri = multiprocessing.get_context("spawn"), server.uri()
    processes = [context.Process(target=write_all, args=(uri, FILES)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert_complete(VideoIndex(uri))


def test_transfer_between_stores(server, index, tmp_path):
    videos = random_embeddings(30)
    entries = [
        *segments_of(UNUSUAL_PATHS[0], 3),
        *(VideoEntry(f"{i}.mp4", duration=float(i), size=i) for i in range(27)),
    ]
    index.upsert(entries, videos)
    assert export_index(index, tmp_path / "a.parquet") == 30
    local = import_index(tmp_path / "a.parquet", tmp_path / "v.lance")
    assert export_index(local, tmp_path / "b.parquet") == 30
    again = import_index(tmp_path / "b.parquet", server.uri())
    assert contents(again) == as_contents(entries, videos)
    assert again.info == replace(index.info, created=again.info.created)
