"""Four variants that may be stronger than the paper's hybrid.

Shapes: B videos, Q captions, n pseudo-queries per video, S context tokens, K patches, D `projection_dim`. The losses
are for one process, and for batches that are not split into chunks.
"""

from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from modeling_pig import PigForRetrieval
from modeling_pig.loss_pig import contrastive_loss, reconstruction_loss
from modeling_pig.training.data import Sample, TrainingCollator, VideoTextDataset

from .variants import Variant


class SeveralPseudoQueries(PigForRetrieval):
    """Generate four pseudo-queries per video, one from each of four end tokens of the generator.

    The embeddings that the interaction pools for them are normalised and averaged into one stored vector.
    """

    num_queries = 4

    def __init__(self, config):
        super().__init__(config)
        self.more_ends = nn.Parameter(torch.zeros(self.num_queries - 1, config.text_config.hidden_size))

    @classmethod
    def from_clip(cls, *args, **kwargs):
        model = super().from_clip(*args, **kwargs)
        with torch.no_grad():  # near the first end token, but distinct: equal tokens would stay equal
            end = model.generator.eos_embedding
            model.more_ends.copy_(end + end.std() * torch.randn_like(model.more_ends))
        return model

    def get_video_features(self, *args, **kwargs):
        features = super().get_video_features(*args, **kwargs)
        tokens = self.visual_projection(self.vision_model.post_layernorm(features.last_hidden_state))  # (B, S + K, D)
        others = [functional_call(self.generator, {"eos_embedding": end}, (tokens,)) for end in self.more_ends]
        queries = torch.stack([features.pseudo_query_embeds, *others], dim=1)  # (B, n, D)
        pooled = self.interaction(queries, features.context_embeds)  # (B, n, D)
        features.pooler_output = nn.functional.normalize(pooled, dim=-1).mean(dim=1)  # (B, D)
        features.pseudo_query_embeds = nn.functional.normalize(queries, dim=-1).mean(dim=1)  # (B, D)
        return features


class HardNegatives(PigForRetrieval):
    """Weight nearer negatives more in the retrieval loss: their exponentials are weighted with (B - 1) softmax(beta
    logits) over the row's negatives (arXiv 2301.02280, with alpha = 1)."""

    beta = 0.5

    def forward(self, *args, caption_ids: torch.Tensor | None = None, **kwargs):
        outputs = super().forward(*args, caption_ids=caption_ids, **kwargs)
        if outputs.loss is not None:
            logits = outputs.logits_per_text
            hard = sum(hard_negative_loss(rows, caption_ids, self.beta) for rows in (logits, logits.t()))
            outputs.loss = outputs.loss - outputs.retrieval_loss + hard
            outputs.retrieval_loss = hard
        return outputs


def hard_negative_loss(logits: torch.Tensor, caption_ids: torch.Tensor | None, beta: float) -> torch.Tensor:
    """Compute the mean loss over the rows of `logits`, (B, B), whose row i belongs to column i.

    With `beta` 0 it is the cross entropy. Pairs with equal `caption_ids` are not negatives of each other.
    """
    is_true = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    is_positive = is_true if caption_ids is None else caption_ids[:, None] == caption_ids
    num_negatives = (~is_positive).sum(dim=1, keepdim=True)
    hardness = (beta * logits.detach()).masked_fill(is_positive, -torch.inf).log_softmax(dim=1)
    weighted = (logits + hardness + num_negatives.log()).masked_fill(is_positive, -torch.inf)
    weighted = torch.where(is_true, logits, weighted)  # also a row without negatives
    return nn.functional.cross_entropy(weighted, torch.arange(len(logits), device=logits.device))


class Distilled(PigForRetrieval):
    """Distil the scores of a single-tower, which shares the backbone and the interaction, into the hybrid's scores.

    The interaction also pools each video for each real query. The retrieval loss trains these scores, and the KL
    divergence in both directions pulls the hybrid's scores to them. Inference is that of the hybrid.
    """

    def forward(self, *args, caption_ids: torch.Tensor | None = None, **kwargs):
        outputs = super().forward(*args, caption_ids=caption_ids, **kwargs)
        if outputs.loss is not None:
            context = outputs.vision_model_output.context_embeds  # (B, S, D)
            pooled = self.interaction(outputs.text_embeds.unsqueeze(0), context)  # (B, Q, D)
            scores = torch.einsum("qd,bqd->qb", outputs.text_embeds, nn.functional.normalize(pooled, dim=-1))
            teacher, student = self.logit_scale.exp() * scores, outputs.logits_per_text  # (Q, B)
            outputs.loss = outputs.loss + contrastive_loss(teacher, caption_ids)
            for logits, targets in ((student, teacher.detach()), (student.t(), teacher.detach().t())):
                outputs.loss = outputs.loss + nn.functional.kl_div(
                    logits.log_softmax(dim=-1), targets.log_softmax(dim=-1), log_target=True, reduction="batchmean"
                )
        return outputs


class AllCaptions(PigForRetrieval):
    """Compare the pseudo-query with all captions of its video, instead of the sampled one only."""

    def forward(self, *args, other_input_ids=None, other_attention_mask=None, num_others=None, **kwargs):
        outputs = super().forward(*args, **kwargs)
        if outputs.reconstruction_loss is not None and other_input_ids is not None:
            is_caption = torch.arange(other_input_ids.shape[1], device=num_others.device) < num_others[:, None]
            others = self.get_text_features(other_input_ids[is_caption], other_attention_mask[is_caption])
            texts = torch.cat([outputs.text_embeds, nn.functional.normalize(others.pooler_output, dim=-1)])
            pseudo_queries = outputs.pseudo_query_embeds  # (B, D)
            pseudo_queries = torch.cat([pseudo_queries, pseudo_queries.repeat_interleave(num_others, dim=0)])
            of_all = reconstruction_loss(pseudo_queries, texts)
            weight = self.config.reconstruction_loss_weight
            outputs.loss = outputs.loss + weight * (of_all - outputs.reconstruction_loss)
            outputs.reconstruction_loss = of_all
        return outputs


class CaptionLines(VideoTextDataset):
    """Dataset whose caption holds the sampled caption and then the video's other captions, one per line."""

    def _read(self, row, rng):
        frames, caption = super()._read(row, rng)
        return frames, "\n".join([caption, *(other for other in row["captions"] if other != caption)])


class CaptionLinesCollator(TrainingCollator):
    """Collator that adds the tokens of the captions that were not sampled: `other_input_ids` and
    `other_attention_mask`, (B, most, tokens), of which the first `num_others`, (B,), of each video count."""

    def __call__(self, samples: list[Sample]) -> Any:
        lines = [sample.caption.split("\n") for sample in samples]
        drawn = [sample._replace(caption=first) for sample, (first, *_) in zip(samples, lines, strict=True)]
        batch = super().__call__(drawn)
        if most := max(map(len, lines)) - 1:
            filled = [text for first, *rest in lines for text in [*rest, *[first] * (most - len(rest))]]
            texts = self.processor(text=filled, text_kwargs=self.text_kwargs, return_tensors="pt")
            batch["other_input_ids"] = texts["input_ids"].unflatten(0, (-1, most))
            batch["other_attention_mask"] = texts["attention_mask"].unflatten(0, (-1, most))
            batch["num_others"] = torch.tensor([len(rest) for _, *rest in lines])
        return batch


STRONGER = {
    variant.name: variant
    for variant in (
        Variant("several_pseudo_queries", model_class=SeveralPseudoQueries),
        Variant("hard_negatives", model_class=HardNegatives),
        Variant("distilled", model_class=Distilled),
        Variant(
            "all_captions",
            model_class=AllCaptions,
            replaced_classes={"VideoTextDataset": CaptionLines, "TrainingCollator": CaptionLinesCollator},
        ),
    )
}
