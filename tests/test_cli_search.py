"""`pig search`: output and errors that a user sees."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from modeling_pig import PigForRetrieval, VideoIndex
from modeling_pig.stores.index import VideoEntry

from .cli_helpers import assert_one_line_error, contents


def test_results_are_a_table_in_order_of_score(pig, index, video_folder):
    status, output, _ = pig("search", "a red circle moves left", "--index", index, "-k", 3)
    assert status == 0
    rows = [line.split() for line in output.splitlines()]
    assert rows[0] == ["rank", "score", "file"]
    assert [row[0] for row in rows[1:]] == ["1", "2", "3"]
    scores = [float(row[1]) for row in rows[1:]]
    assert scores == sorted(scores, reverse=True)
    assert all(Path(row[2]).is_file() and Path(row[2]).parent == video_folder for row in rows[1:])


def test_the_index_finds_its_model_from_another_folder(pig, index, video_folder, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(video_folder)
    assert pig("search", "a", "--index", tmp_path / index)[0] == 0
    assert pig("search", "a", "--index", tmp_path / index, "--model", model_folder)[0] == 0


def test_an_index_of_another_model_is_refused(pig, index, video_folder, model_folder, tmp_path, make_model, processor):
    make_model().save_pretrained(tmp_path / "other")  # the same shape; its weights are changed below
    make_model(projection_dim=16).save_pretrained(tmp_path / "narrow")
    before = contents(index)
    for name in ("other", "narrow"):
        if name == "other":
            changed = PigForRetrieval.from_pretrained(tmp_path / name)
            changed.text_projection.weight.data.add_(1)
            changed.visual_projection.weight.data.add_(1)
            changed.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        wanted = (f"The index {index} was made by the model {model_folder}", "use that model, or another index")
        assert_one_line_error(pig("index", video_folder, "--model", name, "--index", index), *wanted)
        assert_one_line_error(pig("search", "a", "--model", name, "--index", index), *wanted)
    assert contents(index) == before


def test_a_query_over_77_tokens_is_cut_with_a_warning(pig, index, caplog):
    status, output, _ = pig("search", "red " * 100, "--index", index)
    assert status == 0 and len(output.splitlines()) == 6
    assert "A text of 102 tokens was cut to the first 77" in caplog.text


def test_fewer_results_than_k_are_noted(pig, index):
    status, output, error = pig("search", "a", "--index", index, "-k", 50)
    assert status == 0 and len(output.splitlines()) == 6
    assert "note: found 5 results, fewer than -k 50\n" in error


def test_a_missing_index_is_refused(pig, tmp_path):
    assert_one_line_error(pig("search", "a", "--index", "none.lance"), "no index none.lance", "pig index")
    assert not (tmp_path / "none.lance").exists()


@pytest.mark.parametrize("path", ["notes.txt", "notes.txt/v.lance", "full"])
def test_paths_that_cannot_hold_an_index(pig, video_folder, model_folder, tmp_path, path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    before = contents(tmp_path)
    assert_one_line_error(pig("index", video_folder, "--model", model_folder, "--index", path), path)
    assert_one_line_error(pig("search", "a", "--index", path), path)
    assert contents(tmp_path) == before


def test_a_damaged_index_is_refused(pig, index):
    for path in Path(index).rglob("*.manifest"):
        path.write_bytes(b"junk")
    before = contents(index)
    assert_one_line_error(pig("search", "a", "--index", index), "v.lance cannot be opened")
    assert contents(index) == before


@pytest.fixture
def segment_index(index) -> str:
    """Return an index of the five videos and of a longer video with three segments."""
    store = VideoIndex(index)
    embeddings = np.eye(3, store.info.embedding_dim, dtype=np.float32)
    store.upsert([VideoEntry("/v/long.mp4", 30.0 * n, 30.0 * n + 30, 90.0) for n in range(3)], embeddings)
    return index


def table(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines()]


# output formats


def test_json_is_one_object_per_query(pig, index, video_folder, tmp_path):
    (tmp_path / "queries.txt").write_text("a red circle\n\n  日本 語 \na red\u2028circle\n", encoding="utf-8-sig")
    command = ("search", "--index", index, "-k", 2, "--json")
    status, output, _ = pig(*command, "--queries", "queries.txt")
    assert (status, output) == (0, pig(*command, "--sentences", "queries.txt")[1])  # the previous name of the option
    by_query = [json.loads(line) for line in output.splitlines()]
    assert [ranked["sentence"] for ranked in by_query] == ["a red circle", "日本 語", "a red\u2028circle"]
    for ranked in by_query:
        assert [result["rank"] for result in ranked["results"]] == [1, 2]
        for result in ranked["results"]:
            assert set(result) == {"rank", "score", "path", "id", "duration", "start", "end"}
            assert Path(result["path"]).parent == video_folder and result["start"] is None
    _, output, _ = pig("search", "--video", video_folder / "video_0.mp4", "--index", index, "--json")
    ranked = json.loads(output)
    assert ranked["video"] == str(video_folder / "video_0.mp4")
    assert {Path(result["path"]).name for result in ranked["results"]} == {f"video_{n}.mp4" for n in range(1, 5)}


def test_csv_holds_unchanged_values(pig, index, video_folder, tmp_path):
    shutil.move(video_folder / "video_0.mp4", video_folder / 'a,"b"\nc.mp4')
    assert pig("index", video_folder, "--model", VideoIndex(index).info.model, "--index", index, "--prune")[0] == 0
    status, output, _ = pig("search", "=red, circle", "--index", index, "--csv", "-")
    assert status == 0
    rows = list(csv.DictReader(io.StringIO(output, newline="")))
    assert list(rows[0]) == ["query", "rank", "score", "path", "start", "end", "duration", "id"]
    assert {row["path"] for row in rows} == {str(path) for path in video_folder.iterdir()}
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5"] and {row["query"] for row in rows} == {
        "=red, circle"
    }
    status, written, _ = pig("search", "=red, circle", "--index", index, "--csv", "results.csv")
    assert (status, written) == (0, "written: results.csv\n")
    assert (tmp_path / "results.csv").read_bytes().decode() == output


def test_html_is_a_page_with_pictures(pig, index, video_folder, tmp_path):
    (video_folder / "video_1.mp4").unlink()  # after it was indexed
    status, output, _ = pig("search", "a red circle", "--index", index, "--html", "page.html")
    assert (status, output) == (0, "written: page.html\n")
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg") == 4 and page.count("no such file") == 1
    pig("search", "--video", video_folder / "video_0.mp4", "--index", index, "--html", "page.html", "--json")
    assert f"Videos like {video_folder / 'video_0.mp4'}" in (tmp_path / "page.html").read_text()


def test_several_queries_have_titles(pig, index, tmp_path):
    (tmp_path / "queries.txt").write_text("a red circle\na [blue] \x1b[31mstar\n")
    _, output, _ = pig("search", "--queries", "queries.txt", "--index", index, "-k", 1)
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    assert lines[0] == "“a red circle”" and lines[3] == r"“a [blue] \x1b[31mstar”" and len(lines) == 6


def test_file_names_cannot_control_a_terminal(pig, index, model_folder, shape_videos, tmp_path):
    folder = tmp_path / "odd names"
    folder.mkdir()
    shown = {
        "[red]:smile:x.mp4": "[red]:smile:x.mp4",
        "日本 語.mp4": "日本 語.mp4",
        "two\nlines.mp4": r"two\nlines.mp4",
        "\x1b[31mred\x07.mp4": r"\x1b[31mred\x07.mp4",
        "gpj\u202e4pm.mp4": r"gpj\u202e4pm.mp4",
    }
    for path, name in zip(shape_videos, shown, strict=True):
        shutil.copy(path, folder / name)
    assert pig("index", folder, "--model", model_folder, "--index", "odd.lance")[0] == 0
    _, output, _ = pig("search", "a", "--index", "odd.lance")
    paths = [line.rstrip().split(maxsplit=2)[2] for line in output.splitlines()[1:]]
    assert sorted(paths) == sorted(f"{folder}/{name}" for name in shown.values())
    assert not {"\x1b", "\x07", "\u202e"} & set(output)
    _, output, _ = pig("search", "a", "--index", "odd.lance", "--json")
    assert {Path(result["path"]).name for result in json.loads(output)["results"]} == set(shown)
    assert output.isascii()


def test_segments_show_their_time(pig, segment_index):
    _, output, _ = pig("search", "a", "--index", segment_index)
    rows = table(output)
    assert rows[0] == ["rank", "score", "time", "file"] and len(rows) == 9
    assert {row[2] for row in rows[1:] if row[-1] == "/v/long.mp4"} == {"0:00–0:30", "0:30–1:00", "1:00–1:30"}


def test_segments_of_a_file_are_grouped(pig, segment_index):
    command = ("search", "a", "--index", segment_index, "--group", "-k", 6)
    _, output, _ = pig(*command)
    rows = table(output)
    long = [number for number, row in enumerate(rows) if row[-1] == "/v/long.mp4"]
    assert long == list(range(long[0], long[0] + 3)) and len(rows) == 9
    assert [len(rows[number]) for number in long] == [4, 3, 3]  # only the first row has the rank
    _, output, _ = pig(*command, "--json")
    [file] = [result for result in json.loads(output)["results"] if result["path"] == "/v/long.mp4"]
    assert len(file["others"]) == 2 and file["score"] > file["others"][0]["score"] > file["others"][1]["score"]
    _, output, _ = pig(*command, "--csv", "-")
    rows = list(csv.DictReader(io.StringIO(output)))
    assert len(rows) == 8 and len({row["rank"] for row in rows if row["path"] == "/v/long.mp4"}) == 1


# filters and indexes


def test_where_and_min_score_filter_results(pig, segment_index):
    command = ("search", "a", "--index", segment_index, "--where")
    _, output, error = pig(*command, "name like 'video%' and duration < 60")
    assert {Path(row[-1]).name for row in table(output)[1:]} == {f"video_{n}.mp4" for n in range(5)}
    assert "note: " not in error
    scores = [float(row[1]) for row in table(output)[1:]]
    _, output, error = pig(*command, "end is null", "--min-score", scores[1] - 6e-4)
    assert len(table(output)) == 3
    assert "note: " not in error
    assert "note: no results with --where\n" in pig(*command, "duration < 0")[2]
    error = pig(*command, "end is null", "--min-score", 1)[2]
    assert "note: no results with --where and --min-score\n" in error


def test_several_indexes_are_searched_as_one(pig, segment_index, video_folder, model_folder):
    assert pig("index", video_folder / "video_0.mp4", "--model", model_folder, "--index", "one.lance")[0] == 0
    both = ("--index", segment_index, "--index", "one.lance")
    assert pig("search", "a", *both)[1] == pig("search", "a", "--index", segment_index)[1]
    _, output, _ = pig("search", "a", *both, "-k", 3)
    assert [row[0] for row in table(output)] == ["rank", "1", "2", "3"]


def test_search_needs_no_videos(pig, index, video_folder, tmp_path):
    expected = pig("search", "a", "--index", index)
    video_folder.rename(tmp_path / "elsewhere")
    assert pig("search", "a", "--index", index) == expected
    assert pig("search", "--video", video_folder / "video_0.mp4", "--index", index)[0] == 0  # by its stored embeddings


# invalid input


@pytest.mark.parametrize("queries", [(), ("a", "--video", "v.mp4"), ("", "--queries", "s.txt")])
def test_exactly_one_kind_of_query_is_required(pig, index, queries):
    assert_one_line_error(pig("search", *queries, "--index", index), "exactly one of: a sentence, --queries")


def test_unreadable_query_files_are_errors(pig, index, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00a")
    problems = {"empty.txt": "holds no queries", "binary.txt": "not UTF-8", "none.txt": "none.txt: No such file"}
    for name, part in problems.items():
        assert_one_line_error(pig("search", "--queries", name, "--index", index), name, part)


def test_an_unreadable_query_video_is_an_error(pig, index, tmp_path):
    (tmp_path / "junk.mp4").write_bytes(b"junk")
    assert_one_line_error(pig("search", "--video", "junk.mp4", "--index", index), "junk.mp4: not a video file")
    assert_one_line_error(pig("search", "--video", "none.mp4", "--index", index), "none.mp4: no such file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["   "], "the sentence is empty"),
        (["a", "--where", "path = 'a'; drop table videos"], "column 11"),
        (["a", "--where", ""], "condition"),
        (["a", "--min-score", "nan"], "min_score is nan"),
        (["a", "--csv", "none/out"], "none to write out into"),
        (["a", "--html", "none/out"], "none to write out into"),
        (["a", "--json", "--csv", "-"], "standard output takes one format"),
    ],
)
def test_invalid_arguments_are_errors(pig, index, arguments, message):
    before = contents(index)
    assert_one_line_error(pig("search", *arguments, "--index", index), message)
    assert contents(index) == before
