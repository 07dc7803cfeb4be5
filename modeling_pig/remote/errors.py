"""Say in one line why a remote file cannot be read and what to do, and try again what may succeed then."""

import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from threading import Event
from typing import Any, TypeVar

from ..extras import pip_install
from .addresses import PROTOCOLS, WHERE_CREDENTIALS_ARE, redact


T = TypeVar("T")

TIMEOUT = 20.0  # seconds without a byte from the server
WAITS = (0.5, 2.0)  # seconds before the second and the third attempt
# Event that is set when the work of a thread is no longer wanted; the `initializer` of a pool sets it for its threads.
stopping: ContextVar[Event | None] = ContextVar("stopping", default=None)
_OTHER_REGION = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException")
_BROKEN = ("ClientPayloadError", "HttpProcessingError", "IncompleteReadError")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_NO_CREDENTIALS = (
    *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"),  # of botocore
    *("DefaultCredentialsError", "RefreshError"),  # of google-auth
)


class RemoteError(OSError):
    """Error of a remote file.

    Attributes:
        strerror (`str`): what is wrong and what to do, without credentials.
        is_missing (`bool`): whether the server said that the file does not exist.
        is_transient (`bool`): whether another attempt may succeed.
    """

    def __init__(self, address: str, reason: str, *, is_missing: bool = False, is_transient: bool = False):
        super().__init__(f"{redact(address)}: {reason}")
        self.strerror = reason
        self.is_missing, self.is_transient = is_missing, is_transient


class NoRangesError(RemoteError):
    """The server sends whole files only."""

    def __init__(self, address: str):
        super().__init__(address, "the server sends whole files only, and sent ranges before; run again")


def attempt(address: str, operation: Callable[[], T]) -> T:
    """Call `operation`, up to three times if its error may be transient.

    It is not called, or not again, once the event `stopping` of this thread is set: Ctrl-C then waits for one request,
    and not for all attempts.

    Raises:
        RemoteError: the last error. Its context is cut: messages of other packages may hold signed addresses.
    """
    waits = () if address.startswith("gs://") else WAITS  # gcsfs itself tries six times
    stop = stopping.get()
    for wait in (*waits, None):
        if stop is not None and stop.is_set():
            raise RemoteError(address, "interrupted; run again")
        try:
            return operation()
        except Exception as error:  # of fsspec, aiohttp, httpx, botocore and the packages of other stores
            problem = error if isinstance(error, RemoteError) else explain(address, error)
        if wait is None or not problem.is_transient:
            raise problem from None
        time.sleep(wait)
    raise AssertionError


def explain(address: str, error: BaseException) -> RemoteError:
    """Turn an error of any package that reads remote files into a [`RemoteError`]."""
    protocol = address.partition("://")[0]
    credentials = WHERE_CREDENTIALS_ARE[protocol]
    chain = list(_chain(error))
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    code = next(filter(None, map(_code, chain)), None)
    status = next(filter(None, map(_status, chain)), None)
    if isinstance(error, ImportError):
        return RemoteError(address, f"reading {protocol}:// needs {PROTOCOLS[protocol]}: {pip_install('remote')}")
    is_adlfs = isinstance(error, ValueError) and "credentials" in str(error)
    if names.intersection(_NO_CREDENTIALS) or is_adlfs:
        return RemoteError(address, f"there are no credentials, or only a part of them: {credentials}")
    if "OfflineModeIsEnabled" in names:
        return RemoteError(address, "HF_HUB_OFFLINE forbids to read it: unset HF_HUB_OFFLINE")
    if any(isinstance(link, TimeoutError) or "Timeout" in type(link).__name__ for link in chain):
        reason = f"the server sent nothing for {TIMEOUT:g} s, in {len(WAITS) + 1} attempts; run again later"
        return RemoteError(address, reason, is_transient=True)
    message = redact(" ".join(str(chain[-1]).split()))[:200] or type(chain[-1]).__name__
    broken = f"no connection to the server, or it broke ({message}): check the address and the network"
    if names.intersection(_BROKEN):  # aiohttp gives some of them the status 400
        return RemoteError(address, broken, is_transient=True)
    if code in _OTHER_REGION:
        return RemoteError(address, "the bucket is in another region: set AWS_DEFAULT_REGION to its region")
    if code in _NO_BUCKET:
        return RemoteError(address, "there is no such bucket: check its name")
    if "RepositoryNotFoundError" in names:  # the Hub does not tell these apart
        reason = f"there is no such repository, or it is private: check the address, and {credentials}"
        return RemoteError(address, reason)
    is_gcsfs = str(error).startswith("Forbidden: ")
    if status in (400, 401, 403, 407) or isinstance(error, PermissionError) or is_gcsfs:
        return RemoteError(address, f"access is denied, check the address and the rights: {credentials}")
    if status in (404, 410) or (status is None and isinstance(chain[-1], FileNotFoundError)):
        return RemoteError(address, "there is no such file or folder: check the address", is_missing=True)
    if status == 412 or "FileExpired" in names:
        return RemoteError(address, "changed while it was read; run again")
    if status is not None and (status == 429 or status >= 500):
        reason = f"the server failed (status {status}), in {len(WAITS) + 1} attempts; run again later"
        return RemoteError(address, reason, is_transient=True)
    if status is None and isinstance(error, OSError) or any("Connect" in name for name in names):
        return RemoteError(address, broken, is_transient=True)
    return RemoteError(address, f"cannot be read ({type(chain[-1]).__name__}: {message})")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes; fsspec, for example, reports every failed request as a missing file."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _code(error: Any) -> str | None:
    """Return the code of an error of S3 or Azure."""
    response = getattr(error, "response", None)
    found = response.get("Error", {}).get("Code") if isinstance(response, dict) else getattr(error, "error_code", None)
    return str(found) if found else None


def _status(error: Any) -> int | None:
    """Return the status of the response behind an error of aiohttp, httpx, botocore, gcsfs or Azure."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        places = ((response, "status_code"), (error, "status"), (error, "status_code"), (error, "code"))
        found = next((value for owner, name in places if (value := getattr(owner, name, None)) is not None), None)
    return found if isinstance(found, int) else None


__all__ = ["NoRangesError", "RemoteError", "attempt", "explain", "stopping"]
