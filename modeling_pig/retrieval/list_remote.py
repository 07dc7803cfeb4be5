"""List the files behind the addresses of remote videos, folders and patterns."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event

from ..remote import check_address, redact
from ..remote.addresses import WEB
from ..remote.cache import default_cache
from ..remote.errors import RemoteError, stopping
from ..remote.filesystem import RemoteState, find_files, read_info, state_of
from ..video_file_pig import VideoDecodingError


NUM_LISTED_AT_ONCE = 16  # addresses that are asked for at the same time


@dataclass
class RemoteListing:
    """The files behind one address.

    Attributes:
        name (`str`): address as the user gave it, without credentials.
        root (`str`): address of the file or folder, as an index holds it.
        pattern (`list[str]`): components below `root`, such as `["**", "*.mp4"]`.
        is_folder (`bool`): whether `root` is a folder.
        files (`list[tuple[str, RemoteState]]`): addresses and states, in order of address.
        failures (`list[VideoDecodingError]`): why `root`, or a file in it, cannot be read.
    """

    name: str
    root: str = ""
    pattern: list[str] = field(default_factory=list)
    is_folder: bool = False
    files: list[tuple[str, RemoteState]] = field(default_factory=list)
    failures: list[VideoDecodingError] = field(default_factory=list)


def list_remote(names: Iterable[str]) -> Iterator[RemoteListing]:
    """List the files behind addresses, in their order. An address that cannot be read is a failure of its listing.

    Raises:
        ValueError: the size of the cache in the environment is not a number: the files could not be read later.
    """
    names = list(names)
    if names:
        default_cache()
    stop = Event()
    with ThreadPoolExecutor(NUM_LISTED_AT_ONCE, initializer=stopping.set, initargs=(stop,)) as pool:
        try:
            yield from pool.map(_list, names)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _list(name: str) -> RemoteListing:
    listing = RemoteListing(redact(name))
    try:
        listing.root = check_address(name)
    except ValueError as error:
        listing.failures.append(VideoDecodingError(listing.name, str(error)))
        return listing
    try:
        _read(listing)
    except RemoteError as error:
        listing.failures.append(VideoDecodingError(listing.name, error.strerror))
    return listing


def _read(listing: RemoteListing) -> None:
    if listing.root.startswith(tuple(f"{protocol}://" for protocol in WEB)):  # it lists no folders; ? starts a query
        listing.files.append((listing.root, state_of(listing.root, read_info(listing.root))))
        return
    listing.root = listing.root.rstrip("/")
    protocol, _, path = listing.root.partition("://")
    while any(character in path for character in "*?["):
        path, _, component = path.rpartition("/")
        listing.pattern.insert(0, component)
    listing.root = f"{protocol}://{path}"
    if not path:
        raise RemoteError(listing.name, "a pattern cannot stand for the name of a bucket: name the bucket")
    info = read_info(listing.root)
    if info["type"] == "file":
        listing.files.append((listing.root, state_of(listing.root, info)))
        return
    listing.is_folder = True
    for address, of_file in find_files(listing.root):
        if of_file["type"] == "file" and os.path.basename(address):  # S3 marks folders by files with an empty name
            try:
                listing.files.append((address, state_of(address, of_file)))
            except RemoteError as error:
                listing.failures.append(VideoDecodingError(address, error.strerror))


__all__ = ["RemoteListing", "list_remote"]
