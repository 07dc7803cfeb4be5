"""The app server over real connections: search, videos, explanations, uploads, and rejected requests."""

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, urlencode

import numpy as np
import PIL.Image
import pytest
import torch

from modeling_pig import PigForRetrieval, VideoSearcher
from modeling_pig.app import api as app_api
from modeling_pig.app import errors, ids, media_routes, settings, uploads
from modeling_pig.app import server as app_server
from modeling_pig.app import service as app_service
from modeling_pig.app.ids import EntryIds
from modeling_pig.app.server import AppServer, bind, make_server
from modeling_pig.app.service import SearchService, UploadSegmentation
from modeling_pig.encoding import loading
from modeling_pig.encoding.encoder import PigEncoder
from modeling_pig.encoding.loading import load_pretrained
from modeling_pig.encoding.model_files import model_fingerprint
from modeling_pig.encoding.video_segment import VideoSegment
from modeling_pig.encoding.videos import encode_videos
from modeling_pig.retrieval.segments import Segmentation
from modeling_pig.stores.conditions import FIELDS
from modeling_pig.stores.facets import find_facets
from modeling_pig.stores.index import IndexInfo, VideoEntry, VideoIndex
from modeling_pig.visualization.tokens import explain_video

from .cli_helpers import assert_one_line_error


CAPTIONS = ["a red circle moves left", "a blue star spins", "a small green square", "a ring <b>moves</b> up", "a star"]
HOSTILE_NAME = '<img src=x onerror=alert(1)>&amp;".mp4'


def make_index(uri, model_folder: str, segments: list[VideoSegment], duration: float = 2.0) -> VideoIndex:
    """Build an index of whole files and segments of files."""
    model, processor = load_pretrained(PigForRetrieval, model_folder)
    info = IndexInfo(model_folder, model_fingerprint(model_folder), model.config.projection_dim)
    index = VideoIndex(uri, info)
    with torch.inference_mode():
        (batch,) = encode_videos(PigEncoder(model, processor), segments, [], batch_size=len(segments), num_threads=1)
    for path in dict.fromkeys(batch.paths):
        rows = [row for row, segment in enumerate(segments) if segment.path == path]
        entries = [VideoEntry(*segments[row], duration=duration) for row in rows]
        index.upsert(entries, batch.embeddings[rows])
    return index


class Client:
    """Client of a server on this machine, in this process or another one."""

    def __init__(self, port: int, server: AppServer | None = None):
        self.port = port
        self.server = server

    def ask(self, path: str, method: str = "GET", body=None, **headers: str) -> SimpleNamespace:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return SimpleNamespace(status=response.status, headers=response.headers, body=response.read())
        finally:
            connection.close()

    def json(self, path: str, status: int = 200, **parameters):
        response = self.ask(f"{path}?{urlencode(parameters)}")
        assert response.status == status, response.body
        assert response.headers["Content-Type"] == "application/json"
        return json.loads(response.body)

    def search(self, text: str = "a red circle", **parameters) -> list[dict]:
        return self.json("/api/v1/search", text=text, **{"group": "true", **parameters})["results"]

    def upload(self, body, **parameters) -> list[dict]:
        want, parameters = parameters.pop("want", "search"), {"group": "true", **parameters}
        address = f"/api/v1/{want}?{urlencode(parameters)}"
        response = self.ask(address, "POST", body, Accept="application/x-ndjson")
        assert response.status == 200, response.body
        return [json.loads(line) for line in response.body.splitlines()]


@contextmanager
def running(service: SearchService, **options) -> Iterator[Client]:
    listener = bind("127.0.0.1", 0)
    app = AppServer(service, **options)
    server = make_server(app.asgi)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Client(listener.getsockname()[1], app)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        app.close()


@pytest.fixture(scope="module")
def videos(shape_videos, tmp_path_factory) -> list[Path]:
    """Return the five videos; the first file name is HTML."""
    folder = tmp_path_factory.mktemp("app videos")
    names = [HOSTILE_NAME, *(path.name for path in shape_videos[1:])]
    for path, name in zip(shape_videos, names, strict=True):
        (folder / name).write_bytes(path.read_bytes())
    return [folder / name for name in names]


@pytest.fixture(scope="module")
def service(videos, model_folder, tmp_path_factory) -> SearchService:
    uri = tmp_path_factory.mktemp("index") / "v.lance"
    segments = [VideoSegment(str(path)) for path in videos[:4]]
    segments += [VideoSegment(str(videos[4]), 0.0, 1.0), VideoSegment(str(videos[4]), 1.0, 2.0)]
    make_index(uri, model_folder, segments)
    return SearchService(VideoSearcher.from_pretrained(None, uri, dtype="float32"), CAPTIONS)


@pytest.fixture(scope="module")
def client(service) -> Iterator[Client]:
    with running(service) as client:
        yield client


@pytest.fixture
def temporary_folder(tmp_path, monkeypatch) -> Path:
    """Folder for temporary files, to check that all are removed."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def open_files(folder: Path, pid: int | str = "self") -> list[str]:
    """Return the files of a folder that a process has open, with deleted and unnamed files."""
    links = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(link))
        except OSError:  # the descriptor of the listing is closed
            pass
    return [link for link in links if link.startswith(str(folder))]


@contextmanager
def started_upload(client: Client, content: bytes = b"", length: int = 100_000) -> Iterator[socket.socket]:
    """Send the start of an upload, and keep its connection open."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=120) as connection:
        head = f"POST /api/v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode() + content)
        yield connection


@pytest.fixture
def no_files_left(temporary_folder) -> Iterator[Path]:
    """Return the folder for temporary files; check after the test that no file is left or open."""
    yield temporary_folder
    assert not list(temporary_folder.iterdir()) and not open_files(temporary_folder)


# --- the page


def test_the_page_loads_nothing_from_other_sites(client):
    assert {"page.html", "style.css", "script.js", "cards.js"} <= set(app_server.PAGE_FILES)
    for path, kind in (("", "text/html"), *app_server.PAGE_FILES.items()):
        response = client.ask(f"/{path}")
        assert response.status == 200 and response.headers["Content-Type"].startswith(kind)
        assert b"//" not in response.body.replace(b"// ", b""), "an address of another site"
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_about_describes_the_index_and_its_limits(client, model_folder):
    about = client.json("/api/v1/about")
    assert about["clips"] == 6 and about["captions"] == len(CAPTIONS) and about["max_upload_bytes"] == 200_000_000
    assert about["model"] == "/".join(Path(model_folder).parts[-2:])
    assert 2 <= len(about["examples"]) <= 4 and set(about["examples"]) <= set(CAPTIONS)


def test_the_filter_of_the_page_has_every_field(client):
    (fields,) = re.findall("const FIELDS = {(.*)}", client.ask("/filter.js").body.decode())
    assert set(re.findall(r"(\w+):", fields)) == set(FIELDS)


# --- searching


def test_results_equal_those_of_the_searcher(client, service, videos):
    found = client.search(k=3)
    expected = service.searcher.search("a red circle", k=3, group=True)
    assert [(result["rank"], result["name"], result["start"], result["end"]) for result in found] == [
        (result.rank, Path(result.path).name, result.start, result.end) for result in expected
    ]
    assert [result["score"] for result in found] == pytest.approx([result.score for result in expected])
    assert {result["folder"] for result in found} == {str(videos[0].parent)}
    everything = client.search(k=96)
    assert len(everything) == 5 and len({result["id"] for result in everything}) == 5
    (in_segments,) = [result for result in everything if result["name"] == videos[4].name]
    (other,) = in_segments["others"]
    assert {(result["start"], result["end"]) for result in (in_segments, other)} == {(0.0, 1.0), (1.0, 2.0)}
    assert in_segments["id"] != other["id"]
    assert [result["name"] for result in client.search(where="name like '<img%'")] == [HOSTILE_NAME]


@pytest.mark.parametrize(
    ("parameters", "part"),
    [
        ({"text": "  "}, "empty"),
        ({"text": "a" * 1001}, "at most 1000 characters"),
        ({"where": "path = 'x' union select * from secrets"}, "column"),
        ({"k": "0"}, "k: Input should be greater than or equal to 1"),
        ({"k": str(10**9)}, "less than or equal to 1000, not '1000000000'."),
        ({"k": "9" * 5000}, "integer"),
        ({"k": "²"}, "integer"),
        ({"offset": "-1"}, "offset: "),
        ({"min_score": "nan"}, "finite"),
        ({"like": "0" * 32}, "exactly one"),
        ({"rerank": "10"}, "context tokens"),
        ({"rerank": "2", "k": "5"}, "at least k"),
    ],
)
def test_invalid_searches_are_rejected(client, parameters, part):
    assert part in client.json("/api/v1/search", 422, **{"text": "a star", **parameters})["error"]


# --- the owner's columns


def test_own_columns_are_shown_and_narrow_a_search(videos, model_folder, tmp_path, monkeypatch):
    segments = [VideoSegment(str(path)) for path in videos[:4]]
    segments += [VideoSegment(str(videos[4]), 0.0, 1.0), VideoSegment(str(videos[4]), 1.0, 2.0)]
    index = make_index(tmp_path / "v.lance", model_folder, segments)
    long, hostile = "x" * 10_000, "' or path like '%\x1b<b>\u202e"
    kinds = [hostile, hostile, long, long, "news"]
    metadata = {
        str(path): {"kind": kind, "tags": ["all", kind], "good": number < 2, "views": number}
        for number, (path, kind) in enumerate(zip(videos, kinds, strict=True))
    }
    index.set_metadata(metadata)
    index.add_columns({"words": "text"})
    first, second = (found.entry for found in index.get(str(videos[4])))
    index.set_entry_metadata({first.key: {"words": "one"}, second.key: {"words": None}})
    counted = []
    monkeypatch.setattr(app_service, "find_facets", lambda indexes: counted.append(0) or find_facets(indexes))

    with running(SearchService(VideoSearcher.from_pretrained(None, tmp_path / "v.lance"))) as client:
        shown = {facet["column"]: facet["values"] for facet in client.json("/api/v1/facets")["facets"]}
        counts = {name: [(value["label"], value["count"]) for value in values] for name, values in shown.items()}
        short, escaped = "x" * 100 + "…", hostile.replace("\x1b", r"\x1b")
        assert counts["kind"] == [(escaped, 2), (short, 2), ("news", 1)]
        assert counts["good"] == [("false", 3), ("true", 2)] and counts["tags"][0] == ("all", 5)
        assert counts.keys() == {"kind", "tags", "good"}
        ids = {(name, value["label"]): value["id"] for name, values in shown.items() for value in values}

        def found(*chosen: tuple[str, str], where: str = "") -> set[str]:
            query = [("facet", ids[value]) for value in chosen]
            response = client.ask(
                f"/api/v1/search?group=true&{urlencode([('text', 'a star'), ('where', where), *query])}"
            )
            assert response.status == 200, response.body
            return {result["name"] for result in json.loads(response.body)["results"]}

        names = [path.name for path in videos]
        assert found(("kind", escaped)) == set(names[:2]) and found(("kind", short)) == set(names[2:4])
        assert found(("kind", escaped), ("kind", "news")) == {*names[:2], names[4]}
        assert found(("kind", escaped), ("kind", short), ("tags", short), ("good", "false")) == set(names[2:4])
        assert found(("tags", "all"), ("tags", short), ("good", "true"), where="views > 0") == {names[1]}
        assert "choose again" in client.json("/api/v1/search", 422, text="a star", facet="0123")["error"]
        body = videos[2].read_bytes()
        assert {result["name"] for result in client.upload(body, facet=ids["kind", short])[-1]["results"]} == set(
            names[2:4]
        )
        assert len(counted) == 1

        results = {result["name"]: result for result in client.search(text="a star")}
        assert results[names[2]]["columns"] == {"kind": long, "tags": ["all", long], "good": "false", "views": "2"}
        (other,) = results[names[4]]["others"]
        words = [results[names[4]]["columns"].get("words"), other["columns"]["words"]]
        assert sorted(words, key=str) == [None, "one"] and other["columns"].keys() == {"words"}
        VideoIndex(index.uri).set_metadata({str(path): {"kind": "news"} for path in videos[:2]})  # as another process
        [kind] = [f["values"] for f in client.json("/api/v1/facets")["facets"] if f["column"] == "kind"]
        assert [(value["label"], value["count"]) for value in kind] == [("news", 3), (short, 2)]
        assert "choose again" in client.json("/api/v1/search", 422, text="a star", facet=ids["kind", escaped])["error"]


# --- serving videos


@pytest.fixture(scope="module")
def served_video(client, videos) -> tuple[str, bytes]:
    """Request path of a video, and its content."""
    (found,) = client.search(where=f"name = '{videos[1].name}'")
    return f"/api/v1/clip?id={found['id']}", videos[1].read_bytes()


def test_videos_are_served_whole_and_in_byte_ranges(client, served_video, monkeypatch):
    path, content = served_video
    response = client.ask(path)
    assert (response.status, response.body) == (200, content)
    assert response.headers["Content-Type"] == "video/mp4" and response.headers["Accept-Ranges"] == "bytes"
    assert client.ask(path, "HEAD").headers["Content-Length"] == str(len(content))

    response = client.ask(path, Range="bytes=100-199")
    assert (response.status, response.body) == (206, content[100:200])
    assert response.headers["Content-Range"] == f"bytes 100-199/{len(content)}"
    assert client.ask(path, Range="bytes=-50").body == content[-50:]
    assert client.ask(path, Range="bytes=0-").body == content
    assert client.ask(path, Range=f"bytes={len(content)}-").status == 416
    for junk in ("bytes=junk", "bytes=-", "bytes=²-", "bytes=" + "9" * 5000 + "-", "lines=1-2", "bytes=5-1"):
        assert client.ask(path, Range=junk).status == 400
    assert client.ask(path, Range="bytes=" + "9" * 18 + "-").status == 416

    monkeypatch.setattr(media_routes, "PART_BYTES", 64)
    response = client.ask(path, Range="bytes=10-")
    assert (response.status, response.body) == (206, content[10:74])
    assert response.headers["Content-Range"] == f"bytes 10-73/{len(content)}"


def test_only_videos_of_the_index_are_served(client, videos, tmp_path):
    outside = tmp_path / "secret.mp4"
    outside.write_bytes(b"secret")
    addresses = [str(outside), str(videos[0]), "/etc/passwd", "page.html", "server.py", "a" * 32, "", "%00", "💥"]
    addresses += ["../" * depth + "etc/passwd" for depth in (1, 5)]
    for address in addresses:
        for encoded in (quote(address), quote(address, safe=""), quote(quote(address, safe=""))):
            for path in (f"/api/v1/clip?id={encoded}", f"/{encoded}", f"/api/v1/explanation?text=a&id={encoded}"):
                response = client.ask(path)
                is_page = path in ("/", "/page.html")
                # ids that no server makes are refused before they are looked up
                assert response.status in ((200,) if is_page else (404, 422)), path
                assert b"root:" not in response.body and (response.status == 422 or b"secret" not in response.body)
    assert client.ask("/api/v1/clip?id=x", "POST").status == 405


def test_videos_deleted_from_the_index_or_the_disk_are_not_served(model_folder, shape_videos, tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("a.mp4", "b.mp4", "c.mp4")]
    for path, source in zip(paths, shape_videos, strict=False):
        path.write_bytes(source.read_bytes())
    index = make_index(tmp_path / "v.lance", model_folder, [VideoSegment(str(path)) for path in paths])
    with running(SearchService(VideoSearcher.from_pretrained(None, tmp_path / "v.lance"))) as client:
        known = {result["name"]: result["id"] for result in client.search()}
        assert all(client.ask(f"/api/v1/clip?id={video_id}").status == 200 for video_id in known.values())
        index.delete([str(paths[0])])
        paths[1].unlink()
        paths[2].unlink()
        os.mkfifo(paths[2])  # a server that opens it would wait forever
        monkeypatch.setattr(ids, "TRUSTED_FOR", -1)
        for path, reason in zip(
            paths, ("The index holds no video", "no longer exists", "not a single file"), strict=True
        ):
            response = client.ask(f"/api/v1/clip?id={known[path.name]}")
            assert response.status == 404 and reason in json.loads(response.body)["error"]
        assert client.json("/api/v1/explanation", 404, id=known["a.mp4"], text="a star")
        assert (
            "no such file"
            in client.json("/api/v1/explanation", 422, id=known["b.mp4"], text="a star")["error"].lower()
        )


def test_byte_ranges_do_not_look_up_the_index(client, service, monkeypatch):
    lookups = []
    monkeypatch.setattr(service, "holds", lambda path: lookups.append(path) or True)
    (found,) = client.search(where="name = 'video_1.mp4'")
    path = f"/api/v1/clip?id={found['id']}"
    for first in range(0, 300, 100):
        assert client.ask(path, Range=f"bytes={first}-").status == 206
    assert not lookups
    monkeypatch.setattr(ids, "TRUSTED_FOR", -1)
    assert client.ask(path).status == 200 and len(lookups) == 1
    monkeypatch.setattr(service, "holds", lambda path: False)
    assert client.ask(path).status == 404


# --- access


def test_other_host_names_are_rejected(client, served_video):
    path, _ = served_video
    port = client.port
    for host in (f"127.0.0.1:{port}", "localhost", "LOCALHOST:8000", f"[::1]:{port}"):
        assert client.ask(path, Host=host).status == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "10.0.0.1", "localhost.", "[", ""):
        response = client.ask(path, Host=host)
        assert response.status == 421 and "--allow-host" in json.loads(response.body)["error"]


def test_requests_from_other_sites_are_rejected(client, shape_videos):
    assert client.ask("/api/v1/about", Origin=f"http://127.0.0.1:{client.port}").status == 200
    content = shape_videos[0].read_bytes()
    other_ports = [f"http://{name}:{client.port % 65535 + 1}" for name in ("localhost", "127.0.0.1", "[::1]")]
    for origin in ("http://evil.example", "null", "https://127.0.0.1.evil.example", "http://[", *other_ports):
        assert client.ask("/api/v1/search", "POST", content, Origin=origin).status == 403


def test_a_public_server_hides_folders_and_checks_hosts(service, videos):
    with running(
        service, is_public=True, host_names=["Videos.Example"], frame_ancestors="https://a.example"
    ) as client:
        for host in ("10.0.0.1:80", "[fe80::1]", "videos.example", socket.gethostname(), "localhost"):
            assert client.ask("/api/v1/about", Host=host).status == 200
        assert client.ask("/api/v1/about", Host="evil.example").status == 421
        assert client.ask("/api/v1/about", Host="10.0.0.1", Origin="https://videos.example").status == 200
        assert client.ask("/api/v1/about", Host="10.0.0.1", Origin="http://10.0.0.2").status == 403
        assert "frame-ancestors https://a.example" in client.ask("/").headers["Content-Security-Policy"]
        assert {result["folder"] for result in client.search()} == {""}
        assert str(videos[0].parent) not in client.ask("/api/v1/search?text=a").body.decode()
        for where in ("path like '/%'", "not (duration < 1 or path in ('a', 'b'))", "PATH is null"):
            assert "filter by name" in client.json("/api/v1/search", 422, text="a star", where=where)["error"]
            assert client.ask(f"/api/v1/search?{urlencode({'where': where})}", "POST", b"junk").status == 422
        assert len(client.search(where="name like 'path%' or name like 'video%'")) == 4


def test_ids_are_the_same_in_every_process(client, service, videos, model_folder, tmp_path):
    """A replica answers for the ids of another one, also if it has searched nothing."""
    ids_of_client = {result["id"] for result in client.search()}
    uri = service.searcher.indexes[0].uri
    with running(SearchService(VideoSearcher.from_pretrained(None, uri))) as replica:
        assert {replica.ask(f"/api/v1/clip?id={entry}").status for entry in ids_of_client} == {200}
        (found,) = client.search(where="name = 'video_4.mp4'")
        whole_file = EntryIds(service).make(VideoSegment(str(videos[4])))
        assert whole_file not in (found["id"], found["others"][0]["id"])
        assert replica.ask(f"/api/v1/clip?id={whole_file}").body == videos[4].read_bytes()
        assert replica.ask(f"/api/v1/clip?id={'0' * 32}").status == 404
        assert {result["id"] for result in replica.search()} == ids_of_client
    with running(service, id_key="a secret") as keyed:
        assert not {result["id"] for result in keyed.search()} & ids_of_client
    make_index(tmp_path / "v.lance", model_folder, [VideoSegment(str(path)) for path in videos])
    with running(SearchService(VideoSearcher.from_pretrained(None, tmp_path / "v.lance"))) as other_index:
        assert not {result["id"] for result in other_index.search()} & ids_of_client


def test_unknown_ids_read_the_index_once_per_version(service, videos, model_folder, tmp_path, monkeypatch):
    index = make_index(tmp_path / "v.lance", model_folder, [VideoSegment(str(videos[1]))])
    served = SearchService(VideoSearcher.from_pretrained(None, tmp_path / "v.lance"))
    scans, scan = [], VideoIndex.scan
    monkeypatch.setattr(VideoIndex, "scan", lambda self, *args: scans.append(args) or scan(self, *args))
    with running(served) as client:
        for number in range(5):
            assert client.ask(f"/api/v1/clip?id={number:032x}").status == 404
        assert len(scans) == 1
        index.set_metadata({str(videos[1]): {"kind": "news"}})
        found = EntryIds(SearchService(VideoSearcher.from_pretrained(None, tmp_path / "v.lance"))).make(
            VideoSegment(str(videos[1]))
        )
        assert client.ask(f"/api/v1/clip?id={found}").status == 200
        assert client.ask(f"/api/v1/clip?id={'f' * 32}").status == 404 and len(scans) == 2


# --- explanations


def test_explanation_equals_explain_video(client, service, videos, model_folder, temporary_folder):
    (found,) = client.search(where=f"name = '{videos[1].name}'")
    response = client.json("/api/v1/explanation", id=found["id"], text="a red circle moves left")
    model, processor = load_pretrained(PigForRetrieval, model_folder)
    expected = explain_video(model, processor, videos[1], "a red circle moves left", CAPTIONS)
    assert response["score"] == pytest.approx(expected.score, abs=1e-5)
    assert [caption["text"] for caption in response["captions"]] == [caption for caption, _ in expected.expected]
    assert [caption["score"] for caption in response["captions"]] == pytest.approx(
        [cosine for _, cosine in expected.expected], abs=1e-5
    )
    assert "4 frames" in response["description"] and "“a red circle moves left”" in response["description"]
    assert not list(temporary_folder.iterdir())
    assert response["selected"] == len(expected.selected_patches) == 5
    assert [phrase["text"] for phrase in response["phrases"]] == [phrase.text for phrase in expected.phrases]
    rows, columns = expected.attention.shape[1:]
    assert response["patch"] == {"width": 1 / columns, "height": 1 / rows}
    found_patches = [
        (frame * rows + round(patch["y"] * rows)) * columns + round(patch["x"] * columns)
        for frame, described in enumerate(response["frames"])
        for patch in described["patches"]
    ]
    assert sorted(found_patches) == sorted(expected.selected_patches.tolist())
    for described, frame in zip(response["frames"], expected.frames, strict=True):
        kind, _, data = described["picture"].partition(",")
        picture = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(data))), dtype=float)
        assert kind == "data:image/webp;base64" and np.abs(picture - frame).mean() < 8
    assert [described["time"] for described in response["frames"]] == pytest.approx([0, 0.65, 1.3, 1.9], abs=0.1)
    assert [(part["start"], part["end"]) for part in response["times"]] == [(0.0, 1.0), (1.0, 2.0)]
    assert "empty" in client.json("/api/v1/explanation", 422, id=found["id"], text="")["error"]


def test_times_of_an_explanation_have_the_scores_of_these_segments(client, videos, model_folder, tmp_path):
    index = make_index(tmp_path / "v.lance", model_folder, [VideoSegment(str(videos[2]), n, n + 1) for n in (0, 1)])
    scored = VideoSearcher.from_pretrained(None, index.uri).search("a star")
    (found,) = client.search(where=f"name = '{videos[2].name}'")
    times = client.json("/api/v1/explanation", id=found["id"], text="a star")["times"]
    expected = [result.score for result in sorted(scored, key=lambda result: result.start)]
    assert [part["score"] for part in times] == pytest.approx(expected, abs=2e-3)


def test_explanation_of_a_segment_has_the_score_of_its_result(client, videos):
    (first,) = client.search(where=f"name = '{videos[4].name}'", text="a star")
    for segment in (first, *first["others"]):
        response = client.json("/api/v1/explanation", id=segment["id"], text="a star")
        assert response["score"] == pytest.approx(segment["score"], abs=2e-3)  # the index stores half precision
        assert response["times"] == []  # the segment has one second
    assert first["score"] != pytest.approx(first["others"][0]["score"], abs=1e-6)


def test_the_video_model_is_loaded_once(service, videos, monkeypatch):
    loaded, stages = [], []
    load = loading.load_pretrained
    monkeypatch.setattr(loading, "load_pretrained", lambda *arguments: loaded.append(arguments) or load(*arguments))
    fresh = SearchService(service.searcher, CAPTIONS)
    assert fresh.like(str(videos[2]), stages.append, k=1)[0].path == str(videos[2])
    assert stages == ["Loading the model", "Encoding the video"]
    fresh.fitting_captions(str(videos[2]), 1, stages.append)
    fresh.explain(VideoSegment(str(videos[2])), "a star")
    assert len(loaded) == 1


def test_explanations_beyond_the_limit_are_rejected(service, monkeypatch):
    """Waiting explanations leave threads for other requests."""
    monkeypatch.setattr(settings, "MAX_EXPLANATIONS", 2)
    with running(service) as client, ThreadPoolExecutor(3) as pool:
        address = f"/api/v1/explanation?{urlencode({'id': client.search()[0]['id'], 'text': 'a star'})}"
        with service._encoding:  # as while an upload is encoded
            waiting = [pool.submit(client.ask, address) for _ in range(3)]
            done, waiting = wait(waiting, 120, FIRST_COMPLETED)
            assert [future.result().status for future in done] == [429]
            assert client.search()
        assert [future.result().status for future in waiting] == [200, 200]


def test_a_model_without_pseudo_query_explains_without_captions(shape_videos, make_model, processor, tmp_path):
    make_model(framework="two_tower").save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    make_index(tmp_path / "v.lance", str(tmp_path / "model"), [VideoSegment(str(shape_videos[0]))])
    searcher = VideoSearcher.from_pretrained(None, tmp_path / "v.lance")
    with running(SearchService(searcher, CAPTIONS)) as client:
        response = client.json("/api/v1/explanation", id=client.search()[0]["id"], text="a star")
        assert response["captions"] == [] and response["description"].startswith("4 frames")
        assert response["selected"] is None and not any(frame["patches"] for frame in response["frames"])
        assert len(client.upload(shape_videos[0].read_bytes(), want="captions")[-1]["captions"]) == len(CAPTIONS)


# --- uploading


def test_an_upload_finds_similar_videos(client, service, videos, no_files_left):
    *stages, last = client.upload(videos[2].read_bytes(), k=3)
    assert {"stage": "Encoding the video"} in stages
    assert [result["name"] for result in last["results"]][0] == videos[2].name and len(last["results"]) == 3
    assert last["results"][0]["score"] == pytest.approx(1, abs=1e-3)
    found = client.upload(videos[2].read_bytes(), where="name like '<img%'")[-1]["results"]
    assert [result["name"] for result in found] == [HOSTILE_NAME]
    response = client.ask("/api/v1/search?where=no+filter", "POST", videos[2].read_bytes())
    assert response.status == 422 and "column" in json.loads(response.body)["error"]


def test_an_upload_finds_the_captions_nearest_to_it(client, service, videos, model_folder, monkeypatch):
    captions = client.upload(videos[3].read_bytes(), want="captions", k=4)[-1]["captions"]
    model, processor = load_pretrained(PigForRetrieval, model_folder)
    scores = [explain_video(model, processor, videos[3], caption).score for caption in CAPTIONS]
    best = np.argsort(scores)[::-1][:4]
    assert [caption["text"] for caption in captions] == [CAPTIONS[number] for number in best]
    assert [caption["score"] for caption in captions] == pytest.approx([scores[n] for n in best], abs=1e-5)
    monkeypatch.setattr(service, "captions", [])
    assert "--captions" in client.upload(videos[0].read_bytes(), want="captions")[-1]["error"]


def test_long_uploads_are_split_into_at_most_64_segments(service, videos, monkeypatch):
    segmentation = UploadSegmentation()
    for duration in (None, 10.0, 61.0, 1919.0):
        assert segmentation.split(duration) == Segmentation().split(duration)
    for duration in (1921.0, 7200.0, 360_000.0):
        spans = segmentation.split(duration)
        assert len(spans) <= 64 and spans[0][0] == 0 and spans[-1][1] == duration
        assert all(span[1] == following[0] for span, following in zip(spans, spans[1:], strict=False))

    monkeypatch.setattr(app_service, "DEFAULT_LENGTH", 0.01)
    monkeypatch.setattr(app_service, "MAX_SEGMENTS", 4)
    seen = []
    look = PigForRetrieval.get_video_features
    monkeypatch.setattr(
        PigForRetrieval, "get_video_features", lambda self, pixels: seen.append(len(pixels)) or look(self, pixels)
    )
    assert service.like(str(videos[0]), lambda stage: None, k=5)[0].path == str(videos[0])
    assert sum(seen) == 4


def test_uploads_that_are_not_videos_are_rejected(client, videos, no_files_left):
    good = videos[0].read_bytes()
    for content in (b"junk" * 1000, good[: len(good) // 2], b"#EXTM3U\nfile:///etc/passwd\n", b"\0"):
        *_, last = client.upload(content)
        assert set(last) == {"error", "code"} and last["error"] and "\n" not in last["error"]
        assert "/proc" not in last["error"] and str(no_files_left) not in last["error"]
    response = client.ask("/api/v1/search", "POST", b"")
    assert response.status == 422 and "empty" in json.loads(response.body)["error"]


def test_uploads_that_are_too_large_are_rejected(client, videos, no_files_left, monkeypatch):
    good = videos[0].read_bytes()
    limited = replace(client.server.settings, max_upload_bytes=len(good))
    monkeypatch.setattr(client.server.api, "settings", limited)
    assert "results" in client.upload(good)[-1]
    for body in (good + b"\0", iter([good, b"\0"])):  # with and without Content-Length
        response = client.ask("/api/v1/search", "POST", body)
        assert response.status == 413 and "at most" in json.loads(response.body)["error"]


def test_an_interrupted_upload_leaves_no_files(client, videos, temporary_folder):
    with started_upload(client, b"x" * 5000):
        wait_until(lambda: open_files(temporary_folder))
        assert not list(temporary_folder.iterdir())  # also while it is being received
    wait_until(lambda: not open_files(temporary_folder))
    assert "results" in client.upload(videos[0].read_bytes())[-1]


def test_a_full_disk_is_reported(client, videos, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(uploads, "_unnamed_file", Full)
    response = client.ask("/api/v1/search", "POST", videos[0].read_bytes())
    assert response.status == 507 and "No space left" in json.loads(response.body)["error"]


def test_searches_run_during_uploads(client, service, videos, monkeypatch):
    started, may_load = threading.Event(), threading.Event()
    load = service._load

    def load_late(report):
        started.set()
        assert may_load.wait(120)
        return load(report)

    monkeypatch.setattr(service, "_load", load_late)
    expected = {text: service.searcher.search(text, k=5, group=True) for text in CAPTIONS}
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(client.upload, videos[0].read_bytes())
        assert started.wait(120)
        second = pool.submit(client.upload, videos[1].read_bytes())
        responses = list(pool.map(client.search, CAPTIONS * 8))
        assert not first.done() and not second.done()
        may_load.set()
        for upload, video in ((first, videos[0]), (second, videos[1])):
            assert upload.result()[-1]["results"][0]["name"] == video.name
        assert {"stage": "Waiting for another video"} in second.result()
    for text, response in zip(CAPTIONS * 8, responses, strict=True):
        assert [result["name"] for result in response] == [Path(result.path).name for result in expected[text]]


def test_uploads_beyond_the_limit_are_rejected(service, videos, monkeypatch):
    monkeypatch.setattr(settings, "MAX_UPLOADS", 2)
    begun, receive = [], uploads.receive
    monkeypatch.setattr(app_api, "receive", lambda *args: begun.append(args) or receive(*args))
    with running(service) as client:
        with started_upload(client), started_upload(client):
            wait_until(lambda: len(begun) == 2)
            response = wait_until(lambda: refused(client.ask("/api/v1/search", "POST", b"junk")))
            assert "Too many" in json.loads(response.body)["error"]
        wait_until(lambda: not refused(client.ask("/api/v1/search", "POST", b"junk")))


def test_a_slow_upload_is_rejected(service, no_files_left, monkeypatch):
    monkeypatch.setattr(settings, "MAX_UPLOADS", 1)
    monkeypatch.setattr(uploads, "MAX_RECEIVING", 0.05)
    with running(service) as client:
        with started_upload(client, b"junk") as connection:
            response = b"".join(iter(lambda: connection.recv(4096), b""))  # until the server closes the connection
        assert b" 408 " in response.splitlines()[0] and b"took longer than" in response
        monkeypatch.setattr(uploads, "MAX_RECEIVING", 600)
        assert client.ask("/api/v1/search", "POST", b"junk").status == 422


def refused(response):
    return response if response.status == 429 else None


@pytest.mark.parametrize(
    "fault", [RuntimeError("a secret of the server"), ImportError("cannot import a secret", name="transformers")]
)
def test_internal_errors_are_not_shown(client, service, videos, monkeypatch, fault):
    def fail(*arguments, **options):
        raise fault

    monkeypatch.setattr(service.searcher, "search", fail)
    monkeypatch.setattr(service, "_load", fail)
    assert client.json("/api/v1/search", 500, text="a star") == {"error": errors.INTERNAL, "code": "internal"}
    assert client.upload(videos[0].read_bytes())[-1] == {"error": errors.INTERNAL, "code": "internal"}


def test_paths_of_the_server_are_not_shown(client, service, videos, tmp_path, monkeypatch, caplog):
    result_id = client.search()[0]["id"]

    def fail(*arguments, **options):
        raise OSError("The index /home/ada/v.lance cannot be searched")

    monkeypatch.setattr(service.searcher, "search", fail)
    monkeypatch.setattr(service.searcher, "name", str(tmp_path / "moved"))
    monkeypatch.setattr(service, "_whole", None)
    assert client.json("/api/v1/search", 500, text="a star") == {"error": errors.UNREADABLE, "code": "unreadable"}
    assert client.json("/api/v1/explanation", 500, text="a star", id=result_id) == {
        "error": errors.UNREADABLE,
        "code": "unreadable",
    }
    assert client.upload(videos[0].read_bytes())[-1] == {"error": errors.UNREADABLE, "code": "unreadable"}
    assert "/home/ada/v.lance" in caplog.text and str(tmp_path / "moved") in caplog.text


# --- the command


def wait_until(is_so, seconds: float = 120.0):
    deadline = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@contextmanager
def pig_app(*arguments, **environment: str) -> Iterator[tuple[subprocess.Popen, Client]]:
    """Run `pig app` in a separate process on a free port."""
    command = [sys.executable, "-m", "modeling_pig.cli", "app", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
    try:
        address = process.stdout.readline().split()[0]
        yield process, Client(int(address.rpartition(":")[2]))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_stopped_app_leaves_no_files(service, videos, tmp_path):
    index = service.searcher.indexes[0].uri
    for end, status in ((signal.SIGINT, None), (signal.SIGKILL, -signal.SIGKILL)):
        with pig_app("--index", index, TMPDIR=str(tmp_path)) as (process, client):
            assert len(client.search()) == 5
            with started_upload(client, b"x" * 5000):
                wait_until(lambda: open_files(tmp_path, process.pid))
                process.send_signal(end)
                process.wait(120)
            assert status is None or process.returncode == status
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_errors_of_pig_app(pig, service, tmp_path, free_port):
    index = service.searcher.indexes[0].uri
    (tmp_path / "file").touch()
    assert_one_line_error(pig("app", "--index", "file", "--port", 0), "file")
    assert_one_line_error(pig("app", "--index", index, "--captions", "nothing.txt", "--port", 0), "nothing.txt")
    assert_one_line_error(pig("app", "--index", index, "--host", "no.such.host.invalid"), "no.such.host.invalid")
    with socket.create_server(("127.0.0.1", free_port)):
        assert_one_line_error(pig("app", "--index", index, "--port", free_port), f"port {free_port}")
        num_open = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="choose another") as caught:
            bind("127.0.0.1", free_port)
        assert len(os.listdir("/proc/self/fd")) == num_open, caught  # `caught` would keep an open socket alive


def test_loopback_addresses_are_recognised(service):
    with bind("0.0.0.0", 0) as everywhere, bind("127.0.0.1", 0) as here, bind("localhost", 0) as by_name:
        assert [app_server.is_loopback(listener) for listener in (everywhere, here, by_name)] == [False, True, True]
