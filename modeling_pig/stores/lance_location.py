"""Locate LanceDB tables: in a [`Folder`], or in [`ObjectStorage`] such as S3, with the errors of each in one line."""

import logging
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol
from uuid import uuid4

from ..extras import pip_install


logger = logging.getLogger(__name__)

_OBJECT_STORAGE = re.compile(r"(?:s3|gs|az)://(?P<bucket>[^/@?#\s]+)/[^?#]*[^/?#][^?#]*")
# With the name of a table in DynamoDB, by which LanceDB commits where the store has no conditional writes.
_WITH_DYNAMODB = re.compile(r"s3\+ddb://(?P<bucket>[^/@?#\s]+)/[^?#]*[^/?#][^?#]*\?ddbTableName=[A-Za-z0-9_.-]+")
_SCHEME = re.compile(r"(s3|s3\+ddb|gs|az)://")
# The names that LanceDB looks for before it takes the value of a variable; by other names, either of both may count.
_OPTION_NAMES = {
    **{name: f"aws_{name}" for name in ("access_key_id", "secret_access_key", "session_token", "region", "endpoint")},
    **dict.fromkeys(("endpoint_url", "aws_endpoint_url"), "aws_endpoint"),
    **{name: f"azure_storage_{name}" for name in ("account_name", "account_key")},
}

# Other processes' writes are seen after at most this time: each look at the newest version is a paid request.
CHECK_INTERVAL = timedelta(seconds=1)
# LanceDB sends a failed request again, but for the time given here; those that list objects six times so long. By
# default that is 180 s: an endpoint that accepts connections and never answers would hold a command for 12 minutes.
_RETRY_OPTIONS = {"client_retry_timeout": "30"}
_FIRST_OPTIONS = {"timeout": "5s", "connect_timeout": "5s", "client_retry_timeout": "5"}

_NO_CONDITIONAL_WRITES = (
    "the store has no conditional writes (If-None-Match), by which LanceDB commits: writers would lose one another's "
    "rows. Use a store that has them, or a table in DynamoDB (s3+ddb://BUCKET/NAME.lance?ddbTableName=TABLE)"
)
_LOGINS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
# The first pattern that a message of LanceDB matches gives the reason.
_REASONS = [
    (
        "NoSuchBucket|ContainerNotFound|bucket does not exist",
        "there is no bucket {bucket}: create it, or correct the URI",
    ),
    ("ExpiredToken|RequestExpired|TokenRefreshRequired", "the credentials have expired: renew them"),
    (
        "Failed to get AWS credentials|TokenRequest|no storage account configured|no Azure account name",
        "there are no credentials: set {login}",
    ),
    (
        "BareRedirect|PermanentRedirect|AuthorizationHeaderMalformed|IllegalLocationConstraint|resolve region",
        "the bucket {bucket} is in another region, or does not exist: set AWS_REGION to its region",
    ),
    ("NotImplemented|status: 501", _NO_CONDITIONAL_WRITES),
    (
        "InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|AuthenticationFailed|Unauthenticated|status: 40[13]",
        "the store refuses the credentials: check {login}, and what they allow in the bucket {bucket}",
    ),
    (
        "Timeout|TimedOut|timed out",
        "the store did not answer in time. Earlier writes are kept; check the endpoint and the network",
    ),
    (
        "kind: Connect|ConnectError|dns error|Connection refused",
        "the store cannot be reached. Earlier writes are kept; check the endpoint and the network",
    ),
    (
        r"SlowDown|ServerBusy|status: (?:429|5\d\d)",
        "the store fails or is overloaded. Earlier writes are kept; run the same command again later",
    ),
]


class Location(Protocol):
    """Where the LanceDB tables of an index lie.

    Attributes:
        uri (`str`): URI of the folder that holds the tables.
        check_interval (`timedelta`): time after which a read looks for writes of other processes; 0 for each read.
    """

    uri: str
    check_interval: timedelta

    def connect(self, interval: timedelta | None = None) -> Any:
        """Connect LanceDB. Without an interval, tables that the connection opens stay at their versions."""

    def has_table(self, name: str) -> bool:
        """Return whether there is a table. Raises what LanceDB raises if the location cannot be read."""

    def check_new(self) -> None:
        """Raise `ValueError` if a new index cannot be stored here."""

    def identity(self, table: Any) -> Any:
        """Return a value that differs for a table that was deleted and rebuilt, and counts its versions anew."""

    def state(self, name: str) -> tuple | None:
        """Return a value that every commit changes, or `None` if only LanceDB can tell."""

    def remove(self, name: str) -> None:
        """Delete a table, and the folder if it is new."""

    def clean_up(self, name: str, error: Exception) -> None:
        """Delete what a failed creation left, if it belongs to no process."""

    def reason(self, error: Exception) -> str:
        """Return the reason of an error of LanceDB in one line, without credentials."""

    def without_paths(self, message: str) -> str:
        """Remove the paths from a message: they may hold any words."""


class Folder:
    """[`Location`] on a disk."""

    check_interval = timedelta(0)

    def __init__(self, uri: str):
        self.uri = uri
        self._created_folder = not Path(uri).exists()

    def connect(self, interval: timedelta | None = None) -> Any:
        import lancedb

        return lancedb.connect(self.uri, read_consistency_interval=interval)

    def has_table(self, name: str) -> bool:
        return self._path(name).is_dir()

    def check_new(self) -> None:
        folder = Path(self.uri)
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise ValueError(f"{self.uri} exists but is not an index: give the path of an index, or of a new folder.")

    def identity(self, table: Any) -> Any:
        return os.stat(self._path(table.name)).st_ino

    def state(self, name: str) -> tuple | None:
        """Return the names of the files of `_versions`: every commit adds a file with a new name.

        If a table is deleted and rebuilt, the names may be the same, but the folder is another one, changed later.
        """
        versions = os.path.join(self.uri, f"{name}.lance", "_versions")  # `Path` takes longer, and this is per search
        try:
            folder = os.stat(versions)
            return folder.st_ino, folder.st_mtime_ns, *os.listdir(versions)
        except OSError:
            return None  # LanceDB reads the table and reports the error

    def remove(self, name: str) -> None:
        shutil.rmtree(self._path(name))
        if self._created_folder:
            os.rmdir(self.uri)

    def clean_up(self, name: str, error: Exception) -> None:
        if self._lacks_hard_links(error):  # no process can commit here, so the table belongs to none
            with suppress(OSError):
                if not os.listdir(self._path(name) / "_versions"):
                    self.remove(name)

    def reason(self, error: Exception) -> str:
        if self._lacks_hard_links(error):
            return "its disk has no hard links, like exFAT and many FUSE disks: put the index on another disk"
        reason = _first_line(error)
        if "os error 28" in reason:
            return "the disk is full. Earlier writes are kept; free some space and run the same command again"
        return reason

    def without_paths(self, message: str) -> str:
        return re.sub(r"\S*[/\\]\S*", "", message.replace(os.path.abspath(self.uri), "/"))

    def _path(self, name: str) -> Path:
        return Path(self.uri) / f"{name}.lance"

    def _lacks_hard_links(self, error: Exception) -> bool:
        """Return whether a commit failed because the disk has no hard links, by which LanceDB commits a version."""
        if "unable to rename" not in str(error).lower():
            return False
        folder = next(folder for folder in (Path(self.uri), *Path(self.uri).absolute().parents) if folder.is_dir())
        with suppress(OSError), TemporaryDirectory(prefix=".", dir=folder) as scratch:  # full or read-only: unknown
            file = Path(scratch, "file")
            file.touch()
            try:
                os.link(file, file.with_name("link"))
            except OSError:
                return True
        return False


class ObjectStorage:
    """[`Location`] in object storage: `s3://`, `gs://` and `az://BUCKET/NAME.lance`.

    LanceDB reads credentials, region and endpoint from the environment, as the tools of each store do, or from
    `storage_options`. A commit is one conditional write.

    Args:
        uri (`str`): URI.
        storage_options (`Mapping[str, str]`, *optional*): options of LanceDB, such as `{"region": "eu-west-1"}`.

    Raises:
        ValueError: the URI is not valid, or holds a password or a query.
    """

    check_interval = CHECK_INTERVAL

    def __init__(self, uri: str, storage_options: Mapping[str, str] | None = None):
        self.uri = uri if uri.startswith("s3+ddb") else uri.rstrip("/")
        match = _OBJECT_STORAGE.fullmatch(self.uri) or _WITH_DYNAMODB.fullmatch(self.uri)
        scheme = uri.partition(":")[0]
        if match is None:  # the URI is not printed: it may hold a password or a signature
            table = "?ddbTableName=TABLE" if scheme == "s3+ddb" else ""
            raise ValueError(
                f"The {scheme}:// URI of the index is not valid: expected {scheme}://BUCKET/NAME.lance{table}, "
                "without credentials: set them in the environment."
            )
        self._words = {"bucket": match["bucket"], "login": _LOGINS[scheme.partition("+")[0]]}
        given = {name.lower(): value for name, value in (storage_options or {}).items()}
        self._given = {_OPTION_NAMES.get(name, name): value for name, value in given.items()}

    def connect(self, interval: timedelta | None = None) -> Any:
        return self._connect(_RETRY_OPTIONS, interval)

    def _connect(self, defaults: Mapping[str, str], interval: timedelta | None = None) -> Any:
        import lancedb

        unset = {name: value for name, value in defaults.items() if name.upper() not in os.environ}
        options = {**unset, **self._given}
        return lancedb.connect(self.uri, read_consistency_interval=interval, storage_options=options)

    def has_table(self, name: str) -> bool:
        try:
            self._connect(_FIRST_OPTIONS).open_table(name)
        except ValueError as error:
            if "was not found" not in str(error):
                raise
            return False
        return True

    def check_new(self) -> None:
        """Raise `ValueError` if the store ignores conditions of writes. AWS, Google and Azure have them."""
        environment = {_OPTION_NAMES.get(name.lower(), name.lower()): value for name, value in os.environ.items()}
        endpoint = {**environment, **self._given}.get("aws_endpoint")
        if not self.uri.startswith("s3://") or endpoint is None:
            return
        try:
            from obstore.exceptions import AlreadyExistsError, BaseError
            from obstore.store import S3Store
        except ImportError as error:
            raise ImportError(
                f"An index in a store with an endpoint of its own needs obstore: {pip_install('search')}"
            ) from error
        config = {name.removeprefix("aws_"): value for name, value in self._given.items()}
        known = ("access_key_id", "secret_access_key", "session_token", "region", "virtual_hosted_style_request")
        given: Any = {name: config[name] for name in known if name in config}
        is_plain = (environment | self._given).get("allow_http", environment.get("aws_allow_http", "")) == "true"
        name = f".conditional-write-{uuid4()}"
        try:
            store = S3Store.from_url(
                self.uri,
                endpoint=endpoint,
                client_options={"allow_http": is_plain, "timeout": "10s"},
                retry_config={"max_retries": 1},
                **given,
            )
            store.put(name, b"", mode="create")
            try:
                store.put(name, b"", mode="create")
                has_conditional_writes = False
            except AlreadyExistsError:
                has_conditional_writes = True
            with suppress(BaseError):  # an empty object stays
                store.delete(name)
        except BaseError as error:  # as with a login that only LanceDB reads, such as AWS_PROFILE
            logger.warning(
                f"The store of {self.uri} did not say whether it has conditional writes ({type(error).__name__}): "
                "unless you know that it has them, let one process write at a time"
            )
            return
        if not has_conditional_writes:
            raise ValueError(f"The index {self.uri} cannot be created: {_NO_CONDITIONAL_WRITES}.")

    def identity(self, table: Any) -> Any:
        return tuple((table.schema.metadata or {}).items())  # the index keeps the time of its creation there

    def state(self, name: str) -> tuple | None:
        return None

    def remove(self, name: str) -> None:
        self.connect().drop_table(name)

    def clean_up(self, name: str, error: Exception) -> None:
        """Do nothing: a failed creation leaves no table."""

    def reason(self, error: Exception) -> str:
        message = str(error)
        for pattern, reason in _REASONS:
            if re.search(pattern, message):
                code = re.search(r"<Code>(\w+)</Code>", message)
                return reason.format(**self._words) + (f" ({code[1]})" if code else "")
        return self._redact(_first_line(error))[:500]

    def _redact(self, message: str) -> str:
        """Replace the values of options and variables that may be secret."""
        variables = {name: value for name, value in os.environ.items() if re.match("AWS_|AZURE_|GOOGLE_", name)}
        for name, value in (variables | self._given).items():
            if re.search("key|token|secret|password|sas|credential", name, re.IGNORECASE) and len(value) > 3:
                message = message.replace(value, "***")
        message = re.sub(r"<AWSAccessKeyId>.*?</AWSAccessKeyId>", "", message)
        return re.sub(r"\?\S+", "", message)  # signatures of requests

    def without_paths(self, message: str) -> str:
        return re.sub(r"\S*/\S*", "", message.replace(self.uri, "/"))


def find_location(uri: str, storage_options: Mapping[str, str] | None = None) -> Location:
    """Return the location that a URI names: object storage, or else a folder.

    Raises:
        ValueError: the URI is not valid.
    """
    return ObjectStorage(uri, storage_options) if is_object_storage(uri) else Folder(uri)


def is_object_storage(uri: str) -> bool:
    """Return whether a URI names object storage: `s3://`, `s3+ddb://`, `gs://` or `az://`."""
    return _SCHEME.match(uri) is not None


def _first_line(error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0]
    return re.sub(r",? ?\S+\.rs:\d+:\d+", "", reason)  # locations in LanceDB's source


__all__ = ["CHECK_INTERVAL", "Folder", "Location", "ObjectStorage", "find_location", "is_object_storage"]
