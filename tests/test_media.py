"""Thumbnails, previews and playable clips: made once, bounded, of every kind of file; broken files, full disks."""

import errno
import io
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest

from modeling_pig import files
from modeling_pig.app import media
from modeling_pig.app.media import MediaCache, StorageOfflineError, media_folder
from modeling_pig.video_decoding_pig import VideoDecodingError, decode_video


@pytest.fixture
def cache(tmp_path):
    cache = MediaCache(tmp_path / "media")
    yield cache
    cache.close()


def open_image(content: bytes) -> PIL.Image.Image:
    image = PIL.Image.open(io.BytesIO(content))
    assert image.format == "WEBP"
    return image.convert("RGB")


def difference(image: PIL.Image.Image, frame: np.ndarray) -> float:
    return float(np.abs(np.asarray(image, dtype=float) - frame).mean())


def test_a_thumbnail_is_the_middle_frame_and_is_made_once(cache, shape_videos, monkeypatch):
    path = str(shape_videos[0])
    frames, _ = decode_video(path, 1)
    content = cache.thumbnail(path).result()
    assert difference(open_image(content), frames[0]) < 6
    middle, _ = decode_video(path, 1, start=1.0, end=2.0)
    assert difference(open_image(cache.thumbnail(path, 1.0, 2.0).result()), middle[0]) < 6

    monkeypatch.setattr(media, "_draw", None)  # is not needed any more
    assert cache.thumbnail(path).done() and cache.thumbnail(path).result() == content
    other = MediaCache(cache.folder)  # another process
    assert other.thumbnail(path).result() == content


def test_a_preview_holds_frames_side_by_side(cache, shape_videos):
    path = str(shape_videos[0])
    frames, _ = decode_video(path, 8)
    image = open_image(cache.preview(path).result())
    width = image.width // 8
    for number, frame in enumerate(frames):
        assert difference(image.crop((number * width, 0, (number + 1) * width, image.height)), frame) < 8


def test_a_changed_file_has_a_new_thumbnail(cache, shape_videos, tmp_path):
    path = tmp_path / "a.mp4"
    shutil.copy(shape_videos[0], path)
    before = cache.thumbnail(str(path)).result()
    shutil.copy(shape_videos[1], path)
    os.utime(path, (1, 1))
    assert cache.thumbnail(str(path)).result() != before


@pytest.mark.parametrize("suffix", [".ts", ".mxf", ".mkv", ".avi", ".gif"])
def test_files_that_browsers_do_not_play_have_thumbnails(cache, tmp_path, suffix):
    path = str(tmp_path / f"video{suffix}")
    write_container(path)
    image = open_image(cache.thumbnail(path).result())
    assert max(image.size) == 320 and difference(image, np.full((180, 320, 3), (200, 40, 40))) < 12


def write_container(path: str, seconds: int = 2, rate: int = 25) -> None:
    """Write a red video of 640 x 360 pixels in a codec that the container takes."""
    import av

    codec = {".mxf": "mpeg2video", ".gif": "gif", ".avi": "mpeg4"}.get(os.path.splitext(path)[1], "libx264")
    formats = {"gif": "rgb8"}
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate, options={} if codec == "gif" else {"g": "12"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, formats.get(codec, "yuv420p")
        if codec == "mpeg2video":
            stream.bit_rate = 4_000_000
        for _ in range(rate * seconds):
            frame = av.VideoFrame.from_ndarray(np.full((360, 640, 3), (200, 40, 40), dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_a_large_file_is_not_read_to_its_end(cache, shape_videos, monkeypatch):
    path = str(shape_videos[0])
    exact = open_image(cache.thumbnail(path, 1.0, 2.0).result())
    monkeypatch.setattr(media, "MAX_READ_FILE", 0)
    monkeypatch.setattr(media, "_decode_frames", None)
    os.utime(path)
    first, _ = decode_video(path, 1, start=1.0, end=1.01)  # the only keyframe is the first frame of the file
    sought = open_image(cache.thumbnail(path, 1.0, 2.0).result())
    assert difference(sought, first[0]) < 6 < difference(sought, np.asarray(exact))
    image = open_image(cache.preview(path).result())
    assert image.width == 8 * (image.width // 8) and image.height > 50


def test_a_large_file_without_an_index_is_read(cache, shape_videos, monkeypatch, tmp_path):
    monkeypatch.setattr(media, "MAX_READ_FILE", 0)
    path = str(tmp_path / "video.ts")
    write_container(path)
    assert open_image(cache.thumbnail(path).result()).size == (320, 180)


def test_a_thousand_requests_decode_a_file_once(cache, shape_videos, monkeypatch):
    release, made = threading.Event(), []
    draw = media._draw

    def draw_slowly(*arguments) -> bytes:
        release.wait()
        made.append(threading.current_thread().name)
        return draw(*arguments)

    monkeypatch.setattr(media, "_draw", draw_slowly)
    paths = [str(path) for path in shape_videos]
    with ThreadPoolExecutor(32) as pool:
        futures = list(pool.map(lambda number: cache.thumbnail(paths[number % 5]), range(1000)))
    release.set()
    contents = [future.result() for future in futures]
    assert len(set(contents)) == len(made) == 5
    assert len(set(made)) <= 2  # decoders


def test_a_broken_file_is_decoded_once(cache, tmp_path, monkeypatch):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"junk" * 1000)
    for _ in range(2):
        with pytest.raises(VideoDecodingError, match="not a video file"):
            cache.thumbnail(str(path)).result()
        monkeypatch.setattr(media, "_draw", None)
    assert not list(cache.folder.glob("*.webp"))


def test_a_deleted_file_and_an_absent_disk_differ(cache, tmp_path):
    with pytest.raises(FileNotFoundError):
        cache.thumbnail(str(tmp_path / "deleted.mp4"))
    with pytest.raises(StorageOfflineError, match="cannot be reached"):
        cache.thumbnail(str(tmp_path / "disk" / "video.mp4"))


def test_without_room_pictures_are_made_and_not_kept(shape_videos, tmp_path, monkeypatch, caplog):
    cache = MediaCache(tmp_path / "media")

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", fail)
    for path in shape_videos[:2]:
        assert open_image(cache.thumbnail(str(path)).result()).width > 50
    assert list(cache.folder.iterdir()) == []
    assert [record.message for record in caplog.records] == [
        f"Pictures of videos are not kept in {cache.folder}: No space left on device."
    ]
    cache.close()

    (tmp_path / "file").write_text("")
    cache = MediaCache(tmp_path / "file" / "media")  # cannot be created, also not by root
    assert open_image(cache.thumbnail(str(shape_videos[0])).result()).width > 50
    cache.close()


def test_the_folder_is_bounded(shape_videos, tmp_path):
    one = MediaCache(tmp_path / "one")
    size = max(len(one.thumbnail(str(path)).result()) for path in shape_videos)
    cache = MediaCache(tmp_path / "media", max_bytes=3 * size)
    (cache.folder).mkdir()
    (cache.folder / "notes.txt").write_text("mine")
    for path in shape_videos:
        cache.thumbnail(str(path)).result()
        assert sum(file.stat().st_size for file in cache.folder.glob("*.webp")) <= 3 * size
    assert (cache.folder / "notes.txt").exists()
    assert cache.thumbnail(str(shape_videos[-1])).done()
    one.close()
    cache.close()


def test_the_folder_is_beside_the_index(tmp_path, monkeypatch):
    assert media_folder(str(tmp_path / "v.lance")) == tmp_path / ".v.lance.media"
    remote = media_folder("s3://bucket/v.lance")
    assert remote != media_folder("s3://bucket/w.lance") and "bucket" not in str(remote)


def test_what_browsers_do_not_play_is_converted_once(cache, tmp_path, monkeypatch):
    path = str(tmp_path / "video.mxf")
    write_container(path)
    first = [cache.playable(path) for _ in range(3)]
    assert len(set(first)) == 1
    clip = first[0].result()
    with av_open(clip) as container:
        assert container.format.name.startswith("mov,mp4") and container.streams.video[0].codec_context.name == "h264"
        assert float(container.duration / 1e6) == pytest.approx(2, abs=0.1)
    assert cache.playable(path).done() and cache.playable(path).result() == clip
    part = cache.playable(path, 0.5, 1.0).result()
    with av_open(part) as container:
        assert float(container.duration / 1e6) == pytest.approx(0.5, abs=0.1)

    monkeypatch.setattr(media, "MAX_CLIP", 1.0)
    os.utime(path, (1, 1))
    with av_open(cache.playable(path).result()) as container:
        assert float(container.duration / 1e6) == pytest.approx(1, abs=0.1)


def av_open(path):
    import av

    return av.open(str(path))


def test_clips_are_bounded_in_number_and_time(cache, tmp_path, shape_videos, monkeypatch):
    paths = [str(path) for path in shape_videos]
    release = threading.Event()
    cut = cache._cut
    monkeypatch.setattr(cache, "_cut", lambda *arguments: (release.wait(), cut(*arguments))[1])
    monkeypatch.setattr(media, "MAX_CLIPS", 2)
    waiting = [cache.playable(path) for path in paths[:2]]
    assert cache.playable(paths[0]) is waiting[0]  # no further clip
    with pytest.raises(media.BusyError, match="try again later"):
        cache.playable(paths[2])
    release.set()
    assert all(future.result().exists() for future in waiting)
    monkeypatch.setattr(media, "MAX_TRANSCODING", -1.0)
    with pytest.raises(OSError, match="not converted within"):
        cache.playable(paths[3]).result()
    assert cache.playable(paths[0]).done()


def test_clips_are_made_if_the_folder_cannot_be_written(shape_videos, tmp_path):
    (tmp_path / "file").write_text("")
    cache = MediaCache(tmp_path / "file" / "media")
    clip = cache.playable(str(shape_videos[0])).result()
    assert clip.exists()
    cache.close()
    assert not clip.exists()


def test_a_closed_cache_makes_nothing_more(cache, shape_videos, tmp_path):
    path = str(tmp_path / "video.avi")
    write_container(path, seconds=200, rate=1)
    clip, others = cache.playable(path), [cache.thumbnail(str(video)) for video in shape_videos]
    cache.close()
    assert clip.done() and (clip.cancelled() or clip.exception() is not None)
    assert all(future.done() for future in others)
