"""Image processor of AnomalyCLIP: images and masks in, scores and maps out."""

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_transforms import to_pil_image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, cached_file, logging, safe_load_json_file

from .configuration_anomalyclip import HUB_ARGUMENTS, LOADING_FIELDS, AnomalyCLIPConfig, missing_folder_named
from .inputs_anomalyclip import normalized_pixels, smoothing_matrix
from .options_anomalyclip import OPTION_RULES, RESIZING, check_options, installed

logger = logging.get_logger(__name__)

DEFAULT_SIZE = 518
OLD_NAME = "AnomalyCLIPProcessor"
MAX_SIDE = 8192
UNKNOWN_MASK = -1.0
# What a saved processor says beside its settings.
SERVICE_FIELDS = {"image_processor_type", "feature_extractor_type", "processor_class", "auto_map"}
# Settings of other processors: what they would have to be to change nothing here.
UNUSED = {"do_center_crop": False, "do_pad": False, "do_convert_rgb": True, "data_format": "channels_first"}
UNUSED |= {"crop_size": None, "pad_size": None, "input_data_format": None, "image_seq_length": None}
UNUSED |= {"device": "cpu", "disable_grouping": False}
PLAIN_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # read without the package


class AnomalyCLIPImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Arguments of the processor beside those of every image processor.

    sigma (`float`, pixels at the model's input size): smoothing of the anomaly map; 0 = none.
    resize (`"square"`, `"fit"` or `"tile"`), tile_size (`int`, pixels of the image), overlap (`float` in [0, 0.9]),
    patch_size (`int`, pixels): see [`AnomalyCLIPImageProcessor`].
    """

    sigma: float
    resize: str
    tile_size: int | None
    overlap: float
    patch_size: int | None


def gaussian_smooth(maps: Tensor, sigma: float) -> Tensor:
    """Smooth maps as `scipy.ndimage.gaussian_filter(map, sigma)` does.

    Args:
        maps (`Tensor` of shape `(..., H, W)`, float).
        sigma (`float`, pixels, 0 or more): standard deviation; 0 = unchanged.
    """
    if not sigma >= 0:
        raise ValueError(f"sigma={sigma}, expected 0 or more pixels")
    if sigma == 0:
        return maps
    height, width = maps.shape[-2:]
    down = torch.from_numpy(smoothing_matrix(height, float(sigma))).to(maps.device)
    across = torch.from_numpy(smoothing_matrix(width, float(sigma))).to(maps.device)
    with torch.autocast(device_type=maps.device.type, enabled=False):
        return down @ maps.float() @ across.T


def upright_image(image: Any, name: str = "") -> Image.Image:
    """An upright 8-bit image; without the package, of what PIL reads and holds in 8 bits alone.

    Args:
        image: as `data.reader.load_image` of the package takes it, and as `to_pil_image` there where a name is
            given.
        name (`str`): what to call it in errors.

    Raises:
        OSError, ValueError, TypeError: it can't be read.
        ModuleNotFoundError: only the package reads it, and isn't installed.
    """
    try:
        reader = installed("data.reader")
    except ModuleNotFoundError as error:
        return _plain_image(image, error)
    return reader.to_pil_image(image, name) if name else reader.load_image(image)


def _plain_image(image: Any, refusal: ModuleNotFoundError) -> Image.Image:
    if isinstance(image, np.ndarray | Tensor):
        array = np.asarray(image)
        if np.issubdtype(array.dtype, np.floating) and array.min() >= 0 and array.max() <= 1:
            array = np.rint(array * 255).astype(np.uint8)
        if array.dtype != np.uint8:
            raise refusal
        return to_pil_image(array if array.ndim == 3 else array[..., None])
    if isinstance(image, str | os.PathLike) or hasattr(image, "read"):
        image = Image.open(image, formats=PLAIN_FORMATS)
    if not isinstance(image, Image.Image) or image.mode[0] in "FI" or ";16" in str(getattr(image, "tile", "")):
        raise refusal
    return ImageOps.exif_transpose(image)


class AnomalyCLIPImageProcessor(PilBackend):
    r"""Prepares images and masks for [`AnomalyCLIPModel`], and turns its output into results.

    Images are resized with PIL's bicubic filter and normalised with CLIP's mean and standard deviation; masks are
    resized bilinearly and cut at 0.5.

    Args:
        size (`dict`, defaults to `{"height": 518, "width": 518}`): input size in pixels, multiples of the patch size.
        sigma (`float`, defaults to 4.0): smoothing of the anomaly map, in pixels at that size.
        resize (`str`, defaults to `"square"`): `"square"`, as the model was trained. `"fit"` keeps the ratio of the
            sides: the longer one is made as long as the input's, the other one the nearest multiple of the patch size.
            `"tile"` prepares the square whole view, and overlapping tiles that are scored as well (see
            [`~scoring.tiling.score_views`]); an image no larger than a tile has none.
        tile_size (`int`, pixels of the image, *optional*): side of a tile; as long as the input's if absent.
        overlap (`float` in [0, 0.9], defaults to 0.25): least share of a tile that its neighbour covers too.
        patch_size (`int`, *optional*): the model's, which `"fit"` needs, and `"tile"` for images narrower than a tile.
        image_mean, image_std (`list[float]`, in units of [0, 1]): per channel; CLIP's own.
        do_resize, do_rescale, do_normalize, resample, rescale_factor: as in every image processor.
    """

    valid_kwargs = AnomalyCLIPImagesKwargs
    model_input_names = ["pixel_values", "masks"]
    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"height": DEFAULT_SIZE, "width": DEFAULT_SIZE}
    default_to_square = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    sigma = 4.0
    resize = "square"  # type: ignore[assignment]  # over the base class's method, which nothing here calls
    tile_size = None
    overlap = 0.25
    patch_size = None

    def __init__(self, **kwargs: Any):
        _refuse_unknown(kwargs, set(self.valid_kwargs.__annotations__) | SERVICE_FIELDS)
        if not __name__.startswith("transformers_modules."):
            kwargs.pop("auto_map", None)  # of code that the checkpoint brought, and that is not used
        # The base class would set what is None, and not put the default in its place.
        super().__init__(**{key: value for key, value in kwargs.items() if value is not None})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load the processor of an AnomalyCLIP checkpoint, or make one for any CLIP checkpoint.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): folder or Hub repository.
            **kwargs: fields of the processor, which override the stored ones, and the usual Hub arguments.

        Raises:
            OSError: if the checkpoint can't be found, or its stored processor can't be read.
            ValueError: if a setting is out of range.
            TypeError: if there is no such setting.
        """
        hub = {key: value for key, value in kwargs.items() if key in HUB_ARGUMENTS}
        known = cls.valid_kwargs.__annotations__
        fields = {k: v for k, v in kwargs.items() if v is not None and (k in known or k not in LOADING_FIELDS)}
        unused = None
        if fields.pop("return_unused_kwargs", False):
            unused = {key: fields.pop(key) for key in sorted(set(fields) - set(known))}
        stored = _stored_settings(cls, pretrained_model_name_or_path, hub)
        if stored.get("image_processor_type") in (cls.__name__, OLD_NAME):
            processor = cls.from_dict(stored, **fields)
        else:  # A CLIP checkpoint: keep how it reads values, not its crop to 224 pixels.
            config, _ = AnomalyCLIPConfig.get_config_dict(pretrained_model_name_or_path, **hub)
            kept = ("image_mean", "image_std", "rescale_factor", "do_rescale", "do_normalize")
            side = config.get("image_size") or _default_image_size(config)
            values = {key: stored[key] for key in kept if stored.get(key) is not None}
            processor = cls(**{"size": {"height": side, "width": side}, **values, **fields})
        return processor if unused is None else (processor, unused)

    @classmethod
    def from_dict(cls, image_processor_dict, **kwargs):
        """Make a processor of stored settings; those of other versions that are unknown here are left out, and named.

        Args:
            image_processor_dict (`dict`): as `to_dict` returns it.
            **kwargs: fields of the processor, which override the stored ones.
        """
        known = set(cls.valid_kwargs.__annotations__) | SERVICE_FIELDS
        if unknown := sorted(set(image_processor_dict) - known):
            logger.warning(f"settings unknown to {cls.__name__} are left out: {', '.join(map(str, unknown))}")
        return cls(**{key: value for key, value in {**image_processor_dict, **kwargs}.items() if key not in unknown})

    def _standardize_kwargs(self, **kwargs) -> dict:  # of every way in: made, loaded and called
        settings = super()._standardize_kwargs(**kwargs)
        _check_settings(settings)
        return settings

    def preprocess(  # type: ignore[override]
        self, images, masks=None, return_tensors=None, segmentation_maps=None, **kwargs
    ) -> BatchFeature:
        """Prepare images, and masks if given.

        Args:
            images: one image or a list of them, of any kind that [`upright_image`] takes.
            masks (*optional*): one mask or a list of them, of the same kinds. Anomalous is what is
                not black: above 0 in any colour, or above 0.5 in floats. None in the list: the image has no mask, and
                its row is filled with -1.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`.
            segmentation_maps (*optional*): another name of `masks`, as other image processors call them.
            **kwargs: settings of the processor, for this call.

        Returns:
            `BatchFeature` with `pixel_values` (B, 3, H, W) float32 and, with masks, `masks` (B, H, W) float32, 0 or 1;
            with `resize="tile"` these are the whole views, and `tiles` has the [`ImageTiles`] of each image.

        Raises:
            ValueError: if there is no image, one can't be read, masks differ from images in number or size, images
                become inputs of several sizes, or a setting is out of range.
            TypeError: if there is no such setting.
        """
        _refuse_unknown(kwargs, set(self._valid_kwargs_names))
        if segmentation_maps is not None:
            if masks is not None:
                raise TypeError("masks and segmentation_maps are two names of one argument; give one of them")
            masks = segmentation_maps
        images = _as_list(images)
        if not images:
            raise ValueError("images is empty, expected at least one image")
        settings = {k: kwargs[k] if kwargs.get(k) is not None else getattr(self, k) for k in self._valid_kwargs_names}
        settings = self._standardize_kwargs(**settings)
        check_tiling(kwargs, settings["resize"])
        pil = [upright_image(image, f"images[{i}]") for i, image in enumerate(images)]
        # Floats that are not to be rescaled became 8 bits here.
        kinds = [not settings["do_rescale"] and "float" in str(getattr(image, "dtype", "")) for image in images]
        scales = [{"do_rescale": True, "rescale_factor": 1 / 255} if kind else {} for kind in kinds]
        fitted = [_fitted(settings, image.size) | scale for image, scale in zip(pil, scales, strict=True)]
        arrays = [self._prepare_image(image, own) for image, own in zip(pil, fitted, strict=True)]
        if len({array.shape for array in arrays}) > 1:
            shown = ", ".join(f"{width}x{height}" for width, height in sorted({image.size for image in pil})[:4])
            why = "resize='fit'" if settings["do_resize"] else "do_resize=False"
            raise ValueError(f"{why}, but images of {shown} pixels can't be one batch; give them one by one")
        data: dict[str, np.ndarray] = {"pixel_values": np.stack(arrays)}
        if masks is not None:
            masks = _as_list(masks)
            stack: Any = masks[0] if len(masks) == 1 else None
            if len(images) > 1 and getattr(stack, "ndim", 0) == 3 and len(stack) == len(images):
                masks = list(stack)  # (B, H, W)
            if len(masks) != len(images):
                raise ValueError(
                    f"masks has {len(masks)} entries for {len(images)} images; give None for an image without one"
                )
            prepared = [
                self._prepare_mask(mask, image.size, i, own)
                for i, (mask, image, own) in enumerate(zip(masks, pil, fitted, strict=True))
            ]
            data["masks"] = np.stack(prepared)
        features = BatchFeature(data=data, tensor_type=return_tensors)
        if settings["resize"] == "tile":
            cut = installed("scoring.tiling").cut_tiles
            features["tiles"] = [cut(one, settings, kwargs | scale) for one, scale in zip(pil, scales, strict=True)]
        return features

    def _prepare_image(self, image: Image.Image, settings: dict) -> np.ndarray:
        return normalized_pixels(
            image,
            (settings["size"].width, settings["size"].height) if settings["do_resize"] else None,
            settings["resample"],
            settings["rescale_factor"] if settings["do_rescale"] else None,
            (settings["image_mean"], settings["image_std"]) if settings["do_normalize"] else None,
        )

    def _prepare_mask(self, mask, image_size: tuple[int, int], index: int, settings: dict) -> np.ndarray:
        size = settings["size"]
        width, height = (size.width, size.height) if settings["do_resize"] else image_size
        if mask is None:
            return np.full((height, width), UNKNOWN_MASK, dtype=np.float32)
        mask = installed("data.paint").binary_mask(mask, f"masks[{index}]")
        if mask.size != image_size:
            raise ValueError(
                f"masks[{index}] is {mask.width}x{mask.height} pixels but its image is {image_size[0]}x{image_size[1]}"
            )
        resized = mask.resize((width, height), resample=PILImageResampling.BILINEAR)
        return (np.asarray(resized) > 127.5).astype(np.float32)

    @torch.no_grad()
    def post_process_anomaly_detection(
        self,
        outputs,
        target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        sigma: float | None = None,
        image_threshold: float | None = None,
        pixel_threshold: float | None = None,
        min_area: int = 1,
        roi: Any = None,
        image_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        score_rule: str | None = None,
    ) -> list[dict[str, Any]]:
        """Turn the model's output into one result per image.

        Args:
            outputs ([`AnomalyCLIPOutput`]): has `logits` (B, 2) and `anomaly_maps` (B, H, W), or one of them; where it
                has `reference_scores` (B,), they stand in for P(anomalous) of the image.
            target_sizes (`list[tuple[int, int]]`, *optional*): height and width of each original image in pixels.
            sigma (`float`, pixels at the model's input size, *optional*): smoothing; the processor's own if absent.
            image_threshold (`float` in [0, 1], *optional*): score from which `label` is "anomalous".
            pixel_threshold (`float` in [0, 1], *optional*): map value from which `mask` is True.
            min_area (`int`, pixels of the image, defaults to 1): smaller regions are left out of mask and regions.
            roi (*optional*): region of interest, a mask or a polygon, see [`read_roi`]. Outside it nothing counts:
                neither mask nor regions. Map and score are those of the whole image.
            image_sizes (`list[tuple[int, int]]`, *optional*): height and width of each image in pixels, which regions
                are measured in, where maps are to have another size than their image.
            score_rule (`str`, *optional*): `"global"` (the default), `"max"` (of the smoothed map) or `"mean"` (half
                global, half the mean of the map's top 1 %); the model's config says which its thresholds are for.

        Returns:
            for each image `score` (float in [0, 1]), `anomaly_map` (`Tensor` (h, w) float32 in [0, 1]), and, with
            thresholds, `label` ("normal" or "anomalous"), `mask` (`Tensor` (h, w) bool) and `regions` (a list, see
            [`find_regions`]); without logits or without maps, what the others tell alone.

        Raises:
            ValueError: if logits or maps are not finite, target sizes differ in number, or a setting is out of range.
        """
        given = {"image_threshold": image_threshold, "pixel_threshold": pixel_threshold, "min_area": min_area}
        check_options(given | {"score_rule": score_rule})
        logits, maps, scores = outputs.get("logits"), outputs.get("anomaly_maps"), None
        count = _check_finite(logits, maps)
        if maps is not None:
            _check_sigma(sigma, max(maps.shape[-2:]))
            maps = gaussian_smooth(maps.float(), self.sigma if sigma is None else sigma)
        if logits is not None:
            by_references = outputs.get("reference_scores")
            whole = logits.float().softmax(dim=-1)[:, 1] if by_references is None else by_references.float()
            scores = _apply_rule(score_rule or "global", whole, maps).tolist()
        if target_sizes is not None and len(target_sizes) != count:
            raise ValueError(f"target_sizes has {len(target_sizes)} entries for {count} images")
        results = []
        for index in range(count):
            result: dict[str, Any] = {} if scores is None else {"score": scores[index]}
            if maps is not None:
                anomaly_map = maps[index]
                if target_sizes is not None:
                    target = tuple(int(side) for side in target_sizes[index])
                    anomaly_map = nn.functional.interpolate(
                        anomaly_map[None, None], size=target, mode="bilinear", align_corners=False
                    )[0, 0]
                result["anomaly_map"] = anomaly_map
            if scores is not None and image_threshold is not None:
                result["label"] = "anomalous" if scores[index] >= image_threshold else "normal"
            if maps is not None and pixel_threshold is not None:
                size = None if image_sizes is None else (int(image_sizes[index][1]), int(image_sizes[index][0]))
                result |= _mark(anomaly_map, pixel_threshold, min_area, roi, size)
            results.append(result)
        return results


def _mark(
    anomaly_map: Tensor, pixel_threshold: float, min_area: int, roi: Any, image_size: tuple[int, int] | None
) -> dict[str, Any]:
    """Mask and regions; the mask alone where this code came with a checkpoint, without its package."""
    try:
        regions = installed("scoring.regions")
    except ModuleNotFoundError:
        if min_area > 1 or roi is not None:
            raise
        return {"mask": anomaly_map >= pixel_threshold}
    mask, found = regions.mark_regions(anomaly_map.cpu().numpy(), pixel_threshold, min_area, roi, image_size)
    return {"mask": torch.from_numpy(mask).to(anomaly_map.device), "regions": found}


def _apply_rule(rule: str, whole: Tensor, maps: Tensor | None) -> Tensor:
    """Scores `(B,)` by a rule, from those of whole images `(B,)` and maps `(B, H, W)`; top: 1 % of pixels."""
    if rule == "global":
        return whole
    if maps is None:
        raise ValueError(f"score_rule={rule!r} takes the score from the map, but there is none: outputs='all'")
    pixels = maps.flatten(1).clamp(0, 1)  # smoothing can leave [0, 1] by a rounding error
    if rule == "max":
        return pixels.amax(dim=1)
    return (whole + pixels.topk(max(1, pixels.shape[1] // 100), dim=1).values.mean(dim=1)) / 2


def with_resizing(
    processor: AnomalyCLIPImageProcessor, options: Mapping[str, Any], patch_size: int
) -> AnomalyCLIPImageProcessor:
    """A copy of a processor with `resize`, `tile_size` and `overlap` of these options, for a model's patch size."""
    processor = copy.copy(processor)
    given = {name: options[name] for name in RESIZING if options.get(name) is not None}
    for name, value in {**given, "patch_size": patch_size}.items():
        setattr(processor, name, value)
    return processor


def following(processor: Any, before: int, size: int) -> Any:
    """A processor of the input size that a model had before, at its new one; others as they are."""
    if before == size or not processor.size.height == processor.size.width == before:
        return processor
    return type(processor).from_dict({**processor.to_dict(), "size": {"height": size, "width": size}})


def _default_image_size(config: dict[str, Any]) -> int:
    """Largest multiple of a CLIP configuration's patch size within 518 pixels."""
    vision = config.get("vision_config") or config.get("vision_config_dict") or {}
    patch = vision.get("patch_size") or 32
    return max(DEFAULT_SIZE // patch, 1) * patch


def _stored_settings(cls, name, hub: dict) -> dict[str, Any]:
    """The processor settings of a checkpoint, with the precedence of `AutoImageProcessor`; empty where it has none."""
    # A file that isn't there is one thing; one that is damaged, or a Hub that refuses, is told.
    with missing_folder_named(os.fspath(name)):
        found = {
            file: cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub)
            for file in (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME)
        }
    try:
        stored = cls.get_image_processor_dict(name, **hub)[0] if any(found.values()) else {}
    except OSError:
        if found[IMAGE_PROCESSOR_NAME] or "image_processor" in safe_load_json_file(found[PROCESSOR_NAME]):
            raise
        return {}  # processor_config.json as older versions write it, which says nothing of images
    if not isinstance(stored, dict):
        raise ValueError(f"{name}: its image processor settings are a {type(stored).__name__}, expected fields")
    return stored


def _refuse_unknown(given: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        offered = ", ".join(sorted(known - SERVICE_FIELDS - set(UNUSED)))
        raise TypeError(f"unknown arguments {unknown} of the processor; known are {offered}")


def _check_settings(settings: dict[str, Any]) -> None:
    """Refuse settings that would be ignored, or that make numbers that are not finite or do not fit into memory."""
    for name, neutral in UNUSED.items():
        value = settings.get(name)
        if value is not None and value != neutral:
            raise ValueError(f"{name}={value!r} is not supported by this processor, expected {neutral!r}")
    given = {name: value for name, value in settings.items() if name in OPTION_RULES and name != "sigma"}
    if isinstance(given.get("resample"), PILImageResampling):
        given["resample"] = int(given["resample"])
    check_options(given)
    if settings.get("do_resize") is False and (resize := settings.get("resize")) not in (None, "square"):
        raise ValueError(
            f"resize={resize!r} with do_resize=False, which leaves images as they are; give one of the two"
        )
    tile, patch = settings.get("tile_size"), settings.get("patch_size")
    if tile is not None and patch is not None and tile < patch:
        raise ValueError(f"tile_size={tile}, expected at least the model's patch_size of {patch} pixels")
    size = settings["size"]
    if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in (size.height, size.width)):
        given = {key: value for key, value in dict(size).items() if value is not None}
        raise ValueError(f"size={given}, expected height and width in pixels, whole numbers in 1..{MAX_SIDE}")
    _check_sigma(settings.get("sigma"), max(size.height, size.width))


def _check_sigma(sigma: Any, side: int) -> None:
    is_number = isinstance(sigma, int | float | np.number) and not isinstance(sigma, bool)
    if sigma is not None and not (is_number and 0 <= sigma <= max(side, 64)):
        raise ValueError(f"sigma={sigma!r}, expected 0 to {max(side, 64)} pixels, the input's own side")


def _check_finite(logits: Tensor | None, maps: Tensor | None) -> int:
    """The number of images."""
    given = [one for one in (logits, maps) if one is not None]
    sound = torch.stack([one.isfinite().flatten(1).all(dim=-1) for one in given]).all(dim=0)
    if not bool(sound.all()):
        index = int((~sound).nonzero()[0])
        shown = None if logits is None else logits[index].tolist()
        raise ValueError(
            f"the model's output for image {index} of {len(sound)} is not finite (logits {shown}): "
            "it can't be judged. Its weights hold NaN or infinite values, overflow in this dtype (try float32), or "
            "pixel_values were not finite: load the checkpoint again, and check image_mean and image_std"
        )
    return len(sound)


def check_tiling(given: dict[str, Any], resize: str) -> None:
    """Refuse settings of tiles, given for one call, where there are no tiles."""
    for name in ("tile_size", "overlap"):
        if given.get(name) is not None and resize != "tile":
            raise ValueError(f"{name}={given[name]!r} with resize={resize!r}; only resize='tile' has tiles")


def _fitted(settings: dict, image_size: tuple[int, int]) -> dict:
    """The settings, with the input size of this image where the ratio of its sides is kept."""
    if settings["resize"] != "fit":
        return settings
    size = settings["size"]
    side = max(size.width, size.height)
    width, height = installed("data.reader").fit_size(image_size, side, settings["patch_size"])
    return {**settings, "size": SizeDict(height=height, width=width)}


def _as_list(value) -> list:
    is_stack = isinstance(value, np.ndarray | Tensor) and value.ndim == 4
    return list(value) if is_stack or (isinstance(value, Sequence) and not isinstance(value, str | bytes)) else [value]


AnomalyCLIPProcessor = AnomalyCLIPImageProcessor  # its name in checkpoints of older versions
