"""`pig push space`: the files of a Space, the running Space, and the push to a local Hub."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement

from modeling_pig import VideoSearcher
from modeling_pig.encoding.video_segment import VideoSegment
from modeling_pig.stores.transfer import import_index

from .test_app import CAPTIONS, HOSTILE_NAME, Client, make_index


pytest_plugins = ["tests.hub_server"]

REPO = "org/search"


@pytest.fixture(scope="module")
def videos(shape_videos, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("private folder")
    names = [HOSTILE_NAME.replace("/", ""), "trips/a.mp4", "trips/b.mp4", "c.mp4"]
    for name, source in zip(names, shape_videos, strict=False):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(source.read_bytes())
    return [folder / name for name in names]


@pytest.fixture(scope="module")
def index(videos, model_folder, tmp_path_factory) -> str:
    uri = tmp_path_factory.mktemp("index") / "v.lance"
    segments = [VideoSegment(str(path)) for path in videos[:3]]
    make_index(uri, model_folder, [*segments, VideoSegment(str(videos[3]), 0, 1), VideoSegment(str(videos[3]), 1, 2)])
    return str(uri)


@pytest.fixture
def captions(tmp_path) -> Path:
    path = tmp_path / "captions.txt"
    path.write_text("\n".join(CAPTIONS))
    return path


@pytest.fixture
def push(run_pig):
    return partial(run_pig, "push", "space")


def test_files_of_a_space(push, index, videos, captions, model_folder, tmp_path):
    printed = push("--index", index, "--captions", captions, "--license", "mit", "--output", tmp_path / "space")
    space = tmp_path / "space"
    files = {path.relative_to(space).as_posix(): path for path in space.rglob("*") if path.is_file()}
    assert printed == f"{len(files)} files: {space}\n"
    assert {"app.py", "Dockerfile", "README.md", "requirements.txt", "index.parquet", "space.json"} <= set(files)
    assert {"model/config.json", "model/model.safetensors", "modeling_pig/app/page.html"} <= set(files)
    assert not [name for name in files if name.startswith("videos/") or "__pycache__" in name]
    for name, path in files.items():
        content = path.read_bytes()
        assert str(videos[0].parent).encode() not in content and model_folder.encode() not in content, name

    card = (space / "README.md").read_text()
    data = yaml.safe_load(card.split("---")[1])
    assert data["sdk"] == "docker" and data["app_file"] == "app.py" and data["app_port"] == 7860
    assert data["title"] == "Search videos" and data["license"] == "mit" and "models" not in data
    assert "4 videos" in card and "plays none" in card
    requirements = [Requirement(line) for line in (space / "requirements.txt").read_text().splitlines()]
    assert {"torch", "transformers", "lancedb", "fastapi", "uvicorn"} <= {r.name for r in requirements}
    assert not {"accelerate", "pytest"} & {requirement.name for requirement in requirements}
    assert json.loads((space / "space.json").read_text())["captions"] == CAPTIONS


def test_the_index_of_a_space_holds_the_same_embeddings(push, index, videos, tmp_path):
    assert "files" in push("--index", index, "--output", tmp_path / "space")
    moved = import_index(tmp_path / "space/index.parquet", tmp_path / "moved.lance")
    (original,) = VideoSearcher.from_pretrained(None, index).indexes
    assert len(moved) == len(original) == 5
    for video in videos:
        new_path = f"videos/{video.relative_to(videos[0].parent).as_posix()}"
        for old, new in zip(original.get(str(video)), moved.get(new_path), strict=True):
            assert np.array_equal(old.embedding, new.embedding)
            assert (old.entry.start, old.entry.end, old.entry.duration) == (
                new.entry.start,
                new.entry.end,
                new.entry.duration,
            )
            assert new.entry.modified is None


def test_a_space_runs_with_its_copies_of_package_and_videos(push, index, videos, captions, tmp_path):
    space = tmp_path / "space"
    push("--index", index, "--captions", captions, "--with-videos", "--output", space, "--max-upload-mb", 1)
    environment = {**os.environ, "PORT": "0", "HOST": "127.0.0.1", "SPACE_HOST": "org-search.example"}
    process = subprocess.Popen(
        [sys.executable, space / "app.py"], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        client = Client(int(process.stdout.readline().split()[-1]))
        about = client.json("/api/v1/about")
        assert about["clips"] == 5 and about["captions"] == len(CAPTIONS) and about["max_upload_bytes"] == 1_000_000
        found = client.search()
        assert sorted(clip["name"] for clip in found) == sorted(path.name for path in videos)
        assert not any(clip["folder"] for clip in found)
        (clip,) = client.search(where="name = 'a.mp4'")
        assert client.ask(f"/api/v1/clip?id={clip['id']}").body == videos[1].read_bytes()
        assert len(client.json("/api/v1/explanation", id=clip["id"], text="a star")["captions"]) == len(CAPTIONS)
        assert client.upload(videos[2].read_bytes())[-1]["results"][0]["name"] == "b.mp4"
        page = client.ask("/", Host="org-search.example")
        assert page.status == 200
        assert "frame-ancestors 'self' https://huggingface.co" in page.headers["Content-Security-Policy"]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_an_unchanged_space_is_not_pushed_again(hub, push, index, videos, tmp_path):
    arguments = ("--index", index, "--repo-id", REPO)
    assert "one commit" in push(*arguments, "--with-videos")
    repository = hub.repository(REPO, "space")
    assert repository.private
    assert repository.main.files["videos/trips/a.mp4"].content == videos[1].read_bytes()
    assert "no commit" in push(*arguments, "--with-videos")

    assert "one commit" in push(*arguments)  # without --with-videos, the videos are deleted
    assert not [path for path in repository.main.files if path.startswith("videos/")]
    assert "index.parquet" in repository.main.files
    push("--index", index, "--repo-id", "org/open", "--public")
    assert not hub.repository("org/open", "space").private


def test_a_dry_run_writes_nothing(hub, push, index, tmp_path):
    for target in (["--output", tmp_path / "space"], ["--repo-id", REPO]):
        printed = push("--index", index, "--dry-run", *target)
        assert "index.parquet" in printed and "sdk: docker" in printed
    assert not (tmp_path / "space").exists() and not hub.requested()


def test_errors_are_one_line(push, index, shape_videos, model_folder, make_model, processor, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    make_model(projection_dim=16).save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    deleted = tmp_path / "deleted.mp4"
    deleted.write_bytes(shape_videos[0].read_bytes())
    make_index(tmp_path / "deleted.lance", model_folder, [VideoSegment(str(deleted))])
    deleted.unlink()
    output = ("--output", tmp_path / "space")
    for arguments, part in [
        (("--index", index), "Give --output"),
        (("--index", index, *output, "--public"), "give --repo-id"),
        (("--index", index, "--repo-id", "search"), "organisation/name"),
        (("--index", "nothing.lance", *output), "nothing.lance"),
        (("--index", index, "--output", tmp_path / "taken"), "not an empty folder"),
        (("--index", index, "--model", tmp_path / "other", *output), "was made by the model"),
        (("--index", index, "--captions", tmp_path / "nothing.txt", *output), "nothing.txt"),
        (("--index", tmp_path / "deleted.lance", "--with-videos", *output), "deleted.mp4 is in the index"),
    ]:
        message = push(*arguments)
        assert message.startswith("error: ") and part in message
    assert not (tmp_path / "space").exists()
