"""AnomalyCLIP: a frozen CLIP with two learned, object-agnostic prompts and a refined attention path (DPAM)."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPVisionConfig, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import (
    CLIPAttention,
    CLIPEncoderLayer,
    CLIPPreTrainedModel,
    CLIPVisionEmbeddings,
    eager_attention_forward,
)
from transformers.utils import ModelOutput

from .configuration_anomalyclip import PROMPT_STD, AnomalyCLIPConfig
from .loading_anomalyclip import LoadingMixin
from .loss_anomalyclip import check_targets, fill_masks_of_normal_images, global_anomaly_loss, local_anomaly_loss
from .options_anomalyclip import OUTPUT_KINDS
from .prompts_anomalyclip import PromptsMixin, refuse_vision_only


@dataclass
class AnomalyCLIPOutput(ModelOutput):
    """Output of [`AnomalyCLIPModel`]. B images, M feature layers, N patches, P = `projection_dim`; float32 throughout.

    Args:
        loss (`Tensor` of shape `()`, with labels or masks): sum of the two losses below.
        global_loss (`Tensor` of shape `()`, with labels): cross entropy of the logits.
        local_loss (`Tensor` of shape `()`, with masks): 4 x (focal + both dice losses), summed over layers.
        logits (`Tensor` of shape `(B, 2)`): similarities divided by the temperature; [0] normal, [1] anomalous.
        similarity_maps (`Tensor` of shape `(B, M, 2, H, W)`, in [0, 1]): per layer, before smoothing.
        anomaly_maps (`Tensor` of shape `(B, H, W)`, in [0, 1]): P(anomalous), mean over layers; with references,
            blended with `reference_maps`.
        image_embeds (`Tensor` of shape `(B, P)`): L2-normalised.
        text_embeds (`Tensor` of shape `(2, P)`): L2-normalised; normal, anomalous. Those of the logits: free prompts
            have others for the maps.
        patch_embeds (`Tensor` of shape `(B, M, N, P)`): L2-normalised.
        hidden_states (`tuple` of `Tensor` of shape `(B, 1 + N, d)`, with `output_hidden_states=True`): of the original
            path of the vision tower, in its dtype: what enters the first layer, and what leaves each.
        reference_maps (`Tensor` of shape `(B, H, W)`, in [0, 1], with references): distance to them.
        reference_scores (`Tensor` of shape `(B,)`, in [0, 1], with references): the highest distances of patches,
            blended with P(anomalous).
    """

    loss: Tensor | None = None
    global_loss: Tensor | None = None
    local_loss: Tensor | None = None
    logits: Tensor | None = None
    similarity_maps: Tensor | None = None
    anomaly_maps: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    patch_embeds: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    reference_maps: Tensor | None = None
    reference_scores: Tensor | None = None


def compute_similarity_maps(
    patch_embeds: Tensor, text_embeds: Tensor, temperature: float, grid_size: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Similarity maps of patches to the two prompts (section 3.1 of the paper).

    Args:
        patch_embeds (`Tensor` of shape `(B, M, N, P)`, float32): L2-normalised, patches row by row.
        text_embeds (`Tensor` of shape `(2, P)`, or `(M, 2, P)` for each layer, float32): L2-normalised.
        temperature (`float`, above 0).
        grid_size (`tuple[int, int]`): rows and columns of the patch grid, N = rows x columns.
        size (`tuple[int, int]`): height and width of the maps in pixels.

    Returns:
        `Tensor` of shape `(B, M, 2, H, W)`, float32, in [0, 1]: softmax per patch, resized bilinearly.
    """
    batch, layers, patches, _ = patch_embeds.shape
    if grid_size[0] * grid_size[1] != patches:
        raise ValueError(f"patch_embeds has {patches} patches but grid_size={tuple(grid_size)} asks for their product")
    if text_embeds.ndim == 3 and len(text_embeds) != layers:
        raise ValueError(f"text_embeds are of {len(text_embeds)} feature layers but patch_embeds of {layers}")
    similarity = (patch_embeds @ text_embeds.mT / temperature).softmax(dim=-1)
    maps = similarity.transpose(-1, -2).reshape(batch * layers, 2, *grid_size)
    maps = nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    return maps.view(batch, layers, 2, *size)


def split_prompt_embeds(embeds: Tensor) -> tuple[Tensor, Tensor]:
    """What [`~AnomalyCLIPModel.get_prompt_embeds`] returned: that for the logits `(2, P)`, and that for the maps
    `(2, P)` or, of free prompts, `(M, 2, P)`."""
    return (embeds[0], embeds[1:]) if embeds.ndim == 3 else (embeds, embeds)


class AnomalyCLIPAttention(CLIPAttention):
    """CLIP's attention with a refined path beside it: DPAM (section 3.3). One q/k/v projection serves both."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        refine: str | None = None,
        class_token_only: bool = False,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend along the original path and, if asked, along the refined one.

        Args:
            hidden_states (`Tensor` of shape `(B, 1 + N, d)`): layer-normed states of the original path.
            refine (`str`, *optional*): `"vv"`, `"qq"` or `"kk"`; None = no refined path.
            class_token_only (`bool`): compute the original path for the class token alone.

        Returns:
            original `(B, 1 + N, d)` or `(B, 1, d)`, and refined `(B, N, d)` (patches only) or None.
        """
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        keys = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        values = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        queried = hidden_states[:, :1] if class_token_only and refine != "qq" else hidden_states
        queries = self.q_proj(queried).view(*queried.shape[:-1], -1, self.head_dim).transpose(1, 2)

        original = self._attend(queries[:, :, :1] if class_token_only else queries, keys, values, **kwargs)
        if refine is None:
            return original, None
        tokens = {"vv": values, "qq": queries, "kk": keys}[refine]
        # The refined class token feeds nothing: patches attend to all tokens.
        return original, self._attend(tokens[:, :, 1:], tokens, values, **kwargs)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, **kwargs) -> Tensor:
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, _ = attend(self, queries, keys, values, None, scaling=self.scale, dropout=0.0, **kwargs)
        return self.out_proj(output.reshape(output.shape[0], queries.shape[2], -1))


class AnomalyCLIPVisionLayer(CLIPEncoderLayer):
    """A vision layer that carries the original path and, in the last `dpam_layers`, the refined one."""

    def __init__(self, config: CLIPVisionConfig):
        super().__init__(config)
        self.self_attn = AnomalyCLIPAttention(config)

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, refined: Tensor | None, refine: str | None, class_token_only: bool, **kwargs
    ) -> tuple[Tensor, Tensor | None]:
        original_out, refined_out = self.self_attn(
            self.layer_norm1(hidden_states), refine=refine, class_token_only=class_token_only, **kwargs
        )
        if refined_out is not None:
            refined = (hidden_states[:, 1:] if refined is None else refined) + refined_out
        hidden_states = (hidden_states[:, :1] if class_token_only else hidden_states) + original_out
        return hidden_states + self.mlp(self.layer_norm2(hidden_states)), refined


class AnomalyCLIPVisionEncoder(nn.Module):
    """The stack of vision layers, under CLIP's own names."""

    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.layers = nn.ModuleList([AnomalyCLIPVisionLayer(config) for _ in range(config.num_hidden_layers)])


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions `(1 + S * S, D)`, float, of a square image as `(1 + h * w, D)` of `grid=(h, w)`, bilinearly."""
    side = math.isqrt(len(positions) - 1)
    if isinstance(grid[0], int) and grid == (side, side):  # else of any size, in a graph
        return positions
    native = positions[1:].float().view(1, side, side, -1).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(native, size=grid, mode="bilinear", align_corners=False)
    return torch.cat([positions[:1], resized.flatten(2)[0].T.to(positions.dtype)])


class AnomalyCLIPVisionEmbeddings(CLIPVisionEmbeddings):
    """CLIP's embeddings of patches, with positions resized bilinearly to other image sizes."""

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = True) -> Tensor:
        weight = self.patch_embedding.weight
        patches = self.patch_embedding(pixel_values.to(weight.dtype))
        grid = patches.shape[-2:]
        tokens = torch.cat([self.class_embedding.expand(patches.shape[0], 1, -1), patches.flatten(2).mT], dim=1)
        # Called, not read: offloaded weights are there only while their own module runs.
        positions = self.position_embedding(self.position_ids)[0]
        return tokens + resize_positions(positions, (grid[0], grid[1]))


class AnomalyCLIPVisionModel(CLIPPreTrainedModel):
    """Vision tower: the class token of the original path, and patch features of chosen layers."""

    config: CLIPVisionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: CLIPVisionConfig):
        super().__init__(config)
        self.embeddings = AnomalyCLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = AnomalyCLIPVisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(self, pixel_values: Tensor, *args, **kwargs) -> tuple[Tensor, list[Tensor]]:
        """Run both paths on normalised images `(B, 3, H, W)`, float, H and W multiples of the patch size; otherwise as
        `encode`."""
        return self.encode(self.embeddings(pixel_values), *args, **kwargs)

    def encode(
        self,
        tokens: Tensor,
        feature_layers: list[int],
        dpam_layers: int,
        dpam_attention: str = "vv",
        kept_states: dict[int, Tensor] | None = None,
        class_token: bool = True,
        **kwargs,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run both paths.

        Args:
            tokens (`Tensor` of shape `(B, 1 + N, d)`, float): embedded patches, the class token first.
            feature_layers (`list[int]`): layers, counted from 1, whose patch features are wanted, if any, rising.
            dpam_layers (`int`): the last n layers carry the refined path.
            dpam_attention (`str`): `"vv"`, `"qq"` or `"kk"`.
            kept_states (`dict`, *optional*): has layers as keys, and gets the states `(B, 1 + N, d)` that leave them
                on the original path; 0 stands for what enters the first one.
            class_token (`bool`): False = stop after the last layer that features are of.
            **kwargs: passed on to the attention.

        Returns:
            class token after the last layer, without post_layernorm `(B, d)`; a list of patch features `(B, N, d)`
            after post_layernorm.
        """
        depth, kept = len(self.encoder.layers), {} if kept_states is None else kept_states
        states, refined, features = self.pre_layrnorm(tokens), None, []
        if 0 in kept:
            kept[0] = states
        last = max(feature_layers, default=0)
        for number, layer in enumerate(self.encoder.layers[: None if class_token else last], start=1):
            in_dpam = number > depth - dpam_layers
            # Past the last feature layer nothing reads the refined path; in the last layer nothing but the class
            # token of the original path is read, unless its patches are a feature or its states are wanted.
            refine = dpam_attention if in_dpam and number <= last else None
            unread = in_dpam or last != depth
            class_token_only = number == depth and unread and depth not in kept
            states, refined = layer(states, refined, refine, class_token_only, **kwargs)
            if number in kept:
                kept[number] = states
            if number in feature_layers:
                features.append(self.post_layernorm(refined if refine else states[:, 1:]))
        return states[:, 0], features


class AnomalyCLIPTextModel(CLIPTextModel):
    """CLIP's text tower, fed with embeddings and with deep prompts that overwrite hidden states."""

    def forward(  # type: ignore[override]
        self, inputs_embeds: Tensor, deep_prompts: Tensor, eos_positions: list[int], **kwargs
    ) -> Tensor:
        """Encode embedded prompts.

        Args:
            inputs_embeds (`Tensor` of shape `(2, L, d)`): embedded tokens, positions not yet added.
            deep_prompts (`Tensor` of shape `(depth - 1, T, d)`): set i overwrites positions 1..T before layer i + 2.
            eos_positions (`list[int]`): index of the end-of-text token in each row.

        Returns:
            `Tensor` of shape `(2, d)`: state at the end-of-text token after the final layer norm.
        """
        # 1. Positions and the causal mask; what follows the end of text can't be seen from it.
        hidden_states = self.embeddings(inputs_embeds=inputs_embeds)
        mask = create_causal_mask(self.config, hidden_states, None, None)  # no attention mask, no cache
        # 2. Layers, with deep prompts written over positions 1..T before layers 2..depth.
        for index, layer in enumerate(self.encoder.layers):
            if 1 <= index <= len(deep_prompts):
                prompts = deep_prompts[index - 1].to(hidden_states).expand(len(hidden_states), -1, -1)
                after = hidden_states[:, 1 + prompts.shape[1] :]
                hidden_states = torch.cat([hidden_states[:, :1], prompts, after], dim=1)
            hidden_states = layer(hidden_states, mask, is_causal=True, **kwargs)
        # 3. The state at the end of text.
        rows = [hidden_states[row, position] for row, position in enumerate(eos_positions)]
        return self.final_layer_norm(torch.stack(rows))


class AnomalyCLIPPromptLearner(nn.Module):
    """All that is trained, float32 always: the learned words of both prompts and the deep prompts (section 3.2), or
    the vectors of free prompts.

    Args:
        config ([`AnomalyCLIPConfig`]): gives names and shapes, by its `prompt_shapes`.
    """

    context: nn.Parameter
    deep_prompts: nn.Parameter
    image_vectors: nn.Parameter
    patch_vectors: nn.Parameter

    def __init__(self, config: AnomalyCLIPConfig):
        super().__init__()
        for name, shape in config.prompt_shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, dtype=torch.float32)))

    def _apply(self, fn, recurse=True):
        """Follow moves to other devices, but stay float32 when the backbone is cast."""

        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            same = moved.dtype == tensor.dtype or not moved.is_floating_point()
            return moved if same else tensor.to(device=moved.device, dtype=torch.float32)

        return super()._apply(keep_float32, recurse)

    def forward(self, token_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Replace positions 1..E of the embedded prompts `(2, L, d)` by the learned words.

        Returns:
            the embedded prompts `(2, L, d)` and the deep prompts `(depth - 1, T, d)`.
        """
        context = self.context.to(token_embeds)
        embeds = torch.cat([token_embeds[:, :1], context, token_embeds[:, 1 + context.shape[1] :]], dim=1)
        return embeds, self.deep_prompts

    def free_embeds(self) -> Tensor:
        """The vectors of free prompts, L2-normalised: `(1 + M, 2, P)`; first the image's, then each layer's."""
        return nn.functional.normalize(torch.cat([self.image_vectors[None], self.patch_vectors]), dim=-1)


class AnomalyCLIPPreTrainedModel(PromptsMixin, PreTrainedModel):
    config: AnomalyCLIPConfig
    config_class = AnomalyCLIPConfig
    base_model_prefix = "anomalyclip"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["AnomalyCLIPVisionLayer", "CLIPEncoderLayer", "AnomalyCLIPVisionEmbeddings"]
    _keep_in_fp32_modules_strict = ["prompt_learner", "folded_text_embeds"]
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # of `Trainer`: the losses are means over the batch
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, AnomalyCLIPPromptLearner):
            for parameter in module.parameters():
                init.normal_(parameter, std=PROMPT_STD[self.config.prompt_type])
        elif isinstance(module, AnomalyCLIPModel):
            factor = self.config.initializer_factor
            for name, tower in (("visual_projection", "vision_config"), ("text_projection", "text_config")):
                if (projection := getattr(module, name, None)) is not None:
                    init.normal_(projection.weight, std=getattr(self.config, tower).hidden_size ** -0.5 * factor)
            if self.config.vision_only:
                init.zeros_(module.folded_text_embeds)


class AnomalyCLIPModel(LoadingMixin, AnomalyCLIPPreTrainedModel):
    """Zero-shot anomaly detection with two learned, object-agnostic prompts on a frozen CLIP.

    Args:
        config ([`AnomalyCLIPConfig`]).

    The backbone's parameters carry `CLIPModel`'s names and are frozen; `prompt_learner.context` (2, E, d) and
    `prompt_learner.deep_prompts` (depth - 1, T, d) are learned; or, with `prompt_type="free"`,
    `prompt_learner.image_vectors` (2, P) and `prompt_learner.patch_vectors` (M, 2, P), M = feature layers.
    """

    def __init__(self, config: AnomalyCLIPConfig):
        super().__init__(config)
        if config.prompts_only:
            raise ValueError("this configuration is that of prompts alone; from_pretrained loads their base model too")
        text, vision, dtype = config.text_config, config.vision_config, torch.get_default_dtype()  # not their own
        self.vision_model = AnomalyCLIPVisionModel._from_config(vision, dtype=dtype)
        self.visual_projection = nn.Linear(vision.hidden_size, config.projection_dim, bias=False)
        if config.vision_only:
            sets = (1 + len(config.feature_layers),) if config.prompt_type == "free" else ()
            self.folded_text_embeds = nn.Buffer(torch.zeros(*sets, 2, config.projection_dim, dtype=torch.float32))
        if config.reads_text:
            self.text_model = AnomalyCLIPTextModel._from_config(text, dtype=dtype)
            self.text_projection = nn.Linear(text.hidden_size, config.projection_dim, bias=False)
            self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        else:
            self._keys_to_ignore_on_load_unexpected = {"^text_model.", "^text_projection.", "^logit_scale"}
        if not config.vision_only:
            self.prompt_learner = AnomalyCLIPPromptLearner(config)
        self._text_cache: tuple | None = None
        self.post_init()
        self.freeze_backbone()

    def _apply(self, fn, recurse=True):
        """Keep folded prompts in float32, as learned ones are, when the backbone is cast."""
        folded = self.folded_text_embeds if self.config.vision_only else None
        super()._apply(fn, recurse)
        if folded is not None and self.folded_text_embeds.dtype != folded.dtype:
            self.folded_text_embeds = folded.to(self.folded_text_embeds.device)  # type: ignore[assignment]
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The table of words, or the patch embedding where there is no text tower; asked for by quantisation."""
        if not hasattr(self, "text_model"):
            return self.vision_model.embeddings.patch_embedding
        return self.text_model.embeddings.token_embedding

    def freeze_backbone(self) -> None:
        """Let gradients reach the prompts alone."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith("prompt_learner."))

    def get_prompt_embeds(self) -> Tensor:
        """Embeddings of the normal and the anomalous prompt, kept between calls while no gradient is asked for.

        What is returned is the caller's own; changing it changes no later call. Code under `torch.compile` keeps
        nothing: give it `text_embeds`, made once outside.

        Returns:
            `Tensor` of shape `(2, P)`, float32, L2-normalised; of free prompts `(1 + M, 2, P)`: first those that
            images are compared with, then those for the patches of each feature layer.
        """
        if self.config.vision_only:
            return self.folded_text_embeds.to(torch.float32, copy=True)
        if self.config.prompt_type == "free":
            return self.prompt_learner.free_embeds()
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.encode_prompts()
        learner, weights = self.prompt_learner, (*self.text_model.parameters(), self.text_projection.weight)
        if any(weight.is_meta for weight in (*learner.parameters(), *weights)):
            return self.encode_prompts()  # offloaded: whether they changed can't be seen
        autocast = torch.is_autocast_enabled(weights[0].device.type)
        versions = ((w.data_ptr(), w.dtype, 0 if w.is_inference() else w._version) for w in weights)
        key = (str(self.config.prompt_token_ids), autocast, *versions)
        if self._text_cache is not None:
            old_key, context, deep_prompts, embeds = self._text_cache
            # Values, not versions: p.data may be written without a trace.
            same = old_key == key and torch.equal(context, learner.context)
            if same and torch.equal(deep_prompts, learner.deep_prompts):
                return embeds.clone()
        embeds = self.encode_prompts()
        self._text_cache = (key, learner.context.clone(), learner.deep_prompts.clone(), embeds)
        return embeds.clone()

    def encode_prompts(self, deep_prompts: Tensor | None = None) -> Tensor:
        """Run the text tower on both prompts.

        Args:
            deep_prompts (`Tensor` of shape `(S, T, d)`, float32, S < depth, *optional*): instead of the learned ones.

        Returns:
            `Tensor` of shape `(2, P)`, float32, L2-normalised.
        """
        positions, table = self.config.eos_positions, self.text_model.embeddings.token_embedding
        device = "cpu" if table.weight.is_meta else table.weight.device  # offloaded: its own hook moves what it gets
        ids = torch.tensor(self.config.prompt_token_ids, device=device)[:, : max(positions) + 1]
        embeds, learned = self.prompt_learner(table(ids))
        pooled = self.text_model(embeds, learned if deep_prompts is None else deep_prompts, positions)
        return self.project(self.text_projection, pooled)

    def project(self, projection: nn.Linear, states: Tensor) -> Tensor:
        """Turn states `(..., d)` into L2-normalised embeddings `(..., P)`, float32, by `text_projection` or
        `visual_projection`."""
        return nn.functional.normalize(projection(states).float(), dim=-1)

    @torch.no_grad()
    def encode_images(
        self, pixel_values: Tensor, kept_states: dict[int, Tensor] | None = None, outputs: str = "all", **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of images and of their patches; never builds a graph.

        Args:
            pixel_values (`Tensor` of shape `(B, 3, H, W)`, float): normalised; H and W multiples of the patch size.
            kept_states (`dict`, *optional*): has layers of the vision tower as keys, and gets what leaves them on the
                original path; 0 stands for what enters the first one.
            outputs (`str`): as of [`~AnomalyCLIPModel.forward`]; what isn't asked for is empty, B or M being 0.
            **kwargs: passed on to the attention.

        Returns:
            image_embeds `(B, P)` and patch_embeds `(B, M, N, P)`, float32, L2-normalised.
        """
        self._check_pixel_values(pixel_values)
        config, layers = self.config, [] if outputs == "score" else sorted(self.config.feature_layers)
        paths = (
            layers,
            config.dpam_layers,
            config.dpam_attention,
            kept_states,
            outputs != "maps" or bool(kept_states),
        )
        class_token, features = self.vision_model(pixel_values, *paths, **kwargs)
        image_embeds = self.project(self.visual_projection, class_token[: 0 if outputs == "maps" else None])
        if not layers:
            return image_embeds, image_embeds.new_empty(len(image_embeds), 0, 0, image_embeds.shape[-1])
        return image_embeds, torch.stack([self.project(self.visual_projection, one) for one in features], dim=1)

    def get_text_features(self) -> Tensor:
        """Old name of `get_prompt_embeds`, for one release; in CLIP it means another thing."""
        warnings.warn("get_text_features is now called get_prompt_embeds", FutureWarning, stacklevel=2)
        return self.get_prompt_embeds()

    def get_image_features(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Old name of `encode_images`, for one release; in CLIP it means another thing."""
        warnings.warn("get_image_features is now called encode_images", FutureWarning, stacklevel=2)
        return self.encode_images(pixel_values)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        masks: Tensor | None = None,
        image_embeds: Tensor | None = None,
        patch_embeds: Tensor | None = None,
        text_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        references: Any = None,
        outputs: str = "all",
        **kwargs,
    ) -> AnomalyCLIPOutput | tuple:
        """Score images and their pixels, with losses where labels or masks are given.

        Args:
            pixel_values (`Tensor` of shape `(B, 3, H, W)`, float): normalised; H and W multiples of the patch size.
            labels (`Tensor` of shape `(B,)`, int, 0 or 1, *optional*): 1 = anomalous.
            masks (`Tensor` of shape `(B, H, W)`, float, 0 or 1, *optional*): 1 = anomalous; -1 throughout an image
                that has no mask: it takes no part in the local loss (a normal one is given an empty mask).
            image_embeds, patch_embeds (`Tensor` of shape `(B, P)` and `(B, M, N, P)`, *optional*): kept features
                of [`~AnomalyCLIPModel.encode_images`] instead of pixel_values.
            text_embeds (`Tensor` of shape `(2, P)`, or `(1 + M, 2, P)` of free prompts, *optional*): kept ones of
                [`~AnomalyCLIPModel.get_prompt_embeds`]; the text tower isn't run.
            output_hidden_states (`bool`, *optional*): return the vision tower's states too; the configuration's own
                setting if absent, as for `return_dict`.
            return_dict (`bool`, *optional*): False = a plain tuple.
            references ([`References`], *optional*): compared with, in place of the model's own.
            outputs (`str`): `"score"` = logits alone, without the refined path; `"maps"` = maps alone, without layers
                past the last feature layer; neither takes labels, masks or references.
            **kwargs: passed on to the attention of the vision tower.

        Raises:
            ValueError: if shapes contradict each other, or a vision-only model is asked for a loss.
        """
        # 1. Frozen features of the images.
        wants_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        layers = range(self.config.vision_config.num_hidden_layers + 1) if wants_states else ()
        kept: Any = {}
        if pixel_values is not None:
            size = (pixel_values.shape[-2], pixel_values.shape[-1])
            references = self.references if references is None else references
            _check_outputs(outputs, labels=labels, masks=masks, references=references)
            kept = dict.fromkeys((*layers, *(() if references is None else references.layers)))
            image_embeds, patch_embeds = self.encode_images(pixel_values, kept, outputs, **kwargs)
        elif image_embeds is None or patch_embeds is None:
            raise ValueError("give pixel_values, or both image_embeds and patch_embeds")
        else:
            _check_outputs(outputs, labels=labels, masks=masks)
            if len(image_embeds) != len(patch_embeds):
                raise ValueError(
                    f"{len(image_embeds)} image_embeds and {len(patch_embeds)} patch_embeds, expected equal"
                )
            side = self.config.image_size
            size = (masks.shape[-2], masks.shape[-1]) if masks is not None else (side, side)
        if labels is not None or masks is not None:
            refuse_vision_only(self.config, "its prompts are folded and can't be trained")
        check_targets(image_embeds.shape[0], size, labels, masks)

        # 2. Text embeddings of the two prompts.
        if text_embeds is None:
            text_embeds = self.get_prompt_embeds()
        elif text_embeds.ndim != 3 and self.config.prompt_type == "free":
            raise ValueError(
                f"text_embeds has shape {tuple(text_embeds.shape)}, but free prompts have others for the layers' "
                "maps than for the image: give what get_prompt_embeds() returns"
            )

        # 3. Similarities, in float32 also under autocast.
        with torch.autocast(device_type=image_embeds.device.type, enabled=False):
            image_embeds, patch_embeds = image_embeds.float(), patch_embeds.float()
            text_embeds, patch_prompts = split_prompt_embeds(text_embeds.to(image_embeds.device, torch.float32))
            labels = None if labels is None else labels.to(image_embeds.device)
            temperature, patch = self.config.temperature, self.config.vision_config.patch_size
            grid = (size[0] // patch, size[1] // patch)
            logits: Any = None if outputs == "maps" else image_embeds @ text_embeds.T / temperature
            maps: Any = None
            anomaly_maps: Any = None
            if outputs != "score":
                maps = compute_similarity_maps(patch_embeds, patch_prompts, temperature, grid, size)
                anomaly_maps = maps[:, :, 1].mean(dim=1)

            # 4. With references: distances to them beside the prompts' probabilities.
            distances = scores = None
            if pixel_values is not None and references is not None:
                own = logits.softmax(dim=-1)[:, 1]
                distances, anomaly_maps, scores = references.judge(kept, grid, anomaly_maps, own)

            # 5. Losses.
            global_loss = local_loss = loss = None
            if labels is not None:
                loss = global_loss = global_anomaly_loss(logits, labels.long())
            if masks is not None:
                masks = fill_masks_of_normal_images(masks.to(maps.device, maps.dtype), labels)
                local_loss = local_anomaly_loss(maps, masks)
                loss = local_loss if loss is None else loss + local_loss

        output = AnomalyCLIPOutput(
            loss=loss,
            global_loss=global_loss,
            local_loss=local_loss,
            logits=logits,
            similarity_maps=maps,
            anomaly_maps=anomaly_maps,
            image_embeds=None if logits is None else image_embeds,
            text_embeds=text_embeds,
            patch_embeds=None if maps is None else patch_embeds,
            hidden_states=tuple(kept[layer] for layer in layers) if layers and kept else None,
            reference_maps=distances,
            reference_scores=scores,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict is not False else output.to_tuple()

    def _check_pixel_values(self, pixel_values: Tensor) -> None:
        patch, channels = self.config.vision_config.patch_size, self.config.vision_config.num_channels
        shape = tuple(pixel_values.shape)
        if pixel_values.ndim != 4 or shape[1] != channels:
            raise ValueError(f"pixel_values has shape {shape}, expected (B, {channels}, H, W)")
        if shape[2] % patch or shape[3] % patch or not shape[2] or not shape[3]:
            raise ValueError(
                f"pixel_values is {shape[2]}x{shape[3]} pixels but patch_size={patch} does not divide it; "
                f"resize to multiples of {patch} (the processor does so)"
            )


def _check_outputs(outputs: str, **needing_all: Any) -> None:
    if outputs not in OUTPUT_KINDS:
        raise ValueError(f"outputs={outputs!r}, expected one of {', '.join(OUTPUT_KINDS)}")
    if outputs != "all" and (given := [name for name, value in needing_all.items() if value is not None]):
        raise ValueError(f"outputs={outputs!r} with {', '.join(given)}, which need score and maps: outputs='all'")


__all__ = ["AnomalyCLIPModel", "AnomalyCLIPOutput", "AnomalyCLIPPreTrainedModel", "compute_similarity_maps"]
