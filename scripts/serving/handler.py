"""A model or an exported folder behind Inference Endpoints, and in a container.

Copied beside a model as `handler.py`, with a requirements.txt that names this package, it is what
[Inference Endpoints](https://huggingface.co/docs/inference-endpoints/guides/custom_handler) call. By hand:

    python scripts/serving/handler.py exported photo.jpg part.png        # a line of JSON for each
"""

import base64
import binascii
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anomalyclip_hf.export.engines import is_exported
from anomalyclip_hf.export.runtime import JUDGING, AnomalyCLIPExported
from anomalyclip_hf.options_anomalyclip import READING

PARAMETERS = (*JUDGING, *READING)  # how images are resized, which may cost much, is the model's affair
URLS = ("http://", "https://")


class EndpointHandler:
    """Scores the images of a request.

    Args:
        path (`str`): folder of a model or of an export.
        allow_urls (`bool`, *optional*): fetch images by their addresses: a caller then reaches what this machine
            reaches. If absent, whether the environment's ANOMALYCLIP_ALLOW_URLS is 1.

    Raises:
        OSError: there is no model.
        ValueError: it is damaged.
    """

    def __init__(self, path: str = "", allow_urls: bool | None = None):
        self.allow_urls = os.environ.get("ANOMALYCLIP_ALLOW_URLS") == "1" if allow_urls is None else allow_urls
        self.detector: Any
        if is_exported(path):
            self.detector = AnomalyCLIPExported.from_pretrained(path)
        else:
            from transformers import pipeline

            self.detector = pipeline("zero-shot-anomaly-detection", model=path)

    def __call__(self, data: dict[str, Any]) -> Any:
        """Answer a request.

        Args:
            data: `inputs`: the bytes of an image file, these in base64, a PIL image, or a list of them; URLs where
                they are allowed, never paths. `parameters` (*optional*): those of `PARAMETERS`, as the pipeline takes
                them (`roi` as a polygon), and `maps` (`bool`): whether maps are sent.

        Returns:
            for each image a dict of what JSON holds: `score` and, where thresholds are set, `label` and `regions`;
            with `maps` `anomaly_map`, a PNG of 16 bits in base64 (65535 is 1.0), and `mask`, one of 0 and 255.

        Raises:
            ValueError: an image that can't be read, an address, or a parameter that is unknown or out of range.
        """
        if not isinstance(data, dict) or not isinstance(data.get("parameters") or {}, dict):
            raise ValueError('expected {"inputs": ..., "parameters": {...}}')
        options = dict(data.get("parameters") or {})
        with_maps = options.pop("maps", False)
        if unknown := sorted(set(options) - {*PARAMETERS}):
            raise ValueError(f"unknown parameters {unknown}; known are {', '.join((*PARAMETERS, 'maps'))}")
        if not isinstance(with_maps, bool):
            raise ValueError(f"maps={with_maps!r:.100}, expected true or false")
        if not isinstance(options.get("roi"), list | None):
            raise ValueError("roi names a file, expected a polygon [[x, y], ...] in pixels of the image")
        inputs = data.get("inputs")
        images = [self._read(one) for one in (inputs if isinstance(inputs, list) else [inputs])]
        answers = [_to_json(one, with_maps) for one in self.detector(images, **options)]
        return answers if isinstance(inputs, list) else answers[0]

    def _read(self, image: Any) -> Any:
        """What the pipeline takes, of one input of a request."""
        if isinstance(image, bytes | Image.Image):
            return image
        if not isinstance(image, str):
            raise ValueError(f"inputs holds a {type(image).__name__}, expected bytes of an image file, or base64")
        if image.startswith(URLS):
            if not self.allow_urls:
                raise ValueError("inputs is a URL, which this endpoint does not fetch: send the image in base64")
            return image
        try:
            return base64.b64decode(image.partition(",")[2] if image.startswith("data:") else image, validate=True)
        except binascii.Error as error:
            raise ValueError(f"inputs is no base64 of an image file: {error}") from error


def _to_json(result: dict[str, Any], with_maps: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {name: result[name] for name in ("score", "label", "regions") if name in result}
    if with_maps:
        answer["anomaly_map"] = _png((result["anomaly_map"].clip(0, 1) * 65535).round().astype(np.uint16))
        if "mask" in result:
            answer["mask"] = _png(result["mask"].astype(np.uint8) * 255)
    return answer


def _png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def main() -> None:
    handler = EndpointHandler(sys.argv[1])
    for path in sys.argv[2:]:
        print(json.dumps({"path": path, **handler({"inputs": Path(path).read_bytes()})}), flush=True)


if __name__ == "__main__":
    main()
