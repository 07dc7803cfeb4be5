"""Test indexes in object storage beyond the tests of all stores: faulty stores, credentials, requests, killed runs.

The tests of `VideoIndex`, with the fixture `location`, run in a folder and in object storage.
"""

import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from modeling_pig import VideoIndex
from modeling_pig.encoding.model_files import model_fingerprint
from modeling_pig.retrieval.search import VideoSearcher
from modeling_pig.stores.index import IndexInfo
from modeling_pig.stores.lance_location import ObjectStorage

from .cli_helpers import assert_one_line_error
from .kill_and_index import compare_with_fresh_encodings, start_pig, wait_for_success
from .s3_server import KEY, SECRET
from .test_index import INFO, entries_of, random_embeddings


QUERY = random_embeddings(1, seed=3)
# Requests that list objects are sent at least six times: the shortest waits in between take 2 s.
NO_RETRIES = {"client_max_retries": "0"}


def test_invalid_uris_are_refused_and_not_printed(pig):
    for uri in (
        "s3://key:password@bucket/v.lance",
        "s3://bucket/v.lance?X-Amz-Signature=password",
        "az://bucket/v.lance?sig=password",
        "gs://bucket/v.lance#password",
        "s3://bucket",
        "s3://bucket//",
        "s3+ddb://bucket/v.lance",
    ):
        result = pig("list", "--index", uri)
        assert_one_line_error(result, f"expected {uri.partition('//')[0]}//BUCKET/NAME.lance", "without credentials")
        assert "password" not in result[2]
    assert_one_line_error(pig("list", "--index", "db://bucket/v.lance"), "names no index")
    result = pig("list", "--index", "s3://bucket/v.lance", "--storage-option", "secret-without-a-key")
    assert_one_line_error(result, "--storage-option is not KEY=VALUE")
    assert "secret-without" not in result[2]


FAULTS = {
    (403, "InvalidAccessKeyId"): "refuses the credentials: check AWS_ACCESS_KEY_ID",
    (403, "SignatureDoesNotMatch"): "refuses the credentials",
    (403, "AccessDenied"): "and what they allow in the bucket {bucket} (AccessDenied)",
    (400, "ExpiredToken"): "the credentials have expired: renew them",
    (301, "PermanentRedirect"): "the bucket {bucket} is in another region, or does not exist: set AWS_REGION",
    (400, "AuthorizationHeaderMalformed"): "in another region",
    (404, "NoSuchBucket"): "there is no bucket {bucket}: create it",
    (503, "SlowDown"): "Earlier writes are kept; run the same command again later (SlowDown)",
    (500, "InternalError"): "the store fails",
    (200, "stall"): "did not answer in time",
    (0, "refuse"): "cannot be reached",
}


def test_faulty_stores_are_named_in_one_line(s3_server, bucket):
    """All faults at once: LanceDB repeats a failed listing for two seconds."""
    buckets = {s3_server.make_bucket().removeprefix("s3://"): fault for fault in FAULTS}

    def fault_of(request):
        status, code = buckets[request.path.split("/")[1]]
        if code == "stall":
            time.sleep(1.0)
        return status, code

    with socket.socket() as closed:  # bound, but not listening
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"

        def error_of(name: str) -> str:
            own = {"stall": {"timeout": "400ms"}, "refuse": {"endpoint": nobody}}
            with pytest.raises(OSError) as caught:
                VideoIndex(f"s3://{name}/v.lance", INFO, {**NO_RETRIES, **own.get(buckets[name][1], {})})
            return str(caught.value)

        s3_server.fault = fault_of
        with ThreadPoolExecutor(len(buckets)) as pool:
            errors = dict(zip(buckets, pool.map(error_of, buckets), strict=True))
    for name, fault in buckets.items():
        assert FAULTS[fault].format(bucket=name) in errors[name], errors[name]
        assert errors[name].startswith(f"The index s3://{name}/v.lance cannot be opened: ")
        assert "\n" not in errors[name] and KEY not in errors[name] and SECRET not in errors[name]


def test_missing_credentials_are_named(bucket, pig, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    result = pig("list", "--index", f"{bucket}/v.lance")
    assert_one_line_error(result, "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")


def test_a_missing_index_and_foreign_tables_are_refused(bucket):
    with pytest.raises(FileNotFoundError, match=f"There is no index {bucket}/v.lance"):
        VideoIndex(f"{bucket}/v.lance")
    ObjectStorage(f"{bucket}/v.lance").connect().create_table("videos", [{"id": 1}])
    with pytest.raises(ValueError, match="holds a LanceDB table that is not an index"):
        VideoIndex(f"{bucket}/v.lance", INFO)


@pytest.mark.parametrize("other_model", [False, True])
def test_an_index_that_another_process_creates_meanwhile_is_kept(s3_server, bucket, other_model):
    """At each request of a creation up to the first write of the table, another process creates and fills it."""

    def create_meanwhile(request) -> None:
        if len(s3_server.requests) == number:
            s3_server.fault = lambda request: None
            VideoIndex(uri, INFO).upsert(entries_of("/a.mp4"), QUERY, metadata=[{"title": "a"}])

    info = replace(INFO, model_fingerprint="other") if other_model else INFO
    refused = pytest.raises(ValueError, match="was made by the model") if other_model else nullcontext()
    VideoIndex(f"{bucket}/first.lance", INFO)
    first_write = [request.path.count("/_transactions/") for request in s3_server.requests].index(1)
    for number in range(1, first_write + 2):
        uri = f"{bucket}/{number}.lance"
        s3_server.requests.clear()
        s3_server.fault = create_meanwhile
        with refused:
            VideoIndex(uri, info)
        (entry,) = (entry for batch in VideoIndex(uri).batches() for entry in batch.entries)
        assert (entry.path, entry.metadata) == ("/a.mp4", {"title": "a"}), number


def test_a_store_without_conditional_writes_gets_no_index(s3_server, bucket):
    s3_server.ignores_conditions = True
    with pytest.raises(ValueError, match="no conditional writes .* Use a store that has them, or a table in DynamoDB"):
        VideoIndex(f"{bucket}/v.lance", INFO)
    assert not s3_server.contents(bucket)
    s3_server.ignores_conditions = False
    s3_server.fault = lambda request: (501, "NotImplemented") if "/_versions/" in request.path else None
    with pytest.raises(OSError, match="no conditional writes"):
        VideoIndex(f"{bucket}/v.lance", INFO, NO_RETRIES)
    s3_server.reset()
    assert VideoIndex(f"{bucket}/v.lance", INFO).is_new


def test_a_store_that_cannot_be_asked_gets_a_warning(s3_server, bucket, caplog):
    s3_server.fault = lambda request: (403, "AccessDenied") if ".conditional-write-" in request.path else None
    assert VideoIndex(f"{bucket}/v.lance", INFO).is_new
    assert "did not say whether it has conditional writes" in caplog.text and "\n" not in caplog.messages[0]


def test_a_table_in_dynamodb_stands_in_for_conditional_writes(s3_server, bucket, monkeypatch):
    monkeypatch.setenv("DYNAMODB_ENDPOINT", s3_server.url)
    s3_server.make_commit_table("commits")
    s3_server.ignores_conditions = True
    uri = f"{bucket}/v.lance?ddbTableName=commits".replace("s3://", "s3+ddb://")
    first = VideoIndex(uri, INFO)
    second = VideoIndex(uri, INFO)  # opened before the write of the first
    first.upsert(entries_of("/a.mp4"), QUERY)
    second.upsert(entries_of("/b.mp4"), -QUERY)
    assert VideoIndex(uri).files().keys() == {"/a.mp4", "/b.mp4"}


def test_a_fault_while_writing_and_searching_loses_nothing(s3_server, bucket, monkeypatch):
    monkeypatch.setattr(ObjectStorage, "check_interval", timedelta(0))
    index = VideoIndex(f"{bucket}/v.lance", INFO, NO_RETRIES)
    index.upsert(entries_of("/a.mp4"), QUERY)
    found = index.search(QUERY)
    s3_server.fault = lambda request: (403, "AccessDenied") if request.method == "PUT" else None
    with pytest.raises(OSError, match="cannot be written: the store refuses the credentials"):
        index.upsert(entries_of("/b.mp4"), -QUERY)
    s3_server.fault = lambda request: (503, "SlowDown")
    with pytest.raises(OSError, match="cannot be searched: the store fails or is overloaded"):
        index.search(QUERY)
    s3_server.reset()
    assert index.search(QUERY) == found and index.files().keys() == {"/a.mp4"}
    index.upsert(entries_of("/b.mp4"), -QUERY)
    assert VideoIndex(index.uri).files().keys() == {"/a.mp4", "/b.mp4"}


def test_searches_ask_the_store_once_per_interval(s3_server, bucket, monkeypatch):
    def requests_of(call) -> int:
        s3_server.requests.clear()
        call()
        return len(s3_server.requests)

    monkeypatch.setattr(ObjectStorage, "check_interval", timedelta(hours=1))
    index = VideoIndex(f"{bucket}/v.lance", INFO)
    index.upsert(entries_of("/a.mp4"), QUERY, metadata=[{"title": "a"}])
    index.search(QUERY)
    assert requests_of(lambda: index.search(QUERY)) == 0
    reader = VideoIndex(index.uri)
    assert len(reader.search(QUERY)[0]) == 1
    index.upsert(entries_of("/b.mp4"), QUERY)
    assert len(index.search(QUERY)[0]) == 2  # its own write, at once
    assert requests_of(lambda: reader.search(QUERY)) == 0 and len(reader.search(QUERY)[0]) == 1

    monkeypatch.setattr(ObjectStorage, "check_interval", timedelta(milliseconds=1))
    reader = VideoIndex(index.uri)
    reader.search(QUERY)
    time.sleep(0.01)
    assert requests_of(lambda: reader.search(QUERY)) in (1, 2)  # two if the interval ends within the search
    index.upsert(entries_of("/c.mp4"), QUERY)
    time.sleep(0.01)
    assert len(reader.search(QUERY)[0]) == 3


# the command line


def test_commands_take_storage_options_and_store_no_credentials(
    s3_server, bucket, pig, video_folder, model_folder, monkeypatch, caplog
):
    for name in s3_server.environment:
        if name not in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_EC2_METADATA_DISABLED"):
            monkeypatch.delenv(name)
    values = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "aws_region": "us-east-1"}
    values |= {"aws_endpoint": s3_server.url, "allow_http": "true"}
    options = [part for name, value in values.items() for part in ("--storage-option", f"{name}={value}")]
    uri = f"{bucket}/v.lance"

    def run(*arguments: object) -> str:
        status, output, error = pig(*arguments, *options)
        assert status == 0, error
        assert SECRET not in output + error and KEY not in output + error
        return output

    assert "5 new" in run("index", video_folder, "--model", model_folder, "--index", uri)
    assert "video_0.mp4" in run("search", "a red circle", "--index", uri)
    run("versions", "--index", uri, "--keep", "first")
    run("delete", video_folder / "video_0.mp4", "--index", uri)
    assert "4 entries" in run("list", "--index", uri)
    run("restore", "first", "--index", uri)
    assert "5 entries" in run("list", "--index", uri)
    assert "exported 5" in run("export", "--index", uri, "--output", "v.parquet")
    assert "5 entries" in run("import", "v.parquet", "--index", f"{bucket}/copy.lance")
    searcher = VideoSearcher.from_pretrained(None, [uri, f"{bucket}/copy.lance"], storage_options=values)
    assert len(searcher.search("a red circle")) == 5
    stored = s3_server.contents(bucket)
    assert stored and not [name for name, content in stored.items() if KEY.encode() in content + name.encode()]
    assert not [name for name, content in stored.items() if SECRET.encode() in content]
    assert SECRET not in caplog.text and KEY not in caplog.text


def make_info(model_folder: str) -> IndexInfo:
    return IndexInfo(model_folder, model_fingerprint(model_folder), 32, num_frames=4)


@pytest.fixture
def many_videos(video_folder):
    for number in range(11):
        shutil.copy(video_folder / f"video_{number % 5}.mp4", video_folder / f"more_{number}.mp4")
    return video_folder


@pytest.mark.parametrize("part", ["/data/", "/_versions/"])
def test_a_killed_run_resumes(s3_server, bucket, many_videos, model_folder, tmp_path, part):
    """Killed while a write is under way, or right after it."""
    uri, log = f"{bucket}/v.lance", tmp_path / "log"
    command = ("index", many_videos, "--model", model_folder, "--index", uri, "--batch-size", 1)
    VideoIndex(uri, make_info(model_folder))
    s3_server.requests.clear()
    process = start_pig(*command, log=log, environment=s3_server.environment)
    while not any(request.method == "PUT" and part in request.path for request in list(s3_server.requests)):
        assert process.is_alive(), log.read_text()
        time.sleep(0.001)
    process.kill()
    process.join()
    assert len(VideoIndex(uri)) < 16
    wait_for_success(start_pig(*command, log=log, environment=s3_server.environment), log)
    num_entries, _, largest = compare_with_fresh_encodings(uri, many_videos, model_folder)
    assert num_entries == 16 and largest < 1e-3


def test_four_processes_write_one_index(s3_server, bucket, many_videos, model_folder, tmp_path, free_port):
    """As torchrun starts them on several machines."""
    uri, logs = f"{bucket}/v.lance", [tmp_path / f"log{rank}" for rank in range(4)]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "WORLD_SIZE": "4", **s3_server.environment}
    processes = [
        start_pig(
            *("index", many_videos, "--model", model_folder, "--index", uri, "--batch-size", 2),
            log=log,
            environment={**shared, "RANK": str(rank)},
        )
        for rank, log in enumerate(logs)
    ]
    for process, log in zip(processes, logs, strict=True):
        wait_for_success(process, log)
    assert f"{uri} holds 16 entries of 16 videos" in logs[0].read_text()
    assert compare_with_fresh_encodings(uri, many_videos, model_folder)[0] == 16


@pytest.mark.bench
def test_count_requests(s3_server, bucket):
    """Count the requests of docs/search.md: `pytest -m bench tests/test_object_storage.py -s`."""

    def count(name: str, call):
        s3_server.requests.clear()
        result = call()
        print(f"{name}: {len(s3_server.requests)} requests")
        return result

    def fill(uri: str, num_rows: int, per_write: int) -> VideoIndex:
        index, rng = VideoIndex(uri, IndexInfo("benchmark", "0", 64)), np.random.default_rng(0)
        centres = rng.standard_normal((500, 64))
        for first in range(0, num_rows, per_write):
            rows = centres[rng.integers(0, 500, per_write)] + 0.8 * rng.standard_normal((per_write, 64))
            entries = entries_of(*(f"/{row}.mp4" for row in range(first, first + per_write)))
            index.upsert(entries, rows / np.linalg.norm(rows, axis=1, keepdims=True))
        index.optimize()
        return index

    queries = np.random.default_rng(1).standard_normal((6, 64))
    index = fill(f"{bucket}/small.lance", 10_000, 2500)
    count("write a file", lambda: index.upsert(entries_of("/new.mp4"), np.eye(1, 64)))
    index.optimize()
    opened = count("open", lambda: VideoIndex(index.uri))
    count("first search of 10,000 rows", lambda: opened.search(queries[:1]))
    count("further search", lambda: opened.search(queries[:1]))
    time.sleep(1.1)
    count("further search after a second", lambda: opened.search(queries[:1]))
    large = VideoIndex(fill(f"{bucket}/large.lance", 200_000, 50_000).uri)
    print(large.search_method)
    for number, query in enumerate(queries):
        time.sleep(1.1)
        count(f"search {number + 1} of 200,000 rows", lambda query=query: large.search(query[None]))
