# Copyright 2026 The PIG contributors
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""PyTorch PIG model: text-to-video retrieval with pseudo-queries (the Hybrid-Tower paper, arXiv 2509.04773).

A video's way through this file: frames -> `PigVisionTransformer` (a CLIP ViT with video tokens) -> the patches that
the class token attends to most -> `PigPseudoQueryGenerator` (what would one ask to find this video?) ->
`PigInteraction` (the video's tokens, pooled for that question) -> one vector, which is indexed.

Shapes: B videos, Q texts, T frames, P patches a frame, L tokens a frame (its frame token and P patches),
M video tokens (class and G globals), N = M + T * L tokens in all, S = M + T context tokens (all but the patches),
K selected patches, H heads, C width of the tower, D width of the joint space.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.clip.modeling_clip import (
    CLIPAttention,
    CLIPEncoderLayer,
    CLIPModel,
    CLIPPreTrainedModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionEmbeddings,
    eager_attention_forward,
)
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_pig import PigConfig, PigTextConfig, PigVisionConfig
from .loss_pig import (
    MAX_BLOCK_ELEMENTS,
    contrastive_loss,
    gather_batch_sizes,
    global_contrastive_loss,
    mean_over_processes,
    reconstruction_loss,
    score_in_blocks,
)


logger = logging.get_logger(__name__)


@dataclass
class PigVisionOutput(BaseModelOutputWithPooling):
    """Output of [`PigVisionTransformer`].

    last_hidden_state (`torch.Tensor` of shape `(B, N, C)`):
        Class, globals, then frame by frame, before the last norm; fewer tokens with `keep_tokens`.
    pooler_output (`torch.Tensor` of shape `(B, C)`): the class token after the last norm.
    class_attention (`torch.Tensor` of shape `(B, H, N)`, *optional*):
        Attention of the class token to every token in the last layer, after softmax.
    """

    class_attention: torch.FloatTensor | None = None


@dataclass
class PigVideoFeatures(BaseModelOutputWithPooling):
    """What `get_video_features` returns.

    pooler_output (`torch.Tensor` of shape `(B, D)`):
        The video's embedding, not normalised: the vector to index. For `single_tower` it is the class token, and the
        thing to keep is `context_embeds`.
    context_embeds (`torch.Tensor` of shape `(B, S, D)`): class, global and frame tokens in the joint space.
    pseudo_query_embeds (`torch.Tensor` of shape `(B, D)`, *optional*): the generated query; `hybrid` only.
    selected_patches (`torch.Tensor` of shape `(B, K)`, *optional*):
        The selector's choice in descending order of score, as positions in the clip's T * P patches: patch `p` of
        frame `t` is `t * P + p`; `hybrid` only.
    selection_scores (`torch.Tensor` of shape `(B, K)`, *optional*): their attention, reduced over the heads.
    last_hidden_state (`torch.Tensor` of shape `(B, S + K, C)`):
        Context tokens and selected patches: the last layer finishes no others. `vision_model(...)` finishes all.
    hidden_states, attentions: those of [`PigVisionTransformer`].
    """

    context_embeds: torch.FloatTensor | None = None
    pseudo_query_embeds: torch.FloatTensor | None = None
    selected_patches: torch.LongTensor | None = None
    selection_scores: torch.FloatTensor | None = None


@dataclass
class PigVideoModelOutput(ModelOutput):
    """Output of [`PigVideoModel`]: `video_embeds` is the vector to index, the rest as in [`PigVideoFeatures`]."""

    video_embeds: torch.FloatTensor | None = None
    context_embeds: torch.FloatTensor | None = None
    pseudo_query_embeds: torch.FloatTensor | None = None
    selected_patches: torch.LongTensor | None = None
    selection_scores: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class PigOutput(ModelOutput):
    """Output of [`PigForRetrieval`].

    loss (`torch.Tensor` of shape `()`, *optional*, with `return_loss=True`):
        `retrieval_loss + config.reconstruction_loss_weight * reconstruction_loss`.
    retrieval_loss (`torch.Tensor` of shape `()`, *optional*): contrastive loss, a sum over both directions.
    reconstruction_loss (`torch.Tensor` of shape `()`, *optional*): distance of pseudo-query and query; `hybrid` only.
    logits_per_text (`torch.Tensor` of shape `(Q, B)`): cosines times the exponential of `logit_scale`.
    logits_per_video (`torch.Tensor` of shape `(B, Q)`): their transpose.
    text_embeds (`torch.Tensor` of shape `(Q, D)`): normalised.
    video_embeds (`torch.Tensor` of shape `(B, D)`): normalised. For `single_tower`, where a video has an embedding
        for each query, the (not normalised) context tokens, `(B, S, D)`.
    pseudo_query_embeds (`torch.Tensor` of shape `(B, D)`, *optional*): normalised; `hybrid` only.
    selected_patches, selection_scores (`torch.Tensor` of shape `(B, K)`, *optional*, with `output_selection=True`):
        as in [`PigVideoFeatures`].
    text_model_output (`BaseModelOutputWithPooling`): what `get_text_features` returned.
    vision_model_output (`PigVideoFeatures`): what `get_video_features` returned.
    """

    loss: torch.FloatTensor | None = None
    retrieval_loss: torch.FloatTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    logits_per_video: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    video_embeds: torch.FloatTensor | None = None
    pseudo_query_embeds: torch.FloatTensor | None = None
    selected_patches: torch.LongTensor | None = None
    selection_scores: torch.FloatTensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: PigVideoFeatures | None = None

    def to_tuple(self) -> tuple:
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in self.values())


class PigVideoEmbeddings(CLIPVisionEmbeddings):
    """CLIP's patch and position embeddings, with CLIP-ViP's video tokens and a temporal embedding."""

    def __init__(self, config: PigVisionConfig):
        super().__init__(config)
        self.global_embedding = nn.Parameter(torch.empty(config.num_global_tokens, self.embed_dim))
        self.temporal_embedding = nn.Parameter(torch.empty(1, config.num_frames, self.embed_dim))
        # One vector for all frames: what tells frames apart is the temporal embedding.
        self.frame_embedding = nn.Parameter(torch.empty(self.embed_dim)) if config.use_frame_tokens else None

    def spatial_positions(self, height: int, width: int, interpolate: bool) -> torch.Tensor:
        """(1 + P, C) position embeddings for frames of this size: row 0 for video and frame tokens, then patches."""
        positions = self.position_embedding.weight
        side = self.image_size // self.patch_size
        grid = (height // self.patch_size, width // self.patch_size)
        if grid == (side, side):
            return positions
        if not interpolate:
            raise ValueError(
                f"Frames are {height} x {width} pixels, the model reads {self.image_size} x {self.image_size}: resize "
                "them with PigVideoProcessor, or pass interpolate_pos_encoding=True."
            )
        square = positions[1:].view(1, side, side, -1).permute(0, 3, 1, 2)
        patches = nn.functional.interpolate(square, size=grid, mode="bicubic", align_corners=False)
        return torch.cat([positions[:1], patches.flatten(2)[0].t()])

    def temporal_positions(self, num_frames: int) -> torch.Tensor:
        """(1, T, C) temporal embedding, linearly interpolated when the clip has another length than the model's."""
        temporal = self.temporal_embedding
        if num_frames == temporal.shape[1]:
            return temporal
        return nn.functional.interpolate(temporal.transpose(1, 2), size=num_frames, mode="linear").transpose(1, 2)

    def forward(self, pixel_values_videos: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """(B, T, 3, height, width) -> (B, N, C), in the order class, globals, frame 1, frame 2, ..."""
        if pixel_values_videos.ndim != 5 or pixel_values_videos.shape[2] != self.config.num_channels:
            raise ValueError(
                f"pixel_values_videos has shape {tuple(pixel_values_videos.shape)}; expected (batch, frames, "
                f"{self.config.num_channels}, height, width)."
            )
        batch_size, num_frames, _, height, width = pixel_values_videos.shape
        if num_frames == 0:
            raise ValueError("pixel_values_videos holds clips of 0 frames; expected 1 or more.")
        spatial = self.spatial_positions(height, width, interpolate_pos_encoding)  # (1 + P, C)
        temporal = self.temporal_positions(num_frames).unsqueeze(2)  # (1, T, 1, C)

        pixels = pixel_values_videos.flatten(0, 1).to(self.patch_embedding.weight.dtype)  # (B * T, 3, height, width)
        frames = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (B * T, P, C)
        frames = frames.unflatten(0, (batch_size, num_frames)) + spatial[1:] + temporal  # (B, T, P, C)
        if self.frame_embedding is not None:
            frame_tokens = (self.frame_embedding + spatial[0] + temporal).expand(batch_size, -1, -1, -1)
            frames = torch.cat([frame_tokens, frames], dim=2)  # (B, T, L, C)

        video_tokens = torch.cat([self.class_embedding[None], self.global_embedding]) + spatial[0]  # (M, C)
        return torch.cat([video_tokens.expand(batch_size, -1, -1), frames.flatten(1, 2)], dim=1)  # (B, N, C)


class PigVisionAttention(CLIPAttention):
    """CLIP's attention in the pattern of CLIP-ViP, computed in two dense parts instead of under an N x N mask:
    class and global tokens attend to everything; a frame's tokens attend to those and to their own frame."""

    def __init__(self, config: PigVisionConfig):
        super().__init__(config)
        self.num_video_tokens = 1 + config.num_global_tokens

    def forward(
        self,
        hidden_states: torch.Tensor,
        num_frames: int,
        output_class_attention: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """(B, N, C) -> (B, N, C); weights (B, H, N, N) if asked for and the implementation has them, zero where the
        pattern forbids; the class token's row of them, (B, H, N), if asked for, by any implementation."""
        num_video_tokens = self.num_video_tokens
        heads = (self.num_heads, self.head_dim)
        query = self.q_proj(hidden_states).unflatten(-1, heads)  # (B, N, H, C / H)
        key = self.k_proj(hidden_states).unflatten(-1, heads)
        value = self.v_proj(hidden_states).unflatten(-1, heads)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        settings = {"scaling": self.scale, "dropout": self.dropout if self.training else 0.0, **kwargs}

        video_output, video_weights = attention_interface(
            self,
            query[:, :num_video_tokens].transpose(1, 2),  # (B, H, M, C / H)
            key.transpose(1, 2),  # (B, H, N, C / H)
            value.transpose(1, 2),
            None,
            **settings,
        )  # (B, M, H, C / H)

        frame_query, frame_key, frame_value = (
            states[:, num_video_tokens:].unflatten(1, (num_frames, -1)) for states in (query, key, value)
        )  # (B, T, L, H, C / H)
        frame_output, frame_weights = attention_interface(
            self,
            frame_query.flatten(0, 1).transpose(1, 2),  # (B * T, H, L, C / H)
            self._with_video_tokens(key, frame_key).transpose(1, 2),  # (B * T, H, M + L, C / H)
            self._with_video_tokens(value, frame_value).transpose(1, 2),
            None,
            **settings,
        )  # (B * T, L, H, C / H)

        frame_output = frame_output.reshape(hidden_states.shape[0], -1, self.embed_dim)  # (B, T * L, C)
        output = self.out_proj(torch.cat([video_output.flatten(2), frame_output], dim=1))  # (B, N, C)

        weights = None
        if kwargs.get("output_attentions") and video_weights is not None:
            weights = self._dense_weights(video_weights, frame_weights, num_frames)
        class_attention = None
        if output_class_attention:
            with torch.no_grad():  # a choice, not a feature: the selection carries no gradient
                scores = torch.einsum("bhc,bnhc->bhn", query[:, 0], key) * self.scale
                class_attention = scores.softmax(dim=-1, dtype=torch.float32)
        return output, weights, class_attention

    def _with_video_tokens(self, states: torch.Tensor, frame_states: torch.Tensor) -> torch.Tensor:
        """Puts the M video tokens before the tokens of each frame: (B, T, L, ...) -> (B * T, M + L, ...)."""
        video_states = states[:, None, : self.num_video_tokens].expand(-1, frame_states.shape[1], -1, -1, -1)
        return torch.cat([video_states, frame_states], dim=2).flatten(0, 1)

    def _dense_weights(
        self, video_weights: torch.Tensor, frame_weights: torch.Tensor, num_frames: int
    ) -> torch.Tensor:
        """Lays the two parts, (B, H, M, N) and (B * T, H, L, M + L), out as one (B, H, N, N)."""
        batch_size, num_heads, num_video_tokens, num_tokens = video_weights.shape
        frame_weights = frame_weights.unflatten(0, (batch_size, num_frames)).transpose(1, 2)  # (B, H, T, L, M + L)
        weights = video_weights.new_zeros(batch_size, num_heads, num_tokens, num_tokens)
        weights[:, :, :num_video_tokens] = video_weights
        for frame, own_weights in enumerate(frame_weights.unbind(2)):  # (B, H, L, M + L)
            tokens_per_frame = own_weights.shape[2]
            start = num_video_tokens + frame * tokens_per_frame
            rows = slice(start, start + tokens_per_frame)
            weights[:, :, rows, :num_video_tokens] = own_weights[..., :num_video_tokens]
            weights[:, :, rows, rows] = own_weights[..., num_video_tokens:]
        return weights


class PigVisionLayer(CLIPEncoderLayer):
    """CLIP's encoder layer around [`PigVisionAttention`]."""

    def __init__(self, config: PigVisionConfig):
        super().__init__(config)
        self.self_attn = PigVisionAttention(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        keep_tokens: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, N, C) -> (B, N, C) and the class token's attention, (B, H, N), if asked for. With `keep_tokens` only the
        tokens that it takes from both go through the MLP."""
        attention_output, _, class_attention = self.self_attn(self.layer_norm1(hidden_states), **kwargs)
        hidden_states = hidden_states + attention_output
        if keep_tokens is not None:
            hidden_states = keep_tokens(hidden_states, class_attention)
        hidden_states = hidden_states + self.mlp(self.layer_norm2(hidden_states))
        return hidden_states, class_attention


class PigVisionEncoder(nn.Module):
    """The layers of the video tower; only the last one is ever asked for the class token's attention."""

    def __init__(self, config: PigVisionConfig):
        super().__init__()
        self.layers = nn.ModuleList(PigVisionLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        hidden_states: torch.Tensor,
        num_frames: int,
        output_class_attention: bool,
        keep_tokens: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor] | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, N, C) -> (B, N or tokens kept, C) and the class token's attention, (B, H, N), if asked for."""
        for layer in self.layers[:-1]:
            hidden_states, _ = layer(hidden_states, num_frames=num_frames, **kwargs)
        return self.layers[-1](
            hidden_states,
            keep_tokens=keep_tokens,
            num_frames=num_frames,
            output_class_attention=output_class_attention,
            **kwargs,
        )


class PigInteraction(nn.Module):
    """Pools a video's tokens for a query (X-Pool's cross-attention). It starts as plain attention pooling: every
    projection is the identity."""

    def __init__(self, config: PigConfig):
        super().__init__()
        width = config.projection_dim
        self.num_heads = config.interaction_num_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.linear_proj = nn.Linear(width, width)
        self.layer_norm1 = nn.LayerNorm(width)
        self.layer_norm2 = nn.LayerNorm(width)
        self.layer_norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.interaction_dropout)

    def forward(self, queries: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """(B or 1, Q, D) queries, (B, S, D) context tokens -> (B, Q, D): each video as each query sees it."""
        heads = (self.num_heads, -1)
        queries = self.layer_norm1(queries)
        context = self.layer_norm1(context)
        query = self.q_proj(queries).unflatten(-1, heads).transpose(1, 2)  # (B or 1, heads, Q, D / heads)
        key = self.k_proj(context).unflatten(-1, heads).transpose(1, 2)  # (B, heads, S, D / heads)
        value = self.v_proj(context).unflatten(-1, heads).transpose(1, 2)
        query = query.expand(context.shape[0], -1, -1, -1)
        pooled = nn.functional.scaled_dot_product_attention(query, key, value)  # (B, heads, Q, D / heads)
        pooled = self.layer_norm2(self.out_proj(pooled.transpose(1, 2).flatten(2)))  # (B, Q, D)
        return self.layer_norm3(pooled + self.dropout(self.linear_proj(pooled)))


class _InitialisedAsInTransformers:
    @classmethod
    def is_custom_code(cls) -> bool:
        """Code outside transformers is taken not to write through `transformers.initialization`, and modules without
        weights of their own are then never initialised: attention, MLP and interaction would start at random. This
        code does, and needs no such protection."""
        return False

    @classmethod
    def from_pretrained(cls, *args, use_safetensors: bool = True, **kwargs):
        """As in transformers, except that a pickle (`pytorch_model.bin`) is read with `use_safetensors=False` only."""
        return super().from_pretrained(*args, use_safetensors=use_safetensors, **kwargs)


class PigPreTrainedModel(_InitialisedAsInTransformers, CLIPPreTrainedModel):
    """Weights' initialisation and loading, shared by all PIG models."""

    config: PigConfig
    config_class = PigConfig
    base_model_prefix = "pig"
    main_input_name = "pixel_values_videos"
    input_modalities = ("video", "text")
    _no_split_modules = ["CLIPEncoderLayer", "PigVideoEmbeddings", "PigVisionLayer"]
    _keep_in_fp32_modules_strict = ["logit_scale"]
    _can_record_outputs = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights but `logit_scale`, the first of them, which stays in float32."""
        return next(p.dtype for name, p in self.named_parameters() if name != "logit_scale")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        factor = self.config.initializer_factor
        if isinstance(module, PigVideoEmbeddings):
            init.normal_(module.global_embedding, std=module.embed_dim**-0.5 * factor)
            init.zeros_(module.temporal_embedding)
            if module.frame_embedding is not None:
                init.copy_(module.frame_embedding, module.class_embedding)
        elif isinstance(module, PigPseudoQueryGenerator):
            width = module.eos_embedding.shape[0]
            for vector in (module.bos_embedding, module.eos_embedding, module.position_embedding.weight):
                if vector is not None:
                    init.normal_(vector, std=0.02 * factor)
            init.normal_(module.input_projection.weight, std=module.input_projection.in_features**-0.5 * factor)
            if module.text_projection is not None:
                init.normal_(module.text_projection.weight, std=width**-0.5 * factor)
        elif isinstance(module, PigInteraction):
            for projection in (module.q_proj, module.k_proj, module.v_proj, module.out_proj, module.linear_proj):
                init.eye_(projection.weight)
                init.zeros_(projection.bias)
        elif isinstance(module, PigForRetrieval):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            init.normal_(module.text_projection.weight, std=module.text_projection.in_features**-0.5 * factor)
        if isinstance(module, _VideoPath):
            init.normal_(module.visual_projection.weight, std=module.visual_projection.in_features**-0.5 * factor)


class PigVisionTransformer(PigPreTrainedModel):
    """The video tower: a CLIP ViT over all frames of a clip, with video proxy tokens."""

    config: PigVisionConfig
    config_class = PigVisionConfig
    input_modalities = ("video",)
    _input_embed_layer = "patch_embedding"
    _can_record_outputs = {"hidden_states": PigVisionLayer, "attentions": PigVisionAttention}

    def __init__(self, config: PigVisionConfig):
        super().__init__(config)
        self.embeddings = PigVideoEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = PigVisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor,
        interpolate_pos_encoding: bool = False,
        output_class_attention: bool = False,
        keep_tokens: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PigVisionOutput:
        """
        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(B, T, 3, height, width)`): frames, any T >= 1.
            interpolate_pos_encoding (`bool`): accept frames of another size than the model's.
            output_class_attention (`bool`): also return the class token's attention in the last layer.
            keep_tokens (`Callable`, *optional*): takes from the tokens, `(B, N, C)`, and the class token's attention,
                `(B, H, N)`, those that the last layer is to finish; the first must be the class token.
            output_attentions (`bool`, needs `attn_implementation="eager"`): also return each layer's weights laid out
                densely, `(B, H, N, N)`, zero where a frame does not see another frame.
        """
        hidden_states = self.embeddings(pixel_values_videos, interpolate_pos_encoding)  # (B, N, C)
        hidden_states = self.pre_layrnorm(hidden_states)
        hidden_states, class_attention = self.encoder(
            hidden_states, pixel_values_videos.shape[1], output_class_attention, keep_tokens, **kwargs
        )
        return PigVisionOutput(
            last_hidden_state=hidden_states,
            pooler_output=self.post_layernorm(hidden_states[:, 0]),
            class_attention=class_attention,
        )


class PigPseudoQueryGenerator(PigPreTrainedModel):
    """Writes, from a video's tokens, the embedding of the query that would find it: t_p.

    A causal transformer of the text tower's shape reads [bos, tokens, eos]; the state at eos is the pseudo-query.
    """

    config: PigTextConfig
    config_class = PigTextConfig

    def __init__(self, config: PigTextConfig, pig_config: PigConfig):
        super().__init__(config)
        width = config.hidden_size
        make_end = nn.Parameter if pig_config.generator_learnable_ends else nn.Buffer
        self.input_projection = nn.Linear(pig_config.projection_dim, width)
        self.bos_embedding = make_end(torch.empty(width)) if pig_config.generator_use_bos else None
        self.eos_embedding = make_end(torch.empty(width))
        self.position_embedding = nn.Embedding(pig_config.generator_max_position_embeddings, width)
        self.layers = nn.ModuleList(CLIPEncoderLayer(config) for _ in range(pig_config.generator_num_hidden_layers))
        self.final_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.text_projection = (
            nn.Linear(width, pig_config.projection_dim, bias=False) if pig_config.generator_use_projection else None
        )
        self.post_init()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, S + K, D) tokens, context first, then patches by score -> (B, D) pseudo-queries."""
        batch_size = tokens.shape[0]
        sequence = [self.input_projection(tokens), self.eos_embedding.expand(batch_size, 1, -1)]
        if self.bos_embedding is not None:
            sequence.insert(0, self.bos_embedding.expand(batch_size, 1, -1))
        hidden_states = torch.cat(sequence, dim=1)  # (B, 1 + S + K + 1, width)
        hidden_states = hidden_states + self.position_embedding.weight[: hidden_states.shape[1]]
        # The last is the cache, by position: transformers 5.24 gave it another name.
        causal_mask = create_causal_mask(self.config, hidden_states, None, None)
        for layer in self.layers:
            hidden_states = layer(hidden_states, causal_mask, is_causal=True)
        pseudo_query = self.final_layer_norm(hidden_states[:, -1])  # (B, width)
        return pseudo_query if self.text_projection is None else self.text_projection(pseudo_query)  # (B, D)


def _refuse_other_device(model: PreTrainedModel, name: str, tensor: torch.Tensor) -> None:
    if tensor.device != model.device and not hasattr(model, "hf_device_map"):  # which spreads over several
        raise ValueError(f"{name} is on {tensor.device}, the model on {model.device}: move one of them with .to(...).")


class _TextPath:
    """From token ids to the sentence's embedding: what [`PigTextModel`] and [`PigForRetrieval`] share."""

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(Q, tokens)`): each row holds an end-of-text token.
            attention_mask (`torch.Tensor` of shape `(Q, tokens)`, *optional*): 0 where a row is padded.

        Returns:
            `BaseModelOutputWithPooling`; its `pooler_output`, `(Q, D)`, is the query's embedding, not normalised.

        Example:

        ```python
        >>> inputs = processor(text=["a red circle moves left"], return_tensors="pt")
        >>> with torch.inference_mode():
        ...     text_embeds = model.get_text_features(**inputs).pooler_output
        ```"""
        _refuse_other_device(self, "input_ids", input_ids)
        outputs: BaseModelOutputWithPooling = self.text_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            return_dict=True,
            **kwargs,
        )
        outputs.pooler_output = self.text_projection(outputs.pooler_output)
        return outputs


class _VideoPath:
    """From pixels to the video's embedding: what [`PigVideoModel`] and [`PigForRetrieval`] share.

    A mixin and not a submodule, so that `vision_model` and `visual_projection` sit where CLIP has them.
    """

    def _init_video_path(self, config: PigConfig):
        self.vision_model = PigVisionTransformer._from_config(config.vision_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        if config.framework == "hybrid":
            self.generator = PigPseudoQueryGenerator._from_config(config.text_config, pig_config=config)
        if config.framework != "two_tower":
            self.interaction = PigInteraction(config)

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: torch.FloatTensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PigVideoFeatures:
        r"""
        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(B, T, 3, height, width)`): frames, any T >= 1.
            interpolate_pos_encoding (`bool`): accept frames of another size than the model's.

        Returns:
            [`PigVideoFeatures`]; its `pooler_output`, `(B, D)`, is the embedding to index. Normalise it first.

        Raises:
            ValueError: pixels of another shape or on another device than the model, or more frames than the generator
                has positions for.

        Example:

        ```python
        >>> inputs = processor(videos="video.mp4", return_tensors="pt")
        >>> with torch.inference_mode():
        ...     video_embeds = model.get_video_features(**inputs).pooler_output
        ```"""
        _refuse_other_device(self, "pixel_values_videos", pixel_values_videos)
        is_hybrid = self.config.framework == "hybrid"
        num_frames = pixel_values_videos.shape[1] if pixel_values_videos.ndim == 5 else 0
        if is_hybrid:
            self.config.check_generator_length(num_frames)
        outputs: PigVisionOutput = self.vision_model(
            pixel_values_videos,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_class_attention=is_hybrid,
            keep_tokens=partial(self._keep_context_and_selected, num_frames=num_frames),
            return_dict=True,
            **kwargs,
        )
        tokens = self.visual_projection(self.vision_model.post_layernorm(outputs.last_hidden_state))  # (B, S + K, D)
        context_embeds = tokens[:, : self.config.vision_config.num_context_tokens(num_frames)]  # (B, S, D)
        features = PigVideoFeatures(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=context_embeds[:, 0],
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            context_embeds=context_embeds,
        )
        if is_hybrid:
            scores, selected = self._select_patches(outputs.class_attention, num_frames)  # (B, K) each
            pseudo_query = self.generator(tokens)  # (B, D)
            features.pooler_output = self.interaction(pseudo_query.unsqueeze(1), context_embeds).squeeze(1)  # (B, D)
            features.pseudo_query_embeds = pseudo_query
            features.selected_patches = selected
            features.selection_scores = scores
        return features

    def _token_positions(
        self, num_frames: int, num_tokens: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where among N tokens the S context tokens (class, globals, frames') stand, and where the T * P patches."""
        config = self.config.vision_config
        positions = torch.arange(num_tokens, device=device)
        video_tokens, frames = positions.tensor_split([1 + config.num_global_tokens])
        frame_tokens, patches = frames.view(num_frames, -1).tensor_split([int(config.use_frame_tokens)], dim=1)
        return torch.cat([video_tokens, frame_tokens.flatten()]), patches.flatten()

    def _select_patches(self, class_attention: torch.Tensor, num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Informative Token Selector: (B, H, N) attention of the class token -> scores and positions, (B, K) each,
        of the patches with the most of it over the whole clip, best first."""
        _, patches = self._token_positions(num_frames, class_attention.shape[2], class_attention.device)
        reduce = torch.amax if self.config.selector_head_reduction == "max" else torch.mean
        attention = reduce(class_attention[:, :, patches], dim=1)  # (B, T * P)
        num_selected = self.config.num_selected_patches
        if num_selected > attention.shape[1]:
            logger.warning_once(
                f"num_selected_patches is {num_selected}, but a clip of {num_frames} frames has only "
                f"{attention.shape[1]} patches: all of them are taken."
            )
            num_selected = attention.shape[1]
        return attention.topk(num_selected, dim=1)

    def _keep_context_and_selected(
        self, hidden_states: torch.Tensor, class_attention: torch.Tensor | None, num_frames: int
    ) -> torch.Tensor:
        """(B, N, C) tokens -> (B, S + K, C): the context tokens, then (`hybrid`) the selected patches, best first."""
        batch_size, num_tokens, width = hidden_states.shape
        context, patches = self._token_positions(num_frames, num_tokens, hidden_states.device)
        if class_attention is None:
            return hidden_states[:, context]
        _, selected = self._select_patches(class_attention, num_frames)  # (B, K)
        kept = torch.cat([context.expand(batch_size, -1), patches[selected]], dim=1)  # (B, S + K)
        return hidden_states.gather(1, kept.unsqueeze(-1).expand(-1, -1, width))


class PigTextModel(_TextPath, _InitialisedAsInTransformers, CLIPTextModelWithProjection):
    """The text half: a sentence -> its embedding in the joint space. Loads from a whole [`PigForRetrieval`]
    checkpoint, of which it reads its own part only.

    Example:

    ```python
    >>> from modeling_pig import PigProcessor, PigTextModel

    >>> model = PigTextModel.from_pretrained("runs/demo/model")
    >>> processor = PigProcessor.from_pretrained("runs/demo/model")
    >>> text_embeds = model(**processor(text="a red circle moves left", return_tensors="pt")).text_embeds
    ```"""

    config: PigTextConfig
    config_class = PigTextConfig
    _keys_to_ignore_on_load_unexpected = [
        r"^vision_model\.",
        r"^visual_projection\.",
        r"^generator\.",
        r"^interaction\.",
        r"^logit_scale$",
    ]


class PigVideoModel(_VideoPath, PigPreTrainedModel):
    """The video half: frames -> the one vector that is indexed. Loads from a whole [`PigForRetrieval`] checkpoint, of
    which it reads its own part only.

    Example:

    ```python
    >>> from modeling_pig import PigProcessor, PigVideoModel

    >>> model = PigVideoModel.from_pretrained("runs/demo/model")
    >>> processor = PigProcessor.from_pretrained("runs/demo/model")
    >>> video_embeds = model(**processor(videos="video.mp4", return_tensors="pt")).video_embeds
    ```"""

    input_modalities = ("video",)
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^text_projection\.", r"^logit_scale$"]

    def __init__(self, config: PigConfig):
        super().__init__(config)
        self._init_video_path(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PigVideoModelOutput:
        """Arguments and errors as in [`~PigVideoModel.get_video_features`]; `video_embeds` is not normalised."""
        features = self.get_video_features(pixel_values_videos, interpolate_pos_encoding, **kwargs)
        return PigVideoModelOutput(
            **{"video_embeds" if name == "pooler_output" else name: value for name, value in features.items()}
        )


class PigForRetrieval(_TextPath, _VideoPath, PigPreTrainedModel):
    """Text-to-video retrieval: both halves and the scale of their similarities.

    A video is indexed by its `get_video_features(...).pooler_output`, and found by a sentence's
    `get_text_features(...).pooler_output`. Neither is normalised: scale both to length 1 and their dot product is the
    score, or leave it to `similarity`. With the `single_tower` framework a video has no one vector: keep its
    `context_embeds` instead.

    Example:

    ```python
    >>> from modeling_pig import PigForRetrieval, PigProcessor

    >>> model = PigForRetrieval.from_pretrained("runs/demo/model").eval()
    >>> processor = PigProcessor.from_pretrained("runs/demo/model")
    >>> inputs = processor(text=["a red circle moves left"], videos=["a.mp4", "b.mp4"], return_tensors="pt")
    >>> with torch.inference_mode():
    ...     probabilities = model(**inputs).logits_per_text.softmax(dim=1)
    ```"""

    def __init__(self, config: PigConfig):
        super().__init__(config)
        self.text_model = CLIPTextModel._from_config(config.text_config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self._init_video_path(config)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    @classmethod
    def from_clip(cls, clip_name_or_folder: str, **pig_config) -> "PigForRetrieval":
        """A model that starts from a CLIP checkpoint, every weight of which is used (the paper's start).

        Both towers are CLIP's; the generator's transformer and projection are copies of the text tower's, its ends
        the embeddings of the start and end tokens; the frame token is a copy of the class embedding. New are the
        global tokens (random), the temporal embedding (zero), the generator's input map and the interaction.

        Args:
            clip_name_or_folder (`str`): a CLIP checkpoint in Hugging Face format, on the Hub or in a folder.
            pig_config: fields of [`PigConfig`] or of [`PigVisionConfig`] (`num_frames=16`, `framework="two_tower"`).

        Raises:
            ValueError: an unknown or impossible field, or a checkpoint that lacks weights.
            OSError: no such checkpoint.
        """
        if "dtype" in pig_config:
            raise ValueError("A model starts in float32; save it, and load it with `dtype`.")
        clip, info = CLIPModel.from_pretrained(clip_name_or_folder, output_loading_info=True)
        if missing := info["missing_keys"]:
            raise ValueError(
                f"{clip_name_or_folder} is no whole CLIP checkpoint: it lacks {len(missing)} weights, such as "
                f"{min(missing)}."
            )
        model = cls(PigConfig.from_clip_config(clip.config, **pig_config))
        state = clip.state_dict()
        if model.vision_model.embeddings.frame_embedding is not None:
            state["vision_model.embeddings.frame_embedding"] = clip.vision_model.embeddings.class_embedding
        if model.config.framework == "hybrid":
            state |= _generator_state_from_text_tower(model.generator, clip.text_model, clip.text_projection)
        expected = model.state_dict().keys()
        model.load_state_dict({name: value for name, value in state.items() if name in expected}, strict=False)
        return model

    def similarity(self, text_embeds: torch.Tensor, video_embeds: torch.Tensor) -> torch.Tensor:
        """Cosine of every text with every video, (Q, B), whether or not the embeddings come normalised.

        Args:
            text_embeds (`torch.Tensor` of shape `(Q, D)`): `get_text_features(...).pooler_output`.
            video_embeds (`torch.Tensor` of shape `(B, D)`, or `(B, S, D)` for `single_tower`):
                `get_video_features(...).pooler_output`, or `.context_embeds` for `single_tower`, which pools each
                video anew for each query.
        """
        text_embeds = nn.functional.normalize(text_embeds, dim=-1)
        if self.config.framework != "single_tower":
            return text_embeds @ nn.functional.normalize(video_embeds, dim=-1).t()
        pooled = self.interaction(text_embeds.unsqueeze(0), video_embeds)  # (B, Q, D)
        return torch.einsum("qd,bqd->qb", text_embeds, nn.functional.normalize(pooled, dim=-1))

    @torch.no_grad()
    def clamp_logit_scale_(self) -> None:
        """Holds `logit_scale` within [0, config.logit_scale_max]; to be called after each step of the optimiser."""
        self.logit_scale.clamp_(0, self.config.logit_scale_max)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        output_selection: bool = False,
        interpolate_pos_encoding: bool = False,
        caption_ids: torch.LongTensor | None = None,
        text_embeds: torch.FloatTensor | None = None,
        video_embeds: torch.FloatTensor | None = None,
        pseudo_query_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PigOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(Q, tokens)`): texts.
            pixel_values_videos (`torch.FloatTensor` of shape `(B, T, 3, height, width)`): videos, any T >= 1.
            attention_mask (`torch.Tensor` of shape `(Q, tokens)`, *optional*): 0 where a text is padded.
            return_loss (`bool`, *optional*): compute the losses; text i then belongs to video i, and Q = B. In
                training under `torch.distributed` the pairs of all processes, whose B may differ, are one batch: the
                losses are those of the whole batch, on every process, and gradients averaged over the processes (as
                DDP and FSDP do) are its gradients.
            output_selection (`bool`): also return the selector's patches and their scores.
            interpolate_pos_encoding (`bool`): accept frames of another size than the model's.
            caption_ids (`torch.LongTensor` of shape `(B,)`, *optional*): equal numbers mark identical captions, also
                on other processes. The loss does not take a video for a negative of a caption that is its own too,
                nor a caption for one of such a video. By default all other pairs are negatives.
            text_embeds (`torch.FloatTensor` of shape `(Q, D)`, *optional*): an output's `text_embeds`, to be used
                instead of texts.
            video_embeds (`torch.FloatTensor` of shape `(B, D)`, or `(B, S, D)` for `single_tower`, *optional*): an
                output's `video_embeds`, to be used instead of videos.
            pseudo_query_embeds (`torch.FloatTensor` of shape `(B, D)`, *optional*): comes with `video_embeds`, for
                the loss of `hybrid`.

        Raises:
            ValueError: a side without inputs or embeddings, losses of as many texts as videos do not match, or of
                `hybrid` video embeddings without their pseudo-queries.
        """
        is_hybrid, is_single_tower = (self.config.framework == name for name in ("hybrid", "single_tower"))
        if (input_ids is None) == (text_embeds is None):
            raise ValueError("Give input_ids, or text_embeds instead of them, and not both.")
        if (pixel_values_videos is None) == (video_embeds is None):
            raise ValueError("Give pixel_values_videos, or video_embeds instead of them, and not both.")

        video_features = text_features = None
        if video_embeds is None:
            video_features = self.get_video_features(pixel_values_videos, interpolate_pos_encoding, **kwargs)
            if is_single_tower:
                video_embeds = video_features.context_embeds  # (B, S, D)
            else:
                video_embeds = nn.functional.normalize(video_features.pooler_output, dim=-1)  # (B, D)
            if is_hybrid:
                pseudo_query_embeds = nn.functional.normalize(video_features.pseudo_query_embeds, dim=-1)  # (B, D)
        if text_embeds is None:
            text_features = self.get_text_features(input_ids, attention_mask, position_ids, **kwargs)
            text_embeds = nn.functional.normalize(text_features.pooler_output, dim=-1)  # (Q, D)

        logit_scale = self.logit_scale.exp()

        def score(texts: torch.Tensor, videos: torch.Tensor) -> torch.Tensor:
            return logit_scale * self.similarity(texts, videos)

        # A pair of `single_tower` has an embedding of its own.
        elements_per_pair = text_embeds.shape[1] if is_single_tower else 1
        logits_per_text = score_in_blocks(score, text_embeds, video_embeds, elements_per_pair)  # (Q, B)

        losses = {}
        if return_loss:
            batch_size = video_embeds.shape[0]
            if text_embeds.shape[0] != batch_size:
                raise ValueError(
                    f"return_loss needs one text a video, in the same order; got {text_embeds.shape[0]} texts "
                    f"and {batch_size} videos."
                )
            if is_hybrid and pseudo_query_embeds is None:
                raise ValueError("return_loss needs pseudo_query_embeds with the video_embeds of a hybrid model.")
            if caption_ids is not None and caption_ids.shape != (batch_size,):
                raise ValueError(
                    f"caption_ids has shape {tuple(caption_ids.shape)}; expected one number a text, ({batch_size},)."
                )
            batch_sizes = gather_batch_sizes(video_embeds) if self.training else [batch_size]
            if len(batch_sizes) == 1 and logits_per_text.numel() <= MAX_BLOCK_ELEMENTS:
                retrieval_loss = contrastive_loss(logits_per_text, caption_ids)
            else:
                retrieval_loss = global_contrastive_loss(
                    score, text_embeds, video_embeds, batch_sizes, caption_ids, elements_per_pair
                )
            losses["loss"] = losses["retrieval_loss"] = retrieval_loss
            if is_hybrid:
                reconstruction = reconstruction_loss(pseudo_query_embeds, text_embeds)
                losses["reconstruction_loss"] = mean_over_processes(reconstruction, batch_sizes)
                weight = self.config.reconstruction_loss_weight
                losses["loss"] = losses["retrieval_loss"] + weight * losses["reconstruction_loss"]

        with_selection = output_selection and video_features is not None
        return PigOutput(
            **losses,
            logits_per_text=logits_per_text,
            logits_per_video=logits_per_text.t(),
            text_embeds=text_embeds,
            video_embeds=video_embeds,
            pseudo_query_embeds=pseudo_query_embeds,
            selected_patches=video_features.selected_patches if with_selection else None,
            selection_scores=video_features.selection_scores if with_selection else None,
            text_model_output=text_features,
            vision_model_output=video_features,
        )


def _generator_state_from_text_tower(
    generator: PigPseudoQueryGenerator, text_model: CLIPTextModel, text_projection: nn.Linear
) -> dict[str, torch.Tensor]:
    """The generator's weights as copies of a text tower's, under their names in [`PigForRetrieval`]."""
    config = generator.config
    token_embedding = text_model.embeddings.token_embedding.weight
    positions = generator.position_embedding.weight.detach().clone()
    copied = min(len(positions), len(text_model.embeddings.position_embedding.weight))
    positions[:copied] = text_model.embeddings.position_embedding.weight[:copied]
    state = {
        "generator.bos_embedding": token_embedding[config.bos_token_id],
        "generator.eos_embedding": token_embedding[config.eos_token_id],
        "generator.position_embedding.weight": positions,
        "generator.text_projection.weight": text_projection.weight,
    }
    for name, value in text_model.final_layer_norm.state_dict().items():
        state[f"generator.final_layer_norm.{name}"] = value
    for name, value in text_model.encoder.layers.state_dict().items():
        state[f"generator.layers.{name}"] = value
    return state


__all__ = ["PigForRetrieval", "PigPreTrainedModel", "PigTextModel", "PigVideoModel", "PigVisionTransformer"]
