"""Large images: tiles that cover them, blended maps without seams, one score everywhere."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import nn
from torch.testing import assert_close
from transformers import pipeline

from anomalyclip_hf import AnomalyCLIPProcessor, demo_checkpoint
from anomalyclip_hf.cli import run_command
from anomalyclip_hf.data import load_anomaly_dataset
from anomalyclip_hf.data.reader import fit_size
from anomalyclip_hf.evaluation import evaluate_model, pixel_metrics
from anomalyclip_hf.evaluation.baselines import MethodScorer, score_methods
from anomalyclip_hf.pipeline_anomalyclip import ZeroShotAnomalyDetectionPipeline
from anomalyclip_hf.scoring import calibrate, save_thresholds
from anomalyclip_hf.scoring.rows import prepare_row, score_rows
from anomalyclip_hf.scoring.tiling import TILES_PER_FORWARD, blend_weights, score_views, tile_boxes
from evaluation_tools import make_tree

SIZES = [(8000, 2000), (20000, 50), (519, 518), (1, 3000), (777, 1234)]
TASK = "zero-shot-anomaly-detection"


@pytest.fixture
def tiles_of(tiny_model):
    """Function `(resize, **settings)` -> a processor of `tiny_model` (42 px, patches of 7)."""
    return lambda resize, **settings: AnomalyCLIPProcessor(
        size={"height": 42, "width": 42}, patch_size=7, resize=resize, **settings
    )


@pytest.fixture
def detector(tiny_model, tiny_processor):
    return ZeroShotAnomalyDetectionPipeline(model=tiny_model, image_processor=tiny_processor)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.9])
def test_tiles_cover_an_image_with_the_overlap_asked_for(size, overlap):
    boxes = tile_boxes(size, 518, overlap)
    assert {(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes} == {(min(518, size[0]), min(518, size[1]))}
    for axis, length in enumerate(size):
        starts = sorted({box[axis] for box in boxes})
        assert starts[0] == 0 and starts[-1] == max(0, length - 518)
        assert max(np.diff(starts), default=0) <= 518 * (1 - overlap)
        weights = blend_weights(starts, min(518, length), length)
        total = np.zeros(length)
        for start, weight in weights.items():
            total[start : start + len(weight)] += weight.numpy()
        np.testing.assert_allclose(total, 1, atol=1e-6)


def test_an_image_within_a_tile_has_none():
    assert tile_boxes((518, 518), 518) == tile_boxes((1, 1), 518) == []
    assert tile_boxes((100, 60), 60, 0.0) == [(0, 0, 60, 60), (40, 0, 100, 60)]


def test_weights_rise_and_fall_smoothly():
    weights = blend_weights([0, 75, 150], 100, 250)
    assert weights[75][0] < 0.01 and weights[75][-1] < 0.01 and weights[75][40] == 1
    assert max(np.abs(np.diff(weight.numpy())).max() for weight in weights.values()) < 0.1


def test_the_ratio_of_the_sides_is_kept():
    assert fit_size((8000, 2000), 518, 14) == (518, 126)
    assert fit_size((50, 20000), 518, 14) == (14, 518)
    assert fit_size((90, 90), 518, None) == (518, 518)
    with pytest.raises(ValueError, match=r"patch_size=None.*90x80"):
        fit_size((90, 80), 518, None)


def test_fit_resizes_to_multiples_of_the_patch(tiles_of, make_image):
    image = make_image(100, 60)
    found = tiles_of("fit")(image, masks=[Image.new("L", image.size, 255)], return_tensors="pt")
    expected = tiles_of("square")(image, size={"height": 28, "width": 42}, return_tensors="pt")
    assert_close(found["pixel_values"], expected["pixel_values"], rtol=0, atol=0)
    assert found["masks"].shape == (1, 28, 42)
    with pytest.raises(ValueError, match=r"resize='fit', but images of 60x100, 100x60 pixels can't be one batch"):
        tiles_of("fit")([image, image.resize((60, 100))])


def test_a_tiled_map_and_score_are_what_they_are_said_to_be(tiny_model, tiny_processor, detector, make_image):
    """Each tile scored by hand."""
    image = make_image(100, 60, seed=3)
    boxes = tile_boxes(image.size, 60, 0.5)
    assert [box[0] for box in boxes] == [0, 20, 40]

    def score(part: Image.Image) -> tuple[float, torch.Tensor]:
        with torch.no_grad():
            output = tiny_model(tiny_processor(part, return_tensors="pt")["pixel_values"])
        smooth = torch.from_numpy(gaussian_filter(output.anomaly_maps[0].numpy(), 4.0))
        resized = nn.functional.interpolate(smooth[None, None], size=part.size[::-1], mode="bilinear")[0, 0]
        return output.logits.softmax(-1)[0, 1].item(), resized

    whole_score, whole = score(image)
    window = np.sin(np.pi * (np.arange(60) + 0.5) / 60) ** 2
    window = np.outer(window, window)
    total, weights, scores = np.zeros((60, 100)), np.zeros((60, 100)), [whole_score]
    for x0, y0, x1, y1 in boxes:
        one, tile = score(image.crop((x0, y0, x1, y1)))
        scores.append(one)
        total[y0:y1, x0:x1] += window * tile.numpy()
        weights[y0:y1, x0:x1] += window
    result = detector(image, resize="tile", tile_size=60, overlap=0.5)
    assert result["score"] == pytest.approx(max(scores), abs=1e-6)
    np.testing.assert_allclose(result["anomaly_map"], (whole.numpy() + total / weights) / 2, atol=1e-5)
    assert np.abs(result["anomaly_map"] - whole.numpy()).max() > 1e-4


@pytest.mark.parametrize(("size", "tile"), [((200, 130), 42), ((200, 130), 60), ((300, 20), 42)])
def test_a_constant_texture_gives_a_flat_map(tiny_model, detector, size, tile):
    """Where the model knows no positions, tiles of one color have one map each: what differs would be a seam."""
    with torch.no_grad():
        tiny_model.vision_model.embeddings.position_embedding.weight.zero_()
    for overlap in (0.0, 0.25, 0.7):
        found = detector(Image.new("RGB", size, (90, 140, 60)), resize="tile", tile_size=tile, overlap=overlap)
        assert np.ptp(found["anomaly_map"]) < 1e-5 and found["anomaly_map"].shape == size[::-1]


def test_small_images_are_scored_as_a_square(detector, make_image):
    image = make_image(42, 30)
    plain, tiled = detector(image), detector(image, resize="tile")
    assert plain["score"] == tiled["score"]
    np.testing.assert_array_equal(plain["anomaly_map"], tiled["anomaly_map"])


@pytest.mark.parametrize("resize", ["fit", "tile"])
def test_every_way_gives_the_same_score(tiny_model, tiles_of, detector, make_image, resize):
    images = [make_image(*size, seed=i) for i, size in enumerate([(90, 60), (50, 130), (90, 60), (40, 20), (200, 1)])]
    images.append(images[0].convert("L"))
    processor = tiles_of(resize, sigma=2.0)
    settings = {"resize": resize, "sigma": 2.0}
    alone = [detector(image, **settings) for image in images]
    rows = [prepare_row({"image": image, "mask": None, "label": 0}, processor) for image in images]
    rows = pickle.loads(pickle.dumps(rows))  # as workers send them
    by_rows = score_rows(tiny_model, processor, [row.view for row in rows], ["global"])
    by_methods = score_methods(MethodScorer(tiny_model, ["anomalyclip", "dpam=off"]), processor, rows)
    in_batches = detector(images, batch_size=4, **settings)
    for image, row, one, batched, ((score, found),), (scores, maps) in zip(
        images, rows, alone, in_batches, by_rows, by_methods, strict=True
    ):
        assert found.shape == row.mask.shape == image.size[::-1]
        assert [batched["score"], score, scores["anomalyclip"]] == pytest.approx([one["score"]] * 3, abs=1e-6)
        for other in (batched["anomaly_map"], found, maps["anomalyclip"]):
            np.testing.assert_allclose(other, one["anomaly_map"], rtol=0, atol=1e-6)
    assert np.abs(by_methods[0][1]["dpam=off"] - by_methods[0][1]["anomalyclip"]).max() > 1e-4


def test_memory_is_bounded_by_the_tiles_of_one_forward(tiles_of):
    """8000x2000 pixels: no more than a few tiles are prepared at a time."""
    batches = []

    def forward(pixel_values):
        batches.append(tuple(pixel_values.shape))
        value = len(batches) / 10
        logits = torch.tensor([[0.0, value]]).repeat(len(pixel_values), 1)
        return {"logits": logits, "anomaly_maps": torch.full((len(pixel_values), 42, 42), 0.25)}

    processor = tiles_of("tile", tile_size=1000)
    inputs = processor(Image.new("L", (8000, 2000), 100), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 42, 42)
    (tiles,) = inputs["tiles"]
    assert tiles.image.mode == "L" and len(tiles.boxes) == 11 * 3
    (found,) = score_views(forward, processor, [(inputs["pixel_values"][0], (2000, 8000), tiles)])
    assert batches == [(1, 3, 42, 42), *[(TILES_PER_FORWARD, 3, 42, 42)] * 4, (1, 3, 42, 42)]
    assert found["logits"].tolist() == [[0.0, pytest.approx(0.6)]]
    assert found["anomaly_maps"].shape == (1, 2000, 8000)
    assert_close(found["anomaly_maps"], torch.full((1, 2000, 8000), 0.25), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize": "crop"}, r"resize='crop', expected one of \['fit', 'square', 'tile'\]"),
        ({"resize": "tile", "tile_size": 6}, "tile_size=6, expected at least the model's patch_size of 7 pixels"),
        ({"resize": "tile", "tile_size": 0}, "tile_size=0, expected a whole number in 1..65536"),
        ({"resize": "tile", "overlap": 0.95}, "overlap=0.95, expected a number in 0..0.9"),
        ({"resize": "tile", "overlap": float("nan")}, "overlap=nan"),
        ({"tile_size": 60}, "tile_size=60 with resize='square'; only resize='tile' has tiles"),
        ({"resize": "fit", "overlap": 0.5}, "overlap=0.5 with resize='fit'"),
    ],
)
def test_settings_out_of_range_are_named(detector, make_image, settings, message):
    with pytest.raises(ValueError, match=message):
        detector(make_image(), **settings)


def test_images_left_at_their_size_have_no_tiles(tiles_of):
    with pytest.raises(ValueError, match="resize='tile' with do_resize=False"):
        tiles_of("tile", do_resize=False)


def test_a_half_nan_model_is_refused_by_name(tiny_model, detector, make_image):
    with torch.no_grad():
        tiny_model.visual_projection.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        detector(make_image(90, 60), resize="tile")


def test_thresholds_go_with_the_way_they_were_chosen_with(tiny_model, tiles_of, make_image, tmp_path, caplog):
    tiles_of("square").save_pretrained(tmp_path)
    tiny_model.save_pretrained(tmp_path)
    images = [make_image(90, 60, seed=seed) for seed in range(22)]
    processor = tiles_of("tile", tile_size=50)
    calibrate(tiny_model, processor, images, false_alarm_rate=0.1, confidence=0.9, show_progress=False)
    found = tiny_model.config.image_threshold, tiny_model.config.pixel_threshold
    save_thresholds(tmp_path, *found, processor)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (settings["resize"], settings["tile_size"], settings["overlap"]) == ("tile", 50, 0.25)
    detector = pipeline(TASK, model=str(tmp_path), device="cpu")
    results = detector(images)
    assert {one["label"] for one in results} == {"normal"} and all("mask" in one for one in results)
    assert max(one["score"] for one in results) == pytest.approx(found[0], abs=1e-4)
    assert "was chosen with" not in caplog.text
    detector(images[0], resize="square")
    assert "image_threshold was chosen with resize='tile'" in caplog.text
    save_thresholds(tmp_path, *found, tiles_of("square"))
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["resize"] == "square"


def test_commands_take_tiles(tiny_checkpoint, make_image, tmp_path, capsys):
    (tmp_path / "parts").mkdir()
    for seed in range(3):
        make_image(120, 60, seed=seed).save(tmp_path / "parts" / f"{seed}.png")
    words = [str(tmp_path / "parts"), "--model", tiny_checkpoint, "--resize", "tile", "--tile-size", "50"]
    out, prompts = tmp_path / "out", tmp_path / "prompts"
    assert run_command("predict", [*words, "--output-dir", str(out), "--device", "cpu", "--save-maps", "npy"]) == 0
    detector = pipeline(TASK, model=tiny_checkpoint, device="cpu")
    for line in (out / "predictions.jsonl").read_text().splitlines():
        record = json.loads(line)
        expected = detector(record["path"], resize="tile", tile_size=50)
        assert record["score"] == pytest.approx(expected["score"], abs=1e-6)
        np.testing.assert_allclose(np.load(out / record["map"]), expected["anomaly_map"], atol=1e-6)
    assert run_command("calibrate", [*words, "--output-dir", str(prompts), "--cpu", "--disable-tqdm"]) == 0
    stored = AnomalyCLIPProcessor.from_pretrained(prompts)
    assert (stored.resize, stored.tile_size, stored.overlap) == ("tile", 50, 0.25)
    assert run_command("predict", [*words[:3], "--resize", "fit", "--overlap", "0.5"]) == 2
    assert "--overlap 0.5 with --resize fit" in capsys.readouterr().err


def test_evaluation_judges_tiles_at_the_size_of_the_image(tiny_model, tiles_of, detector, tmp_path):
    dataset = load_anomaly_dataset(str(make_tree(tmp_path / "tree", ("part",), good=2, bad=2)))
    options = {"resize": "tile", "tile_size": 20}
    found = evaluate_model(tiny_model, tiles_of(**options), dataset, show_progress=False)
    expected = [detector(row["image"], **options) for row in dataset]
    assert found["scores"]["scores"]["anomalyclip"] == pytest.approx([one["score"] for one in expected], abs=1e-6)
    masks = [np.asarray(row["mask"] or Image.new("L", row["image"].size)) > 0 for row in dataset]
    by_hand = pixel_metrics([one["anomaly_map"] for one in expected], masks)["pixel_auroc"]
    assert found["mean"]["pixel_auroc"] == pytest.approx(by_hand, abs=1e-3)


@pytest.mark.slow
def test_tiles_find_small_spots_that_the_whole_view_misses(load_script):
    """Spots of 6 pixels in 1,000; scripts/benchmark_tiles.py has the figures of 2,000."""
    script = load_script("benchmark_tiles")
    image, mask = script.draw(seed=1, side=1000)
    detector = pipeline(TASK, model=demo_checkpoint(), device="cpu")
    whole, tiled = detector(image), detector(image, resize="tile")
    auroc = [pixel_metrics([one["anomaly_map"]], [mask])["pixel_auroc"] for one in (whole, tiled)]
    assert auroc[0] < 0.8 and auroc[1] > 0.99, auroc


def test_maps_of_very_large_images_keep_their_size(tiny_checkpoint, make_image, tmp_path):
    make_image(5000, 40).save(tmp_path / "strip.png")
    words = [str(tmp_path / "strip.png"), "--model", tiny_checkpoint, "--device", "cpu", "--save-maps", "npy"]
    for resize, shape in (("tile", (40, 5000)), ("fit", (40, 5000)), ("square", (33, 4096))):
        out = tmp_path / resize
        assert run_command("predict", [*words, "--output-dir", str(out), "--resize", resize]) == 0
        assert np.load(out / "maps" / "strip.png.npy").shape == shape
        assert Image.open(out / "overlays" / "strip.png.png").size == (4096, 33)
