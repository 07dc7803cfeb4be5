"""Remote files: reading ranges and whole files, the cache, failures in one line, addresses without credentials."""

import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import numpy as np
import pytest

from modeling_pig.extras import pip_install
from modeling_pig.files import hash_file, make_content_id
from modeling_pig.remote import cache, check_address, errors, file_state, is_gone, open_source, read_with, redact
from modeling_pig.remote.cache import CACHE_VARIABLE, VideoCache
from modeling_pig.remote.filesystem import RemoteFile, read_state
from modeling_pig.retrieval.find_videos import find_videos
from modeling_pig.video_decoding_pig import VideoDecodingError, decode_video
from tests.web_server import FIRST_TIME, WebFile


pytest_plugins = ["tests.remote_fixtures"]

MB = 1_000_000


def copies(folder) -> list[int]:
    """Return the sizes of the files in the cache, but for its lock."""
    sizes = []
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(FileNotFoundError):  # renamed by a download that just ended
            sizes += [path.stat().st_size] if path.name != ".lock" else []
    return sorted(sizes)


def reason_of(address: str) -> str:
    """Return why a file cannot be read, after checking that opening and finding it agree."""
    with pytest.raises(VideoDecodingError) as info, open_source(address):
        pass
    assert info.value.path == redact(address)
    with pytest.raises(ValueError, match=re.escape(info.value.reason)):
        find_videos(address)
    return info.value.reason


@pytest.mark.parametrize("ranges", [True, False])
def test_a_web_video_is_read_like_the_local_file(web, shape_videos, remote, ranges):
    web.ranges, address, local = ranges, f"{web.url}/0.mp4", shape_videos[0]
    size = local.stat().st_size
    expected, _ = decode_video(local, 4, start=0.5)
    for whole in (True, False):
        with open_source(address, whole=whole) as source:
            assert source.name == address
            frames, _ = decode_video(source, 4, start=0.5)
        np.testing.assert_array_equal(frames, expected)
    assert read_with(make_content_id, address) == make_content_id(local)
    assert read_with(hash_file, address) == hash_file(local)
    assert file_state(address) == (size, FIRST_TIME * 10**9)
    assert copies(remote) == [size]


def test_a_copy_is_downloaded_once_for_each_state_of_its_file(web, remote):
    address = f"{web.url}/0.mp4"
    for _ in range(2):
        with open_source(address) as source:
            first = source.read()
    assert web.sent["/0.mp4"] == len(first)
    web.write("/0.mp4", web.files["/1.mp4"].content)
    with open_source(address) as source:
        assert source.read() == web.files["/1.mp4"].content != first


def test_a_copy_of_a_file_that_changed_meanwhile_is_not_kept(web, remote, monkeypatch):
    def copy_and_change(*args):
        copy_remote(*args)
        web.write("/0.mp4", web.files["/1.mp4"].content)

    copy_remote = cache.copy_remote
    monkeypatch.setattr(cache, "copy_remote", copy_and_change)
    with pytest.raises(VideoDecodingError, match="changed while it was read; run again"):
        open_source(f"{web.url}/0.mp4").__enter__()
    assert not copies(remote)


def test_samples_and_seeks_read_only_parts_of_a_large_file(web, remote, tmp_path):
    content = bytes(1000) + os.urandom(1000) + bytes(40 * MB)
    web.files["/large.mp4"] = WebFile(content)
    (tmp_path / "large.mp4").write_bytes(content)
    assert read_with(make_content_id, f"{web.url}/large.mp4") == make_content_id(tmp_path / "large.mp4")
    assert web.sent["/large.mp4"] < 10 * MB
    web.sent.clear()
    with open_source(f"{web.url}/large.mp4", whole=False) as file:
        assert file.seek(-5, os.SEEK_END) == len(content) - 5
        assert (file.read(), file.read(), file.seek(1000)) == (bytes(5), b"", 1000)
        assert (file.read(10), file.seek(5, os.SEEK_CUR)) == (content[1000:1010], 1015)
        assert file.read(5) == content[1015:1020]
        with pytest.raises(ValueError, match="no byte -1"):
            file.seek(-1)
    assert web.sent["/large.mp4"] < MB
    assert not copies(remote)


def test_the_cache_is_bounded_and_keeps_what_is_used(web, tmp_path):
    for number in range(4):
        web.files[f"/{number}"] = WebFile(bytes([number]) * MB)
    bounded = VideoCache(tmp_path / "cache", int(2.5 * MB))
    states = {f"{web.url}/{number}": read_state(f"{web.url}/{number}") for number in range(4)}
    a, b, c, d = states

    def is_copied(address: str) -> bool:
        web.sent.clear()
        with bounded.open(address, states[address]) as file:
            assert file.read() == web.files[address.removeprefix(web.url)].content
        return not web.sent

    assert [is_copied(address) for address in (a, b, a, b)] == [False, False, True, True]
    assert is_copied(a)  # so that b was used least recently
    with bounded.open(a, states[a]) as in_use:
        assert not is_copied(c)  # in the place of b
        with bounded.open(c, states[c]), bounded.open(d, states[d]) as uncopied:
            assert isinstance(uncopied, RemoteFile)  # both others are in use
            assert uncopied.read() == web.files["/3"].content
        assert is_copied(c)
        assert not is_copied(d)
        assert in_use.read() == web.files["/0"].content
        assert is_copied(a)
        assert sum(copies(bounded.folder)) == 2 * MB
    with VideoCache(bounded.folder, MB // 2).open(b, states[b]) as uncopied:
        assert isinstance(uncopied, RemoteFile)


def test_threads_share_the_cache(web, tmp_path):
    bounded = VideoCache(tmp_path / "cache", 30_000)
    states = {address: read_state(address) for address in (f"{web.url}/{number}.mp4" for number in range(5))}
    expected = {f"{web.url}{path}": file.content for path, file in web.files.items()}

    def read(address: str) -> tuple[str, bytes, int]:
        with bounded.open(address, states[address]) as file:
            return address, file.read(), sum(copies(bounded.folder))

    with ThreadPoolExecutor(6) as pool:
        for address, content, num_bytes in pool.map(read, list(states) * 6):
            assert content == expected[address]
            assert num_bytes <= bounded.max_bytes


def test_a_killed_download_leaves_a_file_that_the_next_download_removes(web, remote):
    code = (
        "import pathlib, sys\n"
        "from modeling_pig.remote.cache import VideoCache\n"
        "from modeling_pig.remote.filesystem import read_state\n"
        "cache = VideoCache(pathlib.Path(sys.argv[2]), 10**9)\n"
        "cache.open(sys.argv[1], read_state(sys.argv[1])).__enter__()"
    )
    web.files["/slow.mp4"] = WebFile(bytes(12 * MB))
    web.statuses["/slow.mp4"] = [200, 200, 200, -1]  # HEAD, the probe of ranges, the first block, the second
    with subprocess.Popen([sys.executable, "-c", code, f"{web.url}/slow.mp4", str(remote)]) as process:
        while not any(request.headers.get("range", "").startswith("bytes=8388608") for request in web.requests):
            assert process.poll() is None
            threading.Event().wait(0.02)
        process.kill()
    assert copies(remote) == [12 * MB]
    with open_source(f"{web.url}/0.mp4") as source:
        assert copies(remote) == [len(source.read())]


@pytest.mark.parametrize("value", ["0", "0.000001"])
def test_without_room_in_the_cache_ranges_are_read(web, remote, monkeypatch, shape_videos, value):
    monkeypatch.setenv(CACHE_VARIABLE, value)
    with open_source(f"{web.url}/0.mp4") as source:
        frames, _ = decode_video(source, 4)
    np.testing.assert_array_equal(frames, decode_video(shape_videos[0], 4)[0])
    assert not copies(remote)
    web.ranges = False
    web.files["/large.mp4"] = WebFile(bytes(MB))
    with pytest.raises(VideoDecodingError, match=f"whole files only, and the cache has no room.*{CACHE_VARIABLE}"):
        open_source(f"{web.url}/large.mp4").__enter__()


def test_an_invalid_size_of_the_cache_is_refused(web, monkeypatch):
    for value in ("much", "-1", "nan"):
        monkeypatch.setenv(CACHE_VARIABLE, value)
        for read in (find_videos, lambda address: open_source(address).__enter__()):
            with pytest.raises(ValueError, match=f"{CACHE_VARIABLE} is '{value}'"):
                read(f"{web.url}/0.mp4")


def test_what_may_pass_is_tried_again(web, shape_videos):
    for ranges in (True, False):
        web.ranges = ranges
        for statuses in ([503, 503], [200, 0], [200, 503, 0], [200, 429]):
            web.write("/0.mp4", os.urandom(400_000))
            web.statuses["/0.mp4"] = list(statuses)
            with open_source(f"{web.url}/0.mp4") as source:
                assert source.read() == web.files["/0.mp4"].content


def test_nothing_is_tried_again_once_the_run_is_stopped(web, monkeypatch):
    """Ctrl-C ends a run while a server stalls."""
    monkeypatch.setattr(errors, "TIMEOUT", 0.3)
    web.statuses["/0.mp4"] = [-1] * 100
    stop = threading.Event()
    with ThreadPoolExecutor(1, initializer=errors.stopping.set, initargs=(stop,)) as pool:
        failed = pool.submit(read_state, f"{web.url}/0.mp4")
        while not web.requests:
            threading.Event().wait(0.01)
        stop.set()
        with pytest.raises(OSError, match="interrupted; run again"):
            failed.result()
        num_requests = len(web.requests)
        with pytest.raises(OSError, match="interrupted; run again"):
            pool.submit(read_state, f"{web.url}/1.mp4").result()
    assert len(web.requests) == num_requests <= 2  # HEAD, and the GET that fsspec sends then


def test_each_failure_is_one_line_that_says_what_to_do(web, monkeypatch, tmp_path):
    monkeypatch.setattr(errors, "TIMEOUT", 0.1)
    address = f"{web.url}/0.mp4"
    assert reason_of(f"{web.url}/none.mp4") == "there is no such file or folder: check the address"
    web.files["/login"] = WebFile(b"<html>log in</html>", kind="text/html")
    web.redirects["/private.mp4"] = "/login"
    assert "leads to a web page, not to a video: give the address of the file" in reason_of(f"{web.url}/private.mp4")
    web.statuses["/0.mp4"] = [500] * 100
    assert "the server failed (status 500), in 3 attempts; run again later" in reason_of(address)
    web.statuses["/0.mp4"] = [200, *[0] * 3]
    with pytest.raises(VideoDecodingError, match="no connection to the server, or it broke .*: check the address"):
        open_source(address).__enter__()
    web.statuses["/0.mp4"] = [-1] * 100
    assert "the server sent nothing for 0.1 s, in 3 attempts; run again later" in reason_of(address)
    web.statuses.clear()
    web.with_facts = False
    assert "does not state the size of the file: download it" in reason_of(address)
    web.with_facts, web.user = True, "Basic YWRhOnMzY3IzdA=="
    assert "access is denied, check the address and the rights: write it into ~/.netrc" in reason_of(address)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ada password s3cr3t\n")
    with open_source(address) as source:
        assert source.read() == web.files["/0.mp4"].content
    assert "no connection to the server" in reason_of("http://127.0.0.1:9/0.mp4")


def test_a_missing_package_is_named(remote, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert reason_of("gs://bucket/a.mp4") == f"reading gs:// needs gcsfs: {pip_install('remote')}"


def test_failures_of_s3_are_one_line(remote, s3_bucket, s3_server):
    s3_bucket.put_object(Key="videos/a.mp4", Body=b"a")
    assert "no such bucket" in reason_of("s3://no-such-bucket-here/a.mp4")
    assert "no such file" in reason_of(f"s3://{s3_bucket.name}/b.mp4")
    with pytest.raises(VideoDecodingError, match="the address of a folder: give that of a file"):
        open_source(f"s3://{s3_bucket.name}/videos").__enter__()
    assert not is_gone(f"s3://{s3_bucket.name}/videos/a.mp4")
    assert is_gone(f"s3://{s3_bucket.name}/videos/b.mp4")
    assert not is_gone("s3://no-such-bucket-here/a.mp4")
    for status, code, reason in (
        (403, "InvalidAccessKeyId", "access is denied, check the address and the rights: set AWS_ACCESS_KEY_ID"),
        (400, "ExpiredToken", "access is denied, check the address and the rights: set AWS_ACCESS_KEY_ID"),
        (400, "AuthorizationHeaderMalformed", "AWS_DEFAULT_REGION"),
        (503, "SlowDown", "the server failed (status 503), in 3 attempts; run again later"),
    ):
        s3_server.fault = lambda request, status=status, code=code: (status, code)
        for address in (f"s3://{s3_bucket.name}/videos/a.mp4", f"s3://{s3_bucket.name}/videos"):
            assert reason in reason_of(address)
            assert not is_gone(address)


def test_without_credentials_s3_says_where_to_put_them(remote, s3_bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert reason_of(f"s3://{s3_bucket.name}/a.mp4").startswith(
        "there are no credentials, or only a part of them: set"
    )


def test_a_state_without_a_time_follows_the_etag(web):
    from modeling_pig.remote.filesystem import state_of

    first, second = (state_of("hf://a", {"type": "file", "size": 5, "ETag": tag}) for tag in ("one", "two"))
    assert first != second
    assert max(first.modified, second.modified) < 0
    assert state_of("hf://a", {"type": "file", "size": 5}) == (5, 0)
    times = ("2023-11-14T22:13:20.500Z", "Tue, 14 Nov 2023 22:13:20 GMT", FIRST_TIME + 0.5)
    for time in times:
        assert state_of("hf://a", {"type": "file", "size": 5, "updated": time}) == (5, FIRST_TIME * 10**9)


@pytest.mark.parametrize(
    "address",
    [
        "https://user:s3cr3t@host/a.mp4",
        "https://s3cr3t@host/a.mp4",
        "https://user:pass/s3cr3t@host/a.mp4",
        "https://host/a.mp4?X-Amz-Algorithm=AWS4&X-Amz-Signature=s3cr3t",
        "https://host/a.mp4?sv=2024&sig=s3cr3t",
        "https://host/a.mp4?access_token=s3cr3t",
        "https://host/a.mp4?Policy=s3cr3t&Key-Pair-Id=1",
        "https://host/a.mp4?x=eyJs3cr3t",
        "s3://key:s3cr3t@bucket/a.mp4",
        "simplecache::https://user:s3cr3t@host/a.mp4",
        "ftp://user:s3cr3t@host/a.mp4",
    ],
)
def test_addresses_with_credentials_are_refused_without_repeating_them(address):
    with pytest.raises(ValueError) as info:
        find_videos(address)
    assert "s3cr3t" not in str(info.value)
    assert "host/a.mp4" in str(info.value) or "bucket/a.mp4" in str(info.value)


def test_addresses_have_one_form():
    assert check_address("HTTPS://Host:443/A%20b.mp4?id=5#t=3") == "https://host:443/A%20b.mp4?id=5"
    assert check_address("S3://bucket/a?b#c@d.mp4") == "s3://bucket/a?b#c@d.mp4"
    assert check_address("hf://datasets/org/name@main/a.mp4") == "hf://datasets/org/name@main/a.mp4"
    for address in ("file:///a.mp4", "memory://a.mp4", "github://o:r@m/a.mp4", "zip::https://h/a.mp4", "local://a"):
        with pytest.raises(ValueError, match=r"not read: give a path on this machine, s3://, .* or https://"):
            check_address(address)
    for address in ("https:///a.mp4", "https://host:99999/a.mp4", "https://[/a.mp4", "https:/host/a.mp4"):
        with pytest.raises(ValueError, match="address"):
            check_address(address)
    text = "in https://u:p@h:80/@x/a.mp4?sig=1, 'http://h:80/@x/b.mp4?c' and s3://b/c@d.mp4"
    assert redact(text) == "in https://h:80/@x/a.mp4?... 'http://h:80/@x/b.mp4?...' and s3://b/c@d.mp4"


def test_no_file_is_closed_late(web, remote):
    with ExitStack() as stack:
        files = [stack.enter_context(open_source(f"{web.url}/0.mp4", whole=whole)) for whole in (True, False)]
    assert all(file.closed for file in files)
