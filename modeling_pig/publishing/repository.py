"""Push files to a repository on the Hub in one commit, and explain errors of the Hub in one line.

The token is the token of `huggingface_hub` (`hf auth login`, or `HF_TOKEN`). It is never printed.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from ..files import hash_file


Content = Path | bytes  # content of a file: the path of a local file, or the bytes themselves


class PushOptions(TypedDict, total=False):
    """
    Keyword arguments that all pushes share.

    Attributes:
        public (`bool`): whether everyone can see a repository that the push creates. Private by default; the
            visibility of an existing repository is unchanged.
        create_pr (`bool`): propose the changes in a pull request. The repository must exist.
        revision (`str`, *optional*): branch to push to, `main` by default. The repository must exist; the branch is
            created if it does not exist.
    """

    public: bool
    create_pr: bool
    revision: str | None


class Pushed(NamedTuple):
    """Result of a push: the commit that holds the files, and a summary in one line."""

    sha: str
    summary: str


# --- preparing


def check_push(repo_id: str, **options: Unpack[PushOptions]) -> None:
    """Check the arguments of a push before any work is done.

    Raises:
        ValueError: both `create_pr` and `revision` are given, or `repo_id` is not `organisation/name`.
    """
    if options.get("create_pr") and options.get("revision"):
        raise ValueError("--create-pr proposes a change of main: leave out --revision.")
    validate_repo_id(repo_id)
    if repo_id.count("/") != 1:
        raise ValueError(f"A repository is organisation/name; got {repo_id!r}.")


def check_target(output: object, repo_id: str | None, dry_run: bool = False, **options: Unpack[PushOptions]) -> None:
    """Check the arguments of a function that writes a folder, pushes to a repository, or both.

    Raises:
        ValueError: neither `output` nor `repo_id` is given, options of a push are given without `repo_id`, or see
            [`check_push`].
    """
    if repo_id:
        check_push(repo_id, **options)
    elif options.get("public") or options.get("create_pr") or options.get("revision"):
        raise ValueError("--public, --create-pr and --revision are options of a push: give --repo-id.")
    elif not output and not dry_run:
        raise ValueError("Give --output for a folder, --repo-id for a repository on the Hub, or both.")


def check_empty(folder: Path) -> None:
    """Raise `ValueError` unless `folder` is empty or does not exist."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"The output {folder} is not an empty folder: give another --output, or remove it.")


def print_files(files: Mapping[str, Content]) -> None:
    """Print the size in bytes and the path of each file, then the card. Serves dry runs."""
    for path, content in files.items():
        print(f"{_size(content):>13,}  {path}")
    card = files["README.md"]
    print(f"\n{(card if isinstance(card, bytes) else card.read_bytes()).decode()}")


# --- pushing


def push(
    files: Mapping[str, Content],
    repo_id: str,
    *,
    owned: Sequence[str],
    message: str,
    repo_type: str = "model",
    space_sdk: str | None = None,
    public: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
) -> Pushed:
    """Push files to a branch of a repository in one commit; without differences, make no commit.

    Args:
        files (`Mapping[str, Content]`): path in the repository -> content of the file.
        repo_id (`str`): repository, `organisation/name`. It is created if it does not exist, unless `create_pr` or
            `revision` is given.
        owned (`Sequence[str]`): patterns of the paths that only pushes of this kind write. Remote files that match one
            of them and are not in `files` come from an earlier push and are deleted.
        message (`str`): commit message.
        repo_type (`str`): `"model"`, `"dataset"` or `"space"`.
        space_sdk (`str`, *optional*): SDK of a Space that the push creates.
        public, create_pr, revision: see [`PushOptions`].

    Returns:
        `Pushed`: the commit that holds the files, and a summary.

    Raises:
        ValueError: the push failed; the message is one line. Nothing was committed unless the message says so.
    """
    if get_token() is None:
        raise ValueError("There is no token: log in with `hf auth login`, or set HF_TOKEN.")
    api = HfApi()
    with one_line_errors(repo_id, repo_type):
        try:
            info = api.repo_info(repo_id, repo_type=repo_type)
        except RepositoryNotFoundError:
            if create_pr or revision:
                raise
            api.create_repo(repo_id, repo_type=repo_type, space_sdk=space_sdk, private=not public)
            info = api.repo_info(repo_id, repo_type=repo_type)
        if revision:
            try:
                info = api.repo_info(repo_id, repo_type=repo_type, revision=revision)
            except RevisionNotFoundError:
                api.create_branch(repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
        assert info.sha
        repository = f"{repo_id} ({'private' if info.private else 'public'})"
        operations = _find_changes(api, repo_id, repo_type, info.sha, files, owned)
        if not operations:
            return Pushed(info.sha, f"no commit: {repository} already holds all files")
        for number in _open_pull_requests(api, repo_id, repo_type) if create_pr else []:
            sha = api.repo_info(repo_id, repo_type=repo_type, revision=f"refs/pr/{number}").sha
            assert sha
            if not _find_changes(api, repo_id, repo_type, sha, files, owned):
                return Pushed(sha, f"no commit: pull request {number} of {repository} already proposes all changes")
        commit = api.create_commit(
            repo_id,
            operations,
            repo_type=repo_type,
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=info.sha,
        )
    url = f"pull request {commit.pr_url}" if create_pr else commit.commit_url
    return Pushed(commit.oid, f"one commit, {len(operations)} files changed: {repository}, {url}")


def _open_pull_requests(api: HfApi, repo_id: str, repo_type: str) -> list[int]:
    found = api.get_repo_discussions(repo_id, repo_type=repo_type, discussion_type="pull_request")
    return [d.num for d in found if d.is_pull_request and d.status in ("open", "draft")]


def _find_changes(
    api: HfApi, repo_id: str, repo_type: str, sha: str, files: Mapping[str, Content], owned: Sequence[str]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    tree = api.list_repo_tree(repo_id, repo_type=repo_type, recursive=True, revision=sha)
    remote = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        for path, content in files.items()
        if path not in remote or not _is_equal(content, remote[path])
    ]
    stale = [path for path in remote if path not in files and any(_matches(path, pattern) for pattern in owned)]
    return operations + [CommitOperationDelete(path, is_folder=False) for path in stale]


def _matches(path: str, pattern: str) -> bool:
    return path.count("/") == pattern.count("/") and fnmatchcase(path, pattern)


def _is_equal(content: Content, remote: RepoFile) -> bool:
    size = _size(content)
    if size != remote.size:
        return False
    if remote.lfs:
        return hash_content(content) == remote.lfs.sha256
    blob = content if isinstance(content, bytes) else content.read_bytes()
    return hashlib.sha1(b"blob %d\0" % size + blob).hexdigest() == remote.blob_id  # git's name of the content


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def hash_content(content: Content) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else hash_file(content)


# --- errors


@contextmanager
def one_line_errors(repo_id: str, repo_type: str) -> Iterator[None]:
    """Turn errors of `huggingface_hub` into a `ValueError` whose message is one line and never holds the token."""
    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(_without_token(_explain(error, repo_id, repo_type))) from None


def _explain(error: BaseException, repo_id: str, repo_type: str) -> str:
    while isinstance(error, RuntimeError) and error.__cause__:  # a failed upload wraps its cause
        error = error.__cause__
    reason = " ".join(str(error).split())
    again = "Run the same command again: files that have arrived are not sent twice."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, which forbids all requests: unset it."
    if not isinstance(error, HfHubHTTPError):
        if isinstance(error, ValueError) and not isinstance(error, OSError):
            return reason
        return f"The connection failed ({reason or type(error).__name__}). {again}"
    status, reason = error.response.status_code, error.server_message or reason
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return "The Hub does not know the token (401): log in again with `hf auth login`, or set another HF_TOKEN."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"There is no {repo_type} repository {repo_id} that this token may see: check its name, or push without "
            "--create-pr and --revision to create it."
        )
    if status == 403:
        return f"The token may not write to {repo_id} (403): use a token that may. The Hub says: {reason}"
    if status == 409:
        return (
            f"The name {repo_id} is taken (409), and this token may see no {repo_type} repository of that name: give "
            "another name."
        )
    if status == 412:
        return f"Someone else committed to {repo_id} during the push (412): run the same command again."
    if status == 429 or status >= 500:
        return f"The Hub is busy or out of order ({status}: {reason}). Wait a little. {again}"
    return f"The Hub refused the push ({status}): {reason}"


def _without_token(text: str) -> str:
    token = get_token()
    return text.replace(token, "[token]") if token else text


__all__ = [
    "Content",
    "PushOptions",
    "Pushed",
    "check_empty",
    "check_push",
    "check_target",
    "hash_content",
    "one_line_errors",
    "print_files",
    "push",
]
