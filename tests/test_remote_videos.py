"""`pig` on remote videos: index, search, explain, move, prune and delete them, from servers on the loopback."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import PIL.Image
import pytest
from huggingface_hub import HfApi

from modeling_pig import VideoIndex
from modeling_pig.encoding import videos as encoding
from modeling_pig.files import make_content_id
from modeling_pig.remote import errors
from tests.web_server import WebFile


pytest_plugins = ["tests.hub_server", "tests.remote_fixtures"]


@pytest.fixture
def index_videos(pig, model_folder):
    """Return a function that runs `pig index` on sources into `v.lance`, and returns what it prints."""

    def run(*arguments, status: int = 0) -> str:
        exit_status, output, error = pig("index", *arguments, "--model", model_folder, "--index", "v.lance")
        assert exit_status == status, error
        return output + error

    return run


@pytest.fixture
def filled_bucket(s3_bucket, shape_videos):
    for number, path in enumerate(shape_videos[:3]):
        s3_bucket.put_object(Key=f"videos/{number}/clip.mp4", Body=path.read_bytes())
    s3_bucket.put_object(Key="videos/notes.txt", Body=b"notes")
    s3_bucket.put_object(Key="videos/.trash/old.mp4", Body=b"old")
    return s3_bucket


def paths(index: str = "v.lance") -> list[str]:
    return sorted(VideoIndex(index).files())


def test_videos_of_all_stores_are_indexed_together(
    index_videos, pig, web, filled_bucket, hub, shape_videos, video_folder, model_folder, tmp_path
):
    HfApi().create_repo("org/films", repo_type="dataset", private=True)
    for name in ("a.mp4", "deep/b.mp4"):
        options = {"path_or_fileobj": shape_videos[4].read_bytes(), "repo_id": "org/films", "repo_type": "dataset"}
        HfApi().upload_file(path_in_repo=f"data/{name}", **options)
    listed = [f"{web.url}/3.mp4", "", f"{web.url.upper()}/4.mp4?name=x#t=1"]
    web.files["/4.mp4?name=x"] = web.files["/4.mp4"]
    (tmp_path / "list.txt").write_text("\n".join(listed))
    sources = (f"s3://{filled_bucket.name}/videos/", "hf://datasets/org/films", video_folder, "--from", "list.txt")
    printed = index_videos(*sources)
    assert "indexed 12 new, 0 changed, 0 unchanged, 0 failed" in printed
    assert "passed over 1 files that are not videos: 1 txt" in printed  # hidden files are not counted
    assert paths() == sorted(
        [f"s3://{filled_bucket.name}/videos/{number}/clip.mp4" for number in range(3)]
        + ["hf://datasets/org/films/data/a.mp4", "hf://datasets/org/films/data/deep/b.mp4"]
        + [f"{web.url}/3.mp4", f"{web.url}/4.mp4?name=x"]
        + [str(path) for path in video_folder.iterdir()]
    )
    # The same content has the same identifier and the same embedding, wherever it is.
    found = VideoIndex("v.lance").files()
    assert found[f"{web.url}/3.mp4"].id == make_content_id(shape_videos[3])
    local, remote = (VideoIndex("v.lance").get(p)[0] for p in (str(video_folder / "video_3.mp4"), f"{web.url}/3.mp4"))
    assert (local.embedding == remote.embedding).all()
    web.sent.clear()
    assert "indexed 0 new, 0 changed, 12 unchanged" in index_videos(*sources)
    assert not web.sent


def test_results_are_shown_searched_by_and_explained(index_videos, pig, web, model_folder, tmp_path, shape_videos):
    addresses = [f"{web.url}/{number}.mp4" for number in range(3)]
    index_videos(*addresses)
    status, output, error = pig("search", "a red circle", "--index", "v.lance", "-k", 3, "--html", "page.html")
    assert status == 0, error
    page = (tmp_path / "page.html").read_text()
    for address in addresses:
        assert f'href="{address}"' in page
    assert page.count("data:image/jpeg") == 3
    status, output, error = pig("search", "--video", addresses[0], "--index", "v.lance", "-k", 2, "--json")
    assert status == 0, error
    assert sorted(result["path"] for result in json.loads(output)["results"]) == addresses[1:]
    other = f"{web.url}/4.mp4"  # not in the index: it is encoded
    status, output, error = pig("search", "--video", other, "--index", "v.lance", "-k", 1, "--json")
    assert status == 0, error
    status, _, error = pig("explain", addresses[0], "a red circle", "--model", model_folder, "--output", "why.png")
    assert (status, (tmp_path / "why.png").exists()) == (0, True), error
    web.files.clear()
    status, _, error = pig("explain", addresses[0], "a red circle", "--model", model_folder)
    assert (status, error.count("error: ")) == (1, 1)
    assert f"error: {addresses[0]}: there is no such file or folder: check the address" in error
    assert pig("search", "a circle", "--index", "v.lance", "--html", "page.html")[0] == 0
    assert "No picture: there is no such file" in (tmp_path / "page.html").read_text()


def test_changed_moved_and_deleted_videos_of_a_bucket(index_videos, pig, filled_bucket, shape_videos):
    source = f"s3://{filled_bucket.name}/videos"
    first, second, third = (f"{source}/{number}/clip.mp4" for number in range(3))
    index_videos(source)
    entry = VideoIndex("v.lance").get(first)[0]
    filled_bucket.Object("videos/moved.mp4").copy_from(CopySource=f"{filled_bucket.name}/videos/0/clip.mp4")
    filled_bucket.Object("videos/0/clip.mp4").delete()
    filled_bucket.put_object(Key="videos/1/clip.mp4", Body=shape_videos[4].read_bytes())
    filled_bucket.Object("videos/2/clip.mp4").delete()
    printed = index_videos(source)
    assert "indexed 0 new, 1 changed, 0 unchanged, 1 moved, 0 failed" in printed
    assert "1 deleted files are still in the index" in printed
    assert paths() == sorted([second, third, f"{source}/moved.mp4"])
    assert (VideoIndex("v.lance").get(f"{source}/moved.mp4")[0].embedding == entry.embedding).all()
    assert "2 unchanged, 0 failed, 1 removed" in index_videos(source, "--prune")
    assert paths() == sorted([second, f"{source}/moved.mp4"])
    assert "2 unchanged, 0 failed" in index_videos(source, "--hash")  # the index held no hashes before
    assert "2 unchanged, 0 failed" in index_videos(source, "--hash")


def test_a_bucket_that_cannot_be_listed_loses_nothing(index_videos, filled_bucket, web, s3_server):
    source = f"s3://{filled_bucket.name}/videos"
    index_videos(source)
    s3_server.fault = lambda request: (403, "SignatureDoesNotMatch")
    printed = index_videos(source, f"{web.url}/3.mp4", "--prune", status=3)
    assert f"failed: {source}: access is denied, check the address and the rights: set AWS_ACCESS_KEY_ID" in printed
    assert "indexed 1 new, 0 changed, 0 unchanged, 1 failed, 0 removed" in printed
    assert len(paths()) == 4


def test_deleted_remote_files_are_removed_by_name_pattern_and_absence(index_videos, pig, web, filled_bucket):
    source = f"s3://{filled_bucket.name}/videos"
    index_videos(source, *(f"{web.url}/{number}.mp4" for number in range(3)))
    del web.files["/0.mp4"]
    filled_bucket.Object("videos/0/clip.mp4").delete()
    web.statuses["/1.mp4"] = [500] * 100  # does not answer: not missing
    status, output, error = pig("delete", "--missing", "--index", "v.lance")
    assert (status, output.splitlines()[0]) == (0, "deleted 2 entries of 2 files"), error
    status, output, _ = pig("delete", f"{source}/*", "--index", "v.lance", "--dry-run")
    assert (status, output.splitlines()[-1]) == (0, "would delete 2 files")
    status, _, error = pig("delete", f"{web.url.upper()}/2.mp4", f"{web.url}/9.mp4", "--index", "v.lance")
    assert status == 3
    assert f"{web.url}/9.mp4 is not in the index" in error
    assert paths() == sorted([f"{web.url}/1.mp4", f"{source}/1/clip.mp4", f"{source}/2/clip.mp4"])


def test_each_bad_address_is_one_line_and_the_others_are_indexed(
    index_videos, web, remote, monkeypatch, tmp_path, s3_bucket
):
    monkeypatch.setattr(errors, "TIMEOUT", 0.3)
    web.files["/page"] = WebFile(b"<html>", kind="text/html")
    web.redirects["/login.mp4"] = "/page"
    web.files["/stalls.mp4"] = web.files["/broken.mp4"] = web.files["/0.mp4"]
    web.files["/text.mp4"] = WebFile(b"this is no video")
    web.statuses["/stalls.mp4"] = [-1] * 100
    web.statuses["/broken.mp4"] = [200, *[0] * 100]
    host = web.url.removeprefix("http://")
    bad = {
        f"{web.url}/none.mp4": "there is no such file or folder",
        f"{web.url}/login.mp4": "the address leads to a web page",
        f"{web.url}/stalls.mp4": "the server sent nothing for 0.3 s",
        f"{web.url}/broken.mp4": "no connection to the server, or it broke",
        f"{web.url}/text.mp4": "not a video file",
        f"http://ada:s3cr3t@{host}/0.mp4": "the address holds a user name or a password",
        f"{web.url}/1.mp4?X-Amz-Signature=s3cr3t": "the address holds a signature or token",
        "github://org:name@main/a.mp4": "this protocol is not read",
        "s3://no-such-bucket-here/a.mp4": "there is no such bucket",
    }
    (tmp_path / "list.txt").write_text("\n".join([*bad, f"{web.url}/2.mp4"]))
    printed = index_videos("--from", "list.txt", "--report", "failed.csv", status=3)
    assert "indexed 1 new, 0 changed, 0 unchanged, 9 failed" in printed
    assert paths() == [f"{web.url}/2.mp4"]
    for address, reason in bad.items():
        shown = re.sub(r"ada:s3cr3t@|org:name@", "", address.replace("?X-Amz-Signature=s3cr3t", "?..."))
        assert printed.count(f"failed: {shown}: ") == 1
        assert reason in re.search(f"^failed: {re.escape(shown)}: (.*)$", printed, re.MULTILINE)[1]
    with open("failed.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 10
    assert "s3cr3t" not in printed
    assert all(b"s3cr3t" not in path.read_bytes() for path in tmp_path.rglob("v.lance/**/*") if path.is_file())
    assert "s3cr3t" not in Path("failed.csv").read_text()
    assert [path.name for path in remote.iterdir() if path.name.endswith(".part")] == []


def test_if_all_addresses_fail_nothing_is_made(index_videos, web, tmp_path):
    printed = index_videos(f"{web.url}/a.mp4", f"{web.url}/b.mp4?token=s3cr3t", status=1)
    assert f"error: none of the 2 videos in {web.url}/a.mp4 {web.url}/b.mp4?... can be decoded" in printed
    assert printed.count("failed: ") == 2
    assert not (tmp_path / "v.lance").exists()
    assert f"error: {web.url}/a.mp4: there is no such file" in index_videos(f"{web.url}/a.mp4", status=1)
    assert "error: no videos are named" in index_videos(status=1)
    (tmp_path / "empty.txt").touch()
    assert "error: empty.txt holds no videos" in index_videos("--from", "empty.txt", status=1)


@pytest.mark.parametrize("num_changes", [1, 9])
def test_a_video_that_changes_while_it_is_read_is_read_again(index_videos, web, monkeypatch, num_changes):
    decode, changes = encoding.decode_segments, iter(range(num_changes))

    def change_and_decode(*args, **options):
        yield from decode(*args, **options)
        if next(changes, None) is not None:
            web.write("/0.mp4", web.files["/1.mp4"].content)

    monkeypatch.setattr(encoding, "decode_segments", change_and_decode)
    printed = index_videos(f"{web.url}/0.mp4", f"{web.url}/2.mp4", "--threads", 1, status=3 if num_changes > 1 else 0)
    if num_changes > 1:
        assert f"failed: {web.url}/0.mp4: changed while it was read; run again" in printed
        assert paths() == [f"{web.url}/2.mp4"]
    else:
        index_videos(f"{web.url}/1.mp4")
        found = VideoIndex("v.lance").files()
        assert found[f"{web.url}/0.mp4"].id == found[f"{web.url}/1.mp4"].id


def test_segments_metadata_tags_and_subtitles(index_videos, pig, filled_bucket, web, tmp_path):
    source = f"s3://{filled_bucket.name}/videos"
    rows = [("file", "topic"), ("0/clip.mp4", "one"), (f"{source}/1/clip.mp4", "two"), (f"{web.url}/3.mp4", "three")]
    (tmp_path / "table.csv").write_text("".join(f"{path},{topic}\n" for path, topic in rows))
    options = ("--segment", 1, "--metadata", "table.csv", "--tags", "--subtitles")
    printed = index_videos(source, f"{web.url}/3.mp4", *options)
    assert f"warning: {source}/0: subtitle files of remote videos are not read" in printed
    index = VideoIndex("v.lance")
    assert {path: index.get(path)[0].entry.metadata["topic"] for path in index.files()} == {
        f"{source}/0/clip.mp4": "one",
        f"{source}/1/clip.mp4": "two",
        f"{source}/2/clip.mp4": None,
        f"{web.url}/3.mp4": "three",
    }
    assert all(state.num_entries > 1 for state in index.files().values())
    status, output, error = pig("search", "a circle", "--index", "v.lance", "--where", "path like 's3://%'", "-k", 50)
    assert (status, web.url in output, source in output) == (0, False, True), error


def test_a_local_video_that_is_moved_into_a_bucket_keeps_its_embedding(index_videos, s3_bucket, video_folder):
    index_videos(video_folder)
    for path in video_folder.iterdir():
        s3_bucket.upload_file(str(path), f"videos/{path.name}")
    shutil.rmtree(video_folder)
    assert "0 new, 0 changed, 0 unchanged, 5 moved" in index_videos(f"s3://{s3_bucket.name}/videos")
    assert paths() == [f"s3://{s3_bucket.name}/videos/video_{number}.mp4" for number in range(5)]


def test_patterns_and_other_files_with_the_extensions_of_videos(index_videos, filled_bucket):
    source = f"s3://{filled_bucket.name}/videos"
    filled_bucket.put_object(Key="videos/0/code.ts", Body=b"export const a = 1;\n" * 5000)
    still = io.BytesIO()
    PIL.Image.new("RGB", (8, 8)).save(still, "GIF")
    filled_bucket.put_object(Key="videos/0/still.gif", Body=still.getvalue())
    assert "indexed 2 new" in index_videos(f"{source}/[01]/*.mp4")
    printed = index_videos(source, f"{source}/**/clip.mp4", f"{source}/0/clip.mp4")
    assert "indexed 1 new, 0 changed, 2 unchanged, 0 failed" in printed
    passed_over = re.search("passed over 3 files that are not videos: (.*)", printed)[1]
    assert sorted(passed_over.split(", ")) == ["1 gif", "1 ts", "1 txt"]
    assert f"error: {source}/*.mkv matches no videos" in index_videos(f"{source}/*.mkv", status=1)
    assert "name the bucket" in index_videos("s3://*/a.mp4", status=1)


def test_private_and_missing_repositories_of_the_hub(index_videos, hub, monkeypatch, remote):
    HfApi().create_repo("org/films", repo_type="dataset", private=True)
    source = "hf://datasets/org/films"
    assert f"error: {source}/a.mp4: there is no such file or folder" in index_videos(f"{source}/a.mp4", status=1)
    monkeypatch.delenv("HF_TOKEN")
    from huggingface_hub import HfFileSystem

    from modeling_pig.remote.filesystem import filesystem

    HfFileSystem.clear_instance_cache()
    filesystem.cache_clear()
    line = index_videos(source, status=1)
    assert "there is no such repository, or it is private: check the address, and set HF_TOKEN" in line
