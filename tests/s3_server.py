"""An S3 server (moto) on the loopback for tests; a test module loads its fixtures with `pytest_plugins`."""

import urllib.request
import uuid
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """Start a server that keeps buckets in memory; return its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3_environment(s3_url, monkeypatch, tmp_path) -> str:
    """Point the clients of this process and its children at the server, with credentials; return its address."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-of-the-test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no_config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no_credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return s3_url


@pytest.fixture
def s3_bucket(s3_environment):
    """Create an empty bucket; return it as a `boto3` resource: `bucket.name`, `bucket.put_object(Key=, Body=)`."""
    import boto3

    bucket = boto3.resource("s3").Bucket(f"bucket-{uuid.uuid4().hex[:12]}")
    bucket.create()
    return bucket


@pytest.fixture
def s3_rejects(s3_url) -> Iterator[None]:
    """Let the server reject all credentials."""
    _post(f"{s3_url}/moto-api/reset-auth", b"0")
    yield
    _post(f"{s3_url}/moto-api/reset-auth", b"inf")


def _post(url: str, body: bytes) -> None:
    urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "text/plain"})).close()
