"""Streaming remote videos to browsers: ranges, states, and failures before the response begins."""

import json
import os

import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from modeling_pig import VideoSearcher
from modeling_pig.app.remote_video import stream_remote_video
from modeling_pig.app.service import SearchService
from modeling_pig.encoding.video_segment import VideoSegment
from tests.test_app import make_index, running
from tests.web_server import WebFile


pytest_plugins = ["tests.remote_fixtures"]


@pytest.fixture
def get(web):
    """Return a function that requests `/large.mp4` through the app: a response."""

    def answer(request):
        return stream_remote_video(f"{web.url}/large.mp4", request, "video/mp4", 1000)

    client = TestClient(Starlette(routes=[Route("/video", answer)]))
    return lambda method="GET", **headers: client.request(
        method, "/video", headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


@pytest.mark.parametrize("ranges", [True, False])
def test_a_browser_gets_the_ranges_that_it_asks_for(get, web, ranges):
    content = os.urandom(700_000)
    web.files["/large.mp4"], web.ranges = WebFile(content), ranges
    whole = get()
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, content, "video/mp4")
    for wanted, expected in {
        "bytes=0-0": (0, 1),
        "bytes=10-19": (10, 20),
        "bytes=5-": (5, 1005),  # an open range: at most 1000 bytes
        "bytes=699990-": (699_990, 700_000),
        "bytes=-7": (699_993, 700_000),
        "bytes=-9999999": (0, 700_000),
        "bytes=300000-9999999": (300_000, 700_000),
    }.items():
        part = get(range=wanted)
        assert (part.status_code, part.content) == (206, content[slice(*expected)])
        assert part.headers["content-range"] == f"bytes {expected[0]}-{expected[1] - 1}/700000"
        assert int(part.headers["content-length"]) == len(part.content)
    for wanted in ("bytes=700000-", "bytes=9-5", "bytes=-0"):
        part = get(range=wanted)
        assert (part.status_code, part.headers["content-range"]) == (416, "bytes */700000")
    for wanted in ("bytes=0-1,5-6", "bytes=-", "lines=1-2"):
        assert get(range=wanted).status_code == 200
    head = get("HEAD", range="bytes=5-9")
    assert (head.status_code, head.content, head.headers["content-length"]) == (206, b"", "5")


def test_a_range_of_an_earlier_state_is_answered_with_the_whole_video(get, web):
    web.files["/large.mp4"] = WebFile(b"a" * 5000)
    tag = get("HEAD").headers["etag"]
    assert get(range="bytes=0-9", if_range=tag).status_code == 206
    web.write("/large.mp4", b"b" * 5000)
    changed = get(range="bytes=0-9", if_range=tag)
    assert (changed.status_code, changed.content) == (200, b"b" * 5000)


def test_a_range_of_a_large_video_reads_little_of_it(get, web):
    web.files["/large.mp4"] = WebFile(bytes(20_000_000))
    assert len(get(range="bytes=10000000-").content) == 1000
    assert web.sent["/large.mp4"] < 2_000_000


def test_a_video_that_is_gone_is_an_error_and_not_a_broken_response(get):
    with pytest.raises(OSError, match=r"large\.mp4: there is no such file or folder"):
        get()


def test_the_app_serves_remote_videos_and_their_pictures(web, model_folder, tmp_path):
    addresses = [f"{web.url}/{number}.mp4" for number in (0, 1)]
    make_index(tmp_path / "v.lance", model_folder, [VideoSegment(address) for address in addresses])
    service = SearchService(VideoSearcher.from_pretrained(None, tmp_path / "v.lance"))
    with running(service, media_folder=tmp_path / "media") as client:
        listed = json.loads(client.ask("/api/v1/videos?order=path").body)["videos"]
        assert [video["name"] for video in listed] == ["0.mp4", "1.mp4"]
        first, second = (video["id"] for video in listed)
        part = client.ask(f"/api/v1/clip?id={first}", Range="bytes=4-7")
        assert (part.status, part.body) == (206, b"ftyp")
        clip = client.ask(f"/api/v1/clip?id={first}&format=mp4")
        assert clip.status == 200 and clip.body[4:8] == b"ftyp"
        picture = client.ask(f"/api/v1/thumbnail?id={first}")
        assert picture.status == 200 and picture.body[8:12] == b"WEBP"
        del web.files["/1.mp4"]
        for route in ("clip", "thumbnail"):
            assert client.ask(f"/api/v1/{route}?id={second}").status == 404
        web.statuses["/0.mp4"] = [500] * 30
        for route in ("clip", "thumbnail"):
            assert client.ask(f"/api/v1/{route}?id={first}").status == 503
