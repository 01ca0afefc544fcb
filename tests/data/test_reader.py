"""The one reader of images: formats, metadata, orientation, bit depths, masks."""

import io
import random
import struct
import subprocess
import sys
import textwrap
import zlib
from functools import lru_cache

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features
from PIL.PngImagePlugin import PngInfo

from anomalyclip_hf import image_processing_anomalyclip as module
from anomalyclip_hf.data.images import upright_size
from anomalyclip_hf.data.paint import painted
from anomalyclip_hf.data.pixels import bit_depth_of
from anomalyclip_hf.data.reader import (
    FORMATS,
    ImageReadError,
    load_image,
    open_image,
    orientation_of,
    to_pil_image,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS)
AVIF = [pytest.param("AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF"))]
TAGS = (0x128, 0x11A, 0x8769, 0x8825, 0xA005, 0x927C)  # resolution, pointers to other directories, maker's note


def entry(rng: random.Random) -> bytes:
    kind, count = rng.choice([0, 1, 2, 3, 5, 7, 12, 13, 16]), rng.choice([0, 1, 5, 1000, 2**31])
    return struct.pack("<HHI4s", rng.choice(TAGS), kind, count, rng.randbytes(4))


def exif(rng: random.Random, orientation: int | None = None) -> bytes:
    """An EXIF block with broken entries; sorted, so that a sound orientation in it can be found."""
    if orientation is None and rng.random() < 0.3:
        return rng.randbytes(rng.randrange(1, 60))
    entries = [entry(rng) for _ in range(rng.randrange(1, 5))]
    if orientation is not None:
        entries.insert(0, struct.pack("<HHIHH", 274, 3, 1, orientation, 0))
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def saved(form: str, **settings) -> bytes:
    buffer = io.BytesIO()
    IMAGE.save(buffer, form, **settings)
    return buffer.getvalue()


@lru_cache
def sound(form: str) -> Image.Image:
    return Image.open(io.BytesIO(saved(form))).convert("RGB")


def tiff(rng: random.Random) -> bytes:
    """A TIFF with broken entries among those that pixels need."""
    content = bytearray(saved("TIFF"))
    start = struct.unpack("<I", content[4:8])[0]
    number = struct.unpack("<H", content[start : start + 2])[0]
    entries = [bytes(content[start + 2 + 12 * k : start + 14 + 12 * k]) for k in range(number)]
    entries += [one for one in (entry(rng) for _ in range(3)) if struct.unpack("<H", one[:2])[0] > 0x200]
    content[4:8] = struct.pack("<I", len(content))
    return bytes(content) + struct.pack("<H", len(entries)) + b"".join(sorted(entries)) + bytes(4)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
def test_broken_metadata_hide_no_pixels(form):
    rng = random.Random(0)
    for _ in range(40):
        more = {"save_all": True, "append_images": [IMAGE]} if form == "MPO" else {}
        content = tiff(rng) if form == "TIFF" else saved(form, exif=exif(rng), **more)
        image = load_image(content)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.asarray(sound(form)))
        assert not ImageOps.exif_transpose(image).getexif()  # no one trips over the rest


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_among_broken_entries_counts_once(form):
    rng = random.Random(1)
    expected = np.rot90(np.asarray(sound(form)), -1)
    for _ in range(20):
        image = load_image(saved(form, exif=exif(rng, 6)))
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), expected)
        for again in (load_image(image), to_pil_image(image), ImageOps.exif_transpose(image)):
            assert again.size == (8, 12)


@pytest.mark.parametrize("form", AVIF)
def test_broken_exif_of_avif(form):
    tags = Image.Exif()
    tags[274], tags[271] = 6, "maker"
    content, rng = saved(form, exif=tags), random.Random(2)
    start = content.find(tags.tobytes()[6:14])
    expected = np.asarray(load_image(content))
    assert expected.shape == (12, 8, 3)
    refused = 0
    for _ in range(40):
        broken = bytearray(content)
        for _ in range(4):
            broken[start - 4 + rng.randrange(12)] = rng.randrange(256)
        try:
            Image.open(io.BytesIO(broken)).load()
        except Exception:
            refused += 1
        np.testing.assert_array_equal(np.asarray(load_image(bytes(broken))), expected)
    assert refused  # the trap is there


def test_a_checksum_of_metadata_hides_no_pixels():
    text = PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n12\nzz")
    content = bytearray(saved("PNG", pnginfo=text))
    content[content.find(b"tEXt") + 8] ^= 1
    with pytest.raises(Exception, match=r"broken PNG|cannot identify"):
        Image.open(io.BytesIO(content)).load()
    np.testing.assert_array_equal(np.asarray(load_image(bytes(content))), PIXELS)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_size_of_a_rotated_tiff(orientation):
    """PIL states it upright before the pixels are read, and stored sizes of other formats."""
    for form in ("TIFF", "PNG"):
        tags = Image.Exif()
        tags[274] = orientation
        opened = open_image(saved(form, exif=tags))
        size, stated = upright_size(opened), orientation_of(opened)
        assert (size, stated) == (load_image(saved(form, exif=tags)).size, orientation)


def test_other_formats_start_no_program(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", refuse)
    monkeypatch.setattr("subprocess.check_call", refuse)
    for name, content in {
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n",
        "pdf.png": b"%PDF-1.4\n%%EOF",
        "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageReadError, match=rf"{name}: not an image.*PNG, JPEG"):
            load_image(tmp_path / name)
    assert not {"EPS", "PDF", "WMF"} & set(FORMATS)


def test_all_failures_are_of_one_kind(tmp_path, monkeypatch):
    content = saved("PNG")
    cut = tmp_path / "cut.png"
    cut.write_bytes(content[:120])
    for source in (cut, str(cut), {"bytes": content[:120], "path": "cut.png"}, open(cut, "rb")):  # noqa: SIM115
        with pytest.raises(ImageReadError, match=r"cannot read image .*cut\.png: \w"):
            load_image(source)
    for source in ("no\0path.png", "missing.png", tmp_path, {"bytes": None, "path": None}, b"", "A" * 90_000):
        with pytest.raises(ImageReadError, match="cannot read image ") as caught:
            load_image(source)
        assert len(str(caught.value)) < 600
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ImageReadError, match=r"decompression bomb"):
        load_image(content)
    with pytest.raises(TypeError, match="is a float, expected a PIL image"):
        load_image(3.5)


@pytest.mark.parametrize("kind", ["path", "bytes", "memoryview", "file", "no seek", "cell"])
def test_sources(kind, tmp_path):
    content = saved("PNG")
    (tmp_path / "a.png").write_bytes(content)

    class Pipe:
        def read(self):
            return content

    source = {
        "path": tmp_path / "a.png",
        "bytes": content,
        "memoryview": memoryview(content),
        "file": io.BytesIO(content),
        "no seek": Pipe(),
        "cell": {"bytes": content, "path": None},
    }[kind]
    np.testing.assert_array_equal(np.asarray(load_image(source)), PIXELS)


DEPTHS = [(0, 8), (255, 8), (256, 10), (1023, 10), (4095, 12), (9000, 14), (16384, 16)]


@pytest.mark.parametrize(("highest", "depth"), DEPTHS)
def test_bit_depth_is_what_the_values_need(highest, depth):
    values = np.array([[0, highest]], np.uint16)
    for image in (values, Image.fromarray(values), Image.fromarray(values.astype(np.int32))):
        assert bit_depth_of(image) == depth
        brightest = int(np.asarray(to_pil_image(image)).max())
        assert brightest == round(255 * highest / (2**depth - 1))
    assert bit_depth_of(IMAGE) == bit_depth_of(np.ones((2, 2), np.float32)) == 8


RED, CLEAR_WHITE, CLEAR_BLACK, BLACK = (255, 0, 0, 255), (255, 255, 255, 0), (0, 0, 0, 0), (0, 0, 0, 255)
INSIDE = np.zeros((6, 8), bool)
INSIDE[1:3, 2:6] = True


def layer(background, paint, form="RGBA"):
    pixels = np.where(INSIDE[..., None], np.uint8(paint), np.uint8(background))
    return Image.fromarray(pixels).convert(form)


def indexed(mode: str, clear: int, paint: int) -> Image.Image:
    image = Image.fromarray(np.where(INSIDE, np.uint8(paint), np.uint8(clear))).convert("L")
    if mode == "P":
        image = Image.fromarray(INSIDE.astype(np.uint8)).convert("L")
        image.putpalette([clear] * 3 + [paint] * 3)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0 if mode == "P" else clear)
    return Image.open(buffer)


@pytest.mark.parametrize(
    "mask",
    [
        layer(CLEAR_WHITE, RED),
        layer(CLEAR_WHITE, BLACK),
        layer((9, 9, 9, 0), (255, 255, 255, 90)),
        layer(CLEAR_BLACK, RED),
        layer(CLEAR_BLACK, BLACK),
        layer(BLACK, RED),
        layer(BLACK, (255, 255, 255, 128)),
        layer(CLEAR_WHITE, (200, 200, 200, 255), "LA"),
        indexed("P", 255, 90),
        indexed("L", 255, 90),
        Image.fromarray(INSIDE.astype(np.uint16) * 4095),
    ],
)
def test_alpha_of_masks_counts(mask, tiny_processor):
    np.testing.assert_array_equal(painted(mask), INSIDE)
    plain = tiny_processor(Image.new("RGB", mask.size), masks=Image.fromarray(INSIDE))["masks"]
    np.testing.assert_array_equal(tiny_processor(Image.new("RGB", mask.size), masks=mask)["masks"], plain)


def test_a_layer_without_paint_is_empty():
    assert not painted(Image.new("RGBA", (4, 4), CLEAR_WHITE)).any()
    assert painted(Image.new("RGBA", (4, 4), (255, 255, 255, 255))).all()
    deep = Image.fromarray(INSIDE.astype(np.uint16) * 4095)
    np.testing.assert_array_equal(painted(deep, threshold=127), INSIDE)  # of 12 bits, not of 16


COLOR_TYPES = {2: 4, 3: 2, 4: 6}  # of PNG, by the number of channels


def deep_png(values: np.ndarray, orientation: int | None = None) -> bytes:
    """A PNG of 16 bits a channel, which PIL does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, COLOR_TYPES[values.shape[2]], 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    if orientation is not None:
        tags = Image.Exif()
        tags[274] = orientation
        parts.insert(1, (b"eXIf", tags.tobytes()[6:]))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_colors_of_more_than_8_bits(bits, channels, tmp_path):
    values = np.random.default_rng(bits).integers(0, 1 << bits, (5, 7, channels)).astype(np.uint16)
    values[0, 0] = (1 << bits) - 1
    upper = values >> 8  # all that PIL reads, and good enough where it is not nearly nothing
    expected = upper if bits == 16 else np.rint(values * (255 / ((1 << bits) - 1)))
    expected = np.repeat(expected[..., :1], 3, axis=-1) if channels == 2 else expected
    (tmp_path / "a.png").write_bytes(deep_png(values))
    content = deep_png(values)
    assert bit_depth_of(open_image(content)) == bits
    for source in (tmp_path / "a.png", content, io.BytesIO(content), Image.open(tmp_path / "a.png")):
        np.testing.assert_array_equal(np.asarray(load_image(source))[..., :3], expected[..., :3])
    turned = np.asarray(load_image(deep_png(values, orientation=6)))
    np.testing.assert_array_equal(turned[..., :3], np.rot90(expected, -1)[..., :3])


def test_corrupt_metadata_makes_no_warning_without_a_name():
    code = """
        import io
        from PIL import Image
        from anomalyclip_hf.data.reader import load_image
        exif = b"Exif\\0\\0II*\\0\\x08\\0\\0\\0\\x09\\0\\x12\\x01\\x03\\0\\1\\0\\0\\0\\6\\0\\0\\0"
        Image.new("RGB", (9, 5)).save(file := io.BytesIO(), "JPEG", exif=exif)
        print(load_image(file.getvalue()).size)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("(5, 9)", "")


def test_images_of_8_bits_are_read_without_the_package_too(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    turned = Image.fromarray(pixels)
    turned.getexif()[274] = 6
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    images = [tmp_path / "turned.png", pixels, pixels[..., 0], np.moveaxis(pixels, -1, 0), torch.from_numpy(pixels)]
    images += [pixels / np.float32(255), pixels[..., :1] > 300.0, Image.fromarray(pixels).convert("P")]
    images[6] = images[6].astype(np.float32)
    expected = [np.asarray(module.upright_image(image).convert("RGB")) for image in images]

    def absent(name):
        raise ModuleNotFoundError("pip install anomalyclip_hf")

    (tmp_path / "deep.png").write_bytes(deep_png(np.full((4, 4, 3), 4095, np.uint16)))
    monkeypatch.setattr(module, "installed", absent)
    for image, pixels in zip(images, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(module.upright_image(image).convert("RGB")), pixels)
    refused = [pixels.astype(np.uint16), pixels * 2.0, b"x", {}, tmp_path / "deep.png"]
    for image in (*refused, Image.new("I", (4, 4)), Image.new("F", (4, 4))):
        with pytest.raises(ModuleNotFoundError, match="pip install"):
            module.upright_image(image)
