"""`pig index` and `pig search`: what a user sees, on good input and on bad."""

import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modeling_pig import PigConfig, PigForRetrieval
from modeling_pig.cli import app


@pytest.fixture
def folder(shape_videos, tmp_path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in shape_videos:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def pig(tmp_path, monkeypatch):
    """Runs a `pig` command in a folder of its own: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return run


@pytest.fixture
def index(pig, folder, model_folder) -> str:
    status, _, error = pig("index", folder, "--model", model_folder, "--index", "v.lance")
    assert status == 0, error
    return "v.lance"


def assert_one_line_error(result: tuple[int, str, str], *parts: str) -> None:
    status, output, error = result
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert status == 1 and not output and len(lines) == 1, result
    for part in parts:
        assert part in lines[0], lines[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


# good input


def test_index_then_search(pig, folder, model_folder):
    status, output, error = pig("index", folder, "--model", model_folder, "--index", "v.lance")
    assert (status, output) == (0, "indexed 5 of 5 videos; v.lance holds 5\n")
    assert "5/5" in error  # the progress bar

    status, output, _ = pig("search", "a red circle moves left", "--index", "v.lance", "-k", 3)
    assert status == 0
    rows = [line.split() for line in output.splitlines()]
    assert rows[0] == ["rank", "score", "file"]
    assert [row[0] for row in rows[1:]] == ["1", "2", "3"]
    scores = [float(row[1]) for row in rows[1:]]
    assert scores == sorted(scores, reverse=True)
    assert all(Path(row[2]).is_file() and Path(row[2]).parent == folder for row in rows[1:])


def test_indexing_again_adds_nothing_twice(pig, index, folder, model_folder):
    status, output, _ = pig("index", folder, "--model", model_folder, "--index", index)
    assert (status, output) == (0, "indexed 5 of 5 videos; v.lance holds 5\n")


def test_the_index_finds_its_model_from_another_folder(pig, index, folder, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    assert pig("search", "a", "--index", tmp_path / index)[0] == 0
    assert pig("search", "a", "--index", tmp_path / index, "--model", model_folder)[0] == 0


def test_file_names_are_shown_as_they_are(pig, model_folder, shape_videos, tmp_path):
    folder = tmp_path / "odd names"
    folder.mkdir()
    for path, name in zip(shape_videos, ["[red]x.mp4", "it's.mp4", "日本 語.mp4", 'a"b;c.mp4', "-k.mp4"], strict=True):
        shutil.copy(path, folder / name)
    assert pig("index", folder, "--model", model_folder, "--index", "v.lance")[0] == 0
    _, output, _ = pig("search", "a", "--index", "v.lance")
    for path in folder.iterdir():
        assert str(path) in output


# files that cannot be decoded


def test_broken_files_are_named_and_set_aside(pig, folder, model_folder):
    (folder / "junk.mp4").write_bytes(b"junk" * 100)
    (folder / "empty.mp4").touch()
    (folder / "folder.mp4").mkdir()
    status, output, error = pig("index", folder, "--model", model_folder, "--index", "v.lance")
    assert (status, output) == (3, "indexed 5 of 8 videos; v.lance holds 5\n")
    set_aside = [line for line in error.splitlines() if line.startswith("set aside: ")]
    assert len(set_aside) == 3
    for name in ("junk.mp4", "empty.mp4", "folder.mp4"):
        assert sum(f"/{name}: " in line for line in set_aside) == 1


def test_a_folder_of_broken_files_makes_no_index(pig, model_folder, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/junk.mp4").write_bytes(b"junk")
    result = pig("index", "bad", "--model", model_folder, "--index", "v.lance")
    assert_one_line_error(result, "none of the 1 videos in bad can be decoded")
    assert "set aside: " in result[2] and "junk.mp4" in result[2]
    assert not (tmp_path / "v.lance").exists()


# bad input


@pytest.mark.parametrize(("name", "message"), [("missing", "no folder missing"), ("none", "none holds no videos")])
def test_folders_without_videos(pig, model_folder, tmp_path, name, message):
    (tmp_path / "none").mkdir()
    assert_one_line_error(pig("index", name, "--model", model_folder, "--index", "v.lance"), message)
    assert not (tmp_path / "v.lance").exists()


def test_a_missing_model(pig, folder, tmp_path):
    for name in ("runs/missing/model", "./missing", str(tmp_path / "missing")):
        assert_one_line_error(pig("index", folder, "--model", name, "--index", "v.lance"), "no model folder", name)
    assert not (tmp_path / "v.lance").exists()


def test_a_model_on_the_hub_that_cannot_be_reached(pig, folder):
    assert_one_line_error(pig("index", folder, "--model", "org/none", "--index", "v.lance"), "org/none", "cannot be")


def test_a_folder_that_holds_no_model(pig, folder, tmp_path):
    result = pig("index", folder, "--model", folder, "--index", "v.lance")
    assert_one_line_error(result, "holds no model")


def test_a_model_without_its_processor(pig, folder, model_folder, tmp_path):
    PigForRetrieval.from_pretrained(model_folder).save_pretrained(tmp_path / "bare")
    result = pig("index", folder, "--model", tmp_path / "bare", "--index", "v.lance")
    assert_one_line_error(result, "no processor", "PigProcessor.save_pretrained")
    assert not (tmp_path / "v.lance").exists()


def test_an_index_made_by_another_model(pig, index, folder, model_folder, tmp_path, make_model, processor):
    make_model().save_pretrained(tmp_path / "other")  # the same shape, other weights
    model = make_model(projection_dim=16)
    model.save_pretrained(tmp_path / "narrow")
    before = contents(index)
    for name in ("other", "narrow"):
        if name == "other":
            changed = PigForRetrieval.from_pretrained(tmp_path / name)
            changed.text_projection.weight.data.add_(1)
            changed.visual_projection.weight.data.add_(1)
            changed.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        wanted = (f"The index {index} was made by the model {model_folder}", "use that model, or another index")
        assert_one_line_error(pig("index", folder, "--model", name, "--index", index), *wanted)
        assert_one_line_error(pig("search", "a", "--model", name, "--index", index), *wanted)
    assert contents(index) == before


@pytest.mark.parametrize("sentence", ["", "   "])
def test_an_empty_query(pig, index, sentence):
    assert_one_line_error(pig("search", sentence, "--index", index), "the sentence is empty")


def test_a_query_over_77_tokens_is_cut_with_a_warning(pig, index, caplog):
    status, output, _ = pig("search", "red " * 100, "--index", index)
    assert status == 0 and len(output.splitlines()) == 6
    assert "A text of 102 tokens was cut to the first 77" in caplog.text


def test_k_larger_than_the_index(pig, index):
    status, output, error = pig("search", "a", "--index", index, "-k", 50)
    assert status == 0 and len(output.splitlines()) == 6
    assert "50 answers were asked for, the index holds 5 videos" in error


def test_k_of_zero(pig, index):
    assert pig("search", "a", "--index", index, "-k", 0)[0] == 2  # a usage error, of the command line's own


def test_a_missing_index(pig, tmp_path):
    assert_one_line_error(pig("search", "a", "--index", "none.lance"), "no index none.lance", "pig index")
    assert not (tmp_path / "none.lance").exists()


@pytest.mark.parametrize("place", ["notes.txt", "notes.txt/v.lance", "full"])
def test_a_place_where_no_index_can_be(pig, folder, model_folder, tmp_path, place):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    before = contents(tmp_path)
    assert_one_line_error(pig("index", folder, "--model", model_folder, "--index", place), place)
    assert_one_line_error(pig("search", "a", "--index", place), place)
    assert contents(tmp_path) == before


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a place that not even root can write to")
def test_a_place_that_cannot_be_written(pig, folder, model_folder):
    assert_one_line_error(pig("index", folder, "--model", model_folder, "--index", "/proc/v.lance"), "/proc/v.lance")


def test_an_index_that_cannot_be_read(pig, index):
    for path in Path(index).rglob("*.manifest"):
        path.write_bytes(b"junk")
    before = contents(index)
    assert_one_line_error(pig("search", "a", "--index", index), "v.lance cannot be opened")
    assert contents(index) == before


def test_a_single_tower_model_cannot_be_indexed(pig, folder, make_model, processor, tmp_path):
    make_model(framework="single_tower").save_pretrained(tmp_path / "single")
    processor.save_pretrained(tmp_path / "single")
    assert_one_line_error(pig("index", folder, "--model", "single", "--index", "v.lance"), "single-tower")


def test_a_config_that_is_no_pig(pig, folder, tmp_path):
    (tmp_path / "other").mkdir()
    PigConfig().text_config.save_pretrained(tmp_path / "other")
    assert_one_line_error(pig("index", folder, "--model", "other", "--index", "v.lance"), "other")
