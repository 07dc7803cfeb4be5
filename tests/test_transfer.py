"""An index as a Parquet file and back: exactly what was there, also in other tools; what is no export is refused."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from modeling_pig.stores import transfer
from modeling_pig.stores.index import FORMAT, IndexInfo, VideoEntry, VideoIndex
from modeling_pig.stores.transfer import export_index, import_index


INFO = IndexInfo("org/pig", "abc", 8, num_frames=4, model_revision="0123abc")


@pytest.fixture
def index(tmp_path):
    """Whole files and windows, in several writes, with every field in use somewhere."""
    index = VideoIndex(tmp_path / "v.lance", INFO)
    entries = [VideoEntry(f"/v/it's\n{i}.mp4", duration=i / 3, size=i, modified=2**60 + i) for i in range(30)]
    windows = [VideoEntry("/v/long.mp4", 0.1 * i, 0.1 * i + 30, 90.0, content_hash="00ff") for i in range(25)]
    embeddings = torch.randn(55, 8, generator=torch.Generator().manual_seed(0))
    embeddings = torch.nn.functional.normalize(embeddings, dim=-1)
    for part in (slice(0, 10), slice(10, 30), slice(30, 55)):
        index.upsert([*entries, *windows][part], embeddings[part])
    return index


def contents(index: VideoIndex) -> dict[VideoEntry, tuple]:
    pairs = [pair for entries, vectors in index.batches() for pair in zip(entries, vectors, strict=True)]
    return {entry: (vector.dtype, *vector.tolist()) for entry, vector in pairs}


@pytest.mark.parametrize("batch_size", [4, 10_000])
def test_there_and_back_is_exactly_the_same(index, tmp_path, monkeypatch, batch_size):
    monkeypatch.setattr(transfer, "_BATCH_SIZE", batch_size)
    assert export_index(index, tmp_path / "v.parquet") == 55
    again = import_index(tmp_path / "v.parquet", tmp_path / "again.lance")
    assert contents(again) == contents(index)
    assert len(again) == 55
    assert (again.info.model, again.info.num_frames, again.info.model_revision) == ("org/pig", 4, "0123abc")
    import_index(tmp_path / "v.parquet", tmp_path / "again.lance")  # once more changes nothing
    assert contents(again) == contents(index)


def test_entries_of_a_file_may_stand_apart(index, tmp_path, monkeypatch):
    export_index(index, tmp_path / "v.parquet")
    rows = pq.read_table(tmp_path / "v.parquet")
    pq.write_table(rows.take(np.random.default_rng(0).permutation(55)), tmp_path / "mixed.parquet")
    monkeypatch.setattr(transfer, "_BATCH_SIZE", 4)
    assert contents(import_index(tmp_path / "mixed.parquet", tmp_path / "again.lance")) == contents(index)


def test_what_an_index_holds_of_other_files_stays(index, tmp_path):
    export_index(index, tmp_path / "v.parquet")
    other = VideoIndex(tmp_path / "other.lance", INFO)
    other.upsert([VideoEntry("/v/mine.mp4"), VideoEntry("/v/long.mp4")], torch.eye(8)[:2])
    import_index(tmp_path / "v.parquet", tmp_path / "other.lance")
    assert other.files().keys() == {*index.files(), "/v/mine.mp4"}
    assert len(other) == 56


def test_other_tools_read_the_columns(index, tmp_path):
    export_index(index, tmp_path / "v.parquet")
    rows = pq.read_table(tmp_path / "v.parquet")
    assert rows.column_names == [
        *("key", "path", "name", "start", "end", "duration", "size", "modified", "content_hash", "embedding")
    ]
    assert rows.schema.field("embedding").type.value_type == pa.float32()
    assert json.loads(rows.schema.metadata[b"pig"])["model"] == "org/pig"
    assert [path.name for path in tmp_path.iterdir() if "parquet" in path.name] == ["v.parquet"]


def test_an_export_of_another_model_is_refused(index, tmp_path):
    export_index(index, tmp_path / "v.parquet")
    VideoIndex(tmp_path / "other.lance", IndexInfo("org/other", "def", 8))
    with pytest.raises(ValueError, match="was made by the model org/other"):
        import_index(tmp_path / "v.parquet", tmp_path / "other.lance")
    assert len(VideoIndex(tmp_path / "other.lance")) == 0


def test_files_that_are_no_export_are_refused_and_make_no_index(index, tmp_path):
    export_index(index, tmp_path / "v.parquet")
    rows = pq.read_table(tmp_path / "v.parquet")
    info = json.loads(rows.schema.metadata[b"pig"])
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / "theirs.parquet")
    pq.write_table(rows.drop_columns("size"), tmp_path / "narrow.parquet")
    newer = rows.replace_schema_metadata({"pig": json.dumps({**info, "format": FORMAT + 1})})
    pq.write_table(newer, tmp_path / "newer.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "v.parquet").read_bytes()[:-100])
    for name, message in {
        "theirs": "is not an export of an index",
        "narrow": "lacks the columns size",
        "newer": "newer modeling-pig",
        "text": "is not a readable Parquet file",
        "cut": "is not a readable Parquet file",
    }.items():
        with pytest.raises(ValueError, match=message):
            import_index(tmp_path / f"{name}.parquet", tmp_path / "new.lance")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        import_index(tmp_path / "missing.parquet", tmp_path / "new.lance")
    held = rows.to_pylist()
    held[0]["embedding"][0] = float("nan")
    pq.write_table(pa.Table.from_pylist(held, rows.schema), tmp_path / "nan.parquet")
    with pytest.raises(ValueError, match="finite and normalised"):
        import_index(tmp_path / "nan.parquet", tmp_path / "new.lance")
    assert not (tmp_path / "new.lance").exists()


def test_an_export_does_not_take_the_place_of_a_pipe(index, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is not a regular file"):
        export_index(index, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_an_export_that_fails_keeps_the_one_before(index, tmp_path, monkeypatch):
    export_index(index, tmp_path / "v.parquet")
    before = (tmp_path / "v.parquet").read_bytes()

    def full(*_):
        raise OSError("[Errno 28] No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="v.parquet cannot be written: .*No space left"):
        export_index(index, tmp_path / "v.parquet")
    assert (tmp_path / "v.parquet").read_bytes() == before
    assert not (tmp_path / "v.parquet.partial").exists()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pq.ParquetWriter, "write_table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_index(index, tmp_path / "v.parquet")
    assert (tmp_path / "v.parquet").read_bytes() == before
    assert not (tmp_path / "v.parquet.partial").exists()


def test_an_export_tells_what_cannot_be_read_and_what_not_written(index, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for place in (tmp_path / "missing/v.parquet", tmp_path / "file/v.parquet", tmp_path):
        with pytest.raises(OSError) as caught:
            export_index(index, place)
        assert str(caught.value).startswith(f"{place} cannot be written: ")

    def unreadable(*_):
        yield from ()
        raise OSError("The index videos.lance cannot be read: the disk has gone")

    monkeypatch.setattr(VideoIndex, "batches", unreadable)
    with pytest.raises(OSError) as caught:
        export_index(index, tmp_path / "v.parquet")
    assert str(caught.value) == "The index videos.lance cannot be read: the disk has gone"
    assert not [path for path in tmp_path.iterdir() if "parquet" in path.name]
