"""Images and masks of every mode, bit depth and rotation."""

import io

import numpy as np
import pytest
from PIL import Image

from anomalyclip_hf.data.images import ImageReadError, mask_turn, read_image, read_mask
from anomalyclip_hf.data.paint import fit_mask

SHAPE = (6, 10)
TRUTH = np.zeros(SHAPE, dtype=bool)
TRUTH[1:3, 4:9] = True
ORIENTATION = 274
# What a viewer shows for stored pixels under each EXIF orientation, written out by hand.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: a.T[:, ::-1],
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: a.T[::-1],
}


def palette(colors, truth=TRUTH):
    image = Image.fromarray(truth.astype(np.uint8), "L")
    image = image.convert("P")
    image.putdata(truth.astype(np.uint8).ravel().tolist())
    image.putpalette([channel for color in colors for channel in color])
    return image


def rgba(background, defect):
    array = np.zeros((*SHAPE, 4), np.uint8)
    array[:] = background
    array[TRUTH] = defect
    return Image.fromarray(array)


MASKS = {
    "1-bit": Image.fromarray(TRUTH),
    "gray 255": Image.fromarray(TRUTH.astype(np.uint8) * 255),
    "gray 1": Image.fromarray(TRUTH.astype(np.uint8)),
    "palette, red on black": palette([(0, 0, 0), (128, 0, 0)]),
    "palette, dark blue on black": palette([(0, 0, 0), (0, 0, 1)]),
    "palette, index 0 is the defect": palette([(0, 255, 0), (0, 0, 0)], ~TRUTH),
    "color": Image.fromarray(np.stack([TRUTH * 0, TRUTH * 200, TRUTH * 3], -1).astype(np.uint8)),
    "RGBA, opaque": rgba((0, 0, 0, 255), (255, 255, 255, 255)),
    "RGBA, clear background": rgba((0, 0, 0, 0), (35, 164, 54, 255)),
    "RGBA, color in alpha alone": rgba((255, 255, 255, 0), (255, 255, 255, 255)),
    "RGBA, black ink on nothing": rgba((0, 0, 0, 0), (0, 0, 0, 180)),
    "16-bit full": Image.fromarray(TRUTH.astype(np.uint16) * 65535),
    "16-bit 1": Image.fromarray(TRUTH.astype(np.uint16)),
    "16-bit 256": Image.fromarray(TRUTH.astype(np.uint16) * 256),
}


@pytest.mark.parametrize("mode", MASKS)
def test_every_kind_of_mask_is_read_alike(mode, tmp_path):
    MASKS[mode].save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png")
    assert mask.mode == "L"
    np.testing.assert_array_equal(np.asarray(mask), TRUTH * 255)


def test_thresholds_are_the_rules():
    values = np.array([[0, 1, 127, 128, 255]], np.uint8)
    assert np.asarray(read_mask(Image.fromarray(values))).tolist() == [[0, 255, 255, 255, 255]]
    assert np.asarray(read_mask(Image.fromarray(values), 127)).tolist() == [[0, 0, 0, 255, 255]]
    deep = Image.fromarray(values.astype(np.uint16) * 257)
    assert np.asarray(read_mask(deep, 127)).tolist() == [[0, 0, 0, 255, 255]]
    floats = Image.fromarray((values / 255).astype(np.float32))
    assert np.asarray(read_mask(floats, 127)).tolist() == [[0, 0, 0, 255, 255]]


def test_ringing_of_a_jpeg_mask_is_no_truth(tmp_path):
    big = np.kron(TRUTH, np.ones((8, 8), bool))
    Image.fromarray(big.astype(np.uint8) * 255).save(tmp_path / "m.jpg", quality=40)
    stored = np.asarray(Image.open(tmp_path / "m.jpg"))
    assert ((stored > 0) != big).sum() > 50  # the trap is there
    np.testing.assert_array_equal(np.asarray(read_mask(tmp_path / "m.jpg")) > 0, big)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_turns_image_and_mask_alike(orientation, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.zeros((*SHAPE, 3), np.uint8)
    stored[TRUTH] = 250
    Image.fromarray(stored).save(tmp_path / "image.png", exif=exif)
    Image.fromarray(TRUTH.astype(np.uint8) * 255).save(tmp_path / "own.png", exif=exif)
    Image.fromarray(TRUTH.astype(np.uint8) * 255).save(tmp_path / "stored.png")
    upright = UPRIGHT[orientation](TRUTH)
    Image.fromarray(np.ascontiguousarray(upright)).save(tmp_path / "displayed.png")
    names = ["own", "stored"] + (["displayed"] if orientation > 4 else [])  # else nothing tells the two apart
    image = read_image(tmp_path / "image.png")
    np.testing.assert_array_equal(np.asarray(image)[..., 0] > 0, upright)
    for name in names:
        path = tmp_path / f"{name}.png"
        mask = read_mask(path, turn=mask_turn(tmp_path / "image.png", path))
        np.testing.assert_array_equal(np.asarray(mask) > 0, upright, err_msg=name)
    assert read_image(image).size == image.size  # and is not turned twice


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 257, 32768, 65535]], np.uint16), [0, 1, 128, 255]),
        (np.array([[0, 1, 200, 255]], np.uint16), [0, 1, 200, 255]),
        (np.array([[0, 512, 1023]], np.uint16), [0, 128, 255]),
        (np.array([[16, 2048, 4095]], np.uint16), [1, 128, 255]),
        (np.array([[0, 8192, 16383]], np.uint16), [0, 128, 255]),
        (np.array([[0, 2048, 4095]], np.int32), [0, 128, 255]),
        (np.array([[0, 40000, 65535]], np.int32), [0, 156, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
    ],
)
def test_deep_images_are_scaled_not_clipped(array, expected, tmp_path):
    Image.fromarray(array).save(tmp_path / "deep.tif")
    image = read_image(tmp_path / "deep.tif")
    assert image.mode == "RGB"
    assert np.asarray(image)[0, :, 0].tolist() == expected
    assert np.ptp(np.asarray(image), axis=-1).max() == 0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new("L", (4, 3), 255)
    image = Image.fromarray(np.full((3, 4), 65535, np.uint16)) if mode == "I;16" else image.convert(mode)
    read = read_image(image)
    assert (read.mode, read.size) == ("RGB", (4, 3))
    assert np.asarray(read).min() == 255


def test_sources_other_than_paths(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (10, 20, 30)).save(buffer, "PNG")
    content = buffer.getvalue()
    (tmp_path / "a.png").write_bytes(content)
    for source in (
        content,
        io.BytesIO(content),
        str(tmp_path / "a.png"),
        {"bytes": content, "path": None},
        {"bytes": None, "path": str(tmp_path / "a.png")},
        np.full((3, 4, 3), (10, 20, 30), np.uint8),
    ):
        assert np.asarray(read_image(source)).reshape(-1, 3).tolist() == [[10, 20, 30]] * 12


@pytest.mark.parametrize("reader", [read_image, read_mask])
@pytest.mark.parametrize("what", ["empty", "text", "truncated", "missing"])
def test_broken_files_are_named(reader, what, tmp_path):
    path = tmp_path / f"{what}.png"
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, "PNG")
    content = {"empty": b"", "text": b"not an image", "truncated": buffer.getvalue()[:900]}
    if what != "missing":
        path.write_bytes(content[what])
    with pytest.raises(ImageReadError, match=rf"cannot read (image|mask) .*{what}\.png: \w"):
        reader(path)


def test_bad_values_are_refused():
    with pytest.raises(ImageReadError, match="NaN"):
        read_image(np.array([[0.0, np.nan]], np.float32))
    with pytest.raises(ImageReadError, match="from -3 to 9"):
        read_image(np.array([[-3, 9]], np.int32))
    with pytest.raises(ImageReadError, match=r"\(0, 4\)"):
        read_image(np.zeros((0, 4), np.uint8))


def test_masks_fit_only_their_own_shape():
    mask = Image.fromarray(TRUTH.astype(np.uint8) * 255)
    double = fit_mask(mask, (20, 12))
    np.testing.assert_array_equal(np.asarray(double), np.kron(TRUTH, np.ones((2, 2))) * 255)
    with pytest.raises(ImageReadError, match=r"truth\.png is 10x6 but its image is 6x10"):
        fit_mask(mask, (6, 10), "truth.png")


@pytest.mark.parametrize("kind", [bool, np.uint8, np.uint16, np.int64, np.float64])
def test_masks_may_be_arrays_of_ones(kind):
    np.testing.assert_array_equal(np.asarray(read_mask(TRUTH.astype(kind))), TRUTH * 255)


def test_arrays_follow_the_threshold_that_files_do():
    values = np.array([[0, 100, 201]], np.uint8)
    assert np.asarray(read_mask(values, 200)).tolist() == [[0, 0, 255]]
    assert np.asarray(read_mask(Image.fromarray(values), 200)).tolist() == [[0, 0, 255]]
