"""A Hub on the loopback for tests: what the real client asks of it, in memory, with faults on demand and a log.

    hub.add_user("ada", token="hf_ada", organizations=["org"])
    HfApi(endpoint=hub.url, token="hf_ada").create_repo("org/name")

The fixture `hub` starts one and points this process's client at it; a test module asks for the fixture with
`pytest_plugins = ["tests.hub_server"]`. `LocalHub.run` points a fresh interpreter at it instead, as a user would.
Xet and uploads in several parts are not served.
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
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import datasets
import pytest
import yaml
from huggingface_hub import HfFileSystem, close_session, constants, file_download, hf_api
from huggingface_hub.utils import _http
from transformers.utils import hub as transformers_hub


LFS_SUFFIXES = (".safetensors", ".parquet", ".png", ".bin", ".pt", ".mp4")
LFS_BYTES = 10 * 1024 * 1024  # a file this large is an LFS file whatever its name
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
ACTIONS = {
    *("auth-check", "branch", "commit", "commits", "discussions", "paths-info", "preupload", "refs", "revision"),
    *("settings", "tag", "tree"),
}
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}  # of a repository's address
MAIN = "refs/heads/main"
TOKEN = "hf_ada"  # of the fixture `hub`


class HubError(Exception):
    """An answer that refuses: the status, the message, and the Hub's own code for it if there is one."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        named = {"X-Error-Code": code} if code else {}
        self.reply = Reply({"error": message}, status, {"X-Error-Message": message, **named, **(headers or {})})


@dataclass
class Reply:
    body: Any = field(default_factory=dict)  # bytes as they are, all else as JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    """One request as it came, `path` with its query; `status` stays `None` where the connection was cut."""

    method: str
    path: str
    token: str | None
    headers: dict[str, str]
    body: bytes = b""
    storage: bool = False  # asked of the host that keeps the LFS files
    status: int | None = None

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)

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

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @cached_property
    def blob_id(self) -> str:
        blob = self.pointer if self.lfs else self.content
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
    description: str
    author: str
    date: str
    files: dict[str, File]

    def history(self) -> Iterator["Commit"]:
        commit: Commit | None = self
        while commit:
            yield commit
            commit = commit.parent

    def last_change(self, path: str) -> dict[str, str]:
        """The newest commit that changed the file, or a file in the folder."""

        def state(commit: Commit) -> list[tuple[str, str]]:
            return [(p, f.etag) for p, f in sorted(commit.files.items()) if f"{p}/".startswith(f"{path}/")]

        commit = next(c for c in self.history() if not c.parent or state(c) != state(c.parent))
        return {"id": commit.sha, "title": commit.title, "date": commit.date}


class Repository:
    """Commits, the refs that name them (by their full names) and the LFS files that have been uploaded."""

    def __init__(self, repo_id: str, repo_type: str, private: bool, author: str):
        self.id, self.type, self.private = repo_id, repo_type, private
        self.gated: str | bool = False
        self.allowed: set[str] = set()  # users who have been let through the gate
        self.lfs: dict[str, bytes] = {}
        self.commits: dict[str, Commit] = {}
        self.discussions: list[dict] = []
        self.created_at = now()
        self.refs: dict[str, str] = {}
        self.refs[MAIN] = self.write(None, {".gitattributes": File(GIT_ATTRIBUTES, False)}, "initial commit", author)

    @property
    def main(self) -> Commit:
        return self.commits[self.refs[MAIN]]

    def write(self, parent: Commit | None, files: dict[str, File], title: str, author: str, about: str = "") -> str:
        """A commit that no ref names yet."""
        listing = [(path, file.etag) for path, file in sorted(files.items())]
        identity = json.dumps([self.id, self.type, len(self.commits), parent and parent.sha, title, listing])
        sha = hashlib.sha1(identity.encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, title, about, author, now(), files)
        return sha

    def ref(self, revision: str) -> str | None:
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((name for name in names if name in self.refs), None)

    def resolve(self, revision: str) -> Commit:
        name = self.ref(revision)
        sha = self.refs[name] if name else revision
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def open_discussion(self, title: str, description: str, author: str, pull_request: bool) -> int:
        number = len(self.discussions) + 1
        comment = {"edited": False, "hidden": False, "latest": {"raw": description}}
        opened = {"id": f"{number}-1", "type": "comment", "createdAt": now(), "author": {"name": author}}
        self.discussions.append(
            {
                "title": title,
                "num": number,
                "author": {"name": author},
                "createdAt": now(),
                "status": "draft" if pull_request else "open",
                "repo": {"name": self.id, "type": self.type},
                "isPullRequest": pull_request,
                "changes": {"base": MAIN},
                "filesWithConflicts": [],
                "events": [{**opened, "data": comment}],
            }
        )
        if pull_request:
            self.refs[f"refs/pr/{number}"] = self.refs[MAIN]
        return number


@dataclass(frozen=True)
class User:
    name: str
    rights: str  # "read" or "write": what the token allows
    organizations: tuple[str, ...]

    def owns(self, repo_id: str) -> bool:
        return repo_id.split("/")[0] in (self.name, *self.organizations)


@dataclass
class Fault:
    method: str | None
    path_contains: str
    remaining: int
    reply: Reply | None = None
    after_bytes: int = 0

    def meets(self, request: Request) -> bool:
        return (
            self.remaining > 0
            and self.path_contains in request.path
            and self.method in (None, request.method)
            and (self.reply is not None or request.method in ("GET", "PUT", "POST"))
        )


class LocalHub:
    """A Hub that listens on two free ports of the loopback: `url` is the Hub, `storage_url` the host of LFS files.

    Attributes:
        requests (`list[Request]`): every request, in the order in which they came.
        page_size (`int`): entries a page of a listing.
        verify_uploads (`bool`): whether the client is asked to have each LFS upload verified.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.users: dict[str, User] = {}
        self.page_size = 1000
        self.verify_uploads = True
        self._faults: list[Fault] = []
        self._secret = os.urandom(8)
        self._lock = threading.RLock()
        self._servers = [_Server(self, storage) for storage in (False, True)]
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> "LocalHub":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    # what a test asks of it

    def add_user(
        self, name: str, token: str, rights: str = "write", organizations: tuple[str, ...] | list = ()
    ) -> str:
        """Makes `token` one of the user's, who may write to repositories of their own and of their organizations."""
        self.users[token] = User(name, rights, tuple(organizations))
        return token

    def repository(self, repo_id: str, repo_type: str = "model") -> Repository:
        return self.repositories[repo_type, repo_id]

    def fail(self, next: int = 1, status: int = 503, path_contains: str = "", method: str | None = None, **headers):
        """Answers the next requests of this kind with `status`; a header `Retry-After` is given as `retry_after`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        reply = Reply({"error": f"a fault of status {status}"}, status, named)
        self._faults.append(Fault(method, path_contains, next, reply))

    def cut(self, after_bytes: int = 0, path_contains: str = "", method: str | None = None, next: int = 1) -> None:
        """Closes the connection after so many bytes of the content: the request's, or that of the answer to a GET."""
        self._faults.append(Fault(method, path_contains, next, after_bytes=after_bytes))

    def heal(self) -> None:
        """Ends all faults."""
        self._faults.clear()

    def requested(self, method: str | None = None, path_contains: str = "") -> list[Request]:
        return [r for r in self.requests if method in (None, r.method) and path_contains in r.path]

    def environment(self, home: str | os.PathLike, token: str | None = None, **extra: str) -> dict[str, str]:
        """The environment of a process whose client knows this Hub alone, and keeps its files in `home`."""
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
        """Runs Python code in a fresh interpreter: `CompletedProcess` with what it printed. It may have failed."""
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
        """Points this process's `huggingface_hub`, `transformers` and `datasets` at this Hub, and back again.

        They read the environment when they are imported, so that what they made of it is changed: their caches lie in
        `home`, nothing waits between two tries. Code that travels with a model (`trust_remote_code`) goes by copies
        of these values: it needs `run`.
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
            patch.setattr(hf_api.api, "endpoint", self.url)  # that of the functions, `huggingface_hub.create_repo`
            patch.setattr(transformers_hub, "_hf_api", None)  # transformers makes one when it needs it, and keeps it
            patch.setattr(_http, "time", without_waiting)
            patch.setattr(file_download, "time", without_waiting)
            for name, value in {
                "HF_ENDPOINT": self.url,
                "HUB_DATASETS_URL": self.url + "/datasets/{repo_id}/resolve/{revision}/{path}",
                "HF_DATASETS_CACHE": home / "datasets",
                "DOWNLOADED_DATASETS_PATH": home / "datasets" / "downloads",
                "HF_HUB_OFFLINE": offline,
                "HF_UPDATE_DOWNLOAD_COUNTS": False,  # it would ask another host
            }.items():
                patch.setattr(datasets.config, name, value)
            _forget_clients()
            try:
                yield
            finally:
                _forget_clients()

    # what the client asks of it

    def fault(self, request: Request) -> Fault | None:
        with self._lock:
            fault = next((fault for fault in self._faults if fault.meets(request)), None)
            if fault:
                fault.remaining -= 1
            return fault

    def answer(self, request: Request) -> Reply:
        path = urlsplit(request.path).path
        try:
            # What is encoded within a part of the path, as the slashes of refs/pr/1 are, belongs to that part.
            parts = [unquote(part) for part in path.strip("/").split("/")]
            with self._lock:
                return self._storage(request, parts) if request.storage else self._hub(request, parts)
        except HubError as error:
            return error.reply

    def _hub(self, request: Request, parts: list[str]) -> Reply:
        user = self.users.get(request.token or "")
        if request.token and not user:
            raise HubError(401, "Invalid credentials in Authorization header")
        match [request.method, *parts]:
            case ["GET", "api", "whoami-v2"]:
                return self._whoami(user)
            case ["POST", "api", "validate-yaml"]:
                return _validate_yaml(request.json["content"])
            case ["POST", "api", "repos", "create"]:
                return self._create(request.json, user)
            case ["DELETE", "api", "repos", "delete"]:
                return self._delete(request.json, user)
            case [_, "api", ("models" | "datasets" | "spaces") as kind, *rest]:
                length = 1 if len(rest) == 1 or rest[1] in ACTIONS else 2
                repo_id, action = "/".join(rest[:length]), rest[length:]
                return self._repository_api(request, user, self._find(KINDS[kind], repo_id, user), action)
            case ["POST", *name, "info", "lfs", "objects", action] if name and name[-1].endswith(".git"):
                repo_type, repo_id = _type_and_id(name)
                repository = self._find(repo_type, repo_id.removesuffix(".git"), user)
                self._may_write(repository, user)
                return self._lfs(request.json, repository, action)
            case ["GET" | "HEAD", *_] if "resolve" in parts[:4]:
                at = parts.index("resolve")
                repository = self._find(*_type_and_id(parts[:at]), user)
                return self._resolve(request, user, repository, parts[at + 1], "/".join(parts[at + 2 :]))
        raise HubError(404, f"There is no {request.method} {request.path} here")

    def _find(self, repo_type: str, repo_id: str, user: User | None) -> Repository:
        repository = self.repositories.get((repo_type, repo_id))
        if repository and (not repository.private or (user and user.owns(repo_id))):
            return repository
        # Whether a private repository is there is not told; who shows no token is asked for one first.
        if user:
            raise HubError(404, "Repository not found", "RepoNotFound")
        raise HubError(401, "Invalid username or password.", "RepoNotFound")

    def _may_write(self, repository: Repository, user: User | None, pull_request: bool = False) -> User:
        if not user:
            raise HubError(401, "Invalid username or password.")
        if user.rights != "write":
            raise HubError(403, "This token may only read: use one with the right to write")
        if not (pull_request or user.owns(repository.id)):
            raise HubError(403, f"You don't have the rights to write to {repository.id}")
        return user

    def _whoami(self, user: User | None) -> Reply:
        if not user:
            raise HubError(401, "Invalid username or password.")
        token = {"displayName": "test", "role": user.rights}
        organizations = [{"type": "org", "name": name} for name in user.organizations]
        return Reply({"type": "user", "name": user.name, "orgs": organizations, "auth": {"accessToken": token}})

    def _create(self, wanted: dict, user: User | None) -> Reply:
        repo_id = f"{wanted['organization'] or (user and user.name)}/{wanted['name']}"
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        key = (wanted.get("type") or "model", repo_id)
        url = f"{self.url}/{PREFIXES[key[0]]}{repo_id}"
        if key[0] == "space" and not wanted.get("sdk"):
            raise HubError(400, "A Space needs an sdk")
        author = self._may_write(Repository(repo_id, key[0], private, ""), user)
        if key in self.repositories:
            return Reply({"error": f"You already created this {key[0]} repo", "url": url}, 409)
        self.repositories[key] = Repository(repo_id, key[0], private, author.name)
        return Reply({"url": url, "name": repo_id})

    def _delete(self, named: dict, user: User | None) -> Reply:
        repo_id = f"{named['organization'] or (user and user.name)}/{named['name']}"
        repository = self._find(named.get("type") or "model", repo_id, user)
        self._may_write(repository, user)
        del self.repositories[repository.type, repository.id]
        return Reply()

    def _repository_api(self, request: Request, user: User | None, repo: Repository, action: list[str]) -> Reply:
        match [request.method, *action]:
            case ["GET"]:
                return self._info(request, repo, repo.main)
            case ["GET", "revision", revision]:
                return self._info(request, repo, repo.resolve(revision))
            case ["GET", "auth-check"]:
                self._may_read(repo, user)
                return Reply()
            case ["GET", "auth-check", "write"]:
                self._may_write(repo, user)
                return Reply()
            case ["GET", "tree", revision, *path]:
                return self._tree(request, repo.resolve(revision), "/".join(path))
            case ["POST", "paths-info", revision]:
                wanted = parse_qs(request.body.decode())
                commit = repo.resolve(revision)
                entries = _entries(commit, "", True, wanted.get("expand") == ["true"])
                return Reply([entry for entry in entries if entry["path"] in wanted.get("paths", [])])
            case ["GET", "commits", revision]:
                return Reply([_describe(commit) for commit in repo.resolve(revision).history()])
            case ["GET", "refs"]:
                return Reply(_list_refs(repo, bool(request.query.get("include_prs"))))
            case ["GET", "discussions"]:
                return Reply({"discussions": repo.discussions, "count": len(repo.discussions), "start": 0})
            case ["GET", "discussions", number] if 0 < int(number) <= len(repo.discussions):
                return Reply(repo.discussions[int(number) - 1])
            case ["POST", "discussions"]:
                author = self._may_write(repo, user, pull_request=True)
                wanted = request.json
                number = repo.open_discussion(
                    wanted["title"], wanted["description"], author.name, wanted["pullRequest"]
                )
                return Reply({"num": number})
            case ["POST", "preupload", revision]:
                self._may_write(repo, user, request.query.get("create_pr") == ["1"])
                return _preupload(request.json["files"], repo.resolve(revision))
            case ["POST", "commit", revision]:
                create_pr = request.query.get("create_pr") == ["1"]
                author = self._may_write(repo, user, create_pr)
                return self._commit(request.body, repo, revision, author.name, create_pr)
            case ["PUT", "settings"]:
                self._may_write(repo, user)
                if "visibility" in request.json:
                    repo.private = request.json["visibility"] == "private"
                repo.gated = request.json.get("gated", repo.gated)
                return Reply()
            case ["POST", "tag", revision]:
                self._may_write(repo, user)
                return _add_ref(repo, f"refs/tags/{request.json['tag']}", revision)
            case ["POST", "branch", name]:
                self._may_write(repo, user)
                return _add_ref(repo, f"refs/heads/{name}", request.json.get("startingPoint", "main"))
            case ["DELETE", ("tag" | "branch") as kind, name]:
                self._may_write(repo, user)
                ref = f"refs/{'tags' if kind == 'tag' else 'heads'}/{name}"
                if ref == MAIN:
                    raise HubError(403, "The branch main cannot be deleted")
                if not repo.refs.pop(ref, None):
                    raise HubError(404, f"There is no {kind} {name}", "RevisionNotFound")
                return Reply()
        raise HubError(404, f"There is no {request.method} {request.path} here")

    def _may_read(self, repo: Repository, user: User | None) -> None:
        """Whether the files may be read: everyone sees what a gated repository is, but not what it holds."""
        if not repo.gated or (user and (user.owns(repo.id) or user.name in repo.allowed)):
            return
        restricted = f"Access to {repo.type} {repo.id} is restricted"
        if user:
            message = (
                f"{restricted} and you are not in the authorized list. Visit {self.url}/{repo.id} to ask for access."
            )
            raise HubError(403, message, "GatedRepo")
        raise HubError(
            401, f"{restricted}. You must have access to it and be authenticated to access it.", "GatedRepo"
        )

    def _info(self, request: Request, repo: Repository, commit: Commit) -> Reply:
        readme = commit.files.get("README.md")
        card = _front_matter(readme.content.decode()) if readme else None
        tags = [*(card or {}).get("tags", []), *(f"license:{name}" for name in [(card or {}).get("license")] if name)]
        info = {
            "author": repo.id.split("/")[0],
            "sha": commit.sha,
            "createdAt": repo.created_at,
            "lastModified": repo.main.date,
            "private": repo.private,
            "gated": repo.gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": tags,
            "cardData": card,
            "siblings": [
                _sibling(path, file, "blobs" in request.query) for path, file in sorted(commit.files.items())
            ],
            "usedStorage": sum(map(len, repo.lfs.values())),
            **({"library_name": (card or {}).get("library_name")} if repo.type == "model" else {}),
        }
        expand = request.query.get("expand")
        return Reply({"_id": repo.id, "id": repo.id, **{k: v for k, v in info.items() if not expand or k in expand}})

    def _tree(self, request: Request, commit: Commit, folder: str) -> Reply:
        query = {name: values[0] for name, values in request.query.items()}
        entries = _entries(commit, folder, query.get("recursive") == "true", query.get("expand") == "true")
        if folder and not entries:
            raise HubError(404, f"{folder} does not exist on {commit.sha}", "EntryNotFound")
        start = int(query.pop("cursor", 0))
        page, following = entries[start : start + self.page_size], start + self.page_size
        headers = {}
        if following < len(entries):
            arguments = "&".join(f"{name}={value}" for name, value in {**query, "cursor": following}.items())
            path = quote(urlsplit(request.path).path, safe="/%")
            headers["Link"] = f'<{self.url}{path}?{arguments}>; rel="next"'
        return Reply(page, headers=headers)

    def _commit(self, body: bytes, repo: Repository, revision: str, author: str, create_pr: bool) -> Reply:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        if not lines or lines[0]["key"] != "header":
            raise HubError(400, "The first line of a commit is its header")
        header, parent, ref = lines[0]["value"], repo.resolve(revision), repo.ref(revision)
        if not create_pr and (ref is None or ref.startswith("refs/tags/")):
            raise HubError(400, f"{revision} is no branch: nothing can be committed to it")
        if header.get("parentCommit", parent.sha) != parent.sha:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for line in lines[1:]:
            _apply(line["key"], line["value"], files, repo)
        # Only now that all of it is known to be good does a ref name it.
        sha = repo.write(parent, files, header["summary"], author, header.get("description", ""))
        reply = {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repo.id}/commit/{sha}"}
        if create_pr:
            number = repo.open_discussion(header["summary"], header.get("description", ""), author, True)
            ref = f"refs/pr/{number}"
            reply["pullRequestUrl"] = f"{self.url}/{PREFIXES[repo.type]}{repo.id}/discussions/{number}"
        assert ref
        repo.refs[ref] = sha
        return Reply(reply)

    def _lfs(self, wanted: dict, repo: Repository, action: str) -> Reply:
        prefix = PREFIXES[repo.type]
        if action == "verify":
            if len(repo.lfs.get(wanted["oid"], b"")) != wanted["size"]:
                raise HubError(404, f"No file of {wanted['size']} bytes was uploaded as {wanted['oid']}")
            return Reply()
        verify = {"verify": {"href": f"{self.url}/{prefix}{repo.id}.git/info/lfs/objects/verify"}}
        objects = []
        for item in wanted["objects"]:
            actions = {
                "upload": {"href": self._signed("PUT", repo, item["oid"], f"&size={item['size']}")},
                **(verify if self.verify_uploads else {}),
            }
            objects.append({**item, **({} if item["oid"] in repo.lfs else {"actions": actions})})
        return Reply({"transfer": "basic", "objects": objects})

    def _signed(self, method: str, repo: Repository, oid: str, arguments: str) -> str:
        path = f"/{repo.type}/{repo.id}/{oid}"
        signature = hashlib.sha256(self._secret + f"{method} {path}".encode()).hexdigest()
        return f"{self.storage_url}{path}?signature={signature}{arguments}"

    def _storage(self, request: Request, parts: list[str]) -> Reply:
        """The host of LFS files: the signature in the address, which the Hub gave out, is all that it asks for."""
        repo_type, *name, oid = parts
        repo = self.repositories[repo_type, "/".join(name)]
        method = "GET" if request.method == "HEAD" else request.method
        signed = parse_qs(urlsplit(self._signed(method, repo, oid, "")).query)["signature"]
        if request.query.get("signature") != signed:
            raise HubError(403, "The signature does not match")
        if method == "PUT":
            size = int(request.query["size"][0])
            found = hashlib.sha256(request.body).hexdigest()
            if (found, len(request.body)) != (oid, size):
                raise HubError(
                    400, f"{size} bytes of sha256 {oid} were announced, {len(request.body)} of {found} came"
                )
            repo.lfs[oid] = request.body
            return Reply(b"", headers={"ETag": f'"{oid}"'})
        return _content(request, repo.lfs[oid], {"ETag": f'"{oid}"'})

    def _resolve(self, request: Request, user: User | None, repo: Repository, revision: str, path: str) -> Reply:
        self._may_read(repo, user)
        commit = repo.resolve(revision)
        headers = {"X-Repo-Commit": commit.sha}
        file = commit.files.get(path)
        if file is None:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        if file.lfs:
            location = self._signed("GET", repo, file.sha256, f"&filename={quote(path)}")
            linked = {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
            return Reply(b"", 302, {**headers, **linked, "Location": location})
        return _content(request, file.content, {**headers, "ETag": f'"{file.etag}"'})


def _forget_clients() -> None:
    """Closes what speaks to another Hub, or would go on speaking to this one."""
    close_session()
    HfFileSystem.clear_instance_cache()


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _type_and_id(parts: list[str]) -> tuple[str, str]:
    if parts[0] in ("datasets", "spaces") and len(parts) > 1:
        return KINDS[parts[0]], "/".join(parts[1:])
    return "model", "/".join(parts)


def _front_matter(text: str) -> dict | None:
    pieces = text.split("---\n", 2)
    return yaml.safe_load(pieces[1]) if len(pieces) == 3 and not pieces[0].strip() else None


def _validate_yaml(content: str) -> Reply:
    try:
        card = _front_matter(content)
    except yaml.YAMLError as error:
        return Reply({"errors": [{"message": str(error)}], "warnings": []}, 400)
    warnings = [] if card else [{"message": "empty or missing yaml metadata in repo card"}]
    return Reply({"errors": [], "warnings": warnings})


def _is_lfs(path: str, size: int) -> bool:
    return size > LFS_BYTES or any(fnmatch(path, f"*{suffix}") for suffix in LFS_SUFFIXES)


def _preupload(files: list[dict], commit: Commit) -> Reply:
    answers = []
    for file in files:
        known = commit.files.get(file["path"])
        mode = "lfs" if _is_lfs(file["path"], file["size"]) else "regular"
        answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
        answers.append({**answer, **({"oid": known.etag} if known else {})})
    return Reply({"files": answers})


def _apply(key: str, value: dict, files: dict[str, File], repo: Repository) -> None:
    """Makes one line of a commit's changes to `files`.

    Raises:
        HubError: the line cannot be obeyed, so that the commit as a whole must not be.
    """
    path = value["path"]
    inside = [name for name in files if name.startswith(path.rstrip("/") + "/")]
    if key == "file":
        content = base64.b64decode(value["content"], validate=True)
        if len(content) > LFS_BYTES:
            raise HubError(400, f"{path} is too large for a regular file: upload it as an LFS file")
        files[path] = File(content, False)
    elif key == "lfsFile":
        content = repo.lfs.get(value["oid"])
        if content is None or len(content) != value.get("size", len(content)):
            raise HubError(400, f"LFS pointer {path} points to a file that does not exist: {value['oid']}")
        files[path] = File(content, True)
    elif key == "deletedFile" and path in files:
        del files[path]
    elif key == "deletedFolder" and inside:
        for name in inside:
            del files[name]
    elif key in ("deletedFile", "deletedFolder"):
        raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    else:
        raise HubError(400, f"Unknown operation {key}")


def _entries(commit: Commit, folder: str, recursive: bool, expand: bool) -> list[dict]:
    """The files in a folder and the folders in it, as a listing tells them, in order of their paths."""
    entries = {}
    start = f"{folder}/" if folder else ""
    for path, file in commit.files.items():
        if not path.startswith(start):
            continue
        steps = path[len(start) :].split("/")
        for depth in range(1, len(steps) if recursive else min(2, len(steps))):
            parent = start + "/".join(steps[:depth])
            held = sorted((p, f.blob_id) for p, f in commit.files.items() if p.startswith(f"{parent}/"))
            oid = hashlib.sha1(json.dumps(held).encode()).hexdigest()
            entries[parent] = {"type": "directory", "oid": oid, "size": 0, "path": parent}
        if recursive or len(steps) == 1:
            entries[path] = {"type": "file", "oid": file.blob_id, "size": file.size, "path": path}
            if file.lfs:
                entries[path]["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
    if expand:
        entries = {path: {**entry, "lastCommit": commit.last_change(path)} for path, entry in entries.items()}
    return [entry for _, entry in sorted(entries.items())]


def _sibling(path: str, file: File, blobs: bool) -> dict:
    lfs = {"lfs": {"sha256": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}} if file.lfs else {}
    return {"rfilename": path, **({"size": file.size, "blobId": file.blob_id, **lfs} if blobs else {})}


def _describe(commit: Commit) -> dict:
    authors = [{"user": commit.author}]
    texts = {"title": commit.title, "message": commit.description}
    return {"id": commit.sha, "date": commit.date, "authors": authors, **texts}


def _list_refs(repo: Repository, pull_requests: bool) -> dict[str, list[dict]]:
    def under(prefix: str) -> list[dict]:
        refs = [(ref, sha) for ref, sha in repo.refs.items() if ref.startswith(prefix)]
        return [{"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": sha} for ref, sha in refs]

    refs = {"branches": under("refs/heads/"), "converts": [], "tags": under("refs/tags/")}
    return {**refs, **({"pullRequests": under("refs/pr/")} if pull_requests else {})}


def _add_ref(repo: Repository, ref: str, revision: str) -> Reply:
    if ref in repo.refs:
        raise HubError(409, f"Reference {ref} exists already")
    repo.refs[ref] = repo.resolve(revision).sha
    return Reply()


def _content(request: Request, content: bytes, headers: dict[str, str]) -> Reply:
    """A file's content, or the part of it that the request asks for."""
    asked = request.headers.get("range", "").removeprefix("bytes=")
    if not asked:
        return Reply(content, headers={**headers, "Accept-Ranges": "bytes"})
    start, end = (int(number) if number else None for number in asked.split("-"))
    if start is None:  # the last so many bytes
        start, end = max(len(content) - (end or 0), 0), None
    if start >= len(content):
        raise HubError(416, f"There are {len(content)} bytes", headers={"Content-Range": f"bytes */{len(content)}"})
    part = content[start : len(content) if end is None else end + 1]
    told = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
    return Reply(part, 206, {**headers, "Content-Range": told})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client keeps its connections open

    def __init__(self, hub: LocalHub, storage: bool):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.storage = hub, storage

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that goes away is none of a test's business
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_) -> None:
        pass

    def _answer(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        authorization = headers.get("authorization", "")
        token = authorization.removeprefix("Bearer ") if authorization.startswith("Bearer ") else None
        request = Request(self.command, self.path, token, headers, storage=self.server.storage)
        hub = self.server.hub
        hub.requests.append(request)
        fault = hub.fault(request)
        cut = fault is not None and fault.reply is None
        if cut and request.method != "GET":
            self.rfile.read(min(fault.after_bytes, int(headers.get("content-length", 0))))
            return self._hang_up()
        request.body = self._read_body(headers)
        reply = fault.reply if fault and fault.reply else hub.answer(request)
        content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        kind = "application/octet-stream" if isinstance(reply.body, bytes) else "application/json"
        if not cut:
            request.status = reply.status
        self.send_response(reply.status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if request.method != "HEAD":
            self.wfile.write(content[: fault.after_bytes] if cut else content)
        if cut:
            self._hang_up()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

    def _read_body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True


@pytest.fixture
def hub(tmp_path) -> Iterator[LocalHub]:
    """A Hub that this process's client talks to as `ada`, who may write to `org`; its cache is `tmp_path / "home"`."""
    with LocalHub() as hub:
        token = hub.add_user("ada", TOKEN, organizations=["org"])
        with hub.connected(tmp_path / "home", token):
            yield hub


@pytest.fixture
def run_script(monkeypatch, capsys) -> Callable[..., str]:
    """Runs the `main` of a script's module with arguments; returns what it printed, or its one line of error. The
    token of `hub` is never in either."""

    def run(script: ModuleType, *arguments) -> str:
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        try:
            script.main()
            message = ""
        except SystemExit as stop:
            message = stop.code
            assert message.startswith("error: ") and "\n" not in message
        printed = capsys.readouterr()
        assert TOKEN not in printed.out + printed.err + message
        return message or printed.out

    return run
