"""Fixtures for tests of remote videos; a test module loads them with `pytest_plugins`."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from huggingface_hub import constants

from modeling_pig.remote import errors
from modeling_pig.remote.cache import CACHE_VARIABLE
from modeling_pig.remote.filesystem import filesystem
from tests.web_server import WebServer


@pytest.fixture
def remote(tmp_path, monkeypatch) -> Iterator[Path]:
    """Forget the connections and the cache of other tests, and retry at once; return the folder of the cache."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(errors, "WAITS", (0, 0))
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    (tmp_path / "netrc").touch()
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    _forget_connections()
    yield tmp_path / "assets/modeling_pig/videos"
    _forget_connections()


def _forget_connections() -> None:
    filesystem.cache_clear()
    for protocol in ("http", "s3"):
        fsspec.get_filesystem_class(protocol).clear_instance_cache()


@pytest.fixture
def s3_bucket(s3_server, monkeypatch):
    """Create an empty bucket; return it as a `boto3` resource: `bucket.name`, `bucket.put_object(Key=, Body=)`."""
    import boto3

    s3_server.reset()
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in {**s3_server.environment, "AWS_ENDPOINT_URL": s3_server.url}.items():
        monkeypatch.setenv(name, value)
    return boto3.resource("s3").Bucket(s3_server.make_bucket().removeprefix("s3://"))


@pytest.fixture
def web(remote, shape_videos) -> Iterator[WebServer]:
    """Serve five videos, `/0.mp4` to `/4.mp4`, with range requests."""
    with WebServer({f"/{number}.mp4": path.read_bytes() for number, path in enumerate(shape_videos)}) as server:
        yield server
