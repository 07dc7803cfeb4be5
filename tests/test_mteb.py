"""Tasks of the `mteb` package give the recall of `evaluate`, for every kind of model; nothing else is written."""

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, Video

from modeling_pig import PigForRetrieval
from modeling_pig.benchmarks.moving_shapes import make_scene
from modeling_pig.benchmarks.shapes_drawing import write_video
from modeling_pig.encoding.loading import load_encoder
from modeling_pig.evaluation.evaluator import evaluate
from modeling_pig.evaluation.mteb_encoder import import_mteb, read_frames, run_tasks
from modeling_pig.evaluation.records import MtebRecord
from modeling_pig.video_decoding_pig import decode_video

from .cli_helpers import assert_one_line_error
from .test_encoders import folder_of  # noqa: F401


# Not `importorskip`: the import alone creates a folder in the home directory, see `import_mteb`.
pytestmark = pytest.mark.skipif(not find_spec("mteb"), reason="an optional extra")

SHAPES, WAYS = ("circle", "star", "ring"), ("left", "up")
NUM_VIDEOS = 2 * len(SHAPES) * len(WAYS)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    paths = [folder / f"video_{index:02}.mp4" for index in range(NUM_VIDEOS)]
    for index, path in enumerate(paths):
        write_video(make_scene("test", index), path)
    return paths


@pytest.fixture
def rows(files) -> list[dict]:
    """Return a split: two captions per video, of which the second is the same for all videos."""
    captions = [f"a {color} {shape} moves {way}" for color in ("red", "blue") for shape in SHAPES for way in WAYS]
    return [
        {"video_id": path.stem, "video": str(path), "captions": [caption, "a circle moves"]}
        for path, caption in zip(files, captions, strict=True)
    ]


def make_task(rows: list[dict], category: str = "t2v"):
    """Make a retrieval task of `mteb` over a split, with its videos as bytes and as paths."""
    mteb = import_mteb()
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData

    captions = [(f"{row['video_id']}_{n}", text, row) for row in rows for n, text in enumerate(row["captions"])]
    texts = Dataset.from_dict({"id": [name for name, *_ in captions], "text": [text for _, text, _ in captions]})
    files = [Path(row["video"]).read_bytes() if n % 2 else row["video"] for n, row in enumerate(rows)]
    videos = Dataset.from_dict({"id": [row["video_id"] for row in rows], "video": [encode(file) for file in files]})
    videos = videos.cast_column("video", Video())
    pairs = [(name, row["video_id"]) for name, _, row in captions]
    relevant: dict[str, dict[str, int]] = {}
    for text, video in pairs:
        query, document = (text, video) if category == "t2v" else (video, text)
        relevant.setdefault(query, {})[document] = 1

    class MovingShapes(AbsTaskRetrieval):
        metadata = mteb.TaskMetadata(
            name=f"MovingShapes{category.upper()}",
            description="drawn shapes",
            dataset={"path": "none/moving_shapes", "revision": "1"},
            type="Any2AnyRetrieval",
            category=category,
            modalities=["text", "video"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, num_proc=None, **kwargs) -> None:
            queries, corpus = (texts, videos) if category == "t2v" else (videos, texts)
            data = RetrievalSplitData(queries=queries, corpus=corpus, relevant_docs=relevant, top_ranked=None)
            self.dataset = {"default": {"test": data}}
            self.data_loaded = True

    return MovingShapes()


def encode(file: str | bytes) -> dict:
    return {"bytes": file, "path": None} if isinstance(file, bytes) else {"bytes": None, "path": file}


def assert_equal_recall(result, expected: dict[str, float]) -> None:
    [scores] = result.scores["test"]
    for k in (1, 5, 10):
        assert 100 * getattr(scores, f"recall_at_{k}") == pytest.approx(expected[f"R@{k}"], abs=1e-3), k


@pytest.fixture
def encoder_of(request, make_config, processor, tmp_path):
    def load(kind: str):
        if kind in ("clip", "xclip"):
            folder = request.getfixturevalue("folder_of")(kind)
            return load_encoder(str(folder), device="cpu", dtype="float32", num_frames=4)
        folder = tmp_path / kind
        torch.manual_seed(0)
        PigForRetrieval(make_config(framework=kind)).save_pretrained(folder)
        processor.save_pretrained(folder)
        return load_encoder(str(folder), device="cpu", dtype="float32")

    return load


@pytest.mark.parametrize("kind", ["hybrid", "single_tower", "clip"])
def test_recall_equals_that_of_evaluate(kind, encoder_of, rows):
    encoder = encoder_of(kind)
    [text_to_video] = run_tasks(encoder, [make_task(rows)], batch_size=2, progress=False)
    expected = evaluate(encoder, rows, progress=False)
    assert 0 < expected.text_to_video["R@1"] < expected.text_to_video["R@10"] < 100
    assert_equal_recall(text_to_video, expected.text_to_video)
    for row in rows:
        row["captions"] = row["captions"][:1]
    [video_to_text] = run_tasks(encoder, [make_task(rows, "v2t")], batch_size=2, progress=False)
    assert_equal_recall(video_to_text, evaluate(encoder, rows, progress=False).video_to_text)


def test_tied_videos_rank_by_their_ids(encoder_of, rows):
    rows.append(rows[0] | {"video_id": "video_99"})  # the same file: mteb ranks the higher id first
    encoder = encoder_of("clip")
    [result] = run_tasks(encoder, [make_task(rows)], progress=False)
    worst, best = (evaluate(encoder, rows, ties=ties, progress=False) for ties in ("pessimistic", "optimistic"))
    [scores] = result.scores["test"]
    for k in (1, 5, 10):
        low, high = worst.text_to_video[f"R@{k}"], best.text_to_video[f"R@{k}"]
        assert low - 1e-3 <= 100 * getattr(scores, f"recall_at_{k}") <= high + 1e-3


def test_a_video_that_cannot_be_decoded_ends_the_task(encoder_of, rows, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    rows[1]["video"] = str(tmp_path / "broken.mp4")
    with pytest.raises(ValueError, match="^MovingShapesT2V, video video_01: "):
        list(run_tasks(encoder_of("clip"), [make_task(rows)], progress=False))


class FakeDecoder:
    """Stand-in for a `VideoDecoder` of torchcodec over the frames of a file with a constant frame rate."""

    def __init__(self, path: Path):
        _, metadata = decode_video(path, 1)
        count, fps = metadata.total_num_frames, metadata.fps
        self.frames = torch.from_numpy(decode_video(path, count)[0]).permute(0, 3, 1, 2)
        self.metadata = SimpleNamespace(
            **{"num_frames": count, "average_fps": fps, "width": metadata.width, "height": metadata.height},
            **{"duration_seconds": count / fps, "begin_stream_seconds": 0.0, "end_stream_seconds": count / fps},
        )

    def get_frames_at(self, indices: list[int]):
        return SimpleNamespace(data=self.frames[indices])

    def get_frames_played_at(self, seconds: list[float]):
        return self.get_frames_at([int(second * self.metadata.average_fps) for second in seconds])


@pytest.mark.parametrize("kind", ["hybrid", "xclip"])
def test_all_forms_of_a_video_give_the_same_frames(kind, encoder_of, files):
    encoder = encoder_of(kind)
    expected, _ = decode_video(files[0], encoder.num_frames, **encoder.decoding_options)
    content, path = files[0].read_bytes(), str(files[0])
    opened = SimpleNamespace(_hf_encoded={"bytes": None, "path": path})
    forms = [path, content, {"bytes": content, "path": "a.mp4"}, {"bytes": None, "path": path}, opened]
    for video in [*forms, FakeDecoder(files[0])]:
        assert np.array_equal(read_frames(video, encoder), expected), type(video)


def test_the_command_writes_the_results(pig, encoder_of, rows, tmp_path, monkeypatch):
    model = encoder_of("clip").name
    tasks = {category.upper(): make_task(rows, category) for category in ("t2v", "v2t")}
    monkeypatch.setattr(import_mteb(), "get_task", lambda name: tasks[name])
    command = ("evaluate", "--model", model, "--mteb", "T2V", "--mteb", "V2T", "--dtype", "bfloat16")
    status, output, error = pig(*command, "--num-frames", 3, "--output", "runs/mteb.json")
    assert status == 0, error
    record = MtebRecord(**json.loads((tmp_path / "runs/mteb.json").read_text()))
    assert (record.model, record.dtype, record.num_frames) == (model, "bfloat16", 3)
    assert record.model_fingerprint == encoder_of("clip").fingerprint
    assert [result.task_name for result in record.results] == ["MovingShapesT2V", "MovingShapesV2T"]
    [scores] = record.results[0].scores["test"]
    row = next(line for line in output.splitlines() if "MovingShapesT2V" in line)
    for value in (scores.main_score, scores.recall_at_1, scores.recall_at_5, scores.recall_at_10):
        assert f" {100 * value:.1f} " in row
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["runs", "runs/mteb.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give --recipe RECIPE or --mteb TASK"),
        (("--mteb", "MSRVTTT2V", "--recipe", "moving_shapes"), "--recipe cannot be combined with --mteb"),
        (
            ("--mteb", "MSRVTTT2V", "--ties", "expected", "--rerank", "5", "data.videos=x"),
            "--ties, --rerank, section.key=value cannot be combined with --mteb",
        ),
        (("--mteb", "MSRVTTT2"), "'MSRVTTT2' not found. Did you mean: 'MSRVTTT2V'?"),
        (("--mteb", "MSRVTTT2V", "--mteb", "MSRVTTT2VA"), "MSRVTTT2VA is a task of type Any2AnyRetrieval and cat"),
        (("--mteb", "MSRVTTT2V", "--output", "mteb.txt"), "expected a file named .json"),
        (("--mteb", "MSRVTTT2V", "--output", "mteb.json"), "There is no model folder ./missing"),
    ],
)
def test_errors_of_the_command(pig, options, message):
    assert_one_line_error(pig("evaluate", "--model", "./missing", *options), message)
