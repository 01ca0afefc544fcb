"""Pipeline: one call from an image to a score and a heat map."""

import os
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from numbers import Real
from types import GeneratorType
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from PIL import Image
from transformers.pipelines import Pipeline
from transformers.utils import logging

from .configuration_anomalyclip import check_fields
from .image_processing_anomalyclip import AnomalyCLIPImageProcessor
from .images_anomalyclip import ImageReadError, load_image, unreadable
from .references_anomalyclip import References

logger = logging.get_logger(__name__)
DOWNLOAD_TIMEOUT = 30.0
DOWNLOAD_BYTES = 100_000_000
URL_SAFE = "%/:=&?~#+!$,;'@()*[]"  # what has a meaning in a URL; spaces and the like are quoted


class ZeroShotAnomalyDetectionPipeline(Pipeline):
    r"""Finds anomalies in images of objects it never saw.

    ```python
    >>> import anomalyclip_hf
    >>> from transformers import pipeline

    >>> detector = pipeline("zero-shot-anomaly-detection", model=anomalyclip_hf.demo_checkpoint())
    >>> result = detector("photo.jpg")
    >>> result["score"], result["anomaly_map"].shape
    ```

    Args of a call:
        inputs: a path, URL, open binary file, the bytes of a file, PIL image or array, or a list, iterator, torch
            dataset or `datasets` column of them, or an array or tensor of several, `(B, H, W, C)` or `(B, C, H, W)`.
        batch_size (`int`, defaults to 1).
        sigma (`float`, pixels at the model's input size, *optional*): smoothing; the processor's own if absent.
        image_threshold, pixel_threshold (`float` in [0, 1], *optional*): those of the model's config if absent.
        score_rule (`str`, *optional*): `"global"`, `"max"` or `"mean"`; that of the model's config if absent.
        references (*optional*): good images to compare with, in place of the model's own; of any
            kind that [`~AnomalyCLIPModel.make_references`] takes. Given to `pipeline(...)`, for all calls.
        reference_weight (`float`, 0 or more, *optional*): of the model's own map and score beside references; 0.1.
        timeout (`float`, seconds, defaults to 30): for a URL, from the request to the last byte.
        max_bytes (`int`, defaults to 100 million): largest file that a URL may lead to.

    Returns:
        for each image a `dict`: `score` (float, P(anomalous)), `anomaly_map` (float32 array (h, w) in [0, 1], at the
        image's own size), and, where thresholds are set, `label` ("normal" or "anomalous") and `mask` (bool array).
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _load_video_processor = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in ("feature_extractor", "tokenizer", "video_processor"):
            if kwargs.get(name) is not None:
                raise ValueError(f"this pipeline uses no {name}; give an AnomalyCLIPImageProcessor as image_processor")
        given = [kwargs[name] for name in ("image_processor", "processor") if kwargs.get(name) is not None]
        for one in given:
            if not isinstance(one, AnomalyCLIPImageProcessor | str | os.PathLike):
                raise ValueError(
                    f"the processor given is a {type(one).__name__}, which neither resizes nor scores as this model "
                    "needs it; give an AnomalyCLIPImageProcessor, or the name of its folder or repository"
                )
        if len(given) == 2 and given[0] is not given[1]:
            raise ValueError("image_processor and processor are both given and differ; give one")
        compared = {name: kwargs.pop(name) for name in ("references", "reference_weight") if name in kwargs}
        super().__init__(*args, **kwargs)
        # Found here and not by the base class, which would take CLIP's own processor for a plain CLIP checkpoint.
        is_ours = bool(given) and isinstance(given[0], AnomalyCLIPImageProcessor)
        self.image_processor: Any = given[0] if is_ours else _find_processor(self.model, *given)
        self._forward_params |= self._sanitize_parameters(**compared)[1]
        if notice := getattr(self.model.config, "notice", None):
            logger.warning(notice)

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        if inputs is None:
            raise ValueError("inputs is None, expected a path, URL, PIL image or array, or a list of them")
        if isinstance(inputs, list | tuple):
            return super().__call__(list(inputs), **kwargs) if inputs else []
        if isinstance(inputs, np.ndarray | torch.Tensor) and inputs.ndim == 4:
            return super().__call__(list(inputs), **kwargs)
        if isinstance(inputs, Iterator) and not isinstance(inputs, GeneratorType) and not _is_file(inputs):
            inputs = (image for image in inputs)
        if _is_column(inputs):
            indexed = hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")
            images = (inputs[i] for i in range(len(inputs))) if indexed else iter(inputs)
            return list(super().__call__((image for image in images), **kwargs))
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self,
        sigma=None,
        image_threshold=None,
        pixel_threshold=None,
        timeout=None,
        max_bytes=None,
        score_rule=None,
        references=None,
        reference_weight=None,
        **kwargs,
    ) -> tuple[dict, dict, dict]:
        if kwargs:
            raise TypeError(
                f"unknown arguments {sorted(kwargs)}; known are sigma, image_threshold, pixel_threshold, timeout, "
                "max_bytes, score_rule, references, reference_weight"
            )
        if reference_weight is not None and references is None:
            own = getattr(self, "_forward_params", {}).get("references") or self.model.references
            if (references := own) is None:
                raise ValueError(f"reference_weight={reference_weight} without references; give both")
        if references is not None:
            given = {"reference_weight": reference_weight, "processor": self.image_processor}
            references = self.model.make_references(references, **given)
        _check_limits(timeout, max_bytes)
        post = {"sigma": sigma, "image_threshold": image_threshold, "pixel_threshold": pixel_threshold}
        post["score_rule"] = score_rule
        check_fields(post)
        return (
            {key: value for key, value in (("timeout", timeout), ("max_bytes", max_bytes)) if value is not None},
            {} if references is None else {"references": references},
            {key: value for key, value in post.items() if value is not None},
        )

    def preprocess(
        self, image: Any, timeout: float = DOWNLOAD_TIMEOUT, max_bytes: int = DOWNLOAD_BYTES
    ) -> dict[str, Any]:
        image = read_image(image, timeout, max_bytes)
        pixel_values = self.image_processor(image, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixel_values.to(self.dtype), "target_size": torch.tensor([image.size[::-1]])}

    def _forward(self, model_inputs: dict[str, Any], references: References | None = None) -> dict[str, Any]:
        target_size = model_inputs.pop("target_size")
        outputs = self.model(**model_inputs, references=references, return_dict=True)
        # Only what has one row per image: the base class takes batches apart row by row.
        kept = ("logits", "anomaly_maps", "reference_scores")
        return {"target_size": target_size, **{name: outputs[name] for name in kept if name in outputs}}

    def postprocess(
        self, outputs: dict[str, Any], sigma=None, image_threshold=None, pixel_threshold=None, score_rule=None
    ) -> dict[str, Any]:
        own = self.model.fitting_thresholds(score_rule, "reference_scores" in outputs)
        result = self.image_processor.post_process_anomaly_detection(
            outputs,
            target_sizes=outputs["target_size"],
            sigma=sigma,
            image_threshold=own["image_threshold"] if image_threshold is None else image_threshold,
            pixel_threshold=own["pixel_threshold"] if pixel_threshold is None else pixel_threshold,
            score_rule=score_rule or self.model.config.score_rule,
        )[0]
        return {key: value.cpu().numpy() if torch.is_tensor(value) else value for key, value in result.items()}


def read_image(image: Any, timeout: float | None = DOWNLOAD_TIMEOUT, max_bytes: int = DOWNLOAD_BYTES) -> Image.Image:
    """Read an image of any kind as an upright 8-bit PIL image.

    Args:
        image (`str`, `os.PathLike`, binary file, `bytes`, `{"bytes", "path"}`, `PIL.Image.Image`, `np.ndarray` or
            `torch.Tensor`): a `str` is a path, an address (`http://`, `https://`) or a `data:` URL.
        timeout (`float`, seconds, defaults to 30): for an address, from the request to the last byte.
        max_bytes (`int`, defaults to 100 million): largest file that an address may lead to.

    Raises:
        ImageReadError: (a `ValueError`) if it is missing, empty, too large, too slow or no image; names it.
        ValueError: if a limit is no possible one.
        TypeError: if it is nothing that could be an image.
    """
    timeout = DOWNLOAD_TIMEOUT if timeout is None else timeout
    _check_limits(timeout, max_bytes)
    if isinstance(image, str) and image[:8].lower().startswith(("http://", "https://", "data:")):
        try:
            content = _fetch(image, timeout, max_bytes)
        except Exception as error:  # of the address, the network, the server's answer
            raise unreadable(image, error) from error
        return load_image({"bytes": content, "path": image})
    return load_image(image)


def _check_limits(timeout: float | None, max_bytes: int | None) -> None:
    if timeout is not None and not (isinstance(timeout, Real) and timeout > 0):
        raise ValueError(f"timeout={timeout!r}, expected seconds above 0")
    if max_bytes is not None and not (type(max_bytes) is int and max_bytes > 0):
        raise ValueError(f"max_bytes={max_bytes!r}, expected a whole number of bytes above 0")


def _fetch(url: str, timeout: float, max_bytes: int) -> bytes:
    """Content of a URL; in a thread, since a server that sends a byte now and then keeps a socket's time limit."""
    found: list[bytes | Exception] = []

    def work() -> None:
        try:
            address = url if url[:5].lower() == "data:" else quote(url, safe=URL_SAFE)
            with urllib.request.urlopen(address, timeout=timeout) as response:
                found.append(response.read(max_bytes + 1))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work, name="anomalyclip-download", daemon=True)
    thread.start()
    thread.join(min(timeout, threading.TIMEOUT_MAX))
    result = found[0] if found else TimeoutError()
    if isinstance(result, TimeoutError):
        raise TimeoutError(f"not received within {timeout:g} s (timeout=... sets the limit)") from result
    if isinstance(result, Exception):
        raise result
    if len(result) > max_bytes:
        raise ImageReadError(f"it is larger than {max_bytes:,} bytes (max_bytes=... sets the limit)")
    return result


def _is_file(inputs: Any) -> bool:
    return callable(getattr(inputs, "read", None))


def _find_processor(model: Any, name: str | os.PathLike | None = None) -> AnomalyCLIPImageProcessor:
    """The processor named by the user, or the one stored with the model, or one that fits the model's input."""
    return model.default_processor() if name is None else AnomalyCLIPImageProcessor.from_pretrained(name)


def _is_column(inputs: Any) -> bool:
    """A `datasets` column or another sized sequence that is neither an image nor a list, path or torch dataset."""
    one = (str, bytes, bytearray, memoryview, os.PathLike, Mapping, Image.Image, np.ndarray, torch.Tensor)
    several = (list, tuple, GeneratorType, Iterator, torch.utils.data.Dataset)
    if isinstance(inputs, (*one, *several)) or _is_file(inputs):
        return False
    return hasattr(inputs, "__iter__") or (hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__"))


__all__ = ["ZeroShotAnomalyDetectionPipeline", "read_image"]
