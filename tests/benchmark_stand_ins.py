"""Write tiny stand-ins of the benchmarks in all formats (dialects) in which their annotation files circulate.

`write_msvd(folder, dialect="corpus_csv")` and the like fill `folder/annotations` and, with videos, `folder/videos`.
All dialects of a benchmark have the same captions: `captions_of(video_id)`.
"""

import csv
import json
import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from .video_files import numbered_frames, write_video


MSRVTT_OFFICIAL = {
    "train": [f"video{number}" for number in (0, 3, 1, 2, 10, 6512)],
    "validation": ["video6513", "video7009"],
    "test": [f"video{number}" for number in (7010, 7011, 7012, 7020, 9999)],
}
MSRVTT_1K_TEST = ["video7020", "video9999", "video7012"]  # in the order of the CSV
MSRVTT_9K = [*MSRVTT_OFFICIAL["train"], *MSRVTT_OFFICIAL["validation"], "video7010", "video7011"]
MSRVTT_7K = [*MSRVTT_OFFICIAL["train"], *MSRVTT_OFFICIAL["validation"]]
MSVD = {
    "train": ["-4wsuPCjDBc_5_15", "_O9kWD8nuRU_0_12", "bQJQGoJF7_k_120_126", "8_y1Q0rA3n8_95_102"],
    "validation": ["bQJQGoJF7_k_162_169", "eyMYc-37Sk4_0_10"],
    "test": ["f9_bP219ehQ_63_70", "zzit5b_-ukg_5_20", "--ujek2l1cA_1_9"],
}
VATEX = {
    "train": ["Ptf_2VRj-V0_000122_000132", "-CBL6uetTPH_000089_000099", "_GwlcmI36im_000127_000137"],
    "validation": ["3c0hLqxvSSI_000000_000010", "nM_ySHgMPW0_000000_000010"],
    "test": ["-PCVHF3Kp3M_000169_000179", "sf2PPeXQrUA_000000_000010"],
}
DIDEMO = {
    "train": ["54322086@N00_2408598493_274c77d26a.avi", "12090392@N02_13482799053_87ef417396.mov"],
    "validation": ["10175347@N00_4841555141_4eeb6a515a.mp4", "98498050@N00_3568952835_817654f7fd.wmv"],
    "test": ["10052357@N03_7585070382_5762149bfc.", "10015567@N08_3655084291_d8b58466fa.mov"],
}
# Second name of a video, which the lists do not contain.
DIDEMO_OTHER_NAME = "10015567@N08_3655084291_d8b58466fa.mpg"

DIALECTS = {
    "msrvtt_1k": ("json", "semicolons", "frozen_in_time", "clip_vip", "clip_name"),
    "msrvtt_3k": ("json", "two_files", "frozen_in_time", "jsonl", "jsonl_strings", "pickle"),
    "msvd": ("json", "pickle", "corpus_csv", "text", "jsonl", "by_split"),
    "vatex": ("list", "dict", "ref_captions"),
    "didemo": ("json", "jsonl"),
}


def captions_of(video_id: str, count: int = 3) -> list[str]:
    """Return the captions of a video; the last repeats the first. The second is the query of a 1k-A test video."""
    captions = [f"a person does thing {number} in {video_id}" for number in range(count - 1)]
    return [*captions, captions[0]]


def paragraph_of(name: str) -> str:
    """Return the paragraph of a DiDeMo file name."""
    return " ".join(captions_of(name))


def write_msrvtt_1k(folder: Path, dialect: str = "json", with_videos: bool = True) -> None:
    annotations = _folders(folder)
    queries = [(video_id, captions_of(video_id)[1]) for video_id in MSRVTT_1K_TEST]
    if dialect == "clip_vip":
        _write_jsonl(annotations / "a.jsonl", [{"clip_id": i, "text": captions_of(i)} for i in MSRVTT_9K])
        _write_jsonl(annotations / "b.jsonl", [{"clip_id": i, "text": text} for i, text in queries])
    elif dialect == "clip_name":
        train = [{"caption": text, "clip_name": i} for i in MSRVTT_9K for text in captions_of(i)]
        _write_jsonl(annotations / "train.jsonl", train)
        _write_jsonl(annotations / "test.jsonl", [{"caption": text, "clip_name": i} for i, text in queries])
    elif dialect == "frozen_in_time":
        _write_frozen_in_time(annotations)
    else:
        _write_list(annotations / "train_9k.csv", ["video_id", *MSRVTT_9K])
        _write_list(annotations / "train_7k.csv", ["video_id", *MSRVTT_7K])
        _write_msrvtt_captions(annotations, dialect)
        if dialect == "jsfusion_pickle":
            (annotations / "jsfusion_val_caption_idx.pkl").write_bytes(pickle.dumps(dict.fromkeys(MSRVTT_1K_TEST, 1)))
            _write_list(annotations / "val_list_jsfusion.txt", sorted(MSRVTT_1K_TEST))
        else:
            rows = [(f"ret{n}", f"msr{i[5:]}", i, f" {text}  ") for n, (i, text) in enumerate(queries)]
            separator, end, encoding = (";", "\r\n", "utf-8-sig") if dialect == "semicolons" else (",", "\n", "utf-8")
            with open(annotations / "MSRVTT_JSFUSION_test.csv", "w", encoding=encoding, newline="") as file:
                writer = csv.writer(file, delimiter=separator, lineterminator=end)
                writer.writerows([("key", "vid_key", "video_id", "sentence"), *rows])
    if with_videos:
        _write_videos(folder, (f"{video_id}.mp4" for video_id in (*MSRVTT_9K, *MSRVTT_1K_TEST)))


def write_msrvtt_3k(folder: Path, dialect: str = "json", with_videos: bool = True) -> None:
    annotations = _folders(folder)
    if dialect == "frozen_in_time":
        _write_frozen_in_time(annotations)
    else:
        if dialect == "json":  # the other dialects have no lists
            for split, ids in MSRVTT_OFFICIAL.items():
                _write_list(annotations / f"{split[:2]}.txt", ids)
        _write_msrvtt_captions(annotations, dialect)
    if with_videos:
        _write_videos(folder, (f"{video_id}.mp4" for ids in MSRVTT_OFFICIAL.values() for video_id in ids))


def write_msvd(folder: Path, dialect: str = "json", with_videos: bool = True) -> None:
    annotations = _folders(folder)
    if dialect != "by_split":
        _write_lists(annotations, MSVD)
    captions = {video_id: captions_of(video_id) for ids in MSVD.values() for video_id in ids}
    pairs = [(video_id, text) for video_id, texts in captions.items() for text in texts]
    if dialect == "pickle":
        tokens = {video_id: [text.split() for text in texts] for video_id, texts in captions.items()}
        (annotations / "raw-captions.pkl").write_bytes(pickle.dumps(tokens, protocol=0))
    elif dialect == "corpus_csv":
        rows = [(*video_id.rsplit("_", 2), 1, "clean", "English", text) for video_id, text in pairs]
        rows.insert(1, (*MSVD["train"][0].rsplit("_", 2), 2, "clean", "Slovene", "oseba nekaj dela"))
        with open(annotations / "corpus.csv", "w", encoding="utf-8", newline="") as file:
            header = ("VideoID", "Start", "End", "WorkerID", "Source", "Language", "Description")
            csv.writer(file).writerows([header, *rows])
    elif dialect == "text":
        lines = ["# The descriptions", "of the corpus", "", *(f"{video_id} {text}" for video_id, text in pairs)]
        _write_list(annotations / "AllVideoDescriptions.txt", lines)
    elif dialect == "by_split":
        records = {
            split: [
                {"video": f"{video_id}.avi", "caption": text} for video_id in ids for text in captions_of(video_id)
            ]
            for split, ids in MSVD.items()
        }
        _write_json(annotations / "msvd.json", records)
    elif dialect == "jsonl":
        _write_jsonl(annotations / "captions.jsonl", [{"clip_id": i, "text": texts} for i, texts in captions.items()])
    else:
        _write_json(annotations / "captions_msvd.json", captions)
    if with_videos:
        _write_videos(folder, (f"{video_id}.avi" for video_id in captions))


def write_vatex(folder: Path, dialect: str = "list", with_videos: bool = True) -> None:
    annotations = _folders(folder)
    _write_lists(annotations, VATEX)
    for name, ids in {"training": VATEX["train"], "validation": [*VATEX["test"], *VATEX["validation"]]}.items():
        records = [{"videoID": i, "enCap": captions_of(i), "chCap": ["not English"]} for i in ids]
        if dialect == "ref_captions":
            _write_json(annotations / name / "ref_captions.json", {i: captions_of(i) for i in ids})
        elif dialect == "dict":
            _write_json(annotations / f"vatex_{name}.json", {record["videoID"]: record for record in records})
        else:
            _write_json(annotations / f"vatex_{name}_v1.0.json", records)
    if with_videos:
        _write_videos(folder, (f"{video_id}.mp4" for ids in VATEX.values() for video_id in ids))


def write_didemo(folder: Path, dialect: str = "json", with_videos: bool = True) -> None:
    """Write DiDeMo; its first test video is a folder of frames."""
    annotations = _folders(folder)
    for split, names in DIDEMO.items():
        _write_list(annotations / f"{split}_list.txt", names)
        annotated = [*names, DIDEMO_OTHER_NAME] if split == "test" else names
        if dialect == "jsonl":
            records = [{"clip_id": name, "text": captions_of(name)} for name in annotated]
            _write_jsonl(annotations / f"{split}.jsonl", records)
        else:
            # The records of a video are not contiguous.
            pairs = [(name, captions_of(name)[number]) for number in range(3) for name in annotated]
            _write_json(
                annotations / f"{split}_data.json",
                [
                    {"annotation_id": number, "description": text.replace("thing", "\r\nthing"), "video": name}
                    for number, (name, text) in enumerate(pairs)
                ],
            )
    if with_videos:
        frames, *files = [Path(name).stem for name in (*DIDEMO["test"], *DIDEMO["train"], *DIDEMO["validation"])]
        _write_videos(folder, (f"{name}.mp4" for name in files))
        (folder / "videos" / frames).mkdir()
        for number, frame in enumerate(numbered_frames(4), 1):
            Image.fromarray(frame).save(folder / "videos" / frames / f"{number:06d}.jpg")


WRITERS = {
    "msrvtt_1k": write_msrvtt_1k,
    "msrvtt_3k": write_msrvtt_3k,
    "msvd": write_msvd,
    "vatex": write_vatex,
    "didemo": write_didemo,
}


def _folders(folder: Path) -> Path:
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    return folder / "annotations"


def _write_videos(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        codec = "mpeg4" if name.endswith(".avi") else "libx264"
        write_video(folder / "videos" / name, numbered_frames(8), codec=codec)


def _write_frozen_in_time(annotations: Path) -> None:
    """Write MSR-VTT in the folders of Frozen in Time, with a copy of the captions as words."""
    (annotations / "annotation").mkdir()
    _write_msrvtt_captions(annotations / "annotation", "coco")
    lists = annotations / "high-quality" / "structured-symlinks"
    lists.mkdir(parents=True)
    for split, ids in MSRVTT_OFFICIAL.items():
        _write_list(lists / f"{split.removesuffix('idation')}_list_full.txt", ids)
    _write_list(lists / "train_list_jsfusion.txt", MSRVTT_9K)
    _write_list(lists / "val_list_jsfusion.txt", sorted(MSRVTT_1K_TEST))
    (lists / "jsfusion_val_caption_idx.pkl").write_bytes(pickle.dumps(dict.fromkeys(MSRVTT_1K_TEST, 1)))
    ids = [video_id for ids in MSRVTT_OFFICIAL.values() for video_id in ids]
    words = {i: [re.findall(r"[a-z]+|\d+", text) for text in captions_of(i)] for i in ids}
    (lists / "raw-captions.pkl").write_bytes(pickle.dumps(words))


def _write_msrvtt_captions(annotations: Path, dialect: str) -> None:
    ids = [video_id for ids in MSRVTT_OFFICIAL.values() for video_id in ids]
    # Captions are not grouped by video, and contain superfluous spaces.
    pairs = [(video_id, captions_of(video_id)[number]) for number in range(3) for video_id in reversed(ids)]
    if dialect == "coco":
        annotated = [{"image_id": i, "caption": text, "id": n} for n, (i, text) in enumerate(pairs)]
        _write_json(annotations / "MSR_VTT.json", {"images": [{"id": i} for i in ids], "annotations": annotated})
    elif dialect == "jsonl":
        _write_jsonl(annotations / "all.jsonl", [{"clip_id": i, "text": captions_of(i)} for i in ids])
    elif dialect == "jsonl_strings":
        _write_jsonl(annotations / "all.jsonl", [{"clip_id": i, "text": text} for i, text in pairs])
    elif dialect == "pickle":
        tokens = {i: [text.split() for text in captions_of(i)] for i in ids}
        (annotations / "raw-captions.pkl").write_bytes(pickle.dumps(tokens))
    else:
        in_test = set(MSRVTT_OFFICIAL["test"])
        files = [set(ids) - in_test, in_test] if dialect == "two_files" else [set(ids)]
        for number, file_ids in enumerate(files):
            sentences = [
                {"sen_id": n, "video_id": i, "caption": f" {text.replace(' ', '  ')}"}
                for n, (i, text) in enumerate(pairs)
                if i in file_ids
            ]
            videos = [{"video_id": i, "category": 9, "start time": 1.0, "end time": 9.0} for i in sorted(file_ids)]
            _write_json(annotations / f"videodatainfo_{number}.json", {"videos": videos, "sentences": sentences})


def _write_lists(annotations: Path, splits: dict[str, list[str]]) -> None:
    for split, ids in splits.items():
        _write_list(annotations / f"{split.removesuffix('idation')}_list.txt", ids)


def _write_list(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines), encoding="utf-8")  # without a final newline, as most files that circulate


def _write_json(path: Path, tree: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(tree, indent=1), encoding="utf-8")


def _write_jsonl(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
