"""The local Hub, asked by the real client: what goes up comes down to the bit, and refusals are those of the Hub."""

import os
import random
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from datasets import Dataset, config, load_dataset
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session


pytest_plugins = ["tests.hub_server"]

NAME = "org/name"
GIT_BLOB_ID = "4a036f56bb619924ec4189bd84ed716c766971ae"  # git hash-object of {"a": 1}
WEIGHTS = random.Random(0).randbytes(300_000)  # an LFS file, which the client reads in one piece


@pytest.fixture
def api(hub) -> HfApi:
    """The client, with a repository that holds a regular file, an LFS file and a folder."""
    api = HfApi(endpoint=hub.url)
    api.create_repo(NAME)
    files = {"config.json": b"{}", "model.safetensors": WEIGHTS, "sub/notes.txt": b"notes"}
    api.create_commit(NAME, [CommitOperationAdd(*file) for file in files.items()], commit_message="three files")
    hub.requests.clear()
    return api


def status_of(error: pytest.ExceptionInfo) -> int:
    return error.value.response.status_code


# users and repositories


def test_whoami(hub):
    user = HfApi().whoami()
    assert user["name"] == "ada" and [organization["name"] for organization in user["orgs"]] == ["org"]
    assert user["auth"]["accessToken"]["role"] == "write"
    with pytest.raises(HfHubHTTPError, match="Invalid user token") as error:
        HfApi().whoami("hf_unknown")
    assert status_of(error) == 401


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_create_and_delete(hub, repo_type):
    api = HfApi()
    url = api.create_repo("org/new", repo_type=repo_type, private=True)
    assert (url.repo_id, url.repo_type) == ("org/new", repo_type)
    assert api.repo_info("org/new", repo_type=repo_type).private
    assert api.list_repo_files("org/new", repo_type=repo_type) == [".gitattributes"]
    with pytest.raises(HfHubHTTPError, match="already created") as error:
        api.create_repo("org/new", repo_type=repo_type)
    assert status_of(error) == 409
    assert api.create_repo("org/new", repo_type=repo_type, exist_ok=True) == url
    other = {"model": "dataset", "dataset": "model"}[repo_type]
    assert not api.repo_exists("org/new", repo_type=other)
    api.delete_repo("org/new", repo_type=repo_type)
    assert not api.repo_exists("org/new", repo_type=repo_type)


def test_what_a_token_allows(hub, api):
    hub.add_user("ada", "hf_reader", rights="read", organizations=["org"])
    hub.add_user("bob", "hf_bob")
    api.create_repo("org/private", private=True)

    def upload(token: str | bool, name: str = NAME, **kwargs):
        api.upload_file(repo_id=name, path_or_fileobj=b"1", path_in_repo="a.txt", token=token, **kwargs)

    for token, name, status in [
        ("hf_reader", NAME, 403),
        ("hf_bob", NAME, 403),
        ("hf_unknown", NAME, 401),
        (False, NAME, 401),
        ("hf_bob", "org/private", 404),
    ]:
        with pytest.raises(HfHubHTTPError) as error:
            upload(token, name)
        assert status_of(error) == status, (token, name)
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo("org/another", token="hf_bob")
    assert status_of(error) == 403
    assert api.model_info("org/private", token="hf_reader").private
    for token, status in [(False, 401), ("hf_bob", 404)]:
        with pytest.raises(RepositoryNotFoundError) as error:
            api.model_info("org/private", token=token)
        assert status_of(error) == status
    upload("hf_bob", create_pr=True)  # anyone may propose
    assert "a.txt" not in api.list_repo_files(NAME) and "a.txt" in api.list_repo_files(NAME, revision="refs/pr/1")


def test_gate(hub, api):
    api.update_repo_settings(NAME, gated="manual")
    hub.add_user("bob", "hf_bob")
    assert api.model_info(NAME, token="hf_bob").gated == "manual"
    assert "config.json" in api.list_repo_files(NAME, token=False)
    for token, status, message in [(False, 401, "be authenticated"), ("hf_bob", 403, "not in the authorized list")]:
        with pytest.raises(GatedRepoError, match=message) as error:
            hf_hub_download(NAME, "config.json", token=token)
        assert status_of(error) == status
        with pytest.raises(GatedRepoError):
            api.auth_check(NAME, token=token)
    hub.repository(NAME).allowed.add("bob")
    assert Path(hf_hub_download(NAME, "config.json", token="hf_bob")).read_bytes() == b"{}"


# commits


def test_upload_folder(hub, tmp_path):
    files = {
        "README.md": b"---\ntags: [video]\nlicense: mit\n---\nA card.",
        "config.json": b'{"a": 1}',
        "empty.safetensors": b"",
        "model.safetensors": WEIGHTS,
        "a folder/ü.txt": "ü".encode(),
        "a folder/deep/picture.png": b"\x89PNG" + os.urandom(99),
    }
    for name, content in files.items():
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_bytes(content)
    api = HfApi()
    api.create_repo(NAME)
    commit = api.upload_folder(repo_id=NAME, folder_path=tmp_path / "up")

    down = Path(snapshot_download(NAME, cache_dir=tmp_path / "cache"))
    assert down.name == commit.oid == api.model_info(NAME).sha
    assert {name: (down / name).read_bytes() for name in files} == files
    assert sorted(api.list_repo_files(NAME)) == sorted([".gitattributes", *files])
    local = snapshot_download(NAME, local_dir=tmp_path / "local")
    assert (Path(local) / "a folder/ü.txt").read_text() == "ü"

    info = api.model_info(NAME, files_metadata=True)
    assert (info.tags, info.card_data.license) == (["video", "license:mit"], "mit")
    stored = {sibling.rfilename: sibling for sibling in info.siblings}
    assert stored["model.safetensors"].lfs.sha256 == sha256(WEIGHTS).hexdigest()
    assert stored["a folder/deep/picture.png"].lfs and not stored["empty.safetensors"].lfs
    assert stored["config.json"].blob_id == GIT_BLOB_ID and stored["config.json"].size == 8

    # The token goes to the Hub alone, never to the host that keeps the LFS files.
    sent_to_storage = [request for request in hub.requests if request.storage]
    assert {request.method for request in sent_to_storage} == {"PUT", "GET"}
    assert not any(request.token for request in sent_to_storage)


@pytest.mark.parametrize("verify", [True, False])
def test_what_is_there_is_not_sent_again(hub, api, verify):
    hub.verify_uploads = verify
    head = api.model_info(NAME).sha
    hub.requests.clear()
    files = {"config.json": b"{}", "model.safetensors": WEIGHTS}
    commit = api.create_commit(NAME, [CommitOperationAdd(*file) for file in files.items()], commit_message="again")
    assert commit.oid == head and len(api.list_repo_commits(NAME)) == 2
    assert not hub.requested("PUT") and not hub.requested(path_contains="/commit/")

    # The same content under another name is committed, but not sent.
    api.upload_file(repo_id=NAME, path_or_fileobj=WEIGHTS, path_in_repo="copy.safetensors")
    assert not hub.requested("PUT")
    api.upload_file(repo_id=NAME, path_or_fileobj=b"new", path_in_repo="new.safetensors")
    assert len(hub.requested("PUT")) == 1
    assert bool(hub.requested("POST", "/verify")) == verify


def test_delete_and_copy(hub, api):
    operations = [
        CommitOperationDelete("sub/"),
        CommitOperationCopy("model.safetensors", "copy.safetensors"),
        CommitOperationCopy("config.json", "copy.json"),
    ]
    api.create_commit(NAME, operations, commit_message="moves")
    assert api.list_repo_files(NAME) == [
        ".gitattributes",
        *("config.json", "copy.json", "copy.safetensors", "model.safetensors"),
    ]
    assert Path(hf_hub_download(NAME, "copy.safetensors")).read_bytes() == WEIGHTS
    api.delete_file("copy.json", NAME)
    assert "copy.json" not in api.list_repo_files(NAME)
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        api.delete_file("copy.json", NAME)


def test_a_commit_is_all_or_nothing(hub, api):
    before = api.list_repo_files(NAME)
    operations = [CommitOperationAdd("new.txt", b"new"), CommitOperationDelete("missing.txt")]
    with pytest.raises(EntryNotFoundError):
        api.create_commit(NAME, operations, commit_message="half of it cannot be done")
    assert api.list_repo_files(NAME) == before and len(api.list_repo_commits(NAME)) == 2


def test_parent_commit(hub, api):
    old = api.model_info(NAME).sha
    upload = {"repo_id": NAME, "path_in_repo": "a.txt", "parent_commit": old}
    api.upload_file(path_or_fileobj=b"1", **upload)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        api.upload_file(path_or_fileobj=b"2", **upload)
    assert status_of(error) == 412
    assert Path(hf_hub_download(NAME, "a.txt")).read_bytes() == b"1"


def test_parallel_commits_lose_nothing(hub, api):
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda n: api.upload_file(repo_id=NAME, path_or_fileobj=b"%d" % n, path_in_repo=f"{n}.bin"), range(8)
            )
        )
    assert {f"{n}.bin" for n in range(8)} <= set(api.list_repo_files(NAME))
    assert len(api.list_repo_commits(NAME)) == 2 + 8


def test_wrong_content_is_refused(hub, api):
    """Content that is not what was announced, and a commit of LFS content that never came."""
    batch = {
        "operation": "upload",
        "objects": [{"oid": sha256(b"right").hexdigest(), "size": 5}],
        "hash_algo": "sha256",
    }
    headers = {"authorization": "Bearer hf_ada"}
    reply = get_session().post(f"{hub.url}/{NAME}.git/info/lfs/objects/batch", json=batch, headers=headers)
    href = reply.json()["objects"][0]["actions"]["upload"]["href"]
    commit = b'{"key": "header", "value": {"summary": "x", "description": ""}}\n' + (
        b'{"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": "%s", "size": 5}}'
        % sha256(b"right").hexdigest().encode()
    )

    def send_commit() -> int:
        return get_session().post(f"{hub.url}/api/models/{NAME}/commit/main", content=commit, headers=headers)

    for content in (b"wrong", b"right but longer", b""):
        assert get_session().put(href, content=content).status_code == 400
    assert get_session().put(href.replace("signature=", "signature=0"), content=b"right").status_code == 403
    assert send_commit().status_code == 400 and "a.bin" not in api.list_repo_files(NAME)
    assert get_session().put(href, content=b"right").status_code == 200
    assert send_commit().status_code == 200 and "a.bin" in api.list_repo_files(NAME)


def test_invalid_card(hub, api):
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        api.upload_file(repo_id=NAME, path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md")
    assert "README.md" not in api.list_repo_files(NAME)


# revisions


def test_revisions(hub, api):
    first = api.model_info(NAME).sha
    api.create_tag(NAME, tag="v1")
    with pytest.raises(HfHubHTTPError) as error:
        api.create_tag(NAME, tag="v1")
    assert status_of(error) == 409
    api.create_tag(NAME, tag="v1", exist_ok=True)
    api.create_branch(NAME, branch="a/branch", revision="v1")
    for number, target in enumerate([{}, {"revision": "a/branch"}, {"create_pr": True}]):
        content = b"version %d" % number
        commit = api.upload_file(repo_id=NAME, path_or_fileobj=content, path_in_repo="config.json", **target)
    assert commit.pr_revision == "refs/pr/1"
    draft = api.create_pull_request(NAME, title="A draft")
    assert (draft.git_reference, draft.status, draft.is_pull_request) == ("refs/pr/2", "draft", True)
    assert [discussion.num for discussion in api.get_repo_discussions(NAME)] == [1, 2]
    api.upload_file(repo_id=NAME, path_or_fileobj=b"draft", path_in_repo="config.json", revision="refs/pr/2")

    contents = {
        **{first: b"{}", "v1": b"{}", "main": b"version 0", None: b"version 0"},
        **{"a/branch": b"version 1", "refs/pr/1": b"version 2", commit.oid: b"version 2", "refs/pr/2": b"draft"},
    }
    for revision, content in contents.items():
        assert Path(hf_hub_download(NAME, "config.json", revision=revision)).read_bytes() == content, revision
    refs = api.list_repo_refs(NAME, include_pull_requests=True)
    assert [branch.name for branch in refs.branches] == ["main", "a/branch"]
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", first)]
    assert [request.ref for request in refs.pull_requests] == ["refs/pr/1", "refs/pr/2"]
    assert [commit.title for commit in api.list_repo_commits(NAME, revision="v1")] == ["three files", "initial commit"]

    with pytest.raises(HfHubHTTPError, match="no branch"):
        api.upload_file(repo_id=NAME, path_or_fileobj=b"", path_in_repo="a.txt", revision="v1")
    api.delete_tag(NAME, tag="v1")
    api.delete_branch(NAME, branch="a/branch")
    for revision in ("v1", "a/branch", "0" * 40):
        with pytest.raises(RevisionNotFoundError):
            api.model_info(NAME, revision=revision)


def test_listings(hub, api):
    """In pages, by folder, with the commits that changed each."""
    operations = [CommitOperationAdd(f"sub/deep/{number}.txt", b"%d" % number) for number in range(7)]
    commit = api.create_commit(NAME, operations, commit_message="seven")
    hub.page_size = 3
    hub.requests.clear()
    tree = {entry.path: entry for entry in api.list_repo_tree(NAME, recursive=True, expand=True)}
    assert len(hub.requested("GET", "/tree/")) == 5 and len(tree) == 4 + 7 + 2  # files and folders
    assert tree["sub"].last_commit.oid == tree["sub/deep/3.txt"].last_commit.oid == commit.oid
    assert tree["sub/notes.txt"].last_commit.title == "three files"
    assert (tree["model.safetensors"].size, tree["model.safetensors"].lfs.size) == (len(WEIGHTS), len(WEIGHTS))
    assert [entry.path for entry in api.list_repo_tree(NAME)] == [
        *(".gitattributes", "config.json", "model.safetensors", "sub"),
    ]
    assert [entry.path for entry in api.list_repo_tree(NAME, "sub")] == ["sub/deep", "sub/notes.txt"]
    assert len(list(api.list_repo_tree(NAME, "sub/deep"))) == 7
    assert [entry.path for entry in api.get_paths_info(NAME, ["sub", "config.json", "no"])] == ["config.json", "sub"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(NAME, "no/folder"))


# downloads


def test_what_is_cached_is_not_fetched_again(hub, api):
    for name in ("config.json", "model.safetensors"):
        path = hf_hub_download(NAME, name)
        content = Path(path).read_bytes()
        hub.requests.clear()
        assert hf_hub_download(NAME, name) == path
        assert [request.method for request in hub.requests] == ["HEAD"]
        # Another revision with the same content: the ETag tells.
        api.create_tag(NAME, tag=name)
        api.upload_file(repo_id=NAME, path_or_fileobj=os.urandom(9), path_in_repo=f"other {name}")
        hub.requests.clear()
        again = hf_hub_download(NAME, name)
        assert again != path and Path(again).read_bytes() == content and not hub.requested("GET")
        # A changed file is fetched.
        api.upload_file(repo_id=NAME, path_or_fileobj=b"changed", path_in_repo=name)
        assert Path(hf_hub_download(NAME, name)).read_bytes() == b"changed"
        assert Path(hf_hub_download(NAME, name, revision=name)).read_bytes() == content


def test_what_is_not_there(hub, api):
    with pytest.raises(EntryNotFoundError) as error:
        hf_hub_download(NAME, "missing.json")
    assert error.value.response.headers["X-Repo-Commit"] == api.model_info(NAME).sha
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(NAME, "config.json", revision="v9")
    with pytest.raises(RepositoryNotFoundError) as error:
        hf_hub_download("org/missing", "config.json")
    assert status_of(error) == 404
    with pytest.raises(RepositoryNotFoundError) as error:
        hf_hub_download("org/missing", "config.json", token=False)
    assert status_of(error) == 401
    assert not api.file_exists(NAME, "missing.json") and api.file_exists(NAME, "sub/notes.txt")


@pytest.mark.parametrize(
    ("range_header", "part"),
    [("bytes=5-", slice(5, None)), ("bytes=5-9", slice(5, 10)), ("bytes=-7", slice(-7, None))],
    ids=["from", "between", "last"],
)
def test_parts_of_a_file(hub, api, range_header, part):
    request = urllib.request.Request(hf_hub_url(NAME, "model.safetensors"), headers={"Range": range_header})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as reply:
        assert (reply.status, reply.read()) == (206, WEIGHTS[part])
        assert reply.headers["Content-Range"].endswith(f"/{len(WEIGHTS)}")


# faults


def test_a_cut_download_goes_on_where_it_stopped(hub, api, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # of less than a chunk nothing is kept
    for sizes in ([1000], [0, 200_000, 50_000]):
        hub.requests.clear()
        for size in sizes:
            hub.cut(after_bytes=size, path_contains="model.safetensors", method="GET")
        path = hf_hub_download(NAME, "model.safetensors", force_download=True)
        assert Path(path).read_bytes() == WEIGHTS
        gets = hub.requested("GET", "model.safetensors")
        received = [sum(sizes[:tries]) // 1000 * 1000 for tries in range(len(sizes) + 1)]
        assert [request.headers.get("range") for request in gets] == [f"bytes={n}-" if n else None for n in received]
        assert gets[-1].status == 206


def test_a_download_that_cannot_be_ended_leaves_nothing_that_looks_whole(hub, api, tmp_path):
    hub.cut(after_bytes=0, path_contains="model.safetensors", method="GET", next=99)
    with pytest.raises(Exception, match="peer closed connection|disconnected"):
        hf_hub_download(NAME, "model.safetensors", cache_dir=tmp_path / "cache")
    blobs = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and "blobs" in path.parts]
    assert not blobs and not list((tmp_path / "cache").rglob("model.safetensors"))


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_a_cut_upload_leaves_no_half_commit(hub, api, method):
    """Cut in the middle of the LFS file, or of the commit itself; a second try succeeds."""
    before, content = api.list_repo_files(NAME), os.urandom(200_000)
    where = {"PUT": "", "POST": "/commit/"}[method]
    hub.cut(after_bytes=100, path_contains=where, method=method, next=99)
    operations = {"new.bin": content, "new.txt": b"text" * 100}

    def upload():
        return api.create_commit(
            NAME, [CommitOperationAdd(*file) for file in operations.items()], commit_message="try"
        )

    with pytest.raises(Exception, match="disconnected|Error while uploading"):
        upload()
    assert api.list_repo_files(NAME) == before and len(api.list_repo_commits(NAME)) == 2
    hub.heal()
    upload()
    for name, expected in operations.items():
        assert Path(hf_hub_download(NAME, name)).read_bytes() == expected


def test_a_cut_lfs_upload_is_tried_again_by_the_client(hub, api):
    hub.cut(after_bytes=1000, method="PUT")
    hub.fail(next=1, status=500, method="PUT")
    content = os.urandom(500_000)
    api.upload_file(repo_id=NAME, path_or_fileobj=content, path_in_repo="new.bin")
    assert [request.status for request in hub.requested("PUT")] == [None, 500, 200]
    assert Path(hf_hub_download(NAME, "new.bin")).read_bytes() == content


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failures_that_pass(hub, api, status):
    hub.fail(next=2, status=status, path_contains="/tree/", retry_after="1")
    assert "config.json" in api.list_repo_files(NAME)
    assert [request.status for request in hub.requested("GET", "/tree/")] == [status, status, 200]
    hub.fail(next=1, status=status, path_contains="config.json", method="HEAD")
    assert Path(hf_hub_download(NAME, "config.json")).read_bytes() == b"{}"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failures_that_stay(hub, api, status):
    hub.fail(next=99, status=status)
    with pytest.raises(HfHubHTTPError) as error:
        api.list_repo_files(NAME)
    assert status_of(error) == status and len(hub.requests) == 6  # one try, five more
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(NAME, "config.json")
    # A commit is sent once: it may have succeeded although its answer was lost.
    hub.heal()
    hub.fail(next=99, status=status, path_contains="/commit/")
    hub.requests.clear()
    with pytest.raises(HfHubHTTPError):
        api.upload_file(repo_id=NAME, path_or_fileobj=b"1", path_in_repo="a.txt")
    assert len(hub.requested("POST", "/commit/")) == 1 and "a.txt" not in api.list_repo_files(NAME)


def test_a_hub_that_is_away(hub, api, tmp_path):
    """What is in the cache is used; what is not, is asked for in vain."""
    path = hf_hub_download(NAME, "config.json")
    hub.fail(next=99, status=503)
    assert hf_hub_download(NAME, "config.json") == path
    hub.__exit__()
    assert hf_hub_download(NAME, "config.json") == path
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(NAME, "config.json", cache_dir=tmp_path / "empty")


# datasets


def test_datasets(hub, tmp_path):
    """Pushed by `datasets`, or uploaded as parquet files: `load_dataset` reads both, by revision too."""
    rows = {"video_id": ["a", "b"], "caption": ["a red circle", "ü"]}
    Dataset.from_dict(rows).push_to_hub("org/pushed", split="test")
    assert load_dataset("org/pushed", split="test").to_dict() == rows

    api = HfApi()
    api.create_repo("org/uploaded", repo_type="dataset")
    for number in range(2):
        rows = {"number": [number]}
        Dataset.from_dict(rows).to_parquet(tmp_path / "up/data/train-00000-of-00001.parquet")
        commit = api.upload_folder(repo_id="org/uploaded", folder_path=tmp_path / "up", repo_type="dataset")
        assert load_dataset("org/uploaded", split="train").to_dict() == rows
        if number == 0:
            api.create_tag("org/uploaded", tag="v1", repo_type="dataset")
    assert load_dataset("org/uploaded", split="train", revision="v1").to_dict() == {"number": [0]}
    files = hub.repository("org/uploaded", "dataset").resolve(commit.oid).files
    assert files["data/train-00000-of-00001.parquet"].lfs
    assert not hub.requested(path_contains="/api/models/")


# another process, and this one afterwards


def test_a_fresh_interpreter(hub, api, tmp_path):
    code = "import sys; from huggingface_hub import hf_hub_download as get; print(open(get(*sys.argv[1:])).read())"
    done = hub.run(code, NAME, "config.json", home=tmp_path / "fresh", token="hf_ada")
    assert (done.returncode, done.stdout) == (0, "{}\n"), done.stderr
    assert hub.requested("GET", "config.json")[0].token == "hf_ada"
    assert (tmp_path / "fresh/hub/models--org--name/refs/main").read_text() == api.model_info(NAME).sha
    done = hub.run(code, NAME, "config.json", home=tmp_path / "other", HF_HUB_OFFLINE="1")
    assert done.returncode != 0 and "LocalEntryNotFoundError" in done.stderr


def test_the_client_is_put_back(hub, tmp_path):
    def state() -> list:
        names = ("ENDPOINT", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH")
        return [*(getattr(constants, name) for name in names), config.HF_DATASETS_CACHE, os.environ.get("HF_TOKEN")]

    before = state()
    with type(hub)() as other, other.connected(tmp_path / "other", offline=True):
        assert state() == [other.url, *state()[1:]] and not set(state()) & set(before)
    assert state() == before
