"""A small Hub on the loopback for tests: it serves pushes and downloads from memory, logs all requests, and fails on
demand.

    hub.add_user("ada", token="hf_ada", organizations=["org"])
    HfApi(endpoint=hub.url, token="hf_ada").create_repo("org/name")

The fixture `hub` starts a server and points the client of this process at it; a test module loads the fixtures with
`pytest_plugins = ["tests.hub_server"]`. `LocalHub.run` points a separate interpreter at it. Xet and multi-part uploads
are not served.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import datasets
import pytest
from huggingface_hub import HfFileSystem, close_session, constants, file_download, hf_api
from huggingface_hub.utils import _http
from transformers.utils import hub as transformers_hub
from typer.testing import CliRunner

from modeling_pig.cli import app


LFS_SUFFIXES = (".safetensors", ".parquet", ".png", ".bin", ".pt", ".mp4")
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
ACTIONS = {"branch", "commit", "discussions", "paths-info", "preupload", "revision", "settings", "tree"}
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}  # of a repository's address
MAIN = "refs/heads/main"
DATE = "2026-01-01T00:00:00.000Z"
TOKEN = "hf_ada"  # of the fixture `hub`


class HubError(Exception):
    """A rejected request: status, message, and optionally an error code of the Hub."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        codes = {"X-Error-Code": code} if code else {}
        self.reply = Reply({"error": message}, status, {"X-Error-Message": message, **codes, **(headers or {})})


@dataclass
class Reply:
    body: Any = field(default_factory=dict)  # bytes, or any other value as JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    """A received request. `path` includes the query; `status` stays `None` if the connection was cut."""

    method: str
    path: str
    token: str | None
    headers: dict[str, str]
    body: bytes = b""
    storage: bool = False  # sent to the host of the LFS files
    status: int | None = None

    @property
    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}

    @property
    def form(self) -> dict[str, list[str]]:
        return parse_qs(self.body.decode())

    @property
    def json(self) -> dict:
        return json.loads(self.body or b"{}")


@dataclass(frozen=True)
class File:
    content: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def blob_id(self) -> str:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n"
        blob = pointer.encode() if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id

    @property
    def size(self) -> int:
        return len(self.content)


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: "Commit | None"
    title: str
    files: dict[str, File]

    def history(self) -> Iterator["Commit"]:
        commit: Commit | None = self
        while commit:
            yield commit
            commit = commit.parent


class Repository:
    """Commits, the refs that point to them (by full name), and the uploaded LFS files."""

    def __init__(self, repo_id: str, repo_type: str, private: bool):
        self.id, self.type, self.private = repo_id, repo_type, private
        self.gated: str | bool = False
        self.allowed: set[str] = set()  # users with access to the gated repository
        self.lfs: dict[str, bytes] = {}
        self.commits: dict[str, Commit] = {}
        self.discussions: list[dict] = []
        self.refs: dict[str, str] = {}
        self.refs[MAIN] = self.write(None, {".gitattributes": File(GIT_ATTRIBUTES, False)}, "initial commit")

    @property
    def main(self) -> Commit:
        return self.commits[self.refs[MAIN]]

    def write(self, parent: Commit | None, files: dict[str, File], title: str) -> str:
        """Store a commit; no ref points to it yet."""
        listing = [(path, file.etag) for path, file in sorted(files.items())]
        identity = json.dumps([self.id, self.type, len(self.commits), parent and parent.sha, title, listing])
        sha = hashlib.sha1(identity.encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, title, files)
        return sha

    def ref(self, revision: str) -> str | None:
        return next((name for name in (revision, f"refs/heads/{revision}") if name in self.refs), None)

    def resolve(self, revision: str) -> Commit:
        name = self.ref(revision)
        sha = self.refs[name] if name else revision
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]


@dataclass(frozen=True)
class User:
    name: str
    rights: str  # of the token: "read" or "write"
    organizations: tuple[str, ...]

    def owns(self, repo_id: str) -> bool:
        return repo_id.split("/")[0] in (self.name, *self.organizations)


@dataclass
class Fault:
    """Requests that fail: with `reply`, or else by a cut of the connection after `after_bytes` of the content."""

    method: str | None
    path_contains: str
    remaining: int
    reply: Reply | None = None
    after_bytes: int = 0

    def matches(self, request: Request) -> bool:
        return (
            self.remaining > 0
            and self.path_contains in request.path
            and self.method in (None, request.method)
            and (self.reply is not None or request.method in ("GET", "PUT", "POST"))
        )


class LocalHub:
    """A Hub on two free ports of the loopback: `url` is the Hub, `storage_url` the host of the LFS files.

    Attributes:
        requests (`list[Request]`): all requests, in the order of their arrival.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.users: dict[str, User] = {}
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._servers = [_Server(self, storage) for storage in (False, True)]
        # Another host name: huggingface_hub before 2.0 tells hosts apart by it, not by the port.
        hosts = zip(("127.0.0.1", "localhost"), self._servers, strict=True)
        self.url, self.storage_url = (f"http://{host}:{server.server_port}" for host, server in hosts)

    def __enter__(self) -> "LocalHub":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    # for tests

    def add_user(self, name: str, token: str, rights: str = "write", organizations: tuple | list = ()) -> str:
        """Add a user, who may write to repositories of `name` and of `organizations`; return the token."""
        self.users[token] = User(name, rights, tuple(organizations))
        return token

    def repository(self, repo_id: str, repo_type: str = "model") -> Repository:
        return self.repositories[repo_type, repo_id]

    def fail(self, next: int = 1, status: int = 503, path_contains: str = "", method: str | None = None, **headers):
        """Answer the next matching requests with `status`; `x_error_message` becomes the header `X-Error-Message`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        reply = Reply({"error": f"a fault of status {status}"}, status, named)
        self._faults.append(Fault(method, path_contains, next, reply))

    def cut(self, after_bytes: int = 0, path_contains: str = "", method: str | None = None, next: int = 1) -> None:
        """Cut the connection after `after_bytes` of the content: of a request, or of the answer to a GET."""
        self._faults.append(Fault(method, path_contains, next, after_bytes=after_bytes))

    def heal(self) -> None:
        """End all faults."""
        self._faults.clear()

    def requested(self, method: str | None = None, path_contains: str = "") -> list[Request]:
        return [r for r in self.requests if method in (None, r.method) and path_contains in r.path]

    def environment(self, home: str | os.PathLike, token: str | None = None, **extra: str) -> dict[str, str]:
        """Return the environment of a process whose client knows only this Hub and keeps its files in `home`."""
        kept = ("PATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "PYTHONPATH")
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "HOME": str(home),
            "HF_HOME": str(home),
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "DISABLE_SAFETENSORS_CONVERSION": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **({"HF_TOKEN": token} if token else {}),
            **extra,
        }

    def run(self, code: str, *arguments: Any, home: str | os.PathLike, token: str | None = None, **extra: str):
        """Run Python code in a separate interpreter; return its `CompletedProcess`, also if the code failed."""
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=self.environment(home, token, **extra),
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )

    @contextmanager
    def connected(self, home: str | os.PathLike, token: str | None = None, offline: bool = False) -> Iterator[None]:
        """Point `huggingface_hub`, `transformers` and `datasets` of this process at this Hub, and reset them on exit.

        They read the environment when they are imported, so that their constants are replaced: caches lie in `home`,
        and retries do not wait. Code that travels with a model (`trust_remote_code`) uses copies of the constants: it
        needs `run`.
        """
        home = Path(home)
        without_waiting = SimpleNamespace(sleep=lambda seconds: None)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("http_proxy", "https_proxy", "all_proxy"):
                patch.delenv(name, raising=False)
                patch.delenv(name.upper(), raising=False)
            patch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
            patch.setenv("DISABLE_SAFETENSORS_CONVERSION", "1")
            patch.setenv("HF_TOKEN", token) if token else patch.delenv("HF_TOKEN", raising=False)
            for name, value in {
                "ENDPOINT": self.url,
                "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
                "HF_HUB_CACHE": str(home / "hub"),
                "HF_TOKEN_PATH": str(home / "token"),
                "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
                "AGENT_HARNESSES_PATH": str(home / ".agent_harnesses.json"),
                "HF_HUB_OFFLINE": offline,
                "HF_HUB_DISABLE_XET": True,
                "HF_HUB_DISABLE_TELEMETRY": True,
            }.items():
                patch.setattr(constants, name, value)
            patch.setattr(hf_api.api, "endpoint", self.url)  # used by functions such as `snapshot_download`
            patch.setattr(transformers_hub, "_hf_api", None)  # transformers creates its client on first use
            patch.setattr(_http, "time", without_waiting)
            patch.setattr(file_download, "time", without_waiting)
            for name, value in {
                "HF_ENDPOINT": self.url,
                "HUB_DATASETS_URL": self.url + "/datasets/{repo_id}/resolve/{revision}/{path}",
                "HF_DATASETS_CACHE": home / "datasets",
                "DOWNLOADED_DATASETS_PATH": home / "datasets" / "downloads",
                "HF_HUB_OFFLINE": offline,
                "HF_UPDATE_DOWNLOAD_COUNTS": False,  # the count is sent to another host
            }.items():
                patch.setattr(datasets.config, name, value)
            _close_clients()
            try:
                yield
            finally:
                _close_clients()

    # for the client

    def take_fault(self, request: Request) -> Fault | None:
        with self._lock:
            fault = next((fault for fault in self._faults if fault.matches(request)), None)
            if fault:
                fault.remaining -= 1
            return fault

    def answer(self, request: Request) -> Reply:
        # Split before unquoting: the encoded slashes of refs/pr/1 belong to one part.
        parts = [unquote(part) for part in urlsplit(request.path).path.strip("/").split("/")]
        try:
            with self._lock:
                return self._answer_storage(request, parts) if request.storage else self._answer_hub(request, parts)
        except HubError as error:
            return error.reply

    def _answer_hub(self, request: Request, parts: list[str]) -> Reply:
        user = self.users.get(request.token or "")
        if request.token and not user:
            raise HubError(401, "Invalid credentials in Authorization header")
        match [request.method, *parts]:
            case ["POST", "api", "validate-yaml"]:
                return Reply({"errors": [], "warnings": []})
            case ["POST", "api", "repos", "create"]:
                return self._create(request.json, user)
            case [_, "api", ("models" | "datasets" | "spaces") as kind, *rest]:
                length = 1 if len(rest) == 1 or rest[1] in ACTIONS else 2
                repo_id, action = "/".join(rest[:length]), rest[length:]
                return self._answer_repository(request, user, self._find(KINDS[kind], repo_id, user), action)
            case ["POST", *name, "info", "lfs", "objects", action] if name and name[-1].endswith(".git"):
                repository = self._find(*_type_and_id("/".join(name).removesuffix(".git")), user)
                self._check_write(repository.id, user, pull_request=True)  # the commit checks the rights to write
                return self._answer_lfs(request.json, repository, action)
            case ["GET" | "HEAD", *_] if "resolve" in parts[:4]:
                end = parts.index("resolve")
                repository = self._find(*_type_and_id("/".join(parts[:end])), user)
                return self._resolve(request, user, repository, parts[end + 1], "/".join(parts[end + 2 :]))
        raise HubError(404, f"{request.method} {request.path} is not served")

    def _find(self, repo_type: str, repo_id: str, user: User | None) -> Repository:
        repository = self.repositories.get((repo_type, repo_id))
        if repository and (not repository.private or (user and user.owns(repo_id))):
            return repository
        # The answer does not depend on whether a private repository exists. Without a token, it is a 401.
        if user:
            raise HubError(404, "Repository not found", "RepoNotFound")
        raise HubError(401, "Invalid username or password.", "RepoNotFound")

    def _check_write(self, repo_id: str, user: User | None, pull_request: bool = False) -> None:
        if not user:
            raise HubError(401, "Invalid username or password.")
        if user.rights != "write":
            raise HubError(403, "This token may only read: use one with the right to write")
        if not (pull_request or user.owns(repo_id)):
            raise HubError(403, f"You don't have the rights to write to {repo_id}")

    def _create(self, fields: dict, user: User | None) -> Reply:
        repo_id = f"{fields['organization'] or (user and user.name)}/{fields['name']}"
        private = bool(fields.get("private")) or fields.get("visibility") == "private"
        key = (fields.get("type") or "model", repo_id)
        url = f"{self.url}/{PREFIXES[key[0]]}{repo_id}"
        if key[0] == "space" and not fields.get("sdk"):
            raise HubError(400, "A Space needs an sdk")
        self._check_write(repo_id, user)
        if key in self.repositories:
            return Reply({"error": f"You already created this {key[0]} repo", "url": url}, 409)
        self.repositories[key] = Repository(repo_id, key[0], private)
        return Reply({"url": url, "name": repo_id})

    def _answer_repository(self, request: Request, user: User | None, repo: Repository, action: list[str]) -> Reply:
        match [request.method, *action]:
            case ["GET"]:
                return _describe(repo, repo.main)
            case ["GET", "revision", revision]:
                return _describe(repo, repo.resolve(revision))
            case ["GET", "tree", revision, *path]:
                return _list_tree(repo.resolve(revision), "/".join(path), request.query.get("recursive") == "true")
            case ["POST", "paths-info", revision]:
                return Reply([entry for path in request.form["paths"] for entry in _find_entry(repo, revision, path)])
            case ["GET", "discussions"]:
                return Reply({"discussions": repo.discussions, "count": len(repo.discussions), "start": 0})
            case ["POST", "preupload", revision]:
                self._check_write(repo.id, user, request.query.get("create_pr") == "1")
                return _choose_upload_modes(request.json["files"], repo.resolve(revision))
            case ["POST", "commit", revision]:
                create_pr = request.query.get("create_pr") == "1"
                self._check_write(repo.id, user, create_pr)
                return self._commit(request.body, repo, revision, user.name if create_pr and user else None)
        self._check_write(repo.id, user)
        match [request.method, *action]:
            case ["PUT", "settings"]:
                if "visibility" in request.json:
                    repo.private = request.json["visibility"] == "private"
                repo.gated = request.json.get("gated", repo.gated)
                return Reply()
            case ["POST", "branch", name]:
                repo.refs[f"refs/heads/{name}"] = repo.resolve(request.json.get("startingPoint", "main")).sha
                return Reply()
        raise HubError(404, f"{request.method} {request.path} is not served")

    def _commit(self, body: bytes, repo: Repository, revision: str, author: str | None) -> Reply:
        header, *lines = (json.loads(line) for line in body.splitlines() if line.strip())
        title, parent, ref = header["value"]["summary"], repo.resolve(revision), repo.ref(revision)
        if header["value"].get("parentCommit", parent.sha) != parent.sha:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for line in lines:
            _apply(line["key"], line["value"], files, repo)
        sha = repo.write(parent, files, title)
        reply = {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repo.id}/commit/{sha}"}
        if author:  # of a pull request
            number = len(repo.discussions) + 1
            repo.discussions.append(_describe_pull_request(number, title, author, repo))
            ref = f"refs/pr/{number}"
            reply["pullRequestUrl"] = f"{self.url}/{PREFIXES[repo.type]}{repo.id}/discussions/{number}"
        assert ref
        repo.refs[ref] = sha
        return Reply(reply)

    def _answer_lfs(self, fields: dict, repo: Repository, action: str) -> Reply:
        if action == "verify":
            if len(repo.lfs.get(fields["oid"], b"")) != fields["size"]:
                raise HubError(404, f"No file of {fields['size']} bytes was uploaded as {fields['oid']}")
            return Reply()
        verify = {"href": f"{self.url}/{PREFIXES[repo.type]}{repo.id}.git/info/lfs/objects/verify"}
        objects = [
            {**item, "actions": {"upload": {"href": self._storage_url(repo, item["oid"])}, "verify": verify}}
            if item["oid"] not in repo.lfs
            else item
            for item in fields["objects"]
        ]
        return Reply({"transfer": "basic", "objects": objects})

    def _storage_url(self, repo: Repository, oid: str) -> str:
        return f"{self.storage_url}/{repo.type}/{repo.id}/{oid}"

    def _answer_storage(self, request: Request, parts: list[str]) -> Reply:
        """Serve LFS files without a token, and reject a token: it must be sent to the Hub only."""
        repo_type, *name, oid = parts
        repo = self.repositories[repo_type, "/".join(name)]
        if request.token:
            raise HubError(400, "A token was sent to the host of the LFS files")
        if request.method == "PUT":
            if (found := hashlib.sha256(request.body).hexdigest()) != oid:
                raise HubError(400, f"The announced sha256 is {oid}, the sha256 of the content is {found}")
            repo.lfs[oid] = request.body
            return Reply(b"", headers={"ETag": f'"{oid}"'})
        return _serve(request, repo.lfs[oid], {"ETag": f'"{oid}"'})

    def _resolve(self, request: Request, user: User | None, repo: Repository, revision: str, path: str) -> Reply:
        if repo.gated and not (user and (user.owns(repo.id) or user.name in repo.allowed)):
            message = f"Access to {repo.type} {repo.id} is restricted. Visit {self.url}/{repo.id} to ask for access."
            raise HubError(403 if user else 401, message, "GatedRepo")
        commit = repo.resolve(revision)
        headers = {"X-Repo-Commit": commit.sha}
        file = commit.files.get(path)
        if file is None:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        if file.lfs:
            location = f"{self._storage_url(repo, file.sha256)}?filename={quote(path)}"
            linked = {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
            return Reply(b"", 302, {**headers, **linked, "Location": location})
        return _serve(request, file.content, {**headers, "ETag": f'"{file.etag}"'})


def _close_clients() -> None:
    """Close the connections to the previous Hub."""
    close_session()
    HfFileSystem.clear_instance_cache()


def _type_and_id(name: str) -> tuple[str, str]:
    kind, _, repo_id = name.partition("/")
    return (KINDS[kind], repo_id) if kind in ("datasets", "spaces") else ("model", name)


def _describe(repo: Repository, commit: Commit) -> Reply:
    return Reply(
        {
            **{"_id": repo.id, "id": repo.id, "author": repo.id.split("/")[0], "sha": commit.sha},
            **{"createdAt": DATE, "lastModified": DATE, "private": repo.private, "gated": repo.gated},
            **{"disabled": False, "downloads": 0, "likes": 0, "tags": []},
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }
    )


def _describe_pull_request(number: int, title: str, author: str, repo: Repository) -> dict:
    return {
        **{"num": number, "title": title, "status": "open", "isPullRequest": True, "createdAt": DATE},
        **{"author": {"name": author}, "repo": {"name": repo.id, "type": repo.type}},
    }


def _choose_upload_modes(files: list[dict], commit: Commit) -> Reply:
    replies = []
    for file in files:
        known = commit.files.get(file["path"])
        mode = "lfs" if any(fnmatch(file["path"], f"*{suffix}") for suffix in LFS_SUFFIXES) else "regular"
        reply = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
        replies.append({**reply, **({"oid": known.etag} if known else {})})
    return Reply({"files": replies})


def _apply(key: str, value: dict, files: dict[str, File], repo: Repository) -> None:
    """Apply one line of a commit to `files`, or raise `HubError`, which rejects the whole commit."""
    path = value["path"]
    if key == "file":
        files[path] = File(base64.b64decode(value["content"], validate=True), False)
    elif key == "lfsFile" and value["oid"] in repo.lfs:
        files[path] = File(repo.lfs[value["oid"]], True)
    elif key == "deletedFile" and path in files:
        del files[path]
    else:
        raise HubError(400, f"{key} {path} cannot be applied")


def _list_tree(commit: Commit, folder: str, recursive: bool) -> Reply:
    entries = {}
    start = f"{folder}/" if folder else ""
    for path, file in commit.files.items():
        if not path.startswith(start):
            continue
        first, *rest = path.removeprefix(start).split("/")
        if rest:
            entries[start + first] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": start + first}
        if recursive or not rest:
            entries[path] = {"type": "file", "oid": file.blob_id, "size": file.size, "path": path}
            if file.lfs:
                entries[path]["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 128}
    if folder and not entries:
        raise HubError(404, f"{folder} does not exist on {commit.sha}", "EntryNotFound")
    return Reply([entry for _, entry in sorted(entries.items())])


def _find_entry(repo: Repository, revision: str, path: str) -> list[dict]:
    """Return the file or folder at a path, in a list that is otherwise empty."""
    folder = path.rpartition("/")[0]
    try:
        return [entry for entry in _list_tree(repo.resolve(revision), folder, False).body if entry["path"] == path]
    except HubError:
        return []


def _serve(request: Request, content: bytes, headers: dict[str, str]) -> Reply:
    """Serve the content of a file, or the range `bytes=START-` or `bytes=START-LAST` that the request asks for."""
    if not (wanted := request.headers.get("range")):
        return Reply(content, headers={**headers, "Accept-Ranges": "bytes"})
    start, _, last = wanted.removeprefix("bytes=").partition("-")
    served = content[int(start) : int(last) + 1 if last else None]
    where = f"bytes {start}-{int(start) + len(served) - 1}/{len(content)}"
    return Reply(served, 206, {**headers, "Content-Range": where})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client keeps its connections open

    def __init__(self, hub: LocalHub, storage: bool):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.storage = hub, storage

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may disconnect at any time
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_) -> None:
        pass

    def _handle(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        authorization = headers.get("authorization", "")
        token = authorization.removeprefix("Bearer ") if authorization.startswith("Bearer ") else None
        request = Request(self.command, self.path, token, headers, storage=self.server.storage)
        hub = self.server.hub
        hub.requests.append(request)
        fault = hub.take_fault(request)
        is_cut = fault is not None and fault.reply is None
        if is_cut and request.method != "GET":
            self.rfile.read(min(fault.after_bytes, int(headers.get("content-length", 0))))
            return self._hang_up()
        request.body = self.rfile.read(int(headers.get("content-length", 0)))
        reply = fault.reply if fault and fault.reply else hub.answer(request)
        content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        kind = "application/octet-stream" if isinstance(reply.body, bytes) else "application/json"
        if not is_cut:
            request.status = reply.status
        self.send_response(reply.status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if request.method != "HEAD":
            self.wfile.write(content[: fault.after_bytes] if is_cut else content)
        if is_cut:
            self._hang_up()

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True


@pytest.fixture
def hub(tmp_path) -> Iterator[LocalHub]:
    """Start a Hub; user `ada` of this process may write to `org`, and the cache is in `tmp_path / "home"`."""
    with LocalHub() as hub:
        token = hub.add_user("ada", TOKEN, organizations=["org"])
        with hub.connected(tmp_path / "home", token):
            yield hub


@pytest.fixture
def run_pig() -> Callable[..., str]:
    """Return a function that runs a `pig` command and returns its output or error line, without `TOKEN`."""

    def run(*arguments: Any) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert TOKEN not in result.output
        if result.exit_code == 0:
            return result.stdout
        (message,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        return message

    return run
