"""One call from an image to a score and a heat map, for every kind of input."""

import base64
import functools
import http.server
import io
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import pipeline

from anomalyclip_hf import AnomalyCLIPModel, AnomalyCLIPProcessor, ZeroShotAnomalyDetectionPipeline
from anomalyclip_hf.data.addresses import read_image

TASK = "zero-shot-anomaly-detection"
SIZES = [(50, 40), (30, 60), (42, 42), (64, 20), (21, 33)]


@pytest.fixture(scope="module")
def detector(tiny_checkpoint):
    return pipeline(TASK, model=tiny_checkpoint, device="cpu")


@pytest.fixture
def images(make_image):
    return [make_image(*size, seed=seed) for seed, size in enumerate(SIZES)]


@pytest.fixture
def expected(images, tiny_checkpoint):
    """Model and processor called by hand."""
    model = AnomalyCLIPModel.from_pretrained(tiny_checkpoint)
    processor = AnomalyCLIPProcessor.from_pretrained(tiny_checkpoint)
    results = []
    for image in images:
        with torch.no_grad():
            output = model(**processor(image, return_tensors="pt"))
        size = [(image.height, image.width)]
        results += processor.post_process_anomaly_detection(output, target_sizes=size)
    return results


def assert_same(results, expected, atol=1e-5):
    results = list(results)
    assert len(results) == len(expected)
    for result, wanted in zip(results, expected, strict=True):
        assert isinstance(result["score"], float) and result["score"] == pytest.approx(wanted["score"], abs=atol)
        assert isinstance(result["anomaly_map"], np.ndarray) and result["anomaly_map"].dtype == np.float32
        np.testing.assert_allclose(result["anomaly_map"], wanted["anomaly_map"].numpy(), rtol=0, atol=atol)


def test_one_image(detector, images, expected):
    result = detector(images[0])
    assert set(result) == {"score", "anomaly_map"} and result["anomaly_map"].shape == (40, 50)
    assert_same([result], expected[:1])
    assert len({round(wanted["score"], 4) for wanted in expected}) > 1


@pytest.mark.parametrize("kind", ["list", "tuple", "generator", "paths", "arrays", "column", "dataset", "tensors"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_every_kind_of_input_in_batches(detector, images, expected, tmp_path, kind, batch_size):
    def save(image, index):
        image.save(tmp_path / f"{index}.png")
        return str(tmp_path / f"{index}.png")

    inputs = {
        "list": lambda: images,
        "tuple": lambda: tuple(images),
        "generator": lambda: (image for image in images),
        "paths": lambda: [save(image, index) for index, image in enumerate(images)],
        "arrays": lambda: [np.asarray(image) for image in images],
        "tensors": lambda: [torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) for image in images],
        "column": lambda: datasets.Dataset.from_dict({"image": images}, datasets.Features(image=datasets.Image()))[
            "image"
        ],
        "dataset": lambda: torch.utils.data.Subset(images, range(len(images))),
    }[kind]()
    assert_same(detector(inputs, batch_size=batch_size), expected)


def test_path_objects_and_single_arrays(detector, images, expected, tmp_path):
    images[1].save(tmp_path / "a b ü.png")
    assert_same([detector(tmp_path / "a b ü.png")], expected[1:2])
    assert_same([detector(np.asarray(images[1]))], expected[1:2])


def test_url(detector, images, expected, tmp_path):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    images[0].save(tmp_path / "photo.png")
    (tmp_path / "page.png").write_text("<html>no image</html>")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        base = f"http://127.0.0.1:{server.server_address[1]}"
        assert_same([detector(f"{base}/photo.png")], expected[:1])
        assert_same(detector([f"{base}/photo.png"], timeout=10.0), expected[:1])
        for name in ("page.png", "missing.png"):
            with pytest.raises(ValueError, match=rf"cannot read image .*{name}: \w"):
                detector(f"{base}/{name}")
    finally:
        server.shutdown()
        server.server_close()


def test_thresholds_give_labels_and_masks(detector, images, expected):
    score, anomaly_map = expected[0]["score"], expected[0]["anomaly_map"].numpy()
    middle = float(np.median(anomaly_map))
    above = detector(images[0], image_threshold=score - 1e-3, pixel_threshold=middle)
    assert above["label"] == "anomalous" and above["mask"].dtype == bool and above["mask"].shape == (40, 50)
    np.testing.assert_array_equal(above["mask"], above["anomaly_map"] >= middle)
    assert 0 < above["mask"].sum() < above["mask"].size
    below = detector(images[0], image_threshold=score + 1e-3)
    assert below["label"] == "normal" and "mask" not in below


def test_thresholds_of_the_configuration(tiny_checkpoint, images, expected):
    score = expected[0]["score"]
    model = AnomalyCLIPModel.from_pretrained(tiny_checkpoint, image_threshold=score - 1e-3, pixel_threshold=1.0)
    own = pipeline(TASK, model=model, image_processor=AnomalyCLIPProcessor.from_pretrained(tiny_checkpoint))
    result = own(images[0])
    assert result["label"] == "anomalous" and not result["mask"].any()
    assert own(images[0], image_threshold=1.0)["label"] == "normal"  # of the call: wins
    assert own(images[0], image_threshold=0.0, pixel_threshold=0.0)["mask"].all()


def test_smoothing_can_be_set(detector, images):
    rough, smooth = detector(images[2], sigma=0)["anomaly_map"], detector(images[2], sigma=20)["anomaly_map"]
    assert smooth.std() < 0.5 * rough.std()


def test_scoring_a_list_runs_the_text_tower_once(tiny_checkpoint, images):
    own = pipeline(TASK, model=tiny_checkpoint)
    calls = []
    own.model.text_model.register_forward_hook(lambda *_: calls.append(1))
    own(images, batch_size=2)
    assert len(calls) == 1


def test_half_precision(tiny_checkpoint, images, expected):
    own = pipeline(TASK, model=tiny_checkpoint, dtype=torch.bfloat16)
    assert own.model.dtype == torch.bfloat16 and own.model.prompt_learner.context.dtype == torch.float32
    assert_same(own(images, batch_size=5), expected, atol=0.15)


def test_gray_and_16_bit_files(detector, tmp_path):
    gray = np.random.default_rng(0).integers(0, 256, (33, 27), dtype=np.uint8)
    Image.fromarray(gray).save(tmp_path / "8.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "16.png")
    results = detector([str(tmp_path / "8.png"), str(tmp_path / "16.png")])
    np.testing.assert_array_equal(results[0]["anomaly_map"], results[1]["anomaly_map"])
    assert results[0]["anomaly_map"].shape == (33, 27)


def test_rotated_photographs_give_upright_maps(detector, make_image, tmp_path):
    image = make_image(50, 40)
    image.getexif()[274] = 6
    image.save(tmp_path / "photo.jpg", exif=image.getexif(), quality=95)
    assert detector(str(tmp_path / "photo.jpg"))["anomaly_map"].shape == (50, 40)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_unreadable_files_are_named(detector, tmp_path, content):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read image .*bad\.png: \w"):
        detector(str(tmp_path / "bad.png"))


def test_truncated_and_missing_files_are_named(detector, make_image, tmp_path):
    make_image().save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:200])
    for name in ("cut.png", "missing.png"):
        with pytest.raises(ValueError, match=rf"cannot read image .*{name}: \w"):
            detector([str(tmp_path / name)])
    with pytest.raises(ValueError, match="cannot read image"):
        detector(str(tmp_path))


def test_odd_calls_are_refused(detector):
    with pytest.raises(ValueError, match="inputs is None"):
        detector(None)
    with pytest.raises(TypeError, match=r"unknown arguments \['thresold'\]; known are sigma"):
        detector(np.zeros((9, 9), np.uint8), thresold=0.5)
    with pytest.raises(TypeError, match="expected a PIL image"):
        detector(3.5)
    assert detector([]) == [] and detector(()) == []


def test_a_saved_pipeline_loads_again(detector, images, expected, tmp_path):
    detector.save_pretrained(tmp_path)
    loaded = pipeline(TASK, model=str(tmp_path))
    assert isinstance(loaded, ZeroShotAnomalyDetectionPipeline)
    assert_same(loaded(images), expected)


def test_read_image_closes_its_file(make_image, tmp_path):
    make_image().save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    (tmp_path / "a.png").unlink()
    assert image.getpixel((0, 0)) == make_image().getpixel((0, 0))


def test_any_checkpoint_brings_its_processor(tiny_clip_dir, tmp_path):
    """A plain CLIP folder, a folder without processor settings, and a model object all work."""
    image = Image.fromarray(np.full((20, 30, 3), 90, np.uint8))
    plain = pipeline(TASK, model=tiny_clip_dir, device="cpu")
    assert plain.image_processor.size["height"] == plain.model.config.image_size == 518
    model = AnomalyCLIPModel.from_pretrained(tiny_clip_dir, image_size=42)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink(missing_ok=True)
    for source in (str(tmp_path), model):
        detector = pipeline(TASK, model=source, device="cpu")
        assert detector.image_processor.size["height"] == 42
        assert detector(image)["anomaly_map"].shape == (20, 30)


def test_a_stream_of_images(detector, images, expected):
    stream = datasets.Dataset.from_dict({"image": images}).to_iterable_dataset()
    assert_same(detector(stream["image"]), expected)


def test_a_url_that_fails_is_named():
    with pytest.raises(ValueError, match=r"cannot read image http://127.0.0.1:9/none.png: "):
        read_image("http://127.0.0.1:9/none.png", timeout=2)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://127.0.0.1:port/x.png", "nonnumeric port"),
        ("http:///x.png", "no host given"),
        ("data:image/png;base64,####", "it is empty"),
    ],
)
def test_addresses_that_make_no_sense_are_named(url, why):
    with pytest.raises(ValueError, match=why) as caught:
        read_image(url, timeout=2)
    assert str(caught.value).startswith(f"cannot read image {url}: ")


def test_iterators_and_stacks(detector, make_image):
    images = [make_image(42, 42, seed=seed) for seed in range(3)]
    expected = [{"score": r["score"], "anomaly_map": torch.from_numpy(r["anomaly_map"])} for r in detector(images)]
    assert_same(detector(iter(images)), expected)
    assert_same(detector(map(np.asarray, images), batch_size=2), expected)
    stack = np.stack([np.asarray(image) for image in images])
    assert_same(detector(stack), expected)
    assert_same(detector(torch.from_numpy(stack).permute(0, 3, 1, 2)), expected)


def test_columns_of_tables_keep_their_order(detector, make_image, tmp_path):
    images = [make_image(42, 42, seed=seed) for seed in range(3)]
    paths = [str(tmp_path / f"{seed}.png") for seed in range(3)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    expected = [result["score"] for result in detector(images)]
    # By place, not by label: a table that was sorted or filtered keeps the labels of its rows.
    for column in (pd.Series(paths, index=[2, 1, 0]), pd.Series(paths, index=[7, 8, 9]), np.array(paths)):
        assert [result["score"] for result in detector(column)] == pytest.approx(expected, abs=1e-6)
    assert detector(np.zeros((0, 42, 42, 3), np.uint8)) == []


@pytest.mark.parametrize("kind", [list, tuple, "column"])
def test_several_images_without_the_package(detector, make_image, monkeypatch, kind):
    images = [make_image(42, 42, seed=seed) for seed in range(2)]
    expected = [result["score"] for result in detector(images)]
    columns = datasets.Dataset.from_dict({"image": images}, datasets.Features(image=datasets.Image()))
    monkeypatch.setattr("anomalyclip_hf.pipeline_anomalyclip.if_installed", lambda module: None)
    found = detector(columns["image"] if kind == "column" else kind(images))
    assert [result["score"] for result in found] == pytest.approx(expected, abs=1e-6)


def test_a_calls_resize_ends_the_tiles_of_the_pipeline(tiny_checkpoint, make_image):
    image, plain = make_image(60, 80), pipeline(TASK, model=tiny_checkpoint, device="cpu")
    tiled = pipeline(TASK, model=tiny_checkpoint, device="cpu", resize="tile", tile_size=42, overlap=0.5)
    expected = plain(image)
    assert tiled(image)["score"] != expected["score"] == tiled(image, resize="square")["score"]
    with pytest.raises(ValueError, match="tile_size=42 with resize='square'"):
        tiled(image, resize="square", tile_size=42)


def test_the_processor_follows_prompts_of_another_size(tiny_checkpoint, tiny_processor, make_image):
    image, larger = make_image(60, 80), AnomalyCLIPModel.from_pretrained(tiny_checkpoint, image_size=70)
    expected = pipeline(TASK, model=larger)(image)["score"]
    model = AnomalyCLIPModel.from_pretrained(tiny_checkpoint)
    model.add_prompts("own")
    detector = pipeline(TASK, model=model, image_processor=tiny_processor)
    others = [AnomalyCLIPProcessor(size={"height": side, "width": side}) for side in (56, 70)]
    chosen = [pipeline(TASK, model=model, image_processor=other) for other in others]
    own = detector(image)["score"]
    model.load_prompts(larger.get_prompts())
    assert detector(image)["score"] == pytest.approx(expected, abs=1e-6) and abs(own - expected) > 1e-4
    assert [one.image_processor for one in chosen] == others  # whose sizes were not that of the model before
    model.set_prompts("own")
    assert detector(image)["score"] == own and detector.image_processor is tiny_processor
    assert [one.image_processor for one in chosen] == others


def test_files_and_their_bytes(detector, images, expected, tmp_path):
    images[0].save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    with open(tmp_path / "a.png", "rb") as file:
        assert_same([detector(file)], expected[:1])
    for one in (content, bytearray(content), io.BytesIO(content), {"bytes": content, "path": None}):
        assert_same([detector(one)], expected[:1])
        assert_same(detector([one]), expected[:1])
    data = "data:image/png;base64," + base64.b64encode(content).decode()
    assert_same([detector(data)], expected[:1])


@pytest.fixture
def slow_server():
    """Sends a byte now and then: in the head of its answer (/head), or in the body (/body)."""

    class Drip(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/large":
                self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + bytes(200_000))
                return
            self.wfile.write(b"HTTP/1.0 200 OK\r\n" + (b"\r\n" if self.path == "/body" else b"X: "))
            for _ in range(100):
                try:
                    self.wfile.write(b"a")
                    time.sleep(0.05)
                except OSError:
                    return

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Drip)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_dripping_server_meets_the_deadline(slow_server, part):
    start = time.monotonic()
    with pytest.raises(ValueError, match=rf"{part}: not received within 0.3 s \(timeout="):
        read_image(f"{slow_server}/{part}", timeout=0.3)
    assert time.monotonic() - start < 2


def test_a_large_download_is_refused(slow_server, detector):
    with pytest.raises(ValueError, match=r"large: it is larger than 100,000 bytes \(max_bytes="):
        detector(f"{slow_server}/large", max_bytes=100_000)
    with pytest.raises(ValueError, match="timeout=-1"):
        read_image(f"{slow_server}/large", timeout=-1)


@pytest.mark.parametrize("name", ["image_threshold", "pixel_threshold"])
@pytest.mark.parametrize("value", [float("nan"), 7, -1, True, "0.5"])
def test_thresholds_out_of_range_are_refused(detector, images, name, value):
    with pytest.raises(ValueError, match=f"{name}=.*expected a score"):
        detector(images[0], **{name: value})
    with pytest.raises(ValueError, match=f"{name}=.*expected a score"):
        ZeroShotAnomalyDetectionPipeline(model=detector.model, **{name: value})


@pytest.mark.parametrize("name", ["processor", "image_processor"])
def test_the_processor_given_is_used_and_a_foreign_one_refused(detector, name):
    from transformers import CLIPImageProcessor

    own = AnomalyCLIPProcessor(size={"height": 42, "width": 42}, sigma=1.5)
    assert ZeroShotAnomalyDetectionPipeline(model=detector.model, **{name: own}).image_processor is own
    with pytest.raises(ValueError, match=r"is a CLIPImageProcessor.*, which neither"):
        ZeroShotAnomalyDetectionPipeline(model=detector.model, **{name: CLIPImageProcessor()})


def test_foreign_parts_are_refused(detector):
    from transformers import CLIPImageProcessor

    for name in ("feature_extractor", "tokenizer"):
        with pytest.raises(ValueError, match=f"uses no {name}; give an AnomalyCLIPImageProcessor as image_processor"):
            pipeline("zero-shot-anomaly-detection", model=detector.model, **{name: CLIPImageProcessor()})
    with pytest.raises(OSError, match=r"there is no folder '\./no/such'"):
        pipeline("zero-shot-anomaly-detection", model=detector.model, image_processor="./no/such")


@pytest.mark.parametrize("value", [0, -1, "x", float("nan"), 1.5, True])
def test_limits_of_a_download_are_checked(detector, images, value):
    with pytest.raises(ValueError, match=r"max_bytes=.*expected a whole number"):
        detector(images[0], max_bytes=value)
    with pytest.raises(ValueError, match=r"max_bytes=.*expected a whole number"):
        read_image(images[0], max_bytes=value)


@pytest.mark.parametrize(
    "size",
    [{"height": 0, "width": 0}, {"height": 42.5, "width": 42}, {"shortest_edge": 42}, {"height": 42, "width": 49}],
)
def test_a_stored_size_that_cannot_be_is_refused(tiny_checkpoint, tmp_path, size):
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    stored = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps({**stored, "size": size}))
    with pytest.raises(ValueError, match="size="):
        pipeline("zero-shot-anomaly-detection", model=str(tmp_path / "model"))


def test_a_window_and_channels_of_a_call(detector):
    bands = np.random.default_rng(3).integers(0, 4096, (40, 50, 6)).astype(np.uint16)
    shown = np.rint(np.clip((bands[..., [3, 2, 0]] - 500.0) / 2500, 0, 1) * 255).astype(np.uint8)
    expected = detector(shown)["score"]
    assert detector(bands, window=(500, 3000), channels=(3, 2, 0))["score"] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match=r"--channels 2 1 0"):
        detector(bands)
    with pytest.raises(ValueError, match="window="):
        detector(shown, window=(5, 1))


def test_score_or_map_alone(detector, images):
    thresholds = {"image_threshold": 0.5, "pixel_threshold": 0.5}
    full = detector(images, batch_size=2, **thresholds)
    for outputs, names, used, unused in (
        ("score", ("score", "label"), "image_threshold", {"pixel_threshold": 0.5, "roi": [[0, 0], [9, 0], [9, 9]]}),
        ("maps", ("anomaly_map", "mask", "regions"), "pixel_threshold", {"image_threshold": 0.5}),
    ):
        with pytest.raises(ValueError, match=f"outputs='{outputs}' has no use for {', '.join(unused)}: give"):
            detector(images, outputs=outputs, **unused)
        given = {used: thresholds[used]}
        for one, whole in zip(detector(images, outputs=outputs, batch_size=2, **given), full, strict=True):
            assert tuple(one) == names
            assert one.get("score", whole["score"]) == pytest.approx(whole["score"], abs=1e-6)
            np.testing.assert_allclose(one.get("anomaly_map", whole["anomaly_map"]), whole["anomaly_map"], atol=1e-6)
    for options, message in (
        ({"resize": "fit"}, "outputs='score' with resize='fit' or 'tile', expected 'all'"),
        ({"score_rule": "max"}, "score_rule='max' takes the score from the map, but there is none"),
        ({"references": images[:1]}, "outputs='score' with references, which need score and maps"),
    ):
        with pytest.raises(ValueError, match=message):
            detector(images[0], outputs="score", **options)
    with pytest.raises(ValueError, match="outputs='label', expected one of"):
        detector(images[0], outputs="label")


def test_two_pipelines_in_threads_give_what_one_gives(detector, tiny_checkpoint, images):
    detectors = [pipeline(TASK, model=tiny_checkpoint, device="cpu"), detector]
    expected = detector(images)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(one, images, batch_size=size) for size in (1, 2, 3) for one in detectors]
    for run in runs:
        for found, wanted in zip(run.result(), expected, strict=True):
            assert found["score"] == pytest.approx(wanted["score"], abs=1e-6)
            np.testing.assert_allclose(found["anomaly_map"], wanted["anomaly_map"], rtol=0, atol=1e-6)
