"""Check and redact the addresses of remote videos."""

import re
from urllib.parse import parse_qsl, urlsplit, urlunsplit


# Protocol -> package that reads it through fsspec. No other protocol of fsspec is used, and no chain (`zip::https://`).
PROTOCOLS = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "az": "adlfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
}
WEB = ("http", "https")

_REMOTE = re.compile(rf"(?:{'|'.join(PROTOCOLS)})://", re.IGNORECASE)
# Parts of the names of query parameters that grant access, such as X-Amz-Signature, sig, access_token or Key-Pair-Id.
_SECRET_NAMES = re.compile(
    r"sig|token|cred|key|auth|pass|pwd|secret|jwt|session|policy|hmac|hdn|ticket", re.IGNORECASE
)
_JSON_WEB_TOKEN = "eyJ"  # start of every such token, whatever its parameter is called
# A colon before the @, unless a port follows it: a password may hold a slash.
_USER = re.compile(r"(?<=://)(?:[^\s/@]*:(?!\d+/)[^\s@]*|[^\s/@]*)@")
_QUERY = re.compile(r"(?<=://)([^\s?'\"]*)\?[^\s'\"]*")


def is_remote(path: str) -> bool:
    """Return whether a path is the address of a remote file, such as `s3://bucket/a.mp4`."""
    return _REMOTE.match(path) is not None


def check_address(address: str) -> str:
    """Return an address as indexes hold it: protocol and host in lower case, without the fragment of a web address.

    Raises:
        ValueError: the protocol is not in `PROTOCOLS`, no host or bucket is named, or the address holds credentials.
            An index would store them, and most of them expire. The message does not repeat the address.
    """
    if re.match(r"[a-z0-9]+:/(?!/)", address, re.IGNORECASE):
        raise ValueError("a slash is missing after the protocol: pathlib removes it, so give addresses as text")
    if not is_remote(address):
        *others, last = (f"{protocol}://" for protocol in PROTOCOLS)
        raise ValueError(f"this protocol is not read: give a path on this machine, {', '.join(others)} or {last}")
    protocol = address.partition("://")[0].lower()
    try:
        parts = urlsplit(address)
        _ = parts.port  # is parsed here
    except ValueError:
        raise ValueError("not a valid address: check its host and port") from None
    if not parts.netloc:
        raise ValueError("the address names no host or bucket: check it")
    if "@" in parts.netloc:
        raise ValueError(
            f"the address holds a user name or a password: leave it out, and {WHERE_CREDENTIALS_ARE[protocol]}"
        )
    if protocol not in WEB:  # ? and # belong to the names of files
        return f"{protocol}://{address.partition('://')[2]}"
    query = parse_qsl(parts.query, keep_blank_values=True)
    if any(_SECRET_NAMES.search(name) or value.startswith(_JSON_WEB_TOKEN) for name, value in query):
        raise ValueError(
            "the address holds a signature or token, which an index would store and which expires: give s3://, gs://, "
            "az:// or hf:// with credentials of the environment, or download the file"
        )
    return urlunsplit((protocol, parts.netloc.lower(), parts.path, parts.query, ""))


WHERE_CREDENTIALS_ARE = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_DEFAULT_REGION for another region",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login",
    "az": "set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "hf": "set HF_TOKEN, or run hf auth login",
    "http": "write it into ~/.netrc",
    "https": "write it into ~/.netrc",
}


def redact(text: str) -> str:
    """Remove user names, passwords and queries from the addresses in a text."""
    return _QUERY.sub(r"\1?...", _USER.sub("", text))


__all__ = ["PROTOCOLS", "WEB", "WHERE_CREDENTIALS_ARE", "check_address", "is_remote", "redact"]
