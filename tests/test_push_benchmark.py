"""`pig push benchmark`: the dataset folder, its card, and the push to a local Hub."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
from datasets import Video, load_dataset
from huggingface_hub import DatasetCard, HfApi

from modeling_pig import __version__
from modeling_pig.benchmarks import load_benchmark
from modeling_pig.publishing import push_benchmark
from modeling_pig.publishing.markdown import escape
from modeling_pig.publishing.push_benchmark import write_benchmark

from .benchmark_stand_ins import DIDEMO, MSVD, WRITERS, write_didemo, write_msvd
from .hub_server import TOKEN


pytest_plugins = ["tests.hub_server"]

REPO = "org/msvd"
OPTIONS = {"msrvtt_1k": {"validation": 2}}  # benchmark -> options for its small stand-in


@pytest.fixture
def msvd(tmp_path) -> dict[str, Path]:
    write_msvd(tmp_path / "msvd")
    return {"annotations": tmp_path / "msvd/annotations", "videos": tmp_path / "msvd/videos"}


def read_both_ways(folder: Path, tmp_path: Path) -> list:
    """Load a dataset folder by its name, and by its Parquet files."""
    files = {
        split: sorted(map(str, folder.glob(f"data/{split}-*.parquet"))) for split in ("train", "validation", "test")
    }
    return [
        load_dataset(str(folder), cache_dir=tmp_path / "cache"),
        load_dataset("parquet", data_files=files, cache_dir=tmp_path / "cache"),
    ]


@pytest.mark.parametrize("name", ["msrvtt_1k", "didemo"])  # whole videos; moments of folders of frames
def test_a_written_benchmark_reads_back_equal(tmp_path, name):
    WRITERS[name](tmp_path / name)
    files = {"annotations": tmp_path / name / "annotations", "videos": tmp_path / name / "videos"}
    summary = write_benchmark(name, output=tmp_path / "out", **files, **OPTIONS.get(name, {}))
    assert summary.startswith(f"{name}: train ") and summary.endswith(" MB")
    original = load_benchmark(name, cache_dir=tmp_path / "other", **files, **OPTIONS.get(name, {}))
    for back in read_both_ways(tmp_path / "out", tmp_path):
        assert list(back) == list(original)
        for split, rows in original.items():
            assert back[split].features == rows.features
            assert [{**row, "video": str(files["videos"] / row["video"])} for row in back[split]] == list(rows)
            assert not any(os.path.isabs(path) for path in back[split]["video"])


def test_videos_are_written_into_the_tables(msvd, tmp_path, monkeypatch):
    (msvd["videos"] / f"{MSVD['train'][1]}.avi").unlink()
    (msvd["videos"] / f"{MSVD['test'][0]}.avi").write_bytes(b"junk")
    size = max(path.stat().st_size for path in msvd["videos"].iterdir())
    monkeypatch.setattr(push_benchmark, "SHARD_BYTES", size)
    summary = write_benchmark("msvd", output=tmp_path / "out", with_videos=True, **msvd)
    assert summary.startswith("msvd: train 4, validation 2, test 3 videos, 2 of them missing, ")
    assert sorted(path.name for path in (tmp_path / "out/data").glob("train-*")) == [
        f"train-{number:05d}-of-00003.parquet" for number in range(3)
    ]
    for back in read_both_ways(tmp_path / "out", tmp_path):
        for split, ids in MSVD.items():
            assert back[split].features["video"] == Video(decode=False)
            assert back[split]["video_id"][:] == ids
            for row in back[split]:
                if row["video_id"] in (MSVD["train"][1], MSVD["test"][0]):
                    assert row["video"] is None
                else:
                    path = msvd["videos"] / f"{row['video_id']}.avi"
                    assert row["video"] == {"path": path.name, "bytes": path.read_bytes()}


def test_the_card_describes_the_dataset(msvd, tmp_path):
    (msvd["videos"] / f"{MSVD['test'][0]}.avi").unlink()
    (msvd["annotations"] / "my_test.txt").write_text("\n".join(MSVD["test"]))
    (msvd["annotations"] / "test_list.txt").unlink()
    lists = {"test": str(msvd["annotations"] / "my_test.txt")}
    write_benchmark("msvd", output=tmp_path / "out", license="cc-by-4.0", lists=lists, **msvd)
    card = DatasetCard.load(tmp_path / "out/README.md")
    assert card.data.license == "cc-by-4.0" and card.data.language == "en"
    columns = ["video_id", "video", "captions", "start", "end"]
    assert [column["name"] for column in card.data.dataset_info["features"]] == columns
    for part in (
        "| train | 4 | 12 | 0 |",
        "| validation | 2 | 6 | 0 |",
        "| test | 3 | 9 | 1 |",
        "MSVD: ",
        "chosen by",
        f"modeling\\_pig {__version__}",
        "captions\\_msvd.json",
        f"1 videos of test are missing or do not open: {escape(MSVD['test'][0])}",
        "Whoever publishes this dataset must hold the rights to do so.",
    ):
        assert part in card.text
    protocol = load_benchmark("msvd", **msvd, lists=lists)["test"].info.description.splitlines()[0]
    assert escape(protocol) in card.text
    assert str(tmp_path) not in card.content
    assert not any(path.name.startswith(".out") for path in tmp_path.iterdir())


def test_markup_in_captions_and_names_is_escaped(msvd, tmp_path):
    path = msvd["annotations"] / "captions_msvd.json"
    captions = json.loads(path.read_text())
    nasty = "<script>alert(1)</script> [a](http://b) | *c* `d` &lt; ![e](f)"
    captions[MSVD["train"][0]][0] = nasty
    path.rename(path.with_name("<b>caps*.json"))
    path.with_name("<b>caps*.json").write_text(json.dumps(captions))
    write_benchmark("msvd", output=tmp_path / "out", **msvd)
    card = DatasetCard.load(tmp_path / "out/README.md").text
    assert "<script>" not in card and "<b>" not in card
    assert (
        "&lt;script&gt;alert(1)&lt;/script&gt; \\[a\\](http\\://b) \\| \\*c\\* \\`d\\` &amp;lt; \\!\\[e\\](f)" in card
    )
    (back, _) = read_both_ways(tmp_path / "out", tmp_path)
    assert back["train"][0]["captions"][0] == nasty


def test_escape():
    texts = {"3.5 s - x-y (z): it's": "3.5 s - x-y (z): it's", "- a\n\n# b": "\\- a \\# b", "www.a.b": "www\\.a.b"}
    assert [escape(text) for text in texts] == list(texts.values())


def test_folders_of_frames_cannot_be_put_into_the_table(tmp_path):
    write_didemo(tmp_path / "didemo")
    files = {"annotations": tmp_path / "didemo/annotations", "videos": tmp_path / "didemo/videos"}
    with pytest.raises(ValueError, match=f"{DIDEMO['test'][0]} is a folder of frames"):
        write_benchmark("didemo", output=tmp_path / "out", with_videos=True, **files)
    assert [path.name for path in tmp_path.iterdir()] == ["didemo"]


def test_the_command_writes_a_folder_and_leaves_the_same_folder_unchanged(tmp_path, run_pig):
    command = ["push", "benchmark", "moving_shapes", "--videos", tmp_path / "videos", "--output", tmp_path / "out"]
    command += ["--with-videos", "--option", "train=2", "--option", "validation=1", "--option", "test=1"]
    printed = run_pig(*command)
    assert printed.startswith("moving_shapes: train 2, validation 1, test 1 videos, 0 of them missing, ")
    assert printed.endswith(f" MB: {tmp_path}/out\n")
    back = read_both_ways(tmp_path / "out", tmp_path)[0]
    assert back["test"][0]["video"]["path"] == "test/test_0000.mp4"
    assert back["test"][0]["video"]["bytes"] == (tmp_path / "videos/test/test_0000.mp4").read_bytes()

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    run_pig(*command)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    (tmp_path / "out/README.md").write_text("mine")
    assert "/out is neither an empty folder nor this dataset" in run_pig(*command)
    assert (tmp_path / "out/README.md").read_text() == "mine"


def test_an_output_with_other_content_is_refused(msvd, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for output, message in {
        "full": "is neither an empty folder nor this dataset",
        "file": "is neither an empty folder nor this dataset",
        "file/deep/out": "file/deep/out lies in a file, not in a folder: give a folder",
    }.items():
        with pytest.raises(ValueError, match=message):
            write_benchmark("msvd", output=tmp_path / output, **msvd)
    assert (tmp_path / "full/mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"


# --- on the Hub


@pytest.fixture
def push(msvd, run_pig):
    files = ["msvd", "--annotations", msvd["annotations"], "--videos", msvd["videos"]]
    return partial(run_pig, "push", "benchmark", *files)


def commits(hub, ref: str = "main") -> list:
    return list(hub.repository(REPO, "dataset").resolve(ref).history())


def pushed(hub, ref: str = "main") -> dict:
    return commits(hub, ref)[0].files


@pytest.mark.parametrize("with_videos", [False, True])
def test_a_benchmark_is_pushed_in_one_private_commit_and_read_back_equal(hub, msvd, push, tmp_path, with_videos):
    (msvd["videos"] / f"{MSVD['test'][0]}.avi").unlink()
    arguments = ["--repo-id", REPO, "--output", tmp_path / "out", "--license", "cc-by-4.0"]
    arguments += ["--with-videos"] if with_videos else []
    printed = push(*arguments)
    assert "one commit, 4 files changed: org/msvd (private), " in printed
    assert "all rows are equal (train 4, validation 2, test 3)" in printed
    assert hub.repository(REPO, "dataset").private and len(commits(hub)) == 2  # the first commit is empty
    assert not (tmp_path / "home/hub").exists()  # the cache of the client is not used

    files = pushed(hub)
    names = {f"data/{split}-00000-of-00001.parquet" for split in MSVD}
    assert files.keys() == names | {"README.md", ".gitattributes"} and all(files[name].lfs for name in names)
    for name in names | {"README.md"}:
        assert files[name].content == (tmp_path / "out" / name).read_bytes()
        assert str(tmp_path).encode() not in files[name].content and TOKEN.encode() not in files[name].content
    card = DatasetCard.load(REPO)
    assert card.data.license == "cc-by-4.0"

    original = load_benchmark("msvd", cache_dir=tmp_path / "other", **msvd)
    back = load_dataset(REPO)
    assert list(back) == list(original)
    for split, rows in original.items():
        for row, other in zip(back[split], rows, strict=True):
            path = Path(other["video"])
            named = path.name if other["video"] else ""
            held = {"path": named, "bytes": path.read_bytes()} if named else None
            assert row == {**other, "video": held if with_videos else named}

    assert "no commit" in push(*arguments) and len(commits(hub)) == 2
    assert "no commit" in push(*(arguments[:2] + arguments[4:])) and len(commits(hub)) == 2  # without a folder


def test_a_data_set_of_the_hub_is_used_as_ones_own(hub, run_pig, tmp_path):
    options = ["--option", "train=2", "--option", "validation=1", "--option", "test=1"]
    videos = ["moving_shapes", "--videos", tmp_path / "videos", "--output", tmp_path / "out", "--with-videos"]
    run_pig("push", "benchmark", *videos, "--repo-id", REPO, *options)
    back = load_benchmark("videofolder", videos=f"hf://{REPO}", cache_dir=tmp_path / "own")
    original = load_benchmark(
        "moving_shapes", videos=tmp_path / "videos", cache_dir=tmp_path / "other", train=2, validation=1, test=1
    )
    assert list(back) == list(original)
    for split, rows in original.items():
        assert back[split]["captions"][:] == rows["captions"][:]
        for path, expected in zip(back[split]["video"], rows["video"], strict=True):
            assert Path(path).read_bytes() == Path(expected).read_bytes()


def test_a_change_is_one_commit_that_deletes_files_of_an_earlier_push(hub, msvd, push, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(push_benchmark, "SHARD_BYTES", 1)
        push("--repo-id", REPO, "--with-videos")
    assert "data/train-00003-of-00004.parquet" in pushed(hub)
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="data/mine.txt", repo_id=REPO, repo_type="dataset")
    printed = push("--repo-id", REPO, "--public", "--message", "Without videos")
    assert "(private)" in printed and "all rows are equal" in printed
    assert len(commits(hub)) == 4 and commits(hub)[0].title == "Without videos"
    names = {f"data/{split}-00000-of-00001.parquet" for split in MSVD}
    assert pushed(hub).keys() == names | {"README.md", ".gitattributes", "data/mine.txt"}


def test_a_dry_run_prints_all_files_and_sends_no_request(hub, push, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    before = sorted(tmp_path.rglob("*"))
    printed = push("--repo-id", REPO, "--output", tmp_path / "out", "--dry-run")
    assert not hub.requests and sorted(tmp_path.rglob("*")) == before
    listing, card = printed.split("\n\n", 1)
    lines = [line.split() for line in listing.splitlines()[1:]]
    listed = {path: int(size.replace(",", "")) for size, path in lines}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push("--repo-id", REPO)
    files = {path: file.content for path, file in pushed(hub).items() if path != ".gitattributes"}
    assert listed == {path: len(content) for path, content in files.items()}
    assert card.strip() == files["README.md"].decode().strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give --output for a folder, --repo-id for a repository on the Hub, or both."),
        (["--output", "out", "--public"], "are options of a push: give --repo-id"),
        (["--repo-id", REPO, "--create-pr"], "There is no dataset repository org/msvd that this token may see"),
    ],
)
def test_a_refused_push_is_one_line_and_writes_nothing(hub, push, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in push(*arguments)
    assert not hub.repositories and not Path("out").exists()


def test_a_download_that_differs_is_an_error(hub, msvd, push, tmp_path):
    push("--repo-id", REPO)
    sha = commits(hub)[0].sha
    captions = json.loads((msvd["annotations"] / "captions_msvd.json").read_text())
    captions[MSVD["test"][0]][0] = "another sentence"
    (msvd["annotations"] / "captions_msvd.json").write_text(json.dumps(captions))
    write_benchmark("msvd", output=tmp_path / "out", **msvd)
    with pytest.raises(ValueError, match=f"{sha} does not hold the rows of .*/out in test: push again"):
        push_benchmark.compare_download(tmp_path / "out", REPO, sha)

    HfApi().upload_file(
        path_or_fileobj=b"no table",
        path_in_repo="data/test-00000-of-00001.parquet",
        repo_id=REPO,
        repo_type="dataset",
    )
    sha = commits(hub)[0].sha
    with pytest.raises(ValueError, match=f"{sha} was pushed, but cannot be read"):
        push_benchmark.compare_download(tmp_path / "out", REPO, sha)
