"""Takes a split of a benchmark through the package's own encoding and ranks it in both directions."""

from collections.abc import Iterable

import torch
from tqdm import tqdm

from modeling_pig import PigForRetrieval, PigProcessor

from ..retrieval.encode import encode_texts, encode_videos
from .metrics import TiePolicy, ranks_in_both_directions, retrieval_metrics


def evaluate(
    model: PigForRetrieval,
    processor: PigProcessor,
    split: Iterable[dict],
    batch_size: int = 16,
    num_threads: int | None = None,
    ties: TiePolicy = "expected",
    max_text_tokens: int | None = None,
    progress: bool = True,
) -> dict:
    """Text-to-video and video-to-text retrieval over a split: every caption is a query, every video a candidate.

    Args:
        split (`Iterable[dict]`): rows with `video` (path) and `captions` (list of sentences).
        batch_size (`int`): videos a forward pass.
        num_threads (`int`, *optional*): files decoded at a time; by default one a core.
        ties (`str`): how tied scores are ranked, see [`ranks_of_targets`].
        max_text_tokens (`int`, *optional*): cut longer captions here; by default at the tokenizer's own limit.

    Returns:
        `dict`: `text_to_video` and `video_to_text` (R@1, R@5, R@10 in per cent, MdR, MnR), the counts, `ties`, and
        `failures`. A video that cannot be decoded leaves the gallery together with its captions, and is named there.

    Raises:
        ValueError: no video of the split can be decoded.
    """
    rows = {row["video"]: row["captions"] for row in split}
    was_training = model.training
    model.eval()
    failures: list = []
    paths: list[str] = []
    embeds = []
    batches = encode_videos(model, processor, list(rows), failures, batch_size, num_threads)
    with tqdm(total=len(rows), desc="encoding", unit="video", disable=not progress, leave=False) as bar:
        for batch in batches:
            paths += batch.paths
            embeds.append(batch.embeds)
            bar.update(len(paths) + len(failures) - bar.n)
    if not paths:
        raise ValueError(f"None of the {len(rows)} videos can be decoded; the first: {failures[0]}")
    video_embeds = torch.cat(embeds)

    texts = [caption for path in paths for caption in rows[path]]
    video_of_text = torch.tensor([index for index, path in enumerate(paths) for _ in rows[path]])
    text_embeds = encode_texts(model, processor, texts, max_text_tokens)
    with torch.inference_mode():
        blocks = (
            model.similarity(block.to(model.device), video_embeds.to(model.device)).cpu()
            for block in text_embeds.split(512)
        )
        text_ranks, video_ranks = ranks_in_both_directions(blocks, video_of_text, len(paths), ties)
    model.train(was_training)
    return {
        "text_to_video": retrieval_metrics(text_ranks),
        "video_to_text": retrieval_metrics(video_ranks),
        "num_queries": len(texts),
        "num_videos": len(paths),
        "num_videos_in_split": len(rows),
        "ties": ties,
        "failures": [str(failure) for failure in failures],
    }


__all__ = ["evaluate"]
