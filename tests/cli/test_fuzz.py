"""Damaged files: whatever is wrong with one, it is scored or reported, and the rest goes on."""

import io
import json
import random

import numpy as np
import pytest
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from anomalyclip_hf.cli import run_command

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
NUM_FILES = 300
FORMATS = ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", *(["AVIF"] if features.check("avif") else [])]


def sound(rng: random.Random, form: str) -> bytes:
    """A small picture, most often with random bytes as metadata."""
    array = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    image = Image.fromarray(array).convert(rng.choice(["RGB", "L"]))
    settings: dict = {}
    if form in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") and rng.random() < 0.7:
        settings["exif"] = b"Exif\0\0II*\0\x08\0\0\0" + rng.randbytes(rng.randrange(40))
    if form == "PNG" and rng.random() < 0.3:
        settings["pnginfo"] = PngInfo()
        settings["pnginfo"].add_itxt("XML:com.adobe.xmp", "<x:xmpmeta" + chr(rng.randrange(32, 127)) * 9)
    buffer = io.BytesIO()
    try:
        image.save(buffer, form, **settings)
    except Exception:  # an encoder that looks into the metadata
        image.save(buffer, form)
    return buffer.getvalue()


def damage(rng: random.Random, content: bytes) -> bytes:
    """Cut it, overwrite some bytes, drop some, or leave it as it is."""
    kind, place = rng.randrange(6), rng.randrange(len(content))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + rng.randbytes(4) + content[place + 4 :]
    if kind == 2:
        return content[:place] + content[place + rng.randrange(1, 30) :]
    if kind == 3:
        head = bytearray(content)
        for _ in range(8):
            head[rng.randrange(min(len(head), 60))] = rng.randrange(256)
        return bytes(head)
    return content if kind == 4 else rng.randbytes(rng.randrange(200))


@pytest.mark.parametrize("seed", [0])
def test_every_damaged_file_is_scored_or_reported(tiny_checkpoint, tmp_path, seed):
    rng = random.Random(seed)
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(NUM_FILES):
        form = FORMATS[number % len(FORMATS)]
        (folder / f"{number:03d}.{form.lower()}").write_bytes(damage(rng, sound(rng, form)))
    line = [str(folder), "--model", tiny_checkpoint, "--output-dir", str(out), "--batch-size", "8"]
    assert run_command("predict", line) == 1
    records, skipped = (
        [json.loads(text) for text in (out / name).read_text(encoding="utf-8").splitlines()]
        for name in ("predictions.jsonl", "skipped.jsonl")
    )
    assert sorted(entry["path"] for entry in [*records, *skipped]) == sorted(map(str, folder.iterdir()))
    assert min(len(records), len(skipped)) > 50  # sound pixels are scored, broken ones are not
    assert all(np.isfinite(record["score"]) and 0 <= record["score"] <= 1 for record in records)
    assert all("cannot read image" in entry["error"] for entry in skipped)
