import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_closing, binary_dilation

from anomalyclip_hf.data.synthetic import CHANGE, DEFECTS, MAX_SHARE, MIN_SHARE, draw_anomaly_on

PLACES = [(96, 96, 3), (50, 83, 3), (8, 8, 3), (9, 40), (64, 64, 1), (200, 120, 3)]


def picture(shape, seed=0):
    """A smooth random image, uint8."""
    coarse = np.random.default_rng(seed).integers(40, 216, (5, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    gray = len(shape) == 2 or shape[2] == 1
    return np.asarray(image.convert("L")).reshape(shape) if gray else np.asarray(image)


@pytest.mark.parametrize("shape", PLACES)
@pytest.mark.parametrize("defect", DEFECTS)
def test_the_mask_is_where_the_image_changed(shape, defect):
    for seed in range(6):
        before = picture(shape, seed)
        after, mask, kind = draw_anomaly_on(before, seed=seed, defect=defect)
        assert after.shape == (*shape[:2], 3) and after.dtype == np.uint8 and kind == defect
        assert mask.shape == shape[:2] and mask.dtype == bool and MIN_SHARE <= mask.mean() <= MAX_SHARE
        change = np.abs(after.astype(int) - before.reshape(*shape[:2], -1)).max(2)
        assert change[~mask].max() == 0
        changed = change >= round(255 * CHANGE)
        np.testing.assert_array_equal(mask, binary_closing(np.pad(changed, 1), np.ones((3, 3)))[1:-1, 1:-1])
        assert changed[mask].mean() > 0.5
        if len(shape) == 2:
            assert np.ptp(after, axis=2).max() == 0


def test_a_seed_draws_the_same_and_another_seed_another(tmp_path):
    Image.fromarray(picture((60, 90, 3))).save(tmp_path / "a.png")
    drawn = [draw_anomaly_on(tmp_path / "a.png", seed=(7, index)) for index in range(4)]
    for index, (image, mask, kind) in enumerate(drawn):
        again = draw_anomaly_on(tmp_path / "a.png", seed=(7, index))
        assert (again[0] == image).all() and (again[1] == mask).all() and again[2] == kind
    masks = [mask for _, mask, _ in [*drawn, *(draw_anomaly_on(tmp_path / "a.png", seed=(8, n)) for n in range(4))]]
    assert all((a != b).any() for k, a in enumerate(masks) for b in masks[:k])


def test_kinds_come_in_turn():
    kinds = [draw_anomaly_on(picture((96, 96, 3)), seed=seed)[2] for seed in range(60)]
    assert min(kinds.count(kind) for kind in DEFECTS) > 10


@pytest.mark.parametrize("tone", [0, 128, 255])
@pytest.mark.parametrize("defect", DEFECTS)
def test_something_shows_on_a_constant_image(tone, defect):
    for seed in range(4):
        after, mask, _ = draw_anomaly_on(Image.new("L", (60, 40), tone), seed=seed, defect=defect)
        assert after.shape == (40, 60, 3) and (np.abs(after[mask].astype(int) - tone).max(1) >= 10).mean() > 0.5


def test_an_anomaly_lies_on_the_object_of_a_plain_background():
    image = np.full((96, 96, 3), 20, np.uint8)
    y, x = np.mgrid[:96, :96]
    disc = (x - 30) ** 2 + (y - 60) ** 2 < 20**2
    image[disc] = (200, 150, 90)
    near = binary_dilation(disc, iterations=2)
    for seed in range(12):
        _, mask, _ = draw_anomaly_on(image, seed=seed)
        assert mask.any() and not mask[~near].any()
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    assert len({tuple(np.argwhere(draw_anomaly_on(noise, seed=seed)[1])[0] // 32) for seed in range(30)}) >= 6


@pytest.mark.parametrize(
    ("image", "arguments", "message"),
    [
        (np.zeros((7, 64), np.uint8), {}, "image of 64 x 7 pixels.*at least 8"),
        (np.zeros((64, 64), np.uint8), {"defect": "rust"}, "defect='rust'.*noise, cut_paste, scar"),
        (np.zeros((64, 64), np.uint8), {"seed": -1}, "non-negative"),
        (b"\x89PNG\r\n\x1a\n", {}, "cannot read image"),
    ],
)
def test_what_cannot_be_drawn_on_is_refused(image, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_anomaly_on(image, **arguments)
