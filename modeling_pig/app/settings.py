"""Settings of the app's server, and the limits of its API."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


MAX_RESULTS = 1000  # per page
MAX_DEPTH = 100_000  # results of a query that pages may reach
MAX_OTHERS = 8  # further segments per file
MAX_TEXT = 1000  # characters per query or filter
MAX_CHOSEN = 200  # values of facets per search
MAX_UPLOADS = 8  # concurrent uploads; their videos are encoded one at a time
MAX_EXPLANATIONS = 8  # concurrent explanations: each holds one of the 40 threads that answer all requests
MAX_WAITING = 1000  # searches that wait for their turn; further searches are rejected
MAX_BODY_BYTES = 100_000  # of a request that is not an upload
MIN_TOKEN = 16  # characters: shorter tokens can be guessed


@dataclass(frozen=True)
class AppSettings:
    """Settings of an [`AppServer`].

    Args:
        max_upload_bytes (`int`): largest accepted upload in bytes.
        examples (`Sequence[str]`): example queries; by default some of the captions.
        is_public (`bool`): whether other machines may send requests. A public server hides the folders of the videos
            and rejects filters on `path`.
        host_names (`Collection[str]`): accepted host names besides those of this machine. Requests with other names
            are rejected: a site whose name resolves to this machine could otherwise read the videos through a
            visitor's browser (DNS rebinding).
        frame_ancestors (`str`): sites that may show the page in a frame; value of the directive of the same name in
            `Content-Security-Policy`.
        token (`str`, *optional*): token that requests for data must carry; by default none.
        write_token (`str`, *optional*): token of the routes that change the index; it also reads.
        allow_write (`bool`): whether the routes that change the index work. A public server needs `write_token`.
        video_roots (`Sequence[Path]`): folders from which videos may be added.
        id_key (`str`, *optional*): secret of the ids, see [`make_id_key`].
        max_searches (`int`): searches that run at the same time; others wait.
        media_folder (`Path`, *optional*): folder of thumbnails and playable clips; by default beside the index.
        rate_limit (`float`, *optional*): searches, explanations, uploads and writes per second and client address;
            by default unlimited.
        log_requests (`bool`): log one line per request, without its query.
        log_queries (`bool`): log the queries too.

    Attributes:

    Raises:
        ValueError: a token is shorter than `MIN_TOKEN` characters or not printable ASCII, both tokens are equal, or a
            public server accepts writes without a token.
    """

    max_upload_bytes: int = 200_000_000
    examples: Sequence[str] = ()
    is_public: bool = False
    host_names: Collection[str] = ()
    frame_ancestors: str = "'self'"
    token: str | None = None
    write_token: str | None = None
    allow_write: bool = False
    video_roots: Sequence[Path] = ()
    id_key: str | None = None
    max_searches: int = field(default_factory=lambda: os.cpu_count() or 1)
    media_folder: Path | None = None
    rate_limit: float | None = None
    log_requests: bool = False
    log_queries: bool = False

    def __post_init__(self):
        for name, token in (("PIG_API_TOKEN", self.token), ("PIG_API_WRITE_TOKEN", self.write_token)):
            if token is not None and not (len(token) >= MIN_TOKEN and token.isascii() and token.isprintable()):
                raise ValueError(f"{name} is not valid: expected {MIN_TOKEN} or more printable ASCII characters.")
        if self.token is not None and self.token == self.write_token:
            raise ValueError(
                "PIG_API_TOKEN and PIG_API_WRITE_TOKEN are equal: readers could write; choose two tokens."
            )
        if self.allow_write and self.is_public and self.write_token is None:
            raise ValueError("Other machines could change the index: set PIG_API_WRITE_TOKEN to a secret.")

    @property
    def needs_token(self) -> bool:
        """Whether requests for data must carry a token."""
        return self.token is not None


def read_secrets() -> dict[str, Any]:
    """Return the settings that the environment holds, which other users of the machine cannot list."""
    names = {"token": "PIG_API_TOKEN", "write_token": "PIG_API_WRITE_TOKEN", "id_key": "PIG_API_ID_KEY"}
    return {setting: os.environ.get(variable) or None for setting, variable in names.items()}


__all__ = ["MAX_DEPTH", "MAX_RESULTS", "AppSettings", "read_secrets"]
