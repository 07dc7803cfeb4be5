"""Test training batches of real video files: sampling, replacements of broken files, and the cache of frames."""

import multiprocessing
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from modeling_pig import PigVideoProcessor
from modeling_pig.training import data, frame_cache
from modeling_pig.training.data import (
    BatchItem,
    FailureLog,
    GlobalBatchSampler,
    TrainingCollator,
    VideoTextDataset,
    caption_id,
    normalise_frames,
)
from modeling_pig.training.frame_cache import FrameCache
from modeling_pig.video_decoding_pig import VideoDecodingError, decode_video, sample_frame_indices
from tests.video_files import numbered_frames, read_numbers, write_frame_folder, write_video


NUM_VIDEOS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder of twelve videos: the first has the frames 0 to 39, the second 40 to 79, and so on."""
    folder = tmp_path_factory.mktemp("numbered")
    frames = numbered_frames(40 * NUM_VIDEOS)
    for index in range(NUM_VIDEOS):
        write_video(folder / f"{index}.mp4", frames[40 * index : 40 * (index + 1)])
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def make_rows(folder: Path, broken=()) -> list[dict]:
    names = ["broken" if index in broken else str(index) for index in range(NUM_VIDEOS)]
    return [
        {"video_id": f"v{i}", "video": str(folder / f"{name}.mp4"), "captions": [f"{i} {j}" for j in range(20)]}
        for i, name in enumerate(names)
    ]


def reader(num_frames: int, height: int = 64, width: int = 96) -> PigVideoProcessor:
    """Return a processor with the frame size of the files, so that `read_numbers` can read the sampled frames."""
    return PigVideoProcessor(size={"height": height, "width": width}, num_frames=num_frames)


def numbers_in(sample) -> list[int]:
    return read_numbers(sample.frames.permute(0, 2, 3, 1).numpy())


def alone(row: int, epoch: int = 0) -> BatchItem:
    return BatchItem(epoch, (row,), 0)


# Batches


@pytest.mark.parametrize(
    "num_rows, batch_size, drop_last", [(20, 6, True), (20, 6, False), (18, 6, False), (7, 7, True)]
)
@pytest.mark.parametrize("world_size", [2, 6])
def test_ranks_share_each_batch_and_each_row_occurs_once(num_rows, batch_size, drop_last, world_size):
    whole = GlobalBatchSampler(num_rows, batch_size, seed=0, drop_last=drop_last)
    ranks = [GlobalBatchSampler(num_rows, batch_size, 0, rank, world_size, drop_last) for rank in range(world_size)]
    for sampler in (whole, *ranks):
        sampler.set_epoch(3)
        assert len(list(sampler)) == len(sampler) == sampler.steps_per_epoch
    batches = [[item.rows[item.position] for item in batch] for batch in whole]
    for batch, *parts in zip(batches, *ranks, strict=False):
        assert [item.rows[item.position] for part in parts for item in part] == batch
        sizes = [len(part) for part in parts]
        assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
        assert {item.epoch for part in parts for item in part} == {3}
    num_full, rest = divmod(num_rows, batch_size)
    assert [len(batch) for batch in batches] == [batch_size] * num_full + [rest] * (rest > 0 and not drop_last)
    seen = [row for batch in batches for row in batch]
    assert len(set(seen)) == len(seen) and set(seen) <= set(range(num_rows))
    # A last batch with fewer rows than ranks is left out.
    assert len(ranks[0]) == num_full + (not drop_last and rest >= world_size)


def test_orders_differ_between_epochs_and_seeds_and_are_reproducible():
    def rows_of(seed, epoch):
        sampler = GlobalBatchSampler(50, 10, seed)
        sampler.set_epoch(epoch)
        return [items[0].rows for items in sampler]

    assert rows_of(0, 0) == rows_of(0, 0)
    assert len({tuple(rows_of(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_epoch_resumes_from_the_middle():
    sampler = GlobalBatchSampler(50, 10, seed=0, rank=1, world_size=2)
    sampler.set_epoch(2)
    batches = list(sampler)
    sampler.set_epoch(2, start_step=3)
    assert list(sampler) == batches[3:] and len(sampler) == 2 and sampler.steps_per_epoch == 5
    sampler.set_epoch(2)
    assert list(sampler) == batches
    with pytest.raises(ValueError, match="has 5 steps, it cannot resume from step 6"):
        sampler.set_epoch(0, start_step=6)


def test_impossible_batch_sizes_are_refused():
    with pytest.raises(ValueError, match="7 training videos do not fill one batch of 8"):
        GlobalBatchSampler(7, 8, seed=0)
    with pytest.raises(ValueError, match="A batch of 3 has no row for each of 4 processes"):
        GlobalBatchSampler(7, 3, seed=0, world_size=4)


# Samples


def test_samples_depend_on_seed_epoch_and_row_alone(folder):
    dataset, again = (VideoTextDataset(make_rows(folder), reader(4), seed=3) for _ in range(2))
    first = [dataset[alone(row)] for row in range(NUM_VIDEOS)]
    assert [sample.video_id for sample in first] == [f"v{row}" for row in range(NUM_VIDEOS)]
    for row in reversed(range(NUM_VIDEOS)):
        rows = tuple(np.roll(range(NUM_VIDEOS), row).tolist())
        sample = again[BatchItem(0, rows, rows.index(row))]
        assert sample.captions == first[row].captions and torch.equal(sample.frames, first[row].frames)
    other = [dataset[alone(row, 1)] for row in range(NUM_VIDEOS)]
    assert [sample.captions for sample in other] != [sample.captions for sample in first]
    assert any(numbers_in(a) != numbers_in(b) for a, b in zip(first, other, strict=True))
    other_seed = VideoTextDataset(make_rows(folder), reader(4), seed=4)
    assert [other_seed[alone(row)].captions for row in range(NUM_VIDEOS)] != [sample.captions for sample in first]


def test_several_captions_of_a_video_are_distinct_if_it_has_enough(folder, processor):
    rows = make_rows(folder)[:2]
    rows[1]["captions"] = ["alone"]
    dataset = VideoTextDataset(rows, reader(2), seed=0, captions_per_video=3)
    samples = [dataset[alone(row)] for row in range(2)]
    assert len(set(samples[0].captions)) == 3 and samples[1].captions == ["alone"] * 3
    assert dataset[alone(0)].captions == samples[0].captions != dataset[alone(0, 1)].captions
    batch = TrainingCollator(processor, 20)(samples)
    assert batch["input_ids"].shape[:2] == batch["caption_ids"].shape == (2, 3)
    assert batch["input_ids"].shape == batch["attention_mask"].shape and batch["frames"].shape[0] == 2
    single = processor(text=samples[0].captions[2], return_tensors="pt")["input_ids"][0]
    assert batch["input_ids"][0, 2, : len(single)].tolist() == single.tolist()
    assert batch["caption_ids"][0, 2] == caption_id(samples[0].captions[2])


def test_rows_may_be_segments_of_files_and_folders_of_frames(folder, tmp_path):
    frames = write_frame_folder(tmp_path / "frames", numbered_frames(5))
    rows = [
        {"video_id": "segment", "video": str(folder / "1.mp4"), "captions": ["a"], "start": 0.4, "end": 0.8},
        {"video_id": "whole", "video": str(folder / "1.mp4"), "captions": ["a"], "start": None, "end": None},
        {"video_id": "frames", "video": str(frames), "captions": ["a"], "start": None, "end": None},
    ]
    dataset = VideoTextDataset(rows, reader(3), seed=0)
    part, whole, folder_of_frames = (
        {number for epoch in range(20) for number in numbers_in(dataset[alone(row, epoch)])} for row in range(3)
    )
    assert part <= set(range(50, 60)) and len(part) > 5
    assert whole <= set(range(40, 80)) and min(whole) < 50 and max(whole) >= 60
    assert folder_of_frames == set(range(5))


def test_rows_without_a_file_are_left_out_and_counted(folder):
    rows = make_rows(folder)
    for index in (0, 5):
        rows[index]["video"] = ""
    dataset = VideoTextDataset(datasets.Dataset.from_list(rows), reader(2), seed=0)
    assert (len(dataset), dataset.num_missing) == (NUM_VIDEOS - 2, 2)
    ids = [dataset[alone(row)].video_id for row in range(len(dataset))]
    assert ids == [f"v{index}" for index in range(NUM_VIDEOS) if index not in (0, 5)]


def read_epochs(dataset, processor, num_epochs=2, num_workers=0, start_step=0, **sampler_options) -> list:
    sampler = GlobalBatchSampler(len(dataset), 4, seed=0, **sampler_options)
    collator = TrainingCollator(processor, max_text_tokens=12)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collator,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),
    )
    batches = []
    for epoch in range(num_epochs):
        sampler.set_epoch(epoch, start_step)
        batches += loader
    return batches


def assert_same_batches(batches, expected):
    assert len(batches) == len(expected) > 0
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for name, value in other.items():
            assert torch.equal(batch[name], value) if isinstance(value, torch.Tensor) else batch[name] == value, name


@pytest.mark.parametrize("is_cached", [False, True])
def test_batches_do_not_depend_on_workers_and_resumption(folder, processor, tmp_path, is_cached):
    cache = FrameCache(tmp_path / "cache", 10**9, processor.video_processor, num_frames=8) if is_cached else None
    rows = make_rows(folder, broken=(2, 7))
    dataset = VideoTextDataset(rows, processor.video_processor, seed=0, frame_cache=cache)
    batches = read_epochs(dataset, processor)
    assert len(batches) == 2 * 3
    assert_same_batches(read_epochs(dataset, processor, num_workers=2), batches)
    resumed = read_epochs(dataset, processor, num_workers=1, start_step=2)
    assert_same_batches(resumed, [batches[2], batches[5]])
    for batch in batches:
        assert batch["frames"].shape == (4, 4, 3, 32, 32)
        assert len(set(batch["video_ids"])) == 4
    for epoch in (batches[:3], batches[3:]):
        failures = [failure for batch in epoch for failure in batch["failures"]]
        assert {video_id for video_id, _ in failures} == {"v2", "v7"}
        assert all("broken.mp4: not a video file" in reason for _, reason in failures)


def test_normalised_batch_equals_the_output_of_the_processor(folder, processor):
    dataset = VideoTextDataset(make_rows(folder), processor.video_processor, seed=0)
    batch = TrainingCollator(processor, max_text_tokens=12)([dataset[alone(row)] for row in range(2)])
    assert batch["frames"].dtype == torch.uint8
    rng = np.random.default_rng([0, 0, 1])
    rng.integers(20)  # the caption
    frames, _ = decode_video(folder / "1.mp4", processor.video_processor.num_frames, rng)
    expected = processor(videos=frames, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(normalise_frames(batch["frames"][1:], processor.video_processor), expected)


# Broken files


def read_with_broken(monkeypatch, broken: set[int], num_rows: int, batch_size: int, world_size: int = 1):
    """Yield rows, samples and failed rows per batch of an epoch in which the rows `broken` cannot be decoded."""

    def decode(path, *args, **options):
        if int(path) in broken:
            raise VideoDecodingError(path, "broken")
        return np.zeros((1, 2, 2, 3), np.uint8), None

    monkeypatch.setattr(data, "decode_video", decode)
    rows = [{"video_id": str(index), "video": str(index), "captions": [f"{index}"] * 3} for index in range(num_rows)]
    dataset = VideoTextDataset(rows, reader(1), seed=0)
    samplers = [GlobalBatchSampler(num_rows, batch_size, 0, rank, world_size) for rank in range(world_size)]
    for parts in zip(*samplers, strict=True):
        samples = [dataset[item] for part in parts for item in part]
        yield parts[0][0].rows, samples, [int(name) for sample in samples for name, _ in sample.failures]


@pytest.mark.parametrize("num_rows, batch_size", [(40, 20), (41, 13), (600, 64)])
def test_replacements_are_the_same_for_any_number_of_processes(monkeypatch, num_rows, batch_size):
    rng = np.random.default_rng(0)
    for share in (0.05, 0.2):
        broken = set(np.flatnonzero(rng.random(num_rows) < share).tolist())
        read = {
            world_size: list(read_with_broken(monkeypatch, broken, num_rows, batch_size, world_size))
            for world_size in (1, 2, 5)
        }
        names = {size: [[s.video_id for s in samples] for _, samples, _ in read[size]] for size in read}
        assert names[1] == names[2] == names[5]
        for rows, samples, failures in read[1]:
            assert set(failures) <= broken and broken & set(rows) <= set(failures)
            for row, sample in zip(rows, samples, strict=True):
                chosen = int(sample.video_id)
                assert chosen == row if row not in broken else chosen not in broken


def test_replacements_vary_and_are_not_in_the_batch(monkeypatch):
    broken, all_replacements = set(range(0, 300, 5)), []
    for rows, samples, failures in read_with_broken(monkeypatch, broken, num_rows=300, batch_size=20):
        assert failures
        names = [int(sample.video_id) for sample in samples]
        assert len(set(names)) == len(names)
        replacements = {name for name, row in zip(names, rows, strict=True) if name != row}
        assert len(replacements) == len(broken & set(rows)) and not replacements & set(rows)
        all_replacements += replacements
    assert len(all_replacements) == 60 and len(set(all_replacements)) > 40


def test_without_candidates_another_sample_is_repeated_with_its_caption(monkeypatch):
    ((rows, samples, failures),) = read_with_broken(monkeypatch, {0, 1}, num_rows=6, batch_size=6)
    assert set(failures) == {0, 1}
    for row, sample in zip(rows, samples, strict=True):
        assert sample.captions == [sample.video_id]
        assert int(sample.video_id) == row if row > 1 else int(sample.video_id) in (2, 3, 4, 5)
    with pytest.raises(
        ValueError, match="6 videos in a row cannot be decoded, and no other video is left.*The last: .*broken"
    ):
        list(read_with_broken(monkeypatch, set(range(6)), num_rows=6, batch_size=6))


def test_row_without_captions_counts_as_broken(folder):
    rows = make_rows(folder)
    rows[3]["captions"] = []
    sample = VideoTextDataset(rows, reader(2), seed=0)[alone(3)]
    assert [video_id for video_id, _ in sample.failures] == ["v3"] and "no captions" in sample.failures[0][1]
    assert sample.video_id != "v3"


def test_failures_are_returned_once_and_too_many_raise():
    log = FailureLog(limit_share=0.02, num_videos=100)
    assert log.add([]) == []
    assert log.add([("a", "a.mp4: empty"), ("a", "a.mp4: empty")]) == [("a", "a.mp4: empty")]
    assert log.add([("a", "a.mp4: empty"), ("b", "b.mp4: cut off")]) == [("b", "b.mp4: cut off")]
    assert log.reasons == {"a": "a.mp4: empty", "b": "b.mp4: cut off"}
    message = r"3 of 100 videos \(3.0%\) cannot be decoded, and at most 2.0% may: a, b, c. The first: a.mp4: empty"
    with pytest.raises(ValueError, match=message):
        log.add([("c", "c.mp4: no such file")])
    with pytest.raises(ValueError, match="30 of 100 .*: 0, 1, 2, 3, 4, ..."):
        FailureLog(0.02, 100).add([(str(number), "") for number in range(30)])


def test_equal_captions_have_equal_ids():
    assert caption_id("A man  plays\tthe guitar \n") == caption_id("a man plays the guitar")
    ids = {caption_id(f"a man plays {number}") for number in range(2000)}
    assert len(ids) == 2000 and all(0 <= number < 2**63 for number in ids)
    assert caption_id("a red circle") == 5_070_956_507_599_001_626  # in every process, on every machine


# The cache of frames


@pytest.fixture
def make_cache(tmp_path, processor):
    def make(max_bytes: int = 10**9, num_frames: int = 8) -> FrameCache:
        return FrameCache(tmp_path / "cache", max_bytes, processor.video_processor, num_frames)

    return make


@pytest.fixture
def decoded(monkeypatch):
    """Return a list that collects the name of each video that the cache decodes."""
    names = []
    decode_video = frame_cache.decode_video

    def decode_and_note(path, *args, **kwargs):
        names.append(Path(path).name)
        return decode_video(path, *args, **kwargs)

    monkeypatch.setattr(frame_cache, "decode_video", decode_and_note)
    return names


def entries(cache: FrameCache) -> list[Path]:
    return sorted(cache.folder.iterdir())


def test_cached_frames_equal_decoded_frames(folder, make_cache, processor, decoded):
    without = make_cache(max_bytes=0)
    cache = make_cache()
    path = folder / "3.mp4"
    frames = without.load(path)
    assert not entries(cache)
    for load in (cache.load, cache.load, make_cache().load):  # decoded, kept, and kept by another
        assert np.array_equal(load(path), frames)
    assert decoded == ["3.mp4"] * 2 and len(entries(cache)) == 1
    assert frames.shape == (8, 3, 32, 32) and frames.dtype == np.uint8
    # The processor converts cached frames and frames of the file to the same pixels.
    inputs = processor(videos=str(path), videos_kwargs={"num_frames": 8}, return_tensors="pt")
    cached = processor(videos=frames, do_sample_frames=False, return_tensors="pt")
    assert torch.equal(cached["pixel_values_videos"], inputs["pixel_values_videos"])


def test_samples_are_drawn_from_the_cached_frames(folder, make_cache, processor):
    rows = make_rows(folder)
    cache, without = make_cache(), make_cache(max_bytes=0)
    for epoch in range(3):
        for row in (0, 4):
            samples = [
                VideoTextDataset(rows, reader(4, 32, 32), 0, kept)[alone(row, epoch)]
                for kept in (cache, cache, without)
            ]
            assert all(torch.equal(sample.frames, samples[2].frames) for sample in samples)
            rng = np.random.default_rng([0, epoch, row])
            rng.integers(20)  # the caption
            chosen = without.load(rows[row]["video"])[sample_frame_indices(8, 4, rng)]
            assert np.array_equal(samples[0].frames.numpy(), chosen)


def test_short_video_is_cached_without_repetitions(tmp_path, make_cache):
    path = write_video(tmp_path / "short.mp4", numbered_frames(3))
    assert make_cache().load(path).shape == make_cache().load(path).shape == (3, 3, 32, 32)


def test_entries_distinguish_files_segments_and_changes(folder, tmp_path, make_cache, decoded):
    cache = make_cache()
    path = write_video(tmp_path / "video.mp4", numbered_frames(20))
    loads = [(folder / "1.mp4",), (path,), (path, 0.2, None), (path, None, 0.4), (path, 0.2, 0.4)]
    for _ in range(2):
        for load in loads:
            cache.load(*load)
    assert len(decoded) == len(entries(cache)) == 5
    make_cache(num_frames=5).load(path)
    assert len(decoded) == 6
    before = cache.load(path)
    write_video(path, numbered_frames(40)[20:])
    assert not np.array_equal(cache.load(path), before) and len(decoded) == 7


def test_broken_video_raises_and_creates_no_entry(folder, make_cache):
    cache = make_cache()
    for path in (folder / "broken.mp4", folder / "missing.mp4"):
        with pytest.raises(VideoDecodingError):
            cache.load(path)
    assert not entries(cache)


def test_damaged_entries_are_replaced(folder, make_cache, decoded):
    cache = make_cache()
    frames = cache.load(folder / "1.mp4")
    (entry,) = entries(cache)
    content = entry.read_bytes()
    header = content[:20] + b"\xff" * 30 + content[50:]
    arrays = frames.astype(np.float32), np.array([{}], dtype=object), frames[:0]  # the second one needs a pickle
    for number, damage in enumerate((content[:-100], b"", header, *arrays), start=2):
        if isinstance(damage, bytes):
            entry.write_bytes(damage)
        else:
            np.save(entry, damage, allow_pickle=True)
        for _ in range(2):
            assert np.array_equal(cache.load(folder / "1.mp4"), frames)
        assert entry.read_bytes() == content
        assert len(decoded) == number


def test_oldest_entries_are_evicted(folder, make_cache, decoded):
    cache = make_cache(max_bytes=5 * (8 * 3 * 32 * 32 + 128))
    (cache.folder / "notes.txt").write_text("mine")
    (cache.folder / "killed.part").write_bytes(b"left behind")
    os.utime(cache.folder / "killed.part", ns=(0, 0))

    def age(seconds: int) -> None:  # file systems store times coarsely
        for entry in cache.folder.glob("*.npy"):
            status = entry.stat()
            os.utime(entry, ns=(status.st_atime_ns, status.st_mtime_ns - seconds * 10**9))

    for index in range(NUM_VIDEOS):
        cache.load(folder / f"{index}.mp4")
        age(10)
        cache.load(folder / "0.mp4")  # always in use
        assert sum(entry.stat().st_size for entry in cache.folder.glob("*.npy")) <= cache.max_bytes
    assert decoded == [f"{index}.mp4" for index in range(NUM_VIDEOS)]
    cache.load(folder / f"{NUM_VIDEOS - 1}.mp4")
    assert len(decoded) == NUM_VIDEOS
    cache.load(folder / "1.mp4")
    assert len(decoded) == NUM_VIDEOS + 1
    assert (cache.folder / "notes.txt").exists() and not (cache.folder / "killed.part").exists()


def test_unwritable_folder_disables_only_the_cache(folder, make_cache, monkeypatch):
    cache = make_cache()

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", fail)
    assert cache.load(folder / "1.mp4").shape == (8, 3, 32, 32)
    assert not entries(cache)


def load_many(cache: FrameCache, paths: list[Path], seed: int, checksums) -> None:
    rng = np.random.default_rng(seed)
    checksums.put({(index := int(rng.integers(len(paths)))): int(cache.load(paths[index]).sum()) for _ in range(60)})


def test_processes_share_a_cache_without_corrupt_entries(folder, make_cache):
    """Two processes read, write and evict at the same time."""
    cache = make_cache(max_bytes=4 * (8 * 3 * 32 * 32 + 128))
    paths = [folder / f"{index}.mp4" for index in range(NUM_VIDEOS)]
    expected = {index: int(make_cache(max_bytes=0).load(path).sum()) for index, path in enumerate(paths)}
    context = multiprocessing.get_context("fork")
    checksums = context.Queue()
    processes = [context.Process(target=load_many, args=(cache, paths, seed, checksums)) for seed in range(2)]
    for process in processes:
        process.start()
    for found in [checksums.get(timeout=60) for _ in processes]:
        assert found.items() <= expected.items() and len(found) > 6
    for process in processes:
        process.join()
        assert process.exitcode == 0
    cache.load(paths[0])
    sizes = [entry.stat().st_size for entry in entries(cache)]
    assert sum(sizes) <= cache.max_bytes + max(sizes)
    assert all(entry.suffix == ".npy" for entry in entries(cache))
