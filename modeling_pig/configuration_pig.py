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
"""PIG configuration: all settings of the architecture (the Hybrid-Tower paper, arXiv 2509.04773)."""

import math
from dataclasses import fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.clip.configuration_clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from transformers.models.metaclip_2.configuration_metaclip_2 import MetaClip2Config


# Checkpoints that a model can start from, by their model_type.
CLIP_CONFIGS = {"clip": CLIPConfig, "metaclip_2": MetaClip2Config}


@strict
class PigTextConfig(CLIPTextConfig):
    """Configure the text tower, an unchanged CLIP text model; see [`~transformers.CLIPTextConfig`] for its fields."""

    model_type = "pig_text_model"


@strict
class PigVisionConfig(CLIPVisionConfig):
    """Configure the vision tower: a CLIP vision model that reads several frames, with video proxy tokens (CLIP-ViP).

    With one frame, no global tokens and no frame tokens, the tower is plain CLIP.

    Args:
        num_frames (`int`, *optional*, defaults to 12):
            Number of frames per clip, T, which is the length of the learned temporal embedding. For clips of another
            length, the model interpolates this embedding.
        num_global_tokens (`int`, *optional*, defaults to 3):
            Number of learned tokens of the whole video besides the class token, G. They attend to all frames.
        use_frame_tokens (`bool`, *optional*, defaults to `True`):
            Whether each frame has a learned token that summarises it.
        global_token_init (`str`, *optional*, defaults to `"class_embedding"`):
            How [`PigForRetrieval.from_clip`] initialises the global tokens. `"class_embedding"`: as the class
            embedding plus noise; on clips of equal frames an untrained model then ranks about as well as CLIP.
            `"random"`: as in the paper.
        kwargs: fields of [`~transformers.CLIPVisionConfig`].
    """

    model_type = "pig_vision_model"

    num_frames: int = 12
    num_global_tokens: int = 3
    use_frame_tokens: bool = True
    global_token_init: Literal["class_embedding", "random"] = "class_embedding"

    def validate_architecture(self):
        super().validate_architecture()
        if self.num_frames < 1:
            raise ValueError(f"num_frames is {self.num_frames}; expected 1 or more.")
        if self.num_global_tokens < 0:
            raise ValueError(f"num_global_tokens is {self.num_global_tokens}; expected 0 or more.")

    @property
    def num_patches(self) -> int:
        """Number of patches per frame (49 for 224 pixels and patches of 32 pixels)."""
        return (self.image_size // self.patch_size) ** 2

    def num_context_tokens(self, num_frames: int) -> int:
        """Return the number of tokens that the interaction reads, 1 + G + T: class, global and frame tokens."""
        return 1 + self.num_global_tokens + (num_frames if self.use_frame_tokens else 0)


@strict
class PigConfig(PreTrainedConfig):
    """Configure [`PigForRetrieval`] and [`PigVideoModel`]. The defaults are the settings of the paper for ViT-B/32.

    Args:
        text_config (`PigTextConfig` or `dict`, *optional*):
            Text tower. The generator has the same hidden size, heads and MLP.
        vision_config (`PigVisionConfig` or `dict`, *optional*):
            Vision tower.
        framework (`str`, *optional*, defaults to `"hybrid"`):
            `"hybrid"`: the video interacts with a pseudo-query generated from its tokens; 1 embedding per video.
            `"two_tower"`: the embedding of the video is its class token; 1 embedding per video.
            `"single_tower"`: the tokens of the video interact with each query; 1 + G + T embeddings per video.
        projection_dim (`int`, *optional*, defaults to 512):
            Embedding dimension, D.
        num_selected_patches (`int`, *optional*, defaults to 16):
            Number of informative patches over the whole clip, K, that [`PigPatchSelector`] selects for the generator.
            If a clip has fewer patches, all are selected, with a warning.
        selector_head_reduction (`str`, *optional*, defaults to `"max"`):
            Reduction of the class token's attention over the heads: `"max"` or `"mean"`.
        generator_num_hidden_layers (`int`, *optional*):
            Number of layers of the generator; by default that of the text tower.
        generator_max_position_embeddings (`int`, *optional*, defaults to 77):
            Maximum sequence length of the generator, which reads bos, 1 + G + T context tokens, K patches and eos.
        generator_use_projection (`bool`, *optional*, defaults to `True`):
            Whether the generator ends with a separate copy of the text projection (the authors' first release).
            Without it (their second release), the hidden size of the text tower must equal `projection_dim`.
        generator_learnable_ends (`bool`, *optional*, defaults to `True`):
            Whether the generator's bos and eos vectors are trained (first release) or constant (second release).
        generator_use_bos (`bool`, *optional*, defaults to `True`):
            Whether the generator's sequence starts with a bos vector.
        interaction_num_attention_heads (`int`, *optional*, defaults to 1):
            Number of heads of the interaction's cross-attention.
        interaction_tokens (`str`, *optional*, defaults to `"context"`):
            Tokens of the video that the interaction pools. `"context"`: class, global and frame tokens, as in the
            paper. `"frames"`: the frame tokens only, as in X-Pool (arXiv 2203.15086), whose keys are the frames; with
            `framework="single_tower"` this is X-Pool on the video tower of this package.
        interaction_dropout (`float`, *optional*, defaults to 0.1):
            Dropout after the interaction's linear layer.
        reconstruction_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the loss that pulls the pseudo-query towards the query.
        reranking_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of a second retrieval loss, of `hybrid` only, in which each video is pooled for each query of the
            batch, as in `single_tower`. It trains the interaction to re-rank results, see
            [`PigForRetrieval.similarity`]. The paper does not have it.
        logit_scale_init_value (`float`, *optional*, defaults to 4.60):
            Initial logarithm of the factor on the cosines.
        logit_scale_max (`float`, *optional*, defaults to ln 200):
            Maximum of `logit_scale`, which [`PigForRetrieval.clamp_logit_scale_`] enforces; the minimum is 0.
        initializer_factor (`float`, *optional*, defaults to 1.0):
            Factor on the standard deviation of random initial weights, as in CLIP.
        untrained (`bool`, *optional*, defaults to `False`):
            Whether parts of the model are as [`PigForRetrieval.from_clip`] initialised them. Training sets it to
            `False`; set it yourself if you train with another loop.
        selected_on (`str`, *optional*):
            Benchmark and split by which training selected this checkpoint, such as `"msrvtt_1k/test"`; `None` if no
            split selected it. A checkpoint that a test split selected is not comparable with the others on this split.

    Example:

    ```python
    >>> from modeling_pig import PigConfig, PigForRetrieval

    >>> config = PigConfig(num_selected_patches=8, vision_config={"num_frames": 6})
    >>> model = PigForRetrieval(config)
    ```
    """

    model_type = "pig"
    sub_configs = {"text_config": PigTextConfig, "vision_config": PigVisionConfig}

    text_config: dict | PigTextConfig | None = None
    vision_config: dict | PigVisionConfig | None = None
    framework: Literal["hybrid", "two_tower", "single_tower"] = "hybrid"
    projection_dim: int = 512
    num_selected_patches: int = 16
    selector_head_reduction: Literal["max", "mean"] = "max"
    generator_num_hidden_layers: int | None = None
    generator_max_position_embeddings: int = 77
    generator_use_projection: bool = True
    generator_learnable_ends: bool = True
    generator_use_bos: bool = True
    interaction_num_attention_heads: int = 1
    interaction_tokens: Literal["context", "frames"] = "context"
    interaction_dropout: float = 0.1
    reconstruction_loss_weight: float = 1.0
    reranking_loss_weight: float = 0.0
    logit_scale_init_value: float | int = 4.60
    logit_scale_max: float | int = math.log(200)
    initializer_factor: float | int = 1.0
    untrained: bool = False
    selected_on: str | None = None

    def __post_init__(self, **kwargs):
        # `sub_configs_defaults` of newer transformers would create them; 5.10 does not know it.
        for name, config_class in self.sub_configs.items():
            if not isinstance(settings := getattr(self, name), config_class):
                setattr(self, name, config_class(**(settings or {})))
        super().__post_init__(**kwargs)
        # PigTextModel and PigVisionTransformer read only their sub-config, which therefore holds projection_dim too.
        self.text_config.projection_dim = self.projection_dim
        self.vision_config.projection_dim = self.projection_dim
        if self.generator_num_hidden_layers is None:
            self.generator_num_hidden_layers = self.text_config.num_hidden_layers

    def validate_architecture(self):
        if self.projection_dim % self.interaction_num_attention_heads != 0:
            raise ValueError(
                f"projection_dim ({self.projection_dim}) is not a multiple of interaction_num_attention_heads "
                f"({self.interaction_num_attention_heads}): change one of them."
            )
        if self.interaction_tokens == "frames" and not self.vision_config.use_frame_tokens:
            raise ValueError(
                "interaction_tokens is frames, and the video tower has none: set use_frame_tokens to true."
            )
        if self.framework != "hybrid":
            return
        if self.num_selected_patches < 0:
            raise ValueError(f"num_selected_patches is {self.num_selected_patches}; expected 0 or more.")
        if not self.generator_use_projection and self.text_config.hidden_size != self.projection_dim:
            raise ValueError(
                "Without generator_use_projection the pseudo-query has the hidden size of the text tower "
                f"({self.text_config.hidden_size}), which must equal projection_dim ({self.projection_dim})."
            )
        self.check_generator_length(self.vision_config.num_frames)

    def generator_length(self, num_frames: int) -> int:
        """Return the sequence length of the generator for clips of `num_frames` frames (34 by default)."""
        num_context_tokens = self.vision_config.num_context_tokens(num_frames)
        return int(self.generator_use_bos) + num_context_tokens + self.num_selected_patches + 1

    def check_generator_length(self, num_frames: int) -> None:
        """Raise `ValueError` if the generator has too few positions for clips of `num_frames` frames."""
        length = self.generator_length(num_frames)
        if length > self.generator_max_position_embeddings:
            longest = num_frames - (length - self.generator_max_position_embeddings)
            raise ValueError(
                f"A clip of {num_frames} frames needs {length} positions of the generator, which has "
                f"generator_max_position_embeddings ({self.generator_max_position_embeddings}): use "
                + (f"at most {longest} frames, " if longest > 0 else "")
                + "a smaller num_selected_patches or a larger generator_max_position_embeddings."
            )

    @classmethod
    def from_clip_config(cls, clip_config: CLIPConfig | MetaClip2Config, **kwargs) -> "PigConfig":
        """Create the configuration of a PIG model that starts from a CLIP or MetaCLIP 2 checkpoint.

        Args:
            clip_config (`CLIPConfig` or `MetaClip2Config`): configuration of the checkpoint.
            kwargs: fields of [`PigConfig`], and the fields of [`PigVisionConfig`] that CLIP lacks (`num_frames`,
                `num_global_tokens`, `use_frame_tokens`).

        Returns:
            [`PigConfig`].

        Raises:
            ValueError: a field is unknown or invalid.
        """
        text_config = _architecture(clip_config.text_config, CLIPTextConfig)
        if clip_config.model_type == "metaclip_2":
            # The published configurations lack these ids of XLM-R's tokenizer.
            text_config |= {"bos_token_id": 0, "pad_token_id": 1}
        elif text_config["eos_token_id"] == 2:
            # The ids in early CLIP checkpoints are wrong; their tokenizers use the last two ids of the vocabulary.
            last = text_config["vocab_size"] - 1
            text_config |= {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}
        new_vision_fields = {f.name for f in fields(PigVisionConfig)} - {f.name for f in fields(CLIPVisionConfig)}
        vision_config = _architecture(clip_config.vision_config, CLIPVisionConfig)
        vision_config |= {name: kwargs.pop(name) for name in new_vision_fields & kwargs.keys()}
        unknown = kwargs.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"PigConfig has no field {', '.join(sorted(unknown))}.")
        expected = clip_config.projection_dim
        if kwargs.setdefault("projection_dim", expected) != expected:
            raise ValueError(f"projection_dim is {kwargs['projection_dim']}; it must be CLIP's own, {expected}.")
        kwargs.setdefault("initializer_factor", clip_config.initializer_factor)
        return cls.from_fields(text_config=text_config, vision_config=vision_config, **kwargs)

    @classmethod
    def from_fields(cls, **kwargs: Any) -> "PigConfig":
        """Create `PigConfig(**kwargs)` from user input; invalid fields raise `ValueError` with a one-line message."""
        try:
            return cls(**kwargs)
        except StrictDataclassError as error:
            raise ValueError(" ".join(str(error).split())) from error


def load_clip_config(clip_name_or_folder: str) -> CLIPConfig | MetaClip2Config:
    """Load the configuration of a checkpoint that a PIG model can start from.

    Raises:
        ValueError: the checkpoint holds a model of another type.
        OSError: `clip_name_or_folder` is neither a folder nor on the Hub.
    """
    model_type = CLIPConfig.get_config_dict(clip_name_or_folder)[0].get("model_type")
    if model_type not in CLIP_CONFIGS:
        raise ValueError(
            f"{clip_name_or_folder} is not a CLIP checkpoint: model_type in its config.json is {model_type}, expected "
            f"{' or '.join(CLIP_CONFIGS)}. Give a CLIP or MetaCLIP 2 checkpoint in Hugging Face format."
        )
    return CLIP_CONFIGS[model_type].from_pretrained(clip_name_or_folder)


def _architecture(config: PreTrainedConfig, config_class: type[PreTrainedConfig]) -> dict:
    """Return the fields of `config` that `config_class` declares in addition to those of `PreTrainedConfig`."""
    names = {f.name for f in fields(config_class)} - {f.name for f in fields(PreTrainedConfig)}
    return {name: value for name, value in config.to_dict().items() if name in names}


__all__ = ["PigConfig", "PigTextConfig", "PigVisionConfig", "load_clip_config"]
