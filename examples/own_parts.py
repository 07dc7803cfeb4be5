"""A separate model class, loss and data set, which a recipe names by dotted paths; see docs/train.md.

PYTHONPATH=examples pig train --recipe my_recipe.yaml --output runs/own
"""

import json
from pathlib import Path

import datasets
import torch

from modeling_pig import PigForRetrieval
from modeling_pig.loss_pig import PigLosses


class MeanOfFrames(PigForRetrieval):
    """Embed a video as the mean of its frame tokens, instead of the class token (`framework: two_tower`)."""

    def get_video_features(self, pixel_values_videos, *args, **kwargs):
        features = super().get_video_features(pixel_values_videos, *args, **kwargs)
        features.pooler_output = features.context_embeds[:, -pixel_values_videos.shape[1] :].mean(dim=1)
        return features


def text_to_video_loss(*, logits_per_text, **others) -> PigLosses:
    """Compute the cross entropy from text to video only; on one process: it gathers nothing."""
    targets = torch.tensor(range(len(logits_per_text)), device=logits_per_text.device)
    loss = torch.nn.functional.cross_entropy(logits_per_text, targets)
    return PigLosses(loss=loss, retrieval_loss=loss)


def load(videos: str, annotations: str, **options) -> datasets.DatasetDict:
    """Read train.json and so on, lists of {"video_id", "video" (a file in `videos`), "captions" (a list)}."""
    splits = datasets.DatasetDict()
    for split in ("train", "validation", "test"):
        rows = json.loads(Path(annotations, f"{split}.json").read_text())
        rows = [row | {"video": str(Path(videos, row["video"]))} for row in rows]
        splits[split] = datasets.Dataset.from_list(rows)
    return splits
