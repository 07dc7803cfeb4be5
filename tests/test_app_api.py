"""The HTTP API of `pig app`: its description, generated and own clients, tokens, writes, pictures, and bad input."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode

import pytest

from modeling_pig import PigClient, VideoIndex, VideoSearcher
from modeling_pig.app import service as app_service
from modeling_pig.app import settings
from modeling_pig.app.ids import EntryIds
from modeling_pig.app.security import RateLimiter
from modeling_pig.app.service import SearchService
from modeling_pig.app.settings import AppSettings
from modeling_pig.encoding.video_segment import VideoSegment
from modeling_pig.retrieval.judging import Judgement
from modeling_pig.stores.index import VideoEntry

from .cli_helpers import assert_one_line_error
from .test_app import HOSTILE_NAME, Client, client, make_index, pig_app, running, service, videos, wait_until  # noqa: F401
from .test_index import INFO, random_embeddings


READ, WRITE = "a token that reads", "a token that writes"
SCRIPTS = Path(sys.executable).parent
TIME = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def folder(videos, model_folder, tmp_path_factory) -> Path:  # noqa: F811
    """Folder with an index of four videos, of which one has segments, and a folder of videos that may be added."""
    folder = tmp_path_factory.mktemp("api")
    segments = [VideoSegment(str(path)) for path in videos[:3]]
    segments += [VideoSegment(str(videos[3]), 0.0, 1.0), VideoSegment(str(videos[3]), 1.0, 2.0)]
    index = make_index(folder / "v.lance", model_folder, segments)
    metadata = {str(path): {"kind": "news", "views": number} for number, path in enumerate(videos[:4])}
    metadata[str(videos[1])] |= {"kind": "<b>\x1b[31m\u202e", "tags": ["a", "b"], "seen": TIME}
    index.set_metadata(metadata)
    (folder / "new").mkdir()
    shutil.copy(videos[4], folder / "new/new.mp4")
    (folder / "new/broken.mp4").write_bytes(b"junk" * 1000)
    return folder


@pytest.fixture(scope="module")
def api(folder):
    """`pig app` in a process, with tokens and writes."""
    arguments = [
        "--index",
        folder / "v.lance",
        "--allow-write",
        "--video-root",
        folder / "new",
        "--max-upload-mb",
        0.2,
    ]
    tokens = {"PIG_API_TOKEN": READ, "PIG_API_WRITE_TOKEN": WRITE}
    with pig_app(*arguments, **tokens) as (_, client):  # noqa: F811
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def get(client: Client, path: str, token: str = READ, status: int = 200, **parameters):  # noqa: F811
    response = client.ask(f"{path}?{urlencode(parameters, doseq=True)}", **bearer(token))
    assert response.status == status, response.body
    return json.loads(response.body)


def send(client: Client, method: str, path: str, body, token: str = WRITE, status: int = 200):  # noqa: F811
    response = client.ask(path, method, json.dumps(body), Content_Type="application/json", **bearer(token))
    assert response.status == status, response.body
    return json.loads(response.body)


# --- the description of the API


def test_schemathesis_finds_nothing(api, folder):
    """Random requests, valid and invalid, get the responses that the description promises."""
    content = (folder / "new/new.mp4").read_bytes()
    assert api.ask("/api/v1/search", "POST", content, **bearer(READ)).status == 200  # the model is loaded now
    # What the schema cannot say is refused with 422, such as bytes that are no video, or an unknown column.
    command = [
        SCRIPTS / "st",
        "run",
        f"http://127.0.0.1:{api.port}/api/openapi.json",
        "-H",
        f"Authorization: Bearer {WRITE}",
    ]
    command += ["--exclude-checks", "positive_data_acceptance", "--phases", "coverage,fuzzing", "--max-time", "12"]
    command += [
        "--max-examples",
        "5",
        "--seed",
        "1",
        "--exclude-path-regex",
        "(clip|thumbnail|explanation)$",
        "--no-color",
    ]
    command += ["--exclude-method", "DELETE", "--request-timeout", "60"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=os.environ.get("TMPDIR", "/tmp"))
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout[-4000:]
    tested = re.search(r"Tested: (\d+)", done.stdout)
    assert tested and int(tested[1]) >= 1  # a slow machine tests fewer in the time


def test_a_generated_client_searches(api, folder, tmp_path, monkeypatch):
    description = get(api, "/api/openapi.json")
    assert description["openapi"].startswith("3.1") and description["servers"] == [{"url": ".."}]
    (tmp_path / "openapi.json").write_text(json.dumps(description))
    command = [SCRIPTS / "openapi-python-client", "generate", "--path", "openapi.json", "--output-path", "out"]
    command += ["--meta", "none", "--fail-on-warning", "--config", "config.yaml"]
    binary = "application/octet-stream"
    (tmp_path / "config.yaml").write_text(
        json.dumps({"content_type_overrides": {"image/webp": binary, "video/mp4": binary}, "post_hooks": []})
    )
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "out").rename(tmp_path / "generated_pig_client")
    monkeypatch.syspath_prepend(tmp_path)
    generated = importlib.import_module("generated_pig_client")
    search = importlib.import_module("generated_pig_client.api.search.search")
    upload = importlib.import_module("generated_pig_client.api.search.search_by_video")
    types = importlib.import_module("generated_pig_client.types")
    with generated.AuthenticatedClient(f"http://127.0.0.1:{api.port}", READ) as remote:
        page = search.sync(client=remote, text="a star", k=2, offset=1, group=True)
        expected = VideoSearcher.from_pretrained(None, folder / "v.lance").search("a star", k=2, offset=1, group=True)
        assert [(result.rank, result.path) for result in page.results] == [(r.rank, r.path) for r in expected]
        assert page.next_offset == 3
        with open(folder / "new/new.mp4", "rb") as file:
            page = upload.sync(client=remote, body=types.File(file), k=3)
        assert len(page.results) == 3


def test_the_description_asks_no_other_site(api):
    for path in ("/api/docs", "/api/docs/start.js"):
        body = api.ask(path).body.decode()
        assert "http" not in body and "openapi.json" in body or "start.js" in body
    for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert len(api.ask(f"/api/docs/{name}").body) > 100_000
    for name in ("page.html", "..%2f__init__.py", "%2e%2e/core.py", "favicon.png"):
        assert api.ask(f"/api/docs/{name}").status == 404


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium: apt-get install chromium")
def test_the_description_is_shown_below_a_path(service):  # noqa: F811
    """As behind a proxy that removes a prefix: the page finds its files and the API, and asks no other site."""
    import uvicorn
    from playwright.sync_api import expect, sync_playwright
    from starlette.applications import Starlette
    from starlette.routing import Mount

    from modeling_pig.app.server import AppServer, bind, make_server

    with bind("127.0.0.1", 0) as listener:
        prefixed: uvicorn.Server = make_server(Starlette(routes=[Mount("/videos", AppServer(service).asgi)]))
        thread = threading.Thread(target=prefixed.run, kwargs={"sockets": [listener]})
        thread.start()
        site = f"http://127.0.0.1:{listener.getsockname()[1]}/videos/"
        try:
            with sync_playwright() as started:
                browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                page, problems = browser.new_page(), []
                page.on("request", lambda r: None if r.url.startswith((site, "data:")) else problems.append(r.url))
                page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
                page.goto(f"{site}api/docs")
                page.get_by_text("/api/v1/about").click(timeout=60_000)
                page.get_by_role("button", name="Execute").click()
                expect(page.locator(".responses-table.live-responses-table")).to_contain_text('"state": "ready"')
                if output := os.environ.get("PIG_TEST_OUTPUT"):
                    page.screenshot(path=Path(output, "api_docs.png"))
                browser.close()
                assert not problems
        finally:
            prefixed.should_exit = True
            thread.join()


# --- searching


def test_pages_of_the_api(api):
    everything = get(api, "/api/v1/search", text="a star", k=100)
    assert len(everything["results"]) == 5 and everything["next_offset"] is None
    pages, offset = [], 0
    while offset is not None:
        page = get(api, "/api/v1/search", text="a star", k=2, offset=offset)
        pages += page["results"]
        offset = page["next_offset"]
    assert pages == everything["results"] and [result["rank"] for result in pages] == [1, 2, 3, 4, 5]
    beyond = get(api, "/api/v1/search", text="a star", offset=10**9)
    assert (beyond["results"], beyond["offset"], beyond["next_offset"]) == ([], 10**9, None)
    assert "less than or equal to 1000" in get(api, "/api/v1/search", text="a star", k=10**9, status=422)["error"]


def test_pages_have_a_deepest_one(service, monkeypatch):  # noqa: F811
    monkeypatch.setattr(settings, "MAX_DEPTH", 4)
    with running(service) as client:  # noqa: F811
        assert len(client.search(k=2, offset=2)) == 2
        assert "best 4 results" in client.json("/api/v1/search", 422, text="a star", k=2, offset=3)["error"]


def test_more_like_an_entry(api, videos):  # noqa: F811
    found = {result["name"]: result for result in get(api, "/api/v1/search", text="a star", group=True)["results"]}
    entry = found[videos[3].name]
    like_entry = get(api, "/api/v1/search", like=entry["id"])["results"]
    like_other = get(api, "/api/v1/search", like=entry["others"][0]["id"])["results"]
    assert {result["name"] for result in like_entry} == found.keys() - {videos[3].name}
    assert [result["score"] for result in like_entry] != [result["score"] for result in like_other]
    (whole,) = [v for v in get(api, "/api/v1/videos")["videos"] if v["name"] == videos[3].name]
    like_file = get(api, "/api/v1/search", like=whole["id"])["results"]
    best = {
        result["path"]: max(result["score"], other["score"])
        for result in like_entry
        for other in like_other
        if other["path"] == result["path"]
    }
    assert {result["path"]: result["score"] for result in like_file} == pytest.approx(best)
    assert get(api, "/api/v1/search", like="0" * 32, status=404)["code"] == "unknown_id"
    assert "exactly one" in get(api, "/api/v1/search", status=422)["error"]


def test_values_of_columns_are_text_to_show_and_values_for_programs(api, videos):  # noqa: F811
    (result,) = get(api, "/api/v1/search", text="a star", where=f"name = '{videos[1].name}'")["results"]
    assert result["columns"] == {
        "kind": "<b>\\x1b[31m\u202e",
        "views": "1",
        "tags": ["a", "b"],
        "seen": result["columns"]["seen"],
    }
    assert result["metadata"] == {
        "kind": "<b>\x1b[31m\u202e",
        "views": 1,
        "tags": ["a", "b"],
        "seen": TIME.isoformat(),
    }
    assert api.ask("/api/v1/videos", **bearer(READ)).headers["Content-Type"] == "application/json"


# --- the client of the package


def test_the_client_returns_what_a_searcher_returns(api, folder, tmp_path):
    searcher = VideoSearcher.from_pretrained(None, folder / "v.lance")
    with PigClient(f"http://127.0.0.1:{api.port}/", READ) as remote:
        for options in (
            {"k": 3},
            {"k": 2, "offset": 2},
            {"group": True, "min_score": -0.9},
            {"where": "views > 0"},
            {"hybrid_text": ["kind"]},
            {"k": 10**6},
        ):
            expected = searcher.search(["a star", "news"], **options)
            found = remote.search(["a star", "news"], **options)
            assert [[without_id(result) for result in results] for results in found] == [
                [without_id(result) for result in results] for results in expected
            ]
        assert remote.search("a star", k=1)[0].metadata == searcher.search("a star", k=1)[0].metadata
        first = remote.search("a star", group=True)[0]
        assert remote.thumbnail(first.entry_id)[8:12] == b"WEBP"
        remote.download(first.entry_id, tmp_path / "copy.mp4")
        assert (tmp_path / "copy.mp4").read_bytes() == Path(first.path).read_bytes()
        similar = remote.search_like(first.path, k=1, group=True)[0]
        assert similar.path == first.path and similar.score == pytest.approx(1, abs=2e-2)
        assert first.path not in {result.path for result in remote.search_like_entry(first.entry_id)}
        assert [video["path"] for video in remote.videos(order="path")] == sorted(searcher.indexes[0].files())
        with pytest.raises(ValueError, match="empty"):
            remote.search(" ")
        with pytest.raises(ValueError, match="column"):
            remote.search("a star", where="no filter")
        with pytest.raises(PermissionError, match="only reads"):
            remote.delete("0" * 32)
    with PigClient(f"http://127.0.0.1:{api.port}", "wrong token") as remote, pytest.raises(PermissionError):
        remote.search("a star")
    with PigClient("http://127.0.0.1:1") as remote, pytest.raises(OSError, match="cannot be reached"):
        remote.search("a star")


def without_id(result) -> tuple:
    others = tuple(without_id(other) for other in getattr(result, "others", ()))
    return (
        result.rank,
        round(result.score, 6),
        result.path,
        result.duration,
        result.start,
        result.end,
        dict(result.metadata),
        others,
    )


# --- tokens and rates


def test_copies_are_one_result_and_a_search_says_if_nothing_fits(videos, model_folder, tmp_path, monkeypatch):  # noqa: F811
    copy = tmp_path / "copy.mp4"
    shutil.copy(videos[1], copy)
    make_index(tmp_path / "v.lance", model_folder, [VideoSegment(str(path)) for path in (*videos[:3], copy)])
    searcher = VideoSearcher.from_pretrained(None, tmp_path / "v.lance")
    with running(SearchService(searcher)) as client:  # noqa: F811
        found = get(client, "/api/v1/search", text="a circle", collapse_duplicates=True)["results"]
        held = {result["path"]: result["duplicates"] for result in found}
        assert sorted(held) == sorted(
            {*map(str, videos[:3]), str(copy)} - {path for paths in held.values() for path in paths}
        )
        assert {frozenset([path, *copies]) for path, copies in held.items() if copies} == {
            frozenset([str(videos[1]), str(copy)])
        }
        with PigClient(f"http://127.0.0.1:{client.port}") as remote:
            pairs = zip(
                *(searching.search("a circle", collapse_duplicates=True) for searching in (remote, searcher)),
                strict=True,
            )
            assert all((one.path, one.duplicates) == (other.path, other.duplicates) for one, other in pairs)
            for options in ({"refine": True}, {"collapse_duplicates": 0.9}):
                with pytest.raises(ValueError, match="VideoSearcher|server decides"):
                    remote.search("a circle", **options)
        judged = get(client, "/api/v1/search", text="a circle", judge=True)
        assert (judged["nothing_fits"], judged["note"]) == (None, None)  # four videos are too few to tell
        monkeypatch.setattr(searcher, "judge", lambda *_: Judgement(True, -1.0, 0.0))
        assert get(client, "/api/v1/search", text="a circle", judge=True)["note"] == "Probably nothing here fits."
        assert get(client, "/api/v1/search", text="a circle")["nothing_fits"] is None


def test_tokens_are_checked(api):
    for path in (
        "/api/v1/about",
        "/api/v1/search?text=a",
        "/api/v1/facets",
        "/api/v1/videos",
        "/metrics",
        "/api/v1/clip?id=" + "0" * 32,
    ):
        for headers in (
            {},
            bearer("wrong"),
            bearer(""),
            {"Authorization": f"Basic {READ}"},
            {"Cookie": "pig_session=0"},
        ):
            response = api.ask(path, **headers)
            assert response.status == 401 and response.headers["WWW-Authenticate"].startswith("Bearer"), (
                path,
                headers,
            )
            assert json.loads(response.body)["code"] == "unauthorized"
    for path in ("/", "/healthz", "/api/docs", "/api/openapi.json"):
        assert api.ask(path).status == 200
    assert (
        api.ask("/api/v1/videos", "POST", '{"path": "/x"}', Content_Type="application/json", **bearer(READ)).status
        == 403
    )
    assert get(api, "/api/v1/about", WRITE)["allow_write"]


def test_a_page_logs_in_with_a_cookie(api):
    assert api.ask("/api/v1/login", "POST", '{"token": "no"}', Content_Type="application/json").status == 401
    response = api.ask("/api/v1/login", "POST", json.dumps({"token": READ}), Content_Type="application/json")
    assert response.status == 204
    cookie = response.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and READ not in cookie
    value = cookie.partition(";")[0]
    assert api.ask("/api/v1/about", Cookie=value).status == 200
    assert api.ask(f"/api/v1/videos/{'0' * 32}", "DELETE", Cookie=value).status == 403
    assert api.ask("/api/v1/about", Cookie=value, Origin="http://evil.example").status == 403


def test_settings_of_tokens_are_checked(pig, folder, monkeypatch):
    for name, token, part in (
        ("PIG_API_TOKEN", "short", "16 or more"),
        ("PIG_API_TOKEN", "é" * 20, "ASCII"),
        ("PIG_API_WRITE_TOKEN", READ, "are equal"),
    ):
        with monkeypatch.context() as context:
            context.setenv("PIG_API_TOKEN", READ)
            context.setenv(name, token)
            assert_one_line_error(pig("app", "--index", folder / "v.lance", "--port", 0), part)
    with pytest.raises(ValueError, match="set PIG_API_WRITE_TOKEN"):
        AppSettings(is_public=True, allow_write=True)
    assert_one_line_error(pig("app", "--index", folder / "v.lance", "--port", 0, "--video-root", "no"), "no folder no")


def test_rates_are_limited(service):  # noqa: F811
    with running(service, rate_limit=0.2) as client:  # noqa: F811
        statuses = [client.ask("/api/v1/search?text=a").status for _ in range(4)]
        assert statuses == [200, 200, 429, 429]
        assert int(client.ask("/api/v1/search?text=a").headers["Retry-After"]) <= 5
        assert client.ask("/api/v1/about").status == 200
    limiter = RateLimiter(10)
    assert [limiter.take("a") > 0 for _ in range(101)] == [False] * 100 + [True]
    assert limiter.take("b") == 0


def test_searches_take_turns_and_end_with_their_clients(service, monkeypatch):  # noqa: F811
    monkeypatch.setattr(settings, "MAX_WAITING", 2)
    may_end, running_now, most = threading.Event(), [], []
    search = service.searcher.search

    def slow(*arguments, **options):
        running_now.append(0)
        most.append(len(running_now))
        assert may_end.wait(60)
        running_now.pop()
        return search(*arguments, **options)

    monkeypatch.setattr(service.searcher, "search", slow)
    with running(service, max_searches=2) as client, ThreadPoolExecutor(8) as pool:  # noqa: F811
        waiting = [pool.submit(client.ask, "/api/v1/search?text=a") for _ in range(4)]
        limiter = client.server.api._searches
        wait_until(lambda: limiter.statistics().tasks_waiting == 2)
        response = client.ask("/api/v1/search?text=a")
        assert response.status == 429 and json.loads(response.body)["code"] == "busy"
        assert client.ask("/healthz").status == 200
        may_end.set()
        assert [request.result().status for request in waiting] == [200] * 4 and max(most) == 2
        may_end.clear()
        waiting = [pool.submit(client.ask, "/api/v1/search?text=a") for _ in range(2)]
        wait_until(lambda: len(running_now) == 2)
        import socket

        with socket.create_connection(("127.0.0.1", client.port)) as gone:
            gone.sendall(b"GET /api/v1/search?text=b HTTP/1.1\r\nHost: localhost\r\n\r\n")
            wait_until(lambda: limiter.statistics().tasks_waiting == 1)
        wait_until(lambda: limiter.statistics().tasks_waiting == 0)  # it left the queue
        may_end.set()
        assert [request.result().status for request in waiting] == [200] * 2 and len(most) == 6


# --- videos


def test_videos_are_listed_in_pages(api, videos):  # noqa: F811
    page = get(api, "/api/v1/videos", order="path", k=3)
    rest = get(api, "/api/v1/videos", order="path", k=3, offset=page["next_offset"])
    listed = page["videos"] + rest["videos"]
    assert page["total"] >= 4 and rest["next_offset"] is None
    paths = [video["path"] for video in listed]
    assert paths == sorted(paths) and {str(path) for path in videos[:4]} <= set(paths)
    assert get(api, "/api/v1/videos", offset=10**9)["videos"] == []
    hostile = get(api, "/api/v1/videos", where="name like '<img%'")
    assert [video["name"] for video in hostile["videos"]] == [HOSTILE_NAME] and hostile["total"] == 1
    (in_segments,) = get(api, "/api/v1/videos", where="start >= 0")["videos"]
    details = get(api, f"/api/v1/videos/{in_segments['id']}")
    assert [(segment["start"], segment["end"]) for segment in details["segments"]] == [(0.0, 1.0), (1.0, 2.0)]
    assert details["metadata"]["kind"] == "news" and details["entries"] == 2
    assert get(api, f"/api/v1/videos/{details['segments'][1]['id']}") == details
    assert get(api, f"/api/v1/videos/{'0' * 32}", status=404)["code"] == "unknown_id"


def test_newest_videos_are_first(tmp_path):
    index = VideoIndex(tmp_path / "v.lance", INFO)
    entries = [VideoEntry(f"/{n}.mp4", modified=m) for n, m in enumerate([10**18, None, 3 * 10**18, 2**63 - 1, -1])]
    index.upsert(entries, random_embeddings(5))
    from modeling_pig.app.library import Library

    searcher = VideoSearcher.__new__(VideoSearcher)
    searcher.indexes = [index]
    files, total = Library(SearchService(searcher)).page(None, "newest", 10, 0)
    assert [file.path for file in files] == ["/3.mp4", "/2.mp4", "/0.mp4", "/4.mp4", "/1.mp4"] and total == 5


def test_videos_are_added_changed_and_deleted(api, folder, videos):  # noqa: F811
    path = str(folder / "new/new.mp4")
    added = send(api, "POST", "/api/v1/videos", {"path": path}, status=201)
    assert added["path"] == path and added["entries"] == 1 and added["size"] == os.path.getsize(path)
    assert send(api, "POST", "/api/v1/videos", {"path": path})["id"] == added["id"]
    assert path in {result["path"] for result in get(api, "/api/v1/search", text="a star")["results"]}
    address = f"/api/v1/videos/{added['id']}"
    changed = send(api, "PATCH", address, {"metadata": {"views": 7, "seen": "2026-03-01T12:00:00Z", "kind": None}})
    assert changed["metadata"]["views"] == 7 and changed["metadata"]["seen"] == TIME.isoformat()
    problem = send(api, "PATCH", address, {"metadata": {"views": "many"}}, status=422)
    assert problem["error"] == "new.mp4: views is 'many'; expected a whole number"
    assert send(api, "PATCH", address, {"metadata": {}}, status=422)["code"] == "invalid"
    assert send(api, "DELETE", address, None) == {"deleted": 1}
    send(api, "DELETE", address, None, status=404)
    assert os.path.exists(path)


def test_only_videos_of_named_folders_are_added(api, folder, videos):  # noqa: F811
    link = folder / "new/link.mp4"
    link.symlink_to(videos[4])
    outside = [
        str(videos[4]),
        "/etc/passwd",
        str(link),
        "new.mp4",
        f"{folder}/new/../v.lance",
        str(folder / "newer/x.mp4"),
    ]
    for path in outside:
        assert send(api, "POST", "/api/v1/videos", {"path": path}, status=403)["code"] == "forbidden", path
    for path, code in (
        ("nothing.mp4", "invalid"),
        ("", "invalid"),
        ("a\0b", "invalid"),
        ("broken.mp4", "undecodable"),
    ):
        problem = send(api, "POST", "/api/v1/videos", {"path": f"{folder}/new/{path}"}, status=422)
        assert problem["code"] == code and str(folder) not in problem["error"]
    link.unlink()


def test_large_bodies_are_not_read(api):
    for length, parts in (("200000", [b"x" * 200_000]), (None, [b"x" * 60_000] * 3)):
        headers = {"Content_Type": "application/json"} | ({"Content_Length": length} if length else {})
        response = api.ask("/api/v1/login", "POST", iter(parts), **headers)
        assert response.status == 413 and json.loads(response.body)["code"] == "too_large"


def test_writes_are_off_by_default(service):  # noqa: F811
    with running(service) as client:  # noqa: F811
        (found, *_) = client.search()
        for method, path in (("POST", "/api/v1/videos"), ("PATCH", f"/api/v1/videos/{found['id']}")):
            body = json.dumps({"path": "/x", "metadata": {"a": 1}})
            response = client.ask(path, method, body, Content_Type="application/json")
            assert response.status == 403 and b"--allow-write" in response.body
        assert client.ask(f"/api/v1/videos/{found['id']}", "DELETE").status == 403
        assert len(client.search()) == 5


# --- pictures


def test_pictures_and_clips(client, videos):  # noqa: F811
    (found,) = client.search(where=f"name = '{videos[1].name}'")
    for kind in ("thumbnail", "preview"):
        response = client.ask(f"/api/v1/thumbnail?id={found['id']}&kind={kind}")
        assert response.headers["Content-Type"] == "image/webp" and response.body[8:12] == b"WEBP"
    response = client.ask(f"/api/v1/clip?id={found['id']}&format=mp4&start=0.5&end=1", Range="bytes=0-99")
    assert response.status == 206 and len(response.body) == 100
    for parameters in ("start=2&end=1", "start=-1", "end=nan", "format=avi"):
        assert client.ask(f"/api/v1/clip?id={found['id']}&format=mp4&{parameters}").status == 422


def test_a_thousand_pictures_at_once_leave_the_server_responsive(folder, videos, model_folder, tmp_path):  # noqa: F811
    broken, gone = tmp_path / "broken.mp4", tmp_path / "gone.mp4"
    broken.write_bytes(b"junk" * 1000)
    index = make_index(tmp_path / "v.lance", model_folder, [VideoSegment(str(videos[1]))])
    entries = [VideoEntry(str(path)) for path in (broken, gone, tmp_path / "offline/x.mp4")]
    embeddings = random_embeddings(3)[:, :1].repeat(1, index.info.embedding_dim)
    index.upsert(entries, embeddings / embeddings.norm(dim=1, keepdim=True))
    searcher = VideoSearcher.from_pretrained(None, tmp_path / "v.lance")
    with running(SearchService(searcher)) as client, ThreadPoolExecutor(100) as pool:  # noqa: F811
        ids = {result["name"]: result["id"] for result in client.search()}
        addresses = [f"/api/v1/thumbnail?id={ids[name]}" for name in (videos[1].name, "broken.mp4")] * 500
        pictures = [pool.submit(client.ask, address) for address in addresses]
        assert client.search()  # while they are made
        assert [picture.result().status for picture in pictures] == [200, 422] * 500
        problems = {
            name: client.json("/api/v1/thumbnail", status, id=ids[name])["code"]
            for name, status in (("broken.mp4", 422), ("gone.mp4", 404), ("x.mp4", 503))
        }
        assert problems == {"broken.mp4": "undecodable", "gone.mp4": "deleted", "x.mp4": "offline"}
        assert client.json("/api/v1/clip", 503, id=ids["x.mp4"])["code"] == "offline"


def test_pictures_are_made_if_the_disk_is_full(service, videos, tmp_path, monkeypatch):  # noqa: F811
    full = tmp_path / "full"
    full.write_bytes(b"")  # no folder: nothing can be written below
    with running(service, media_folder=full) as client:  # noqa: F811
        (found,) = client.search(where=f"name = '{videos[1].name}'")
        assert client.ask(f"/api/v1/thumbnail?id={found['id']}").status == 200


# --- the index changes while it is served


def test_an_index_appears_and_is_replaced(folder, videos, model_folder, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(app_service, "CHECK_AFTER", 0.0)
    uri = tmp_path / "v.lance"
    from functools import partial

    waiting = SearchService(None, (), partial(VideoSearcher.from_pretrained, None, uri))
    with running(waiting, media_folder=tmp_path / "media") as client:  # noqa: F811
        about = client.json("/api/v1/about")
        assert about["state"] == "no_index" and "pig index" in about["message"] and about["clips"] == 0
        assert client.json("/healthz", 503) == {"status": "no_index"}
        for path in ("/api/v1/search?text=a", "/api/v1/videos", "/api/v1/facets", f"/api/v1/clip?id={'0' * 32}"):
            response = client.ask(path)
            assert response.status == 503 and json.loads(response.body)["code"] == "no_index", path
        assert client.ask("/").status == 200

        make_index(uri, model_folder, [VideoSegment(str(videos[1]))])
        assert client.json("/api/v1/about")["state"] == "ready" and client.json("/healthz") == {"status": "ready"}
        (found,) = client.search()

        shutil.rmtree(uri)
        assert client.json("/api/v1/search", 503, text="a")["code"] == "no_index"
        make_index(uri, model_folder, [VideoSegment(str(path)) for path in videos[2:4]])
        assert {result["name"] for result in client.search()} == {videos[2].name, videos[3].name}
        assert client.ask(f"/api/v1/clip?id={found['id']}").status == 404
        replica = SearchService(VideoSearcher.from_pretrained(None, uri))
        assert EntryIds(replica).make(VideoSegment(str(videos[2]))) in {result["id"] for result in client.search()}

        shutil.rmtree(uri)
        VideoIndex(uri, INFO).upsert([VideoEntry("/a.mp4")], random_embeddings(1))
        problem = client.json("/api/v1/search", 503, text="a")
        assert problem["code"] == "other_model" and "restart" in problem["error"]
        assert client.json("/api/v1/about")["state"] == "other_model"
        shutil.rmtree(uri)
        make_index(uri, model_folder, [VideoSegment(str(videos[1]))])
        assert len(client.search()) == 1


def test_pig_app_waits_for_its_index(videos, model_folder, tmp_path):  # noqa: F811
    with pig_app("--index", tmp_path / "v.lance") as (_, client):  # noqa: F811
        assert client.json("/healthz", 503)["status"] == "no_index"
        make_index(tmp_path / "v.lance", model_folder, [VideoSegment(str(videos[1]))])
        wait_until(lambda: client.ask("/healthz").status == 200)
        assert len(client.search()) == 1


# --- logs and metrics


def test_metrics_count_requests_without_their_queries(client):  # noqa: F811
    (found, *_) = client.search(text="a secret sentence")
    client.ask(f"/api/v1/videos/{found['id']}")
    client.ask("/no/such/path/of/mine")
    response = client.ask("/metrics")
    text = response.body.decode()
    assert response.headers["Content-Type"].startswith("text/plain")
    assert re.search(r'pig_requests_total\{method="GET",route="/api/v1/search",status="200"\} \d', text)
    assert 'route="/api/v1/videos/{id}"' in text and 'route="other",status="404"' in text
    assert "pig_index_entries 6.0" in text and "pig_ready 1.0" in text
    assert "secret" not in text and found["id"] not in text and "mine" not in text


@pytest.mark.parametrize(("option", "shows_query"), [("--log-requests", False), ("--log-queries", True)])
def test_logs_hold_queries_only_if_asked_for(service, tmp_path, option, shows_query):  # noqa: F811
    command = [
        sys.executable,
        "-m",
        "modeling_pig.cli",
        "app",
        "--port",
        "0",
        "--index",
        service.searcher.indexes[0].uri,
    ]
    with (
        open(tmp_path / "log", "w") as log,
        subprocess.Popen([*command, option], stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            client = Client(int(process.stdout.readline().split()[0].rpartition(":")[2]))  # noqa: F811
            client.search(text="tell nobody")
            client.ask("/api/v1/about", Authorization="Bearer hidden-token")
        finally:
            process.terminate()
    written = (tmp_path / "log").read_text()
    assert re.search(r"127\.0\.0\.1 GET /api/v1/search\S* 200 \d+ ms", written)
    assert ("tell+nobody" in written) == shows_query and "hidden-token" not in written
