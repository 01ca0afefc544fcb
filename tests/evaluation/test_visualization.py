import numpy as np
import pytest
from PIL import Image

from anomalyclip_hf.data.contact_sheet import OUTLINE
from anomalyclip_hf.data.files import atomic_path
from anomalyclip_hf.evaluation import visualization
from anomalyclip_hf.evaluation.report import choose_images
from anomalyclip_hf.evaluation.visualization import Sample
from anomalyclip_hf.scoring.pictures import scale_labels


def gray(width=30, height=20, value=100):
    return Image.new("RGB", (width, height), (value, value, value))


def test_colors_follow_the_given_scale_not_the_image():
    low = visualization.colorize(np.full((2, 3), 0.2), 0.0, 1.0)
    assert low.size == (3, 2)
    alone = np.asarray(low)[0, 0]
    beside_high = np.asarray(visualization.colorize(np.array([[0.2, 0.9]]), 0.0, 1.0))[0, 0]
    assert np.array_equal(alone, beside_high)
    ends = np.asarray(visualization.colorize(np.array([[-5.0, 0.0, 1.0, 7.0]]), 0.0, 1.0))[0]
    assert np.array_equal(ends[0], ends[1]) and np.array_equal(ends[2], ends[3])
    assert ends[0].sum() < 30 and ends[3].sum() > 600  # inferno runs from black to pale yellow
    halved = np.asarray(visualization.colorize(np.array([[0.5]]), 0.0, 0.5))[0, 0]
    assert np.array_equal(halved, ends[3])


def test_the_color_map_grows_lighter_all_along():
    colors = np.asarray(visualization.colorize(np.linspace(0, 1, 256)[None]))[0].astype(float)
    luminance = colors @ [0.2126, 0.7152, 0.0722]
    assert np.all(np.diff(luminance) > -0.6) and luminance[-1] - luminance[0] > 150


def test_overlay_blends_at_the_size_of_the_image():
    image = gray()
    top = np.asarray(visualization.colorize(np.ones((1, 1))))[0, 0].astype(float)
    shown = visualization.overlay(image, np.ones((5, 5)))
    assert shown.size == (30, 20) and shown.mode == "RGB"
    assert np.abs(np.asarray(shown)[10, 10] - (0.25 * 100 + 0.75 * top)).max() <= 1
    floor = np.asarray(visualization.overlay(image, np.zeros((20, 30))))[0, 0]
    assert np.abs(floor - 0.75 * 100).max() <= 2


def test_ends_of_a_scale_are_written_to_a_hundredth_of_it():
    assert scale_labels(0.0, 1.0) == ("0", "0.5", "1")
    assert scale_labels(1.43632e-10, 0.998816) == ("0", "0.499", "0.999")
    assert scale_labels(0.04, 0.16) == ("0.04", "0.1", "0.16")
    assert scale_labels(1e-5, 3e-5) == ("1e-05", "2e-05", "3e-05")


def test_fit_scale_is_one_for_the_run():
    maps = [np.linspace(0.0, 0.2, 500).reshape(20, 25), np.linspace(0.2, 1.0, 500).reshape(20, 25)]
    vmin, vmax = visualization.fit_scale(maps)
    assert 0.0 < vmin < 0.01 and 0.99 < vmax < 1.0
    same = visualization.fit_scale([np.full((4, 4), 0.3)])
    assert same[0] == 0.3 and same[1] > 0.3
    with pytest.raises(ValueError, match="no map"):
        visualization.fit_scale([])
    with pytest.raises(ValueError, match="NaN"):
        visualization.fit_scale([np.full((4, 4), np.nan)])


def test_contact_sheet_shows_every_column(tmp_path):
    mask = np.zeros((20, 30), bool)
    mask[5:15, 10:20] = True
    rows = [
        Sample(gray(), mask.astype(float), mask=mask, label=1, score=0.9, title="part/scratch/1.png"),
        Sample(gray(20, 40), np.zeros((4, 4)), label=0, score=0.1, title="a very long name " * 20),
    ]
    path = tmp_path / "new" / "sheet.png"
    visualization.contact_sheet(rows, path, pixel_threshold=0.5, cell_size=90, title="Run")
    with Image.open(path) as sheet:
        assert sheet.size[0] == 8 + 5 * 98
        pixels = np.asarray(sheet.convert("RGB"))
    assert (pixels == OUTLINE).all(axis=2)[:, 106:196].any()  # the truth, in its column
    predicted = pixels[:, 8 + 4 * 98 : 8 + 4 * 98 + 90]
    inside = (predicted[:130] == 255).all(axis=2)
    assert inside.any()
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]
    visualization.contact_sheet(rows, path, cell_size=90)
    with Image.open(path) as sheet:
        assert sheet.size[0] == 8 + 4 * 98


def test_picture_row_thresholds_the_map():
    levels = np.linspace(0, 1, 100)[None].repeat(50, 0)
    cells = visualization.picture_row(Sample(gray(100, 50), levels, label=0), size=100, pixel_threshold=0.75)
    assert [cell.size for cell in cells] == [(100, 50)] * 5
    assert (np.asarray(cells[4])[:, :, 0] == 255).mean() == pytest.approx(0.25, abs=0.011)


def test_worst_cases_are_ordered():
    scores, labels = [0.9, 0.1, 0.8, 0.3, 0.5, 0.7], [1, 1, 0, 0, 1, None]
    headings = ("worst misses", "worst false alarms", "other anomalous images")
    assert choose_images(scores, labels, 2) == dict(zip(headings, ([1, 4], [2, 3], [0]), strict=True))
    assert choose_images(scores, [0] * 6, 1) == dict(zip(headings, ([], [0], []), strict=True))


def test_images_of_any_mode_are_shown():
    for mode in ("L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F"):
        image = Image.new(mode, (6, 4))
        assert visualization.overlay(image, np.zeros((4, 6))).size == (6, 4)
    assert np.asarray(visualization.to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 0))))[0, 0].tolist() == [255, 255, 255]
    deep = Image.fromarray(np.array([[1000, 3000, 5000]], dtype=np.uint16))  # 13 of 14 bits, as the model sees it
    assert np.asarray(visualization.to_rgb(deep))[0, :, 0].tolist() == [16, 47, 78]


def test_bad_input_is_refused(tmp_path):
    for call, message in [
        (lambda: visualization.colorize(np.zeros((2, 2)), 1.0, 1.0), "vmin=1.0, vmax=1.0"),
        (lambda: visualization.colorize(np.full((2, 2), np.nan)), "NaN"),
        (lambda: visualization.overlay(gray(), np.zeros((2, 2, 2))), r"\(2, 2, 2\)"),
        (lambda: visualization.contact_sheet([], tmp_path / "a.png"), "rows is empty"),
        (
            lambda: visualization.contact_sheet([Sample(gray(), np.zeros((2, 2)))], tmp_path / "a.png", cell_size=3),
            "64",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(IsADirectoryError, match="name the file"):
        visualization.contact_sheet([Sample(gray(), np.zeros((2, 2)))], tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["a.txt"]
