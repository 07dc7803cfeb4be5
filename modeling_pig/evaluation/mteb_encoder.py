"""Run the text-to-video and video-to-text retrieval tasks of the `mteb` package with an encoder."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import torch
from datasets import Video
from tqdm import tqdm

from modeling_pig import PigVideoProcessor, VideoDecodingError

from ..encoding.encoder import Encoder
from ..video_decoding_pig import decode_video
from .evaluator import CAPTIONS_PER_BLOCK, Scores
from .records import MtebResult


DIRECTIONS = ("t2v", "v2t")  # categories of the tasks; others have sound, or texts beside the videos


class MtebEncoder:
    """An [`Encoder`] with the methods that `mteb` calls (its `EncoderProtocol`).

    Embeddings and scores are those of [`evaluate`]. The prompts of the tasks are not used: a model of
    `sentence-transformers` has its own.

    Args:
        encoder (`Encoder`): model, see [`load_encoder`].
        batch_size (`int`): videos per forward pass.
        num_threads (`int`, *optional*): videos decoded at a time; by default one per core.
        progress (`bool`): show a progress bar while videos are encoded.
    """

    def __init__(self, encoder: Encoder, batch_size: int = 16, num_threads: int | None = None, progress: bool = True):
        self.encoder = encoder
        self.batch_size = batch_size
        self.num_threads = num_threads or os.cpu_count() or 1
        self.progress = progress
        fields = {"name": encoder.name, "revision": encoder.revision, "modalities": ["text", "video"]}
        self.mteb_model_meta = import_mteb().models.ModelMeta.create_empty(fields)

    def encode(self, inputs: Any, *, task_metadata: Any, **kwargs: Any) -> torch.Tensor:
        """Encode the N queries or documents of a task.

        Args:
            inputs (`DataLoader`): rows of a `datasets.Dataset` with the column `text` or `video`.
            task_metadata (`TaskMetadata`): the task.

        Returns:
            `torch.Tensor` of shape `(N, D)`: float32, normalised, on the CPU. For videos and a model that
            `ranks_by_interaction`, the context tokens, `(N, S, D)`.

        Raises:
            ValueError: a video cannot be decoded. MTEB defines no score over a part of the videos.
        """
        if "video" in inputs.dataset.column_names:
            return self._encode_videos(inputs.dataset, task_metadata.name)
        return self.encoder.encode_texts([text for batch in inputs for text in batch["text"]])

    def similarity(self, queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        """Return the scores, `(queries, documents)`, of embeddings that [`encode`] returned.

        Raises:
            ValueError: a score is NaN or infinite.
        """
        if queries.ndim == 3:  # context tokens of videos; a query is pooled from them for each text
            return self.similarity(documents, queries).t()
        find = Scores(self.encoder, queries, documents)
        starts = range(0, len(queries), CAPTIONS_PER_BLOCK)
        with torch.inference_mode():
            scores = torch.cat([find(slice(start, start + CAPTIONS_PER_BLOCK)).float() for start in starts])
        if not scores.isfinite().all():
            raise ValueError(f"Scores of {self.encoder.name} are NaN or infinite: try --dtype float32.")
        return scores

    def similarity_pairwise(self, queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        """Return the scores, `(N,)`, of the pairs of a query and a document at the same position."""
        return self.similarity(queries, documents).diagonal()

    def _encode_videos(self, dataset: Any, task: str) -> torch.Tensor:
        encoder = self.encoder
        # Read files, not decoders of torchcodec: this package decodes them, in the same way as everywhere else.
        dataset = dataset.select_columns(["id", "video"]).cast_column("video", Video(decode=False))

        def read(row: dict[str, Any]) -> Any:
            try:
                return encoder.preprocess(read_frames(row["video"], encoder))
            except VideoDecodingError as error:
                return VideoDecodingError(f"{task}, video {row['id']}", error.reason)

        encoded = []
        with (
            ThreadPoolExecutor(self.num_threads) as pool,
            tqdm(total=len(dataset), desc="encoding", unit="video", disable=not self.progress, leave=False) as bar,
        ):

            def start_batch(start: int) -> Iterator[Any]:
                rows = range(start, min(start + self.batch_size, len(dataset)))
                return pool.map(read, [dataset[row] for row in rows])

            upcoming = start_batch(0)
            for start in range(0, len(dataset), self.batch_size):
                clips = list(upcoming)
                if errors := [clip for clip in clips if isinstance(clip, VideoDecodingError)]:
                    raise errors[0]
                upcoming = start_batch(start + self.batch_size)  # is decoded while this batch is encoded
                embeddings, context_embeds = encoder.encode_clips(clips)
                if encoder.ranks_by_interaction:
                    assert context_embeds is not None
                    embeddings = context_embeds.float().cpu()
                encoded.append(embeddings)
                bar.update(len(clips))
        return torch.cat(encoded)


def read_frames(video: Any, encoder: Encoder) -> np.ndarray:
    """Decode the frames of a clip, `(T, ...)`, for [`Encoder.preprocess`].

    Args:
        video (`dict`, `str`, `bytes` or `torchcodec.decoders.VideoDecoder`): row of a column of videos: a dict of
            `path` and `bytes`, either of them, or a decoder. A decoder that `datasets` opened is replaced by its file.
        encoder (`Encoder`): model, which sets the number of frames and how they are decoded.

    Raises:
        VideoDecodingError: the video cannot be decoded.
    """
    options = encoder.decoding_options
    video = getattr(video, "_hf_encoded", video)
    if isinstance(video, dict):
        video = video["path"] if video["bytes"] is None else video["bytes"]
    if not hasattr(video, "get_frames_played_at"):
        return decode_video(video, encoder.num_frames, **options)[0]
    sampler = PigVideoProcessor(num_frames=encoder.num_frames, do_resize=False, do_rescale=False, do_normalize=False)
    [frames] = sampler(video, frame_sampling=options["sampling"], return_tensors="np")["pixel_values_videos"]
    transform = options.get("transform") or (lambda frame: frame)
    return np.stack([transform(frame) for frame in frames.transpose(0, 2, 3, 1)])


def import_mteb() -> ModuleType:
    """Import `mteb`, which creates its folder of results, also if none are kept: here in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        given = os.environ.get("MTEB_CACHE")
        os.environ["MTEB_CACHE"] = folder
        try:
            import mteb
        finally:
            os.environ.pop("MTEB_CACHE")
            if given is not None:
                os.environ["MTEB_CACHE"] = given
    return mteb


def find_tasks(names: Sequence[str]) -> list[Any]:
    """Find tasks of `mteb` by their names.

    Raises:
        ValueError: `mteb` has no such task, or it is not text-to-video or video-to-text retrieval.
    """
    mteb = import_mteb()
    tasks = []
    for name in names:
        try:
            task = mteb.get_task(name)
        except KeyError as error:
            raise ValueError(f"mteb has no such task: {error.args[0].removeprefix('KeyError: ')}") from error
        if task.metadata.category not in DIRECTIONS or "Retrieval" not in task.metadata.type:
            raise ValueError(
                f"{name} is a task of type {task.metadata.type} and category {task.metadata.category}: expected "
                f"retrieval of category {' or '.join(DIRECTIONS)}, such as MSRVTTT2V and MSRVTTV2T."
            )
        tasks.append(task)
    return tasks


def run_tasks(
    encoder: Encoder, tasks: Iterable[Any], batch_size: int = 16, progress: bool = True
) -> Iterator[MtebResult]:
    """Run tasks of `mteb`, and yield the result of each.

    `datasets` downloads the data of a task into its cache. `mteb` writes no files.

    Args:
        encoder (`Encoder`): model, see [`load_encoder`].
        tasks (`Iterable[AbsTaskRetrieval]`): tasks, see [`find_tasks`].
        batch_size (`int`): videos per forward pass.
        progress (`bool`): show progress bars.

    Raises:
        ValueError: a video cannot be decoded, or scores are NaN or infinite.
        OSError: the data of a task cannot be downloaded.
    """
    model = MtebEncoder(encoder, batch_size, progress=progress)
    for task in tasks:
        found = import_mteb().evaluate(model, task, cache=None, co2_tracker=False, show_progress_bar=progress)
        [result] = found.task_results
        metadata = task.metadata
        yield MtebResult(
            **result.model_dump(mode="json"),
            dataset=metadata.dataset["path"],
            category=metadata.category,
            main_metric=metadata.main_score,
        )


__all__ = ["MtebEncoder", "find_tasks", "import_mteb", "read_frames", "run_tasks"]
