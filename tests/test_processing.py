"""The processor: the authors' preprocessing for every kind of image, masks, smoothing, results."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch.testing import assert_close

from anomalyclip_hf import AnomalyCLIPModel, AnomalyCLIPProcessor
from anomalyclip_hf.data.reader import to_pil_image
from anomalyclip_hf.image_processing_anomalyclip import gaussian_smooth

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (30, 44, 3), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (30, 44), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (30, 44), dtype=np.uint16)
UNIT = RNG.random((30, 44)).astype(np.float32)


def explicit(rgb: Image.Image, size=(42, 42)) -> np.ndarray:
    """PIL's bicubic filter, then CLIP's mean and standard deviation, in float64."""
    resized = rgb.resize(size[::-1], Image.Resampling.BICUBIC)
    return ((np.asarray(resized) / 255.0 - MEAN) / STD).transpose(2, 0, 1)


def gray(array) -> Image.Image:
    return Image.fromarray(np.asarray(array, np.uint8)).convert("RGB")


def rotated_by_exif() -> Image.Image:
    image = Image.fromarray(RGB)
    image.getexif()[274] = 6  # to be turned by 90 degrees clockwise
    return image


RGBA = Image.fromarray(np.dstack([RGB, GRAY]))
PALETTE = Image.fromarray(RGB).quantize(16)
BITS = Image.fromarray(GRAY > 127)
DEEP_AS_8 = np.rint(DEEP / 257)
UNIT_AS_8 = np.rint(UNIT * 255)

IMAGES = {
    "rgb": (Image.fromarray(RGB), Image.fromarray(RGB)),
    "gray": (Image.fromarray(GRAY), gray(GRAY)),
    "gray_alpha": (Image.fromarray(GRAY).convert("LA"), gray(GRAY)),
    "palette": (PALETTE, PALETTE.convert("RGB")),
    "rgba": (RGBA, Image.fromarray(RGB)),
    "bits": (BITS, gray((GRAY > 127) * 255)),
    "cmyk": (Image.fromarray(RGB).convert("CMYK"), Image.fromarray(RGB).convert("CMYK").convert("RGB")),
    "16_bit": (Image.fromarray(DEEP), gray(DEEP_AS_8)),
    "32_bit": (Image.fromarray(DEEP.astype(np.int32)), gray(DEEP_AS_8)),
    "float": (Image.fromarray(UNIT), gray(UNIT_AS_8)),
    "exif": (rotated_by_exif(), Image.fromarray(np.rot90(RGB, -1).copy())),
    "array_hwc": (RGB, Image.fromarray(RGB)),
    "array_chw": (RGB.transpose(2, 0, 1), Image.fromarray(RGB)),
    "array_hw": (GRAY, gray(GRAY)),
    "array_hw1": (GRAY[..., None], gray(GRAY)),
    "array_1hw": (GRAY[None], gray(GRAY)),
    "array_rgba": (np.dstack([RGB, GRAY]), Image.fromarray(RGB)),
    "array_bool": (GRAY > 127, gray((GRAY > 127) * 255)),
    "array_uint16": (DEEP, gray(DEEP_AS_8)),
    "array_int64": (GRAY.astype(np.int64), gray(GRAY)),
    "array_float": (UNIT, gray(UNIT_AS_8)),
    "array_float64": (UNIT.astype(np.float64), gray(UNIT_AS_8)),
    "tensor_chw": (torch.from_numpy(RGB).permute(2, 0, 1), Image.fromarray(RGB)),
    "tensor_float": (torch.from_numpy(UNIT), gray(UNIT_AS_8)),
    "tensor_strided": (torch.from_numpy(RGB)[::2, 1:], Image.fromarray(RGB[::2, 1:])),
}


@pytest.mark.parametrize("name", IMAGES)
def test_pixel_values_equal_the_authors_preprocessing(tiny_processor, name):
    image, rgb = IMAGES[name]
    pixel_values = tiny_processor(image, return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 42, 42) and pixel_values.dtype == torch.float32
    np.testing.assert_allclose(pixel_values[0].numpy(), explicit(rgb), rtol=0, atol=2e-6)


def test_a_batch_of_all_kinds_at_once(tiny_processor):
    images, expected = zip(*IMAGES.values(), strict=True)
    pixel_values = tiny_processor(list(images), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(pixel_values, np.stack([explicit(rgb) for rgb in expected]), rtol=0, atol=2e-6)
    stack = np.stack([RGB, RGB[::-1]])
    pixel_values = tiny_processor(stack, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(pixel_values[1], explicit(Image.fromarray(RGB[::-1])), rtol=0, atol=2e-6)


def test_default_size_is_518():
    pixel_values = AnomalyCLIPProcessor()(Image.fromarray(RGB), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(pixel_values[0], explicit(Image.fromarray(RGB), (518, 518)), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((4, 4), np.nan, np.float32), "NaN"),
        (np.full((4, 4), 1.5), r"floats from 1.5 to 1.5, expected \[0, 1\]"),
        (np.full((4, 4), -1), "integers from -1 to -1"),
        (np.full((4, 4), 70000), "70000"),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "NaN"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (np.zeros((4, 0), np.uint8), r"shape \(4, 0\)"),
        (np.zeros((5, 6, 2), np.uint8), r"shape \(5, 6, 2\)"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (np.zeros((4, 4), complex), "dtype complex128"),
        (np.zeros((4, 4), object), "dtype object"),
    ],
)
def test_odd_images_are_refused(tiny_processor, image, message):
    with pytest.raises(ValueError, match=message) as caught:
        tiny_processor([RGB, image])
    assert "images[1]" in str(caught.value)


def test_empty_lists_and_non_images_are_refused(tiny_processor):
    with pytest.raises(ValueError, match="images is empty"):
        tiny_processor([])
    with pytest.raises(ValueError, match="it is empty"):
        tiny_processor(Image.new("RGB", (0, 0)))
    for odd in ("photo.jpg", 3, None):
        with pytest.raises(TypeError, match="expected a PIL image, an array or a tensor"):
            tiny_processor([odd])


MASK = np.zeros((30, 44), np.uint8)
MASK[5:17, 20:40] = 255


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(MASK),
        Image.fromarray(MASK > 0),
        MASK,
        MASK > 0,
        MASK // 255,
        (MASK // 255).astype(np.float32),
        (MASK // 255).astype(np.int64),
        torch.from_numpy(MASK // 255),
        MASK.astype(np.uint16) * 257,
        Image.fromarray(np.dstack([MASK] * 3)),
    ],
)
def test_masks_of_every_kind(tiny_processor, mask):
    resized = Image.fromarray(MASK).resize((42, 42), Image.Resampling.BILINEAR)
    expected = (np.asarray(resized) > 127.5).astype(np.float32)
    assert 0 < expected.sum() < expected.size
    masks = tiny_processor(RGB, masks=mask, return_tensors="pt")["masks"]
    assert masks.dtype == torch.float32 and torch.equal(masks[0], torch.from_numpy(expected))


def test_missing_masks_and_wrong_counts(tiny_processor):
    masks = tiny_processor([RGB, RGB], masks=[None, MASK], return_tensors="pt")["masks"]
    assert torch.equal(masks[0], torch.full((42, 42), -1.0)) and set(masks[1].unique().tolist()) == {0, 1}
    with pytest.raises(ValueError, match="masks has 1 entries for 2 images"):
        tiny_processor([RGB, RGB], masks=[MASK])
    with pytest.raises(ValueError, match=r"masks\[1\] is 40x30 pixels but its image is 44x30"):
        tiny_processor([RGB, RGB], masks=[MASK, MASK[:, :40]])
    turned = tiny_processor(rotated_by_exif(), masks=np.rot90(MASK, -1).copy(), return_tensors="pt")["masks"]
    assert turned.sum() > 0


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0, 11.3])
@pytest.mark.parametrize("shape", [(42, 28), (3, 5), (1, 1), (1, 9), (7, 2)])
def test_smoothing_equals_scipy(shape, sigma):
    """Maps smaller than the filter's radius too."""
    maps = RNG.random((2, *shape)).astype(np.float32)
    expected = np.stack([gaussian_filter(one.astype(np.float64), sigma) for one in maps])
    np.testing.assert_allclose(gaussian_smooth(torch.from_numpy(maps), sigma).numpy(), expected, rtol=0, atol=2e-6)


def test_no_smoothing_and_wrong_sigma():
    maps = torch.rand(1, 4, 4)
    assert torch.equal(gaussian_smooth(maps, 0), maps)
    with pytest.raises(ValueError, match=r"sigma=-1, expected 0 or more"):
        gaussian_smooth(maps, -1)


def test_results_by_hand(tiny_processor):
    maps = torch.rand(2, 42, 42, generator=torch.Generator().manual_seed(0))
    outputs = {"logits": torch.tensor([[0.0, 0.0], [1.0, 3.0]]), "anomaly_maps": maps}
    results = tiny_processor.post_process_anomaly_detection(
        outputs, target_sizes=[(60, 20), (42, 42)], image_threshold=0.6, pixel_threshold=0.5
    )
    assert [r["score"] for r in results] == pytest.approx([0.5, 1 / (1 + np.exp(-2))])
    assert [r["label"] for r in results] == ["normal", "anomalous"]
    smooth = torch.from_numpy(np.stack([gaussian_filter(m, 4.0) for m in maps.numpy()]))
    assert_close(results[1]["anomaly_map"], smooth[1], rtol=0, atol=1e-5)
    larger = torch.nn.functional.interpolate(smooth[:1, None], size=(60, 20), mode="bilinear")[0, 0]
    assert_close(results[0]["anomaly_map"], larger, rtol=0, atol=1e-5)
    assert torch.equal(results[0]["mask"], results[0]["anomaly_map"] >= 0.5) and results[0]["mask"].dtype == torch.bool
    plain = tiny_processor.post_process_anomaly_detection(outputs, sigma=0)
    assert torch.equal(plain[0]["anomaly_map"], maps[0]) and set(plain[0]) == {"score", "anomaly_map"}
    with pytest.raises(ValueError, match="target_sizes has 1 entries for 2 images"):
        tiny_processor.post_process_anomaly_detection(outputs, target_sizes=[(1, 1)])


def test_the_threshold_itself_counts_as_anomalous(tiny_processor):
    outputs = {"logits": torch.zeros(1, 2), "anomaly_maps": torch.full((1, 42, 42), 0.5)}
    result = tiny_processor.post_process_anomaly_detection(outputs, sigma=0, image_threshold=0.5, pixel_threshold=0.5)
    assert result[0]["label"] == "anomalous" and result[0]["mask"].all()


def test_half_precision_outputs_give_float32_maps(tiny_processor):
    outputs = {"logits": torch.zeros(1, 2).bfloat16(), "anomaly_maps": torch.rand(1, 42, 42).bfloat16()}
    assert tiny_processor.post_process_anomaly_detection(outputs)[0]["anomaly_map"].dtype == torch.float32


def test_saved_and_loaded(tiny_processor, tmp_path):
    AnomalyCLIPProcessor(size={"height": 28, "width": 42}, sigma=1.5).save_pretrained(tmp_path)
    loaded = AnomalyCLIPProcessor.from_pretrained(tmp_path)
    assert loaded.size == {"height": 28, "width": 42} and loaded.sigma == 1.5
    pixel_values = loaded(RGB, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(pixel_values[0], explicit(Image.fromarray(RGB), (28, 42)), rtol=0, atol=2e-6)
    assert AnomalyCLIPProcessor.from_pretrained(tmp_path, sigma=0.0).sigma == 0.0


def test_from_a_clip_folder(tiny_clip_dir, tmp_path):
    """CLIP's colors are kept, its crop to a small square is not."""
    processor = AnomalyCLIPProcessor.from_pretrained(tiny_clip_dir)
    assert processor.size == {"height": 518, "width": 518}  # 518 = 74 x 7
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": {"patch_size": 32}}))
    stored = {"image_processor_type": "CLIPImageProcessor", "do_center_crop": True, "size": {"shortest_edge": 224}}
    stored |= {"crop_size": {"height": 224, "width": 224}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored))
    processor = AnomalyCLIPProcessor.from_pretrained(tmp_path)
    assert processor.size == {"height": 512, "width": 512}
    pixel_values = processor(RGB, return_tensors="np")["pixel_values"]
    resized = Image.fromarray(RGB).resize((512, 512), Image.Resampling.BICUBIC)
    expected = (np.asarray(resized) / 255.0 - 0.5) / 0.25
    np.testing.assert_allclose(pixel_values[0], expected.transpose(2, 0, 1), rtol=0, atol=2e-6)
    given = AnomalyCLIPProcessor.from_pretrained(tmp_path, size={"height": 64, "width": 64})
    assert given.size == {"height": 64, "width": 64}


@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.float16])
@pytest.mark.parametrize("resize", ["square", "tile"])
def test_floats_that_are_not_to_be_rescaled_are_in_units_of_1(tiny_processor, kind, resize):
    values = RGB / 255
    image = torch.from_numpy(values).to(kind) if isinstance(kind, torch.dtype) else values.astype(kind)
    settings = {"resize": resize, "patch_size": 7, "return_tensors": "pt"}
    found, expected = tiny_processor(image, do_rescale=False, **settings), tiny_processor(RGB, **settings)
    torch.testing.assert_close(found["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)
    if resize == "tile":
        assert found["tiles"][0].settings["do_rescale"]
    stored = tiny_processor(RGB, do_rescale=False, **settings)["pixel_values"]
    assert stored.max() > 100  # whole numbers stay what they are


def test_inputs_are_left_as_they_were(tiny_processor):
    array, image = RGB.copy(), rotated_by_exif()
    tiny_processor([array, image, UNIT])
    assert np.array_equal(array, RGB) and image.size == (44, 30) and image.getexif()[274] == 6


def test_to_pil_image_names_the_image():
    with pytest.raises(ValueError, match=r"left\.png has shape"):
        to_pil_image(np.zeros((2, 2, 7), np.uint8), "left.png")


@pytest.mark.parametrize("kind", ["zero_one", "palette", "grey", "red", "uint16", "bool", "float"])
def test_masks_of_any_values_are_binary_before_they_are_resized(kind):
    """What is not black is anomalous, whatever the value: as the authors read masks."""
    inside = np.zeros((28, 28), bool)
    inside[7:21, 7:21] = True
    plain = inside.astype(np.uint8)
    palette = Image.fromarray(plain, mode="P") if kind == "palette" else None
    if palette is not None:
        palette.putpalette([0, 0, 0, 128, 0, 0])
    mask = {
        "zero_one": Image.fromarray(plain),
        "palette": palette,
        "grey": Image.fromarray(plain * 100),
        "red": Image.fromarray(np.stack([plain * 255, plain * 0, plain * 0], axis=-1)),
        "uint16": Image.fromarray(plain.astype(np.uint16)),
        "bool": inside,
        "float": inside.astype(np.float32),
    }[kind]
    processor = AnomalyCLIPProcessor(size={"height": 28, "width": 28})
    found = processor(Image.new("RGB", (28, 28)), masks=mask, return_tensors="pt")["masks"][0]
    np.testing.assert_array_equal(found.numpy(), inside.astype(np.float32))


def test_results_hold_no_graph():
    maps = torch.rand(1, 8, 8, requires_grad=True)
    outputs = {"anomaly_maps": maps * 1, "logits": torch.zeros(1, 2, requires_grad=True) * 1}
    result = AnomalyCLIPProcessor(size={"height": 8, "width": 8}).post_process_anomaly_detection(outputs)[0]
    assert not result["anomaly_map"].requires_grad and result["score"] == 0.5


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_of_either_byte_order(tiny_processor, order):
    swapped = tiny_processor(DEEP.astype(order)).pixel_values[0]
    np.testing.assert_array_equal(swapped, tiny_processor(DEEP).pixel_values[0])
    shallow = np.full((8, 8), 4095, order)  # 12 bits in 16
    assert tiny_processor(shallow).pixel_values[0][0, 0, 0] == pytest.approx((1 - MEAN[0]) / STD[0], abs=1e-6)


def test_a_stack_of_masks(tiny_processor):
    masks = np.stack([np.zeros((30, 44), np.uint8), np.full((30, 44), 255, np.uint8)])
    assert [mask.mean() for mask in tiny_processor([RGB, RGB], masks=masks).masks] == [0, 1]


def test_sizes_that_make_no_batch_are_refused(tiny_processor):
    with pytest.raises(ValueError, match="do_resize=False, but images of 42x42, 44x30 pixels can't be one batch"):
        tiny_processor([RGB, np.zeros((42, 42, 3), np.uint8)], do_resize=False)
    with pytest.raises(ValueError, match=r"size=\{'shortest_edge': 42\}, expected height and width in pixels"):
        tiny_processor(RGB, size={"shortest_edge": 42})


def test_smoothing_under_autocast_is_float32():
    maps = torch.rand(1, 40, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        smooth = gaussian_smooth(maps, 2.0)
    assert smooth.dtype == torch.float32
    assert_close(smooth, gaussian_smooth(maps, 2.0), rtol=0, atol=1e-6)


def test_a_damaged_stored_processor_is_told(tiny_processor, tmp_path):
    tiny_processor.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(OSError, match=r"preprocessor_config\.json"):
        AnomalyCLIPProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_std", [0.0, 0.0, 0.0]),
        ("image_std", [0.2, float("nan"), 0.2]),
        ("image_std", [0.2, 0.2]),
        ("image_std", 1e-30),
        ("image_std", [-0.2] * 3),
        ("image_mean", [float("inf"), 0.0, 0.0]),
        ("image_mean", [0.5]),
        ("image_mean", "half"),
        ("rescale_factor", 0),
        ("rescale_factor", float("nan")),
        ("rescale_factor", [1.0, 1.0, 1.0]),
        ("sigma", 1e5),
        ("sigma", -1),
        ("sigma", float("nan")),
        ("sigma", True),
        ("size", {"height": 10**6, "width": 42}),
        ("size", {"height": 0, "width": 42}),
        ("resample", 9),
        ("do_center_crop", True),
        ("data_format", "channels_last"),
    ],
)
@pytest.mark.parametrize("way", ["made", "loaded", "overridden", "called"])
def test_settings_out_of_range_are_refused(field, value, way, tiny_processor, tmp_path):
    ways = {
        "made": lambda: AnomalyCLIPProcessor(**{field: value}),
        "loaded": lambda: AnomalyCLIPProcessor.from_pretrained(tmp_path),
        "overridden": lambda: AnomalyCLIPProcessor.from_pretrained(tmp_path, **{field: value}),
        "called": lambda: tiny_processor(RGB, **{field: value}),
    }
    tiny_processor.save_pretrained(tmp_path)
    if way == "loaded":
        path = tmp_path / "preprocessor_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ValueError, match=rf"{field}="):
        ways[way]()


def test_unknown_settings_are_refused_and_stored_ones_named(tiny_processor, tmp_path, caplog, monkeypatch):
    tiny_processor.save_pretrained(tmp_path)
    for call in (
        lambda: AnomalyCLIPProcessor(sgima=1),
        lambda: AnomalyCLIPProcessor.from_pretrained(tmp_path, sgima=1),
        lambda: tiny_processor(RGB, sgima=1),
        lambda: AnomalyCLIPProcessor.from_dict({}, sgima=1),
    ):
        with pytest.raises(TypeError, match=r"unknown arguments \['sgima'\].*known are .*sigma, size"):
            call()
    with pytest.raises(TypeError, match="image_size"):
        AnomalyCLIPProcessor(image_size=100)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_version_6": 1}))
    told = []
    monkeypatch.setattr("anomalyclip_hf.image_processing_anomalyclip.logger.warning", told.append)
    loaded = AnomalyCLIPProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == tiny_processor.to_dict() and "of_version_6" in told[0]
    loaded, unused = AnomalyCLIPProcessor.from_pretrained(tmp_path, sigma=2.0, other=1, return_unused_kwargs=True)
    assert loaded.sigma == 2.0 and unused == {"other": 1}


def test_masks_under_their_other_name(tiny_processor):
    expected = tiny_processor(RGB, masks=MASK)["masks"]
    np.testing.assert_array_equal(tiny_processor(RGB, segmentation_maps=MASK)["masks"], expected)
    with pytest.raises(TypeError, match="two names of one argument"):
        tiny_processor(RGB, masks=MASK, segmentation_maps=MASK)


@pytest.mark.parametrize("name", ["logits", "anomaly_maps"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_refused(tiny_processor, name, value):
    outputs = {"logits": torch.zeros(2, 2), "anomaly_maps": torch.rand(2, 42, 42)}
    outputs[name][1].view(-1)[0] = value
    with pytest.raises(ValueError, match=r"image 1 of 2 is not finite.*weights.*image_std"):
        tiny_processor.post_process_anomaly_detection(outputs, image_threshold=0.5)
    with pytest.raises(ValueError, match=r"sigma=1e\+05|sigma=100000"):
        tiny_processor.post_process_anomaly_detection(
            {"logits": torch.zeros(1, 2), "anomaly_maps": torch.rand(1, 42, 42)}, sigma=1e5
        )


NESTED = {"image_processor": {"image_processor_type": "CLIPImageProcessor", "image_mean": [0.5] * 3}}


@pytest.mark.parametrize(
    ("files", "mean"),
    [
        ({"processor_config.json": NESTED}, 0.5),
        ({"processor_config.json": NESTED, "preprocessor_config.json": {"image_mean": [0.1] * 3}}, 0.5),
        ({"processor_config.json": {"processor_class": "CLIPProcessor"}}, MEAN[0]),
        ({"processor_config.json": {}, "preprocessor_config.json": {"image_mean": [0.1] * 3}}, 0.1),
        ({}, MEAN[0]),
    ],
)
def test_settings_as_transformers_5_stores_them(tiny_clip_dir, tmp_path, files, mean):
    """With the precedence of `AutoImageProcessor`; prompts saved afterwards carry them."""
    for path in Path(tiny_clip_dir).iterdir():
        shutil.copy(path, tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert AnomalyCLIPProcessor.from_pretrained(tmp_path).image_mean[0] == pytest.approx(mean)
    model = AnomalyCLIPModel.from_pretrained(tmp_path, image_size=42)
    model.save_prompts(tmp_path / "prompts", card=False)
    assert AnomalyCLIPProcessor.from_pretrained(tmp_path / "prompts").image_mean[0] == pytest.approx(mean)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGB", "RGBA", "P"])
def test_resizing_in_the_images_own_mode_changes_no_bit(mode):
    """A large grey image is never made three times as large before it is made small."""
    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(0, 256, (90, 131, 4), dtype=np.uint8)).convert(mode)
    processor = AnomalyCLIPProcessor(size={"height": 42, "width": 28}, do_normalize=False, do_rescale=False)
    expected = np.asarray(image.convert("RGB").resize((28, 42), Image.Resampling.BICUBIC), np.float32)
    np.testing.assert_array_equal(processor(image)["pixel_values"][0], expected.transpose(2, 0, 1))


@pytest.mark.parametrize("name", ["image_threshold", "pixel_threshold"])
@pytest.mark.parametrize("value", [float("nan"), 7, -1, float("inf"), True, "0.5", 1.0000001])
def test_thresholds_out_of_range_are_refused(name, value):
    outputs = {"logits": torch.zeros(1, 2), "anomaly_maps": torch.full((1, 42, 42), 0.5)}
    processor = AnomalyCLIPProcessor(sigma=0.0)
    with pytest.raises(ValueError, match=f"{name}=.*expected a score"):
        processor.post_process_anomaly_detection(outputs, **{name: value})
    assert processor.post_process_anomaly_detection(outputs, **{name: np.float32(0.5)})[0]["score"] == 0.5


@pytest.mark.parametrize("name", ["do_resize", "do_rescale", "do_normalize"])
@pytest.mark.parametrize("value", ["false", 0, "True"])
def test_settings_that_are_true_or_false_are_nothing_else(name, value, tmp_path):
    AnomalyCLIPProcessor().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**stored, name: value}))
    for attempt in (
        lambda: AnomalyCLIPProcessor(**{name: value}),
        lambda: AnomalyCLIPProcessor()(Image.fromarray(RGB), **{name: value}),
        lambda: AnomalyCLIPProcessor.from_pretrained(tmp_path),
    ):
        with pytest.raises(ValueError, match=f"{name}=.*expected true or false"):
            attempt()


@pytest.mark.parametrize("field", [{"device": "cuda"}, {"disable_grouping": True}])
def test_settings_without_effect_are_refused(field):
    with pytest.raises(ValueError, match=r"is not supported by this processor"):
        AnomalyCLIPProcessor(**field)
    with pytest.raises(ValueError, match=r"is not supported by this processor"):
        AnomalyCLIPProcessor()(Image.fromarray(RGB), **field)


def test_none_is_the_default():
    processor = AnomalyCLIPProcessor(image_mean=None, image_std=None, sigma=None, size={"height": 42, "width": 42})
    assert processor.sigma == 4.0
    pixel_values = processor(Image.fromarray(RGB), return_tensors="pt")["pixel_values"]
    assert_close(pixel_values[0].double().numpy(), explicit(Image.fromarray(RGB)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["./no/such", "/no/such", "no such", "outputs/nothing", "a/b/"])
def test_a_missing_folder_reads_as_such(name):
    with pytest.raises(OSError, match=f"there is no folder '{name}', and no repository"):
        AnomalyCLIPProcessor.from_pretrained(name)
