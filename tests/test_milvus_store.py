"""The index on Milvus, against a real server (Milvus Lite's): what the index on LanceDB does, and lost connections."""

import itertools
import json
import multiprocessing
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pymilvus
import pytest

from modeling_pig.stores import milvus_store
from modeling_pig.stores.index import FORMAT, VideoEntry, VideoIndex
from modeling_pig.stores.transfer import export_index, import_index

from . import test_index
from .test_index import AWKWARD, FILES, INFO, entries_of, is_complete, random_embeddings, segments_of, write_all
from .test_conditions import CONDITIONS, ROWS


_names = itertools.count()


class Server:
    """Milvus Lite's server in a process of its own, on a port that stays the same when it is started again."""

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

    def uri(self) -> str:
        """Of a collection that is not there."""
        return f"http://127.0.0.1:{self.port}/test_{next(_names)}"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("milvus") / "data")
    yield server
    server.kill()


@pytest.fixture
def index(server):
    return VideoIndex(server.uri(), INFO)


# What holds for every store: these tests take the fixture `index` of this file.
for _test in (
    test_index.test_search_equals_brute_force,
    test_index.test_equal_scores_come_in_order_of_key,
    test_index.test_search_where,
    test_index.test_an_empty_index_answers,
    test_index.test_upsert_replaces_everything_of_a_file,
    test_index.test_awkward_paths_are_held_and_removed_one_by_one,
    test_index.test_files_tell_what_is_known,
    test_index.test_batches_are_everything,
    test_index.test_an_index_of_another_model_is_refused,
):
    globals()[_test.__name__] = _test


def test_an_index_is_there_after_the_server_was_killed(server, index):
    videos = random_embeddings(5)
    index.upsert(segments_of("a", 5), videos)
    server.kill()
    server.start()
    again = VideoIndex(index.uri)
    assert (index.is_new, again.is_new, len(index), len(again)) == (True, False, 5, 5)
    assert again.info == index.info == replace(INFO, storage="float32", created=index.info.created)
    np.testing.assert_array_equal([embedding for _, embedding in index.get("a")], videos)
    assert index.search(videos[:1], k=1)[0][0].start == 0.0


def test_an_alias_that_is_switched_leaves_open_indexes_where_they_are(server, index):
    videos = random_embeddings(6)
    index.upsert(entries_of("old"), videos[:1])
    client = pymilvus.MilvusClient(f"http://127.0.0.1:{server.port}")
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


def test_nan_is_refused_though_milvus_would_take_it(index):
    with pytest.raises(ValueError, match="finite"):
        index.upsert(entries_of("a", "b"), np.array([[np.nan] * 8, [1.0] + [0.0] * 7]))
    assert len(index) == 0


def test_the_first_k_of_many_equals_are_those_of_the_lowest_keys(index):
    names = [f"{i:03}" for i in range(120)]
    index.upsert(entries_of(*names), random_embeddings(1).expand(120, 8))
    assert [result.path for result in index.search(random_embeddings(1), k=5)[0]] == names[:5]


def test_lengths_that_are_not_quite_one_do_not_count(index):
    query = np.eye(1, 8)
    near, far = np.array([[0.8, 0.6] + [0.0] * 6]), np.array([[0.7996, 0.60053303] + [0.0] * 6])
    index.upsert(entries_of("near", "far"), np.concatenate([near * 0.9992, far * 1.0008]))
    assert [(r.path, r.score) for r in index.search(query, k=2)[0]] == [
        ("near", pytest.approx(0.8)),
        ("far", pytest.approx(0.7996)),
    ]


def test_pages_hold_everything_once_whatever_the_keys(index, monkeypatch):
    monkeypatch.setattr(milvus_store, "_MAX_ROWS", 7)
    names = [f'{i % 3}"\\\n\t日{i}' for i in range(40)] + AWKWARD
    index.upsert(entries_of(*names), random_embeddings(len(names)))
    for size in (3, 7, 1000):
        assert sorted(entry.path for entries, _ in index.batches(size) for entry in entries) == sorted(names)
    assert index.files().keys() == set(names)


def test_writes_go_in_pieces_that_end_between_files(index, monkeypatch):
    monkeypatch.setattr(milvus_store, "_WRITE_BYTES", 700)
    sizes, send = [], index._store._client.upsert

    def sending(*arguments, data, **options):
        sizes.append([row["path"] for row in data])
        return send(*arguments, data=data, **options)

    monkeypatch.setattr(index._store._client, "upsert", sending)
    entries = [entry for name in "abcdefgh" for entry in segments_of(name, 2)] + segments_of("long", 11)
    order = np.random.default_rng(0).permutation(len(entries))
    videos = random_embeddings(len(entries))
    index.upsert([entries[i] for i in order], videos[order])
    assert max(map(len, sizes)) <= 5 and len(sizes) >= 5
    ends = [(first[-1], second[0]) for first, second in itertools.pairwise(sizes)]
    assert all(last != following or last == "long" for last, following in ends)
    counts = {path: state.num_entries for path, state in index.files().items()}
    assert counts == dict.fromkeys("abcdefgh", 2) | {"long": 11}
    np.testing.assert_array_equal([embedding for _, embedding in index.get("c")], videos[4:6])


# conditions


@pytest.fixture(scope="module")
def databases(server):
    """The same rows in Milvus and in SQLite, whose answers are the reference."""
    index = VideoIndex(server.uri(), INFO)
    entries = [
        VideoEntry(path, start, end, duration, size, time) for path, _, duration, start, end, size, time in ROWS
    ]
    index.upsert(entries, random_embeddings(len(ROWS)))
    reference = sqlite3.connect(":memory:")
    reference.execute('create table rows (path, name, duration, start, "end", size, modified)')
    reference.executemany("insert into rows values (?, ?, ?, ?, ?, ?, ?)", ROWS)
    reference.execute("pragma case_sensitive_like = on")
    return index, reference


@pytest.mark.parametrize(
    "text",
    [
        *CONDITIONS,
        "duration < 1e22 and duration > -1e-7",
        "name like 'A%'",
        "name = 'b\n[x].mov'",
        "path = '\" or 1 == 1 or path == \"'",
        "path = '\\\" or 1 == 1 //'",
    ],
)
def test_answers_to_conditions_are_those_of_sql(databases, text):
    index, reference = databases
    found = {result.path for result in index.search(random_embeddings(1), k=10, where=text)[0]}
    sql = "select path from rows where " + text.replace("end ", '"end" ')
    assert found == {path for (path,) in reference.execute(sql)}


# places that hold no index


def test_places_that_hold_no_index(server):
    uri = server.uri()
    with pytest.raises(FileNotFoundError, match=f"There is no index {uri}: create it with `pig index`"):
        VideoIndex(uri)
    client = pymilvus.MilvusClient(f"http://127.0.0.1:{server.port}")
    assert not client.has_collection(uri.rsplit("/")[-1])
    client.create_collection("theirs", dimension=8)
    with pytest.raises(ValueError, match="is a Milvus collection that is not an index"):
        VideoIndex(f"http://127.0.0.1:{server.port}/theirs", INFO)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"format": FORMAT - 1}, "older modeling-pig .* pig index FOLDER --model org/pig --index NEW"),
        ({"format": FORMAT + 1, "more": 1}, "newer modeling-pig .* pip install --upgrade modeling-pig"),
    ],
)
def test_an_index_of_another_format_is_refused_with_what_to_do(server, index, stored, message):
    client, name = pymilvus.MilvusClient(f"http://127.0.0.1:{server.port}"), index.uri.rsplit("/")[-1]
    metadata = {"model": "org/pig", "model_fingerprint": "abc", "width": 8, "version": "0.0.9", **stored}
    client.alter_collection_properties(name, properties={"pig": json.dumps(metadata)})
    for info in (None, INFO):
        with pytest.raises(ValueError, match=message):
            VideoIndex(index.uri, info)


def test_a_new_index_is_dropped_only_if_it_is_empty(server, index):
    VideoIndex(index.uri).drop_if_new()
    VideoIndex(index.uri).upsert(entries_of("a"), random_embeddings(1))
    index.drop_if_new()
    assert len(VideoIndex(index.uri)) == 1
    uri = server.uri()
    VideoIndex(uri, INFO).drop_if_new()
    with pytest.raises(FileNotFoundError):
        VideoIndex(uri)


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1/a-b", "http://127.0.0.1:1/a/b", "http:///a", "http://h:1/a?b=c"])
def test_uris_that_name_no_collection(uri):
    with pytest.raises(ValueError, match="expected http://HOST:19530/COLLECTION"):
        VideoIndex(uri)


def test_passwords_come_from_the_environment_alone(monkeypatch):
    with pytest.raises(ValueError, match="set MILVUS_TOKEN=USER:PASSWORD") as caught:
        VideoIndex("http://me:secret@127.0.0.1:1/videos")
    assert "secret" not in str(caught.value)
    given = {}
    monkeypatch.setenv("MILVUS_TOKEN", "me:secret")
    monkeypatch.setattr(pymilvus, "MilvusClient", lambda uri, **options: given.update(options) or 1 / 0)
    with pytest.raises(OSError) as caught:
        VideoIndex("http://127.0.0.1:1/videos")
    assert given["token"] == "me:secret" and "secret" not in str(caught.value)


def test_pymilvus_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ImportError, match=r'pip install "modeling-pig\[milvus\]"'):
        VideoIndex("http://127.0.0.1:1/videos")


# servers that are down, slow, or lost


@pytest.fixture
def silent_port():
    """Takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_server_that_is_down_is_told_in_one_line(silent_port, monkeypatch, capfd):
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
    """Hands bytes on between clients and a server; cuts the connection when it has handed on so many."""

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
                threading.Thread(target=self.hand_on, args=pair, daemon=True).start()

    def hand_on(self, source, target):
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


def test_connections_that_are_lost_while_writing_are_made_again(server, index, proxy, monkeypatch, capfd):
    monkeypatch.setattr(milvus_store, "_WRITE_BYTES", 100_000)
    through = VideoIndex(index.uri.replace(str(server.port), str(proxy.port)))
    videos = random_embeddings(1500)
    entries = [entry for number in range(500) for entry in segments_of(f"{number:03}", 3)]
    index.upsert([VideoEntry("000", 7.0, 8.0)], videos[:1])
    proxy.cut_after = [30_000, 50_000, 20_000]
    through.upsert(entries, videos)
    assert proxy.num_cuts == 3
    held = {entry: tuple(vector) for batch in index.batches() for entry, vector in zip(*batch, strict=True)}
    assert held == {entry: tuple(vector) for entry, vector in zip(entries, videos.numpy(), strict=True)}
    assert capfd.readouterr().err == ""


def test_a_server_that_is_killed_and_started_again_meanwhile(server, index):
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
    held = {entry.path: vector for batch in index.batches() for entry, vector in zip(*batch, strict=True)}
    np.testing.assert_array_equal(np.stack([held[str(i)] for i in range(2000)]), videos)


def test_a_server_that_does_not_come_back_is_told_in_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(milvus_store, "_CONNECT_TIMEOUT", 1.0)
    monkeypatch.setattr(milvus_store, "_REQUEST_TIMEOUT", 1.0)
    monkeypatch.setattr(milvus_store, "_GIVE_UP_AFTER", 1.0)
    server = Server(tmp_path / "data")
    index = VideoIndex(server.uri(), INFO)
    os.kill(server.process.pid, signal.SIGSTOP)  # takes requests and does not answer
    for _ in ("stopped", "gone"):
        for request in (lambda: index.upsert(entries_of("a"), random_embeddings(1)), lambda: len(index)):
            with pytest.raises(OSError, match="Retried for 1 s: check the server") as caught:
                request()
            assert str(caught.value).startswith(f"The index {index.uri} cannot be ")
            assert "\n" not in str(caught.value)
        server.kill()
    assert capfd.readouterr().err == ""


# the ANN index


def test_an_ann_index_takes_over_where_there_are_many(index, monkeypatch):
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
    found = [results[0].path for results in index.search(videos, k=1)]
    assert np.mean([path == str(i) for i, path in enumerate(found)]) > 0.95
    assert len(index) == 401


def test_vectors_to_measure_with_come_from_all_over(index, monkeypatch):
    monkeypatch.setattr(milvus_store, "_MAX_ROWS", 10)
    videos = random_embeddings(120)
    index.upsert(entries_of(*(f"{i:03}" for i in range(120))), videos)
    rows = [int((videos.numpy() == vector).all(axis=1).argmax()) for vector in index._store._draw_embeddings(40)]
    assert len(set(rows)) == 40 and min(rows) < 30 and max(rows) > 90 and rows != sorted(rows)
    assert len(index._store._draw_embeddings(200)) == 120


def test_the_ann_index_of_a_few_is_measured_with_what_is_there(index, monkeypatch):
    monkeypatch.setattr(milvus_store, "EXACT_UP_TO", 50)
    index.upsert(entries_of(*map(str, range(60))), random_embeddings(60))
    assert index.optimize()["queries"] == 30


def test_optimize_leaves_it_to_a_process_that_makes_the_ann_index(index, monkeypatch):
    monkeypatch.setattr(milvus_store, "EXACT_UP_TO", 0)
    index.upsert(entries_of("a"), random_embeddings(1))
    monkeypatch.setattr(index._store._client, "describe_index", lambda *_, **__: None)
    assert index.optimize() == {"method": "none"}


def test_others_search_and_write_while_the_ann_index_is_made(index, monkeypatch):
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


# many processes, and other stores


def test_processes_that_write_the_same_files_at_once_lose_nothing_and_duplicate_nothing(server):
    context, uri = multiprocessing.get_context("spawn"), server.uri()
    processes = [context.Process(target=write_all, args=(uri, FILES)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert is_complete(VideoIndex(uri))


def test_from_one_store_to_the_other_and_back(server, index, tmp_path):
    videos = random_embeddings(30)
    entries = [*segments_of(AWKWARD[0], 3), *(VideoEntry(f"{i}.mp4", duration=float(i), size=i) for i in range(27))]
    index.upsert(entries, videos)
    assert export_index(index, tmp_path / "a.parquet") == 30
    local = import_index(tmp_path / "a.parquet", tmp_path / "v.lance")
    assert export_index(local, tmp_path / "b.parquet") == 30
    again = import_index(tmp_path / "b.parquet", server.uri())
    held = {entry: tuple(vector) for batch in again.batches() for entry, vector in zip(*batch, strict=True)}
    assert held == {entry: tuple(vector) for entry, vector in zip(entries, videos.numpy(), strict=True)}
    assert again.info == replace(index.info, created=again.info.created)
