"""Updating an index: new, changed and deleted files, interrupted runs, and several processes."""

import os
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import lancedb
import numpy as np
import pytest
import torch

from modeling_pig import PigVideoModel, VideoIndex
from modeling_pig.encoding import videos as encode
from modeling_pig.encoding.encoder import PigEncoder
from modeling_pig.encoding.loading import load_pretrained
from modeling_pig.encoding.model_files import model_fingerprint
from modeling_pig.encoding.videos import encode_files
from modeling_pig.files import make_content_id
from modeling_pig.retrieval import indexing
from modeling_pig.retrieval.find_videos import find_videos
from modeling_pig.retrieval.indexing import IndexingReport, index_videos, make_entries
from modeling_pig.retrieval.segments import Segmentation
from modeling_pig.stores.index import IndexInfo
from modeling_pig.video_decoding_pig import decode_video

from .kill_and_index import compare_with_fresh_encodings, index_with_kills, start_pig
from .video_files import numbered_frames, write_frame_folder, write_video


@pytest.fixture(scope="module")
def model_and_processor(model_folder):
    return load_pretrained(PigVideoModel, model_folder)


@pytest.fixture
def folder(shape_videos, tmp_path) -> Path:
    """Return a folder with five videos."""
    return shutil.copytree(shape_videos[0].parent, tmp_path / "videos")


@pytest.fixture
def index(model_folder, tmp_path) -> VideoIndex:
    return VideoIndex(tmp_path / "v.lance", IndexInfo(model_folder, model_fingerprint(model_folder), 32))


@pytest.fixture
def update(model_and_processor, index, folder):
    """Return a function that indexes the folder with options of `index_videos`."""

    def run(**options) -> IndexingReport:
        return index_videos(PigEncoder(*model_and_processor), index, folder, **options)

    return run


@pytest.mark.parametrize("by_hash", [False, True])
def test_moved_files_keep_their_embeddings(update, index, folder, by_hash):
    """Renamed, moved, and moved with another time, as by a copy to another disk."""
    segmentation = Segmentation(1.0)
    update(by_hash=by_hash, segmentation=segmentation)
    first, second, third, *_ = sorted(folder.glob("*.mp4"))
    before = {path.name: [found.embedding for found in index.get(str(path))] for path in (first, second, third)}
    (folder / "other").mkdir()
    first.rename(folder / "other/renamed.mp4")
    second.rename(folder / "other" / second.name)
    index.set_metadata({str(third): {"id": "mine"}})
    new_time = third.rename(folder / "touched.mp4")
    os.utime(new_time, (1, 1))
    report = update(by_hash=by_hash, segmentation=segmentation, prune=True)
    assert (report.moved, report.new, report.removed) == (3, 0, 0)
    for old, new in ((first, "other/renamed.mp4"), (second, f"other/{second.name}"), (third, "touched.mp4")):
        found = index.get(str(folder / new))
        assert len(found) == len(before[old.name]) > 1 and not index.get(str(old))
        np.testing.assert_array_equal([entry.embedding for entry in found], before[old.name])
        assert found[0].entry.modified == (folder / new).stat().st_mtime_ns
    assert counts(update(by_hash=by_hash, prune=True)) == (0, 0, 5)


def test_each_file_has_an_id(update, index, folder):
    update()
    paths = sorted(str(path) for path in folder.glob("*.mp4"))
    made = {path: make_content_id(path) for path in paths}
    assert len(set(made.values())) == 5
    assert {path: state.id for path, state in index.files().items()} == made

    # An index that an earlier version wrote gets the missing identifiers.
    lancedb.connect(index.uri).open_table("videos").drop_columns(["id"])
    index.set_metadata({paths[0]: {"id": "mine"}})
    assert counts(update()) == (0, 0, 5)
    expected = {**made, paths[0]: "mine"}
    assert {path: state.id for path, state in index.files().items()} == expected

    shutil.copy(paths[2], paths[0])  # changed content
    shutil.copy(paths[2], paths[1])
    assert counts(update()) == (0, 2, 3)
    expected |= {paths[1]: made[paths[2]]}
    assert {path: state.id for path, state in index.files().items()} == expected


def test_unchanged_files_are_encoded_again_on_demand(update, index, folder):
    update()
    path = str(min(folder.glob("*.mp4")))
    report = update(again=[path], segmentation=Segmentation(1.0))
    assert counts(report) == (0, 1, 4)
    assert len(index.get(path)) > 1 and len(index) == 4 + len(index.get(path))


def test_copies_are_no_moves(update, index, folder):
    update(by_hash=True)
    path = min(folder.glob("*.mp4"))
    shutil.copy2(path, folder / "copy.mp4")
    report = update(by_hash=True)
    assert (report.moved, report.new, report.unchanged) == (0, 1, 5) and index.get(str(path))


def counts(report: IndexingReport) -> tuple[int, int, int]:
    return report.new, report.changed, report.unchanged


def copy_videos(folder: Path, count: int) -> None:
    """Copy the videos in a folder until it holds `count` of them."""
    videos = sorted(folder.iterdir())
    for number in range(len(videos), count):
        shutil.copy(videos[number % len(videos)], folder / f"more_{number:03d}.mp4")


# --- encoding files


def test_encode_files_equals_encoding_each_segment_alone(model_and_processor, shape_videos, tmp_path):
    model, processor = model_and_processor
    long = write_video(tmp_path / "long.mp4", numbered_frames(100))
    (tmp_path / "broken.mp4").write_bytes(b"junk")
    paths = [str(path) for path in [*shape_videos, long, tmp_path / "broken.mp4"]]
    failures: list = []
    split = Segmentation(0.5).split
    files = list(encode_files(PigEncoder(model, processor), paths, failures, split, batch_size=3, num_threads=3))
    assert [failure.path for failure in failures] == paths[-1:]
    assert sorted(file.path for file in files) == sorted(paths[:-1])
    for file in files:
        entries = make_entries(file)
        assert [entry.start for entry in entries] == [n / 2 for n in range(len(entries))]
        assert len(entries) == (8 if file.path == str(long) else 4)
        for entry, embedding in zip(entries, file.embeddings, strict=True):
            frames, metadata = decode_video(entry.path, 4, start=entry.start, end=entry.end)
            inputs = processor(videos=frames, do_sample_frames=False, return_tensors="pt")
            with torch.inference_mode():
                alone = torch.nn.functional.normalize(model(**inputs).video_embeds[0], dim=-1)
            torch.testing.assert_close(embedding, alone, atol=1e-5, rtol=1e-5)
            assert entry.duration == metadata.duration and entry.size == os.path.getsize(entry.path)


def test_decoded_segments_in_memory_are_bounded(model_and_processor, tmp_path, monkeypatch):
    """The number of decoded segments that wait to be encoded is bounded, for a file of 40 segments."""
    model, processor = model_and_processor
    path = write_video(tmp_path / "long.mp4", numbered_frames(400))
    num_decoded, num_encoded, most = 0, 0, 0
    lock = threading.Lock()
    preprocess, encode_clips = PigEncoder.preprocess, PigEncoder.encode_clips

    def count_decoded(encoder, frames, metadata=None):
        nonlocal num_decoded, most
        with lock:
            num_decoded += 1
            most = max(most, num_decoded - num_encoded)
        return preprocess(encoder, frames, metadata)

    def count_encoded(encoder, clips):
        nonlocal num_encoded
        time.sleep(0.05)  # the model is slower than decoding
        with lock:
            num_encoded += len(clips)
        return encode_clips(encoder, clips)

    monkeypatch.setattr(PigEncoder, "preprocess", count_decoded)
    monkeypatch.setattr(PigEncoder, "encode_clips", count_encoded)
    [file] = encode_files(
        PigEncoder(model, processor), [str(path)], [], Segmentation(0.4).split, batch_size=2, num_threads=2
    )
    assert len(file.segments) == 40 == num_decoded == num_encoded
    assert most <= 3 * 2 + 2  # in the queue, in a batch, and one per thread


def test_closing_encode_files_ends_its_threads(model_and_processor, shape_videos):
    before = threading.active_count()
    files = encode_files(PigEncoder(*model_and_processor), [str(path) for path in shape_videos] * 20, [], batch_size=1)
    next(files)
    files.close()
    assert threading.active_count() == before


def test_errors_in_decoding_threads_are_raised(model_and_processor, shape_videos, monkeypatch):
    def fail(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(PigEncoder, "preprocess", fail)
    with pytest.raises(ZeroDivisionError):
        list(encode_files(PigEncoder(*model_and_processor), [str(shape_videos[0])], []))


# --- changed files


def test_new_changed_unchanged_and_deleted_files(update, index, folder):
    paths = sorted(folder.iterdir())
    assert counts(update()) == (5, 0, 0)
    assert counts(update()) == (0, 0, 5)
    os.utime(paths[0], ns=(0, 1))
    shutil.copy(paths[1], paths[2])
    paths[3].unlink()
    shutil.copy(paths[1], folder / "new.mp4")
    report = update()
    assert counts(report) == (1, 2, 2) and (report.deleted, report.removed) == (1, 0)
    report = update(prune=True)
    assert counts(report) == (0, 0, 5) and (report.deleted, report.removed) == (0, 1)
    assert sorted(index.files()) == [str(path) for path in sorted(folder.iterdir())]
    for path, state in index.files().items():
        assert state[:3] == (os.path.getsize(path), os.stat(path).st_mtime_ns, make_content_id(path))


def test_changes_are_detected_by_hash(update, index, folder):
    paths = sorted(folder.iterdir())
    assert counts(update()) == (5, 0, 0)
    assert counts(update(by_hash=True)) == (0, 0, 5)  # adds the missing hashes
    assert all(len(state.content_hash) == 64 for state in index.files().values())
    os.utime(paths[0], ns=(0, 1))  # the same content
    status = paths[1].stat()
    content = bytearray(paths[1].read_bytes())
    content[-1] ^= 1  # other content of the same size and time
    paths[1].write_bytes(content)
    os.utime(paths[1], ns=(0, status.st_mtime_ns))
    assert counts(update(by_hash=True)) == (0, 1, 4)
    assert index.files()[str(paths[0])].modified == 1  # the time was updated without encoding the file
    assert counts(update()) == (0, 0, 5)
    assert len(index) == 5


def test_only_files_in_the_index_are_hashed_for_comparison(update, folder, monkeypatch):
    update(by_hash=True)
    hashed, hash_file = [], indexing.hash_file
    monkeypatch.setattr(indexing, "hash_file", lambda path: hashed.append(path) or hash_file(path))
    indexed = sorted(str(path) for path in folder.iterdir())
    shutil.copy(indexed[0], folder / "new.mp4")
    assert counts(update(by_hash=True)) == (1, 0, 5)
    assert sorted(hashed) == indexed


def test_touched_files_are_updated_in_one_pass(update, index, folder, monkeypatch):
    def read_all() -> dict:
        return {found.entry.key: (found.entry, found.embedding) for batch in batches(3) for found in batch.embedded()}

    passes, writes, batches, upsert = [], [], index.batches, index.upsert
    paths = sorted(str(path) for path in folder.iterdir())
    update(by_hash=True, segmentation=Segmentation(0.5))
    before = read_all()
    for path in paths[:4]:
        os.utime(path, ns=(0, 1))
    monkeypatch.setattr(indexing, "FILES_PER_WRITE", 8)
    monkeypatch.setattr(index, "batches", lambda: passes.append(None) or batches(3))
    monkeypatch.setattr(
        index, "upsert", lambda entries, *arrays: writes.append(len(entries)) or upsert(entries, *arrays)
    )
    monkeypatch.setattr(index, "get", None)  # would read the whole index for each file
    assert counts(update(by_hash=True)) == (0, 0, 5)
    assert len(passes) == 1 and writes == [8, 8]
    after = read_all()
    assert before.keys() == after.keys()
    for key, (entry, embedding) in after.items():
        np.testing.assert_array_equal(embedding, before[key][1])
        assert entry.modified == (1 if entry.path in paths[:4] else before[key][0].modified)
        assert entry.content_hash == before[key][0].content_hash


def test_changes_of_folders_of_frames_are_detected_by_hash(update, folder):
    frames = write_frame_folder(folder / "frames.mp4", numbered_frames(4))
    report = update(by_hash=True)
    assert counts(report) == (6, 0, 0) and not report.failures
    assert counts(update(by_hash=True)) == (0, 0, 6)
    shutil.copy(frames / "000001.jpg", frames / "000004.jpg")  # does not change the time of the folder
    assert counts(update()) == (0, 0, 6)
    assert counts(update(by_hash=True)) == (0, 1, 5)


# --- files that change while they are read


@pytest.mark.parametrize("num_changes", [1, 2])
def test_a_file_that_changes_while_it_is_read(update, index, folder, monkeypatch, num_changes):
    first, second, *_ = sorted(folder.iterdir())
    decode, changes = encode.decode_segments, []

    def decode_and_change(path, *args, **options):
        yield from decode(path, *args, **options)
        if path == str(first) and len(changes) < num_changes:
            changes.append(path)
            shutil.copy(second, path)

    monkeypatch.setattr(encode, "decode_segments", decode_and_change)
    report = update(num_threads=1)
    if num_changes == 1:
        assert counts(report) == (5, 0, 0) and not report.failures
        stored = [index.get(str(path))[0][1] for path in (first, second)]
        np.testing.assert_allclose(*stored, atol=1e-3)  # the new content only
    else:
        assert counts(report) == (4, 0, 0)
        assert [(failure.path, failure.reason) for failure in report.failures] == [
            (str(first), "changed while it was read; run again")
        ]
    assert counts(update()) == (num_changes - 1, 0, 6 - num_changes)


def test_a_file_that_is_deleted_before_it_is_read(update, index, folder, model_and_processor):
    found = find_videos(folder)
    sorted(folder.iterdir())[0].unlink()
    report = index_videos(PigEncoder(*model_and_processor), index, found)
    assert counts(report) == (4, 0, 0) and "no such file" in report.failures[0].reason


# --- writing


def test_each_write_holds_whole_files(update, index, folder, monkeypatch):
    copy_videos(folder, 30)
    monkeypatch.setattr(indexing, "MIN_PAUSE", 0.0)
    monkeypatch.setattr(indexing, "PAUSE", 0.0)
    written, upsert = [], index.upsert

    def record(entries, *arrays, **options):
        written.append([entry.path for entry in entries])
        upsert(entries, *arrays, **options)

    monkeypatch.setattr(index, "upsert", record)
    assert counts(update(segmentation=Segmentation(0.5), batch_size=4)) == (30, 0, 0)
    assert len(written) > 2
    assert sorted(path for paths in written for path in set(paths)) == sorted(str(p) for p in folder.iterdir())
    assert len(index) == 120


def test_a_failed_write_can_be_resumed(update, index, folder, monkeypatch):
    def fail(entries, *arrays, **options):
        raise OSError("full")

    with monkeypatch.context() as patch:
        patch.setattr(index, "upsert", fail)
        with pytest.raises(OSError, match=r"full \(0 videos are indexed; run the same command again to resume\)"):
            update()
    assert counts(update()) == (5, 0, 0)


# --- killed, interrupted and parallel processes


@pytest.fixture
def command(folder, model_folder, tmp_path) -> tuple:
    return ("index", folder, "--model", model_folder, "--index", tmp_path / "p.lance")


def wait_until_written(index: Path, processes: list) -> None:
    while all(process.is_alive() for process in processes) and not list(index.glob("*/data/*")):
        time.sleep(0.01)


def test_killed_runs_lose_and_duplicate_no_entries(folder, model_folder, tmp_path):
    copy_videos(folder, 16)
    kills = index_with_kills(folder, model_folder, tmp_path / "p.lance", num_kills=1)
    assert kills
    num_entries, _, largest = compare_with_fresh_encodings(tmp_path / "p.lance", folder, model_folder)
    assert num_entries == 16 and largest < 1e-3  # half precision, and other videos in the batches


def test_ctrl_c_keeps_the_indexed_files(folder, command, tmp_path):
    copy_videos(folder, 500)
    log = tmp_path / "log"
    process = start_pig(*command, "--batch-size", 1, log=log)
    wait_until_written(tmp_path / "p.lance", [process])
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130, log.read_text()
    lines = log.read_text().splitlines()
    assert lines[-1].startswith("interrupted") and lines[-1].endswith("run the same command again to resume")
    num_indexed = int(next(line for line in lines if line.startswith("indexed ")).split()[1])
    assert 0 < num_indexed == len(VideoIndex(tmp_path / "p.lance").files()) < 500


def test_two_concurrent_runs_index_each_video_once(folder, command, tmp_path):
    copy_videos(folder, 20)
    logs = [tmp_path / "log0", tmp_path / "log1"]
    processes = [start_pig(*command, "--batch-size", 2, log=log) for log in logs]
    for process, log in zip(processes, logs, strict=True):
        process.join()
        assert process.exitcode == 0, log.read_text()
    index = VideoIndex(tmp_path / "p.lance")
    assert len(index) == len(index.files()) == 20


@pytest.fixture
def run_two(command, tmp_path, free_port):
    """Return a function that runs the command in two processes, like torchrun, and returns statuses and outputs."""

    def run(meanwhile=lambda processes: None, **options_of_second) -> list[tuple[int, str]]:
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "WORLD_SIZE": "2"}
        logs = [tmp_path / "log0", tmp_path / "log1"]
        processes = [
            start_pig(
                *command, log=log, environment={**shared, "RANK": str(rank)}, **(options_of_second if rank else {})
            )
            for rank, log in enumerate(logs)
        ]
        meanwhile(processes)
        for process in processes:
            process.join()
        return [(process.exitcode, log.read_text()) for process, log in zip(processes, logs, strict=True)]

    return run


def test_rank_0_reports_the_error_of_another_process(folder, run_two, tmp_path):
    copy_videos(folder, 12)
    first, second = run_two(disk_is_full=True)
    assert first[0] == second[0] == 1
    assert "error: Another process failed: no space" in first[1]
    assert "error: no space" in second[1]
    assert 0 < len(VideoIndex(tmp_path / "p.lance")) < 12


def test_ctrl_c_stops_two_processes(folder, run_two, tmp_path):
    def stop(processes):
        wait_until_written(tmp_path / "p.lance", processes)
        for process in processes:
            os.kill(process.pid, signal.SIGINT)

    copy_videos(folder, 500)
    for status, output in run_two(stop):
        assert status == 130 and "Traceback" not in output, output
    assert 0 < len(VideoIndex(tmp_path / "p.lance").files()) < 500
    assert "run the same command again to resume" in (tmp_path / "log0").read_text()


def test_rank_0_reports_a_killed_process(folder, run_two, tmp_path):
    def stop_second(processes):
        wait_until_written(tmp_path / "p.lance", processes)
        processes[1].kill()

    copy_videos(folder, 100)
    (status, output), _ = run_two(stop_second)
    assert status == 1 and "error: Another process has stopped" in output, output


def test_two_processes_leave_no_index_if_all_files_fail(folder, run_two, tmp_path):
    for path in folder.iterdir():
        path.write_bytes(b"junk")
    (status, output), _ = run_two()
    assert status == 1 and "error: none of the 5 videos in" in output
    assert not (tmp_path / "p.lance").exists()


def test_consecutive_names_are_spread_evenly_over_processes():
    shares = Counter(indexing._hash_path(f"/clips/video_{number:04}.mp4") % 8 for number in range(800))
    assert len(shares) == 8 and min(shares.values()) > 70 and max(shares.values()) < 130
