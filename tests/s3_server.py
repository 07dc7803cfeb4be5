"""S3 on this machine: moto behind a server that counts requests and answers some of them as a faulty store does."""

import itertools
import threading
from collections.abc import Callable
from typing import NamedTuple

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


ERROR = '<?xml version="1.0"?><Error><Code>{}</Code><Message>{}</Message><AWSAccessKeyId>{}</AWSAccessKeyId></Error>'
KEY, SECRET = "AKIAINTESTSONLY", "secret/in+tests"
_LOGIN = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
_numbers = itertools.count()


class Request(NamedTuple):
    method: str
    path: str
    query: str


class _QuietHandler(WSGIRequestHandler):
    def log(self, *arguments) -> None:
        """Print nothing."""


class S3Server:
    """An S3 server in threads of this process.

    Attributes:
        url: address of the server
        requests: all requests since the last `requests.clear()`
        fault: function of a request that returns the status and code of an error, or `None` to let moto answer
        ignores_conditions: whether `If-None-Match` is ignored, as by stores without conditional writes
    """

    def __init__(self):
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._writes = (
            threading.Lock()
        )  # moto looks whether an object exists, and then writes it: S3 does both at once
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_QuietHandler)
        self.url = f"http://127.0.0.1:{self._server.port}"
        self.requests: list[Request] = []
        self.reset()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._client = boto3.client("s3", endpoint_url=self.url, **_LOGIN)

    def reset(self) -> None:
        self.requests.clear()
        self.fault: Callable[[Request], tuple[int, str] | None] = lambda request: None
        self.ignores_conditions = False

    def make_bucket(self) -> str:
        """Return the URI of a new bucket."""
        name = f"test-{next(_numbers)}"
        self._client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def make_commit_table(self, name: str) -> None:
        """Make the table in DynamoDB by which LanceDB commits to `s3+ddb://` URIs."""
        keys = {"base_uri": ("S", "HASH"), "version": ("N", "RANGE")}
        boto3.client("dynamodb", endpoint_url=self.url, **_LOGIN).create_table(
            TableName=name,
            KeySchema=[{"AttributeName": key, "KeyType": role} for key, (_, role) in keys.items()],
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": kind} for key, (kind, _) in keys.items()],
            BillingMode="PAY_PER_REQUEST",
        )

    def contents(self, bucket: str) -> dict[str, bytes]:
        """Return the objects of a bucket: name -> content."""
        name = bucket.removeprefix("s3://")
        names = [entry["Key"] for entry in self._client.list_objects_v2(Bucket=name).get("Contents", [])]
        return {key: self._client.get_object(Bucket=name, Key=key)["Body"].read() for key in names}

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which LanceDB finds this server, and no credentials of the user."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def _answer(self, environ, start_response):
        request = Request(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"])
        self.requests.append(request)
        if fault := self.fault(request):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, code = fault
            start_response(f"{status} {code}", [("Content-Type", "application/xml")])
            return [b"" if request.method == "HEAD" else ERROR.format(code, "It is so.", KEY).encode()]
        if self.ignores_conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if request.method != "PUT":
            return self._moto(environ, start_response)
        with self._writes:
            return self._moto(environ, start_response)
