"""Makes a repository on the Hub hold some files, in one commit or in none; what goes wrong is one line for a user.

The token is the client's own (`hf auth login`, or HF_TOKEN), and is never shown.
"""

import argparse
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

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


Content = Path | bytes


# --- the command line


def add_push_arguments(parser: argparse.ArgumentParser, message: str) -> None:
    """The options of a script that pushes; `message` is the default of the commit's."""
    parser.add_argument("--public", action="store_true", help="a repository that is created can be seen by everyone")
    parser.add_argument("--create-pr", action="store_true", help="propose the changes in a pull request")
    parser.add_argument("--revision", metavar="BRANCH", help="push to this branch instead of main")
    parser.add_argument(
        "--dry-run", action="store_true", help="list the files and print the card, without the network"
    )
    parser.add_argument("--message", default=message, help="of the commit")


def check_push_arguments(args: argparse.Namespace) -> None:
    """Refuses what cannot be pushed before any work is done for it.

    Raises:
        ValueError: a branch for a pull request, or a name that is not organisation/name.
    """
    if args.create_pr and args.revision:
        raise ValueError("--create-pr proposes a change of main: leave out --revision.")
    validate_repo_id(args.repo_id)
    if args.repo_id.count("/") != 1:
        raise ValueError(f"A repository is organisation/name; got {args.repo_id!r}.")


def print_files(files: Mapping[str, Content]) -> None:
    """What a dry run shows: the size and the path of each file, and the card."""
    for path, content in files.items():
        print(f"{_size(content):>13,}  {path}")
    card = files["README.md"]
    print(f"\n{(card if isinstance(card, bytes) else card.read_bytes()).decode()}")


# --- pushing


def push(
    files: Mapping[str, Content],
    repo_id: str,
    *,
    ours: Sequence[str],
    message: str,
    repo_type: str = "model",
    space_sdk: str | None = None,
    public: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
) -> tuple[str, str]:
    """Makes a branch of a repository hold these files, in one commit, or in none if it does already.

    Args:
        files (`Mapping`): the content of each file (`bytes`, or the `Path` of a file) by its path in the repository.
        repo_id (`str`): the repository, which is created unless `create_pr` or `revision` is given.
        ours (`Sequence[str]`): patterns of paths. Files of the repository that match one and are not in `files` are
            those of an earlier push: they go.
        message (`str`): that of the commit.
        repo_type (`str`): `model`, `dataset` or `space`.
        space_sdk (`str`, *optional*): of a Space that is created.
        public (`bool`): whether a repository that is created can be seen by everyone.
        create_pr (`bool`): propose the changes in a pull request.
        revision (`str`, *optional*): the branch, which is created if it is not there; by default `main`.

    Returns:
        the sha of the commit that holds the files, and what happened in one line.

    Raises:
        ValueError: one line on what stood in the way. Nothing was committed then, unless the line says so.
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
        place = f"{repo_id} ({'private' if info.private else 'public'})"
        operations = _changes(api, repo_id, repo_type, info.sha, files, ours)
        if not operations:
            return info.sha, f"no commit: {place} holds all of it already"
        for number in _pull_requests(api, repo_id, repo_type) if create_pr else []:
            sha = api.repo_info(repo_id, repo_type=repo_type, revision=f"refs/pr/{number}").sha
            assert sha
            if not _changes(api, repo_id, repo_type, sha, files, ours):
                return sha, f"no commit: pull request {number} of {place} proposes all of it already"
        commit = api.create_commit(
            repo_id,
            operations,
            repo_type=repo_type,
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=info.sha,
        )
    where = f"pull request {commit.pr_url}" if create_pr else commit.commit_url
    return commit.oid, f"one commit, {len(operations)} files changed: {place}, {where}"


def _pull_requests(api: HfApi, repo_id: str, repo_type: str) -> list[int]:
    found = api.get_repo_discussions(repo_id, repo_type=repo_type, discussion_type="pull_request")
    return [d.num for d in found if d.is_pull_request and d.status in ("open", "draft")]


def _changes(
    api: HfApi, repo_id: str, repo_type: str, sha: str, files: Mapping[str, Content], ours: Sequence[str]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    tree = api.list_repo_tree(repo_id, repo_type=repo_type, recursive=True, revision=sha)
    remote = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        for path, content in files.items()
        if path not in remote or not _is_equal(content, remote[path])
    ]
    stale = [path for path in remote if path not in files and any(_matches(path, pattern) for pattern in ours)]
    return operations + [CommitOperationDelete(path, is_folder=False) for path in stale]


def _matches(path: str, pattern: str) -> bool:
    return path.count("/") == pattern.count("/") and fnmatchcase(path, pattern)


def _is_equal(content: Content, remote: RepoFile) -> bool:
    size = _size(content)
    if size != remote.size:
        return False
    if remote.lfs:
        return sha256(content) == remote.lfs.sha256
    blob = content if isinstance(content, bytes) else content.read_bytes()
    return hashlib.sha1(b"blob %d\0" % size + blob).hexdigest() == remote.blob_id  # as git names it


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def sha256(content: Content) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- what goes wrong


@contextmanager
def one_line_errors(repo_id: str, repo_type: str) -> Iterator[None]:
    """Turns what the client raises into one line for a user, which never holds the token."""
    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(_without_token(_explain(error, repo_id, repo_type))) from None


def _explain(error: BaseException, repo_id: str, repo_type: str) -> str:
    while isinstance(error, RuntimeError) and error.__cause__:  # that an upload failed, by what
        error = error.__cause__
    said = " ".join(str(error).split())
    again = "Run it again: what has arrived is not sent twice."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so that nothing can be pushed: unset it."
    if not isinstance(error, HfHubHTTPError):
        if isinstance(error, ValueError) and not isinstance(error, OSError):
            return said
        return f"The connection failed ({said or type(error).__name__}). {again}"
    status, said = error.response.status_code, error.server_message or said
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return "The Hub does not know the token (401): log in again with `hf auth login`, or set another HF_TOKEN."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"There is no {repo_type} repository {repo_id} that this token may see: check its name, or push without "
            "--create-pr and --revision to create it."
        )
    if status == 403:
        return f"The token may not write to {repo_id} (403): use one that may. The Hub says: {said}"
    if status == 409:
        return f"The name {repo_id} is taken (409) by something that is no {repo_type} repository this token may see."
    if status == 412:
        return f"Someone committed to {repo_id} meanwhile (412). Run it again."
    if status == 429 or status >= 500:
        return f"The Hub is busy or out of order ({status}: {said}). Wait a little. {again}"
    return f"The Hub refused ({status}): {said}"


def _without_token(text: str) -> str:
    token = get_token()
    return text.replace(token, "[token]") if token else text
