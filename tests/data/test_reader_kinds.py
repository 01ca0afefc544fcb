"""What cameras and clinics give: windows of stored values, many channels, pages, TIFFs beyond PIL, DICOM."""

import io
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, generate_uid

from anomalyclip_hf.data import inspect_source, load_anomaly_dataset, read_image, read_mask
from anomalyclip_hf.data.export import export_source
from anomalyclip_hf.data.formats import list_pages
from anomalyclip_hf.data.pixels import bit_depth_of, check_channels, check_window
from anomalyclip_hf.data.reader import (
    ImageReadError,
    load_image,
    open_image,
)
from anomalyclip_hf.scoring import find_images

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 4096, (5, 6, 8)).astype(np.uint16)
DEEP[0, 0] = 4095
SCALED = np.rint(DEEP * (255 / 4095)).astype(np.uint8)
FLOATS = RNG.random((5, 6, 3)).astype(np.float32)
COLORS = RNG.integers(0, 256, (5, 6, 3)).astype(np.uint8)


def tiff(values, **settings) -> bytes:
    tifffile.imwrite(buffer := io.BytesIO(), values, **settings)
    return buffer.getvalue()


def png(values) -> bytes:
    Image.fromarray(values).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def between(values, low, high):
    return np.rint(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("content", "values", "window"),
    [
        (tiff(DEEP[..., 0]), DEEP[..., 0], (500, 2000)),
        (png(DEEP[..., 0]), DEEP[..., 0], (500, 2000)),
        (tiff(DEEP[..., 0].astype(np.int16) - 1000), DEEP[..., 0].astype(np.int16) - 1000, (-500, 500)),
        (tiff(DEEP[..., :3], photometric="rgb"), DEEP[..., :3], (500, 2000)),
        (png(COLORS), COLORS, (50, 101)),
        (tiff(1000 * FLOATS[..., 0] - 300), 1000 * FLOATS[..., 0] - 300, (0, 500)),
        (tiff(1000 * FLOATS, photometric="rgb"), 1000 * FLOATS, (100, 700)),
        (COLORS, COLORS, ("20", "200")),
        (1000 * FLOATS, 1000 * FLOATS, (100, 700)),
    ],
)
def test_a_window_of_stored_values(content, values, window):
    expected = between(values, *map(float, window))
    read = np.asarray(load_image(content, window))
    assert np.abs(read.astype(int) - expected).max() <= 1  # of float32
    assert (read == expected).mean() > 0.99
    low, high = np.percentile(values, (1, 99))
    by_share = np.asarray(load_image(content, "percentile")).astype(int)
    assert np.abs(by_share - between(values, low, high)).max() <= 1
    again = load_image(load_image(content, window), window)  # as a pipeline does that is given what was read
    np.testing.assert_array_equal(np.asarray(again), read)


def test_alpha_palettes_and_modes_have_the_window_of_their_colors():
    alpha = np.dstack([COLORS, np.full((5, 6), 77, np.uint8)])
    read = np.asarray(load_image(Image.fromarray(alpha), (50, 101)))
    np.testing.assert_array_equal(read, np.dstack([between(COLORS, 50, 101), alpha[..., 3]]))
    indexed = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    indexed.putpalette([60, 70, 80, 0, 0, 100])
    expected = between(np.array([[[60, 70, 80], [0, 0, 100]]]), 50, 101)
    np.testing.assert_array_equal(np.asarray(load_image(indexed, (50, 101))), expected)


def test_cmyk_of_images_and_masks():
    ink = Image.fromarray(np.array([[[0, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]]], np.uint8), "CMYK")
    ink.save(buffer := io.BytesIO(), "TIFF")
    assert np.asarray(read_image(buffer.getvalue())).tolist() == [[[255, 255, 255], [255, 0, 0], [0, 0, 0]]]
    assert np.asarray(read_mask(buffer.getvalue())).tolist() == [[255, 255, 0]]


def test_no_image_turns_black_silently():
    assert np.asarray(load_image(np.full((4, 4), 300.0), "percentile")).tolist() == [[128] * 4] * 4
    speck = np.zeros((40, 40), np.uint16)
    speck[3, 4] = 4000  # less than a percent
    read = np.asarray(load_image(speck, "percentile"))
    assert (read[3, 4], np.delete(read.ravel(), 124).max()) == (255, 0)
    for window in ((5000, 9000), (-5, -1)):
        with pytest.raises(ImageReadError, match=r"holds values from 0 to 4000, none of them in window=\("):
            load_image(speck, window)
    for bad in (np.nan, np.inf):
        values = FLOATS[..., 0].copy()
        values[1, 1] = bad
        for window in (None, "percentile", (0, 1)):
            for source in (values, tiff(values), tiff(np.dstack([values] * 3), photometric="rgb")):
                with pytest.raises(ImageReadError, match="NaN or infinite values"):
                    load_image(source, window)
    with pytest.raises(ImageReadError, match=r"floats from .* to .*, expected \[0, 1\].*--window"):
        load_image(tiff(9 * FLOATS[..., 0]))


@pytest.mark.parametrize("window", [(3, 3), (5, 1), (0, np.inf), (1, 2, -3), "min", ["a", "b"], [5]])
def test_windows_that_are_none(window):
    with pytest.raises(ValueError, match=r"window=.* expected 'percentile' or two stored values"):
        check_window(window)
    with pytest.raises(ValueError, match=r"channels=.*, expected the numbers of three channels"):
        check_channels(window)


@pytest.mark.parametrize(
    "settings",
    [
        {"photometric": "rgb"},
        {"photometric": "rgb", "compression": "zlib", "predictor": True},
        {"photometric": "rgb", "planarconfig": "separate"},
        {"photometric": "rgb", "bigtiff": True},
        {"photometric": "rgb", "byteorder": ">"},
    ],
)
def test_tiffs_of_deep_colors(settings):
    kinds = [(DEEP[..., :3], SCALED[..., :3]), (FLOATS, np.rint(FLOATS * 255))]
    for values, expected in kinds[: 1 if "predictor" in settings else 2]:
        stored = np.moveaxis(values, -1, 0) if "planarconfig" in settings else values
        content = tiff(stored, **settings, extratags=[(274, 3, 1, 6, True)])
        np.testing.assert_array_equal(np.asarray(read_image(content)), np.rot90(expected, -1))
    assert bit_depth_of(open_image(tiff(DEEP[..., :3], photometric="rgb"))) == 12


def test_three_of_many_channels(tmp_path):
    first = np.moveaxis(DEEP, -1, 0)
    for content in (
        tiff(DEEP, photometric="minisblack", planarconfig="contig"),
        tiff(first, photometric="minisblack", planarconfig="separate"),
        tiff(DEEP[..., :5], photometric="rgb", planarconfig="contig"),
    ):
        read = np.asarray(load_image(content, channels=(4, 2, 0)))
        np.testing.assert_array_equal(read, SCALED[..., [4, 2, 0]])
        with pytest.raises(ImageReadError, match=r"shape \(5, 6, [58]\).*channels=\(2, 1, 0\) \(--channels 2 1 0\)"):
            load_image(content)
        with pytest.raises(ImageReadError, match=r"channels=\(9, 2, 0\), but it has [58], counted from 0"):
            load_image(content, channels=(9, 2, 0))
    bytes_ = (DEEP[..., :6] >> 4).astype(np.uint8)  # which PIL would read as its first three
    content = tiff(bytes_, photometric="rgb", planarconfig="contig", extrasamples=[0, 0, 0])
    np.testing.assert_array_equal(np.asarray(load_image(content, channels=[5, 4, 3])), bytes_[..., [5, 4, 3]])
    wide = np.tile(first, (1, 2, 2))
    np.testing.assert_array_equal(np.asarray(load_image(wide, channels=(4, 2, 0)))[:5, :6], SCALED[..., [4, 2, 0]])
    np.testing.assert_array_equal(np.asarray(load_image(COLORS, channels=(2, 1, 0))), COLORS)


def test_each_page_of_a_tiff(tmp_path):
    path = tmp_path / "scan.tif"
    with tifffile.TiffWriter(path) as file:
        for page in range(3):
            file.write(np.full((8, 12), 10 + page, np.uint8))
            file.write(np.full((4, 6), 200, np.uint8), subfiletype=1)  # a reduced copy
        file.write(FLOATS, photometric="rgb")
    pages = [f"{path}#page={number}" for number in (1, 2, 3, 4)]
    assert list_pages(path) == pages
    assert [int(np.asarray(load_image(page))[0, 0]) for page in pages[:3]] == [10, 11, 12]
    np.testing.assert_array_equal(np.asarray(load_image(pages[3])), np.rint(FLOATS * 255))
    assert np.asarray(load_image(path))[0, 0] == 10
    assert np.asarray(load_image({"bytes": path.read_bytes(), "path": pages[1]}))[0, 0] == 11
    assert np.asarray(read_mask(pages[2])).shape == (8, 12)
    with pytest.raises(ImageReadError, match=r"scan.tif#page=5: it has 4 pages, but page 5 is asked for"):
        load_image(f"{path}#page=5")
    with tifffile.TiffWriter(tmp_path / "floats.tif") as file:
        file.write(FLOATS, photometric="rgb")
        file.write(FLOATS[::-1], photometric="rgb")
    assert len(list_pages(tmp_path / "floats.tif")) == 2
    read = np.asarray(load_image(f"{tmp_path / 'floats.tif'}#page=2"))
    np.testing.assert_array_equal(read, np.rint(FLOATS[::-1] * 255))
    (tmp_path / "floats.tif").unlink()
    Image.new("RGB", (4, 4)).save(tmp_path / "one.tif")
    (tmp_path / "broken.tif").write_bytes(b"II*\0")
    found = find_images([tmp_path])
    names = ["broken.tif", "one.tif", *(f"scan.tif#page={number}" for number in (1, 2, 3, 4))]
    assert [name for _, name in found.files] == names
    assert [str(path) for path, _ in found.files] == [str(tmp_path / name) for name in names]
    assert [name for _, name in find_images([pages[1], path]).files] == [names[3], names[2], *names[4:]]


def test_animations_are_read_by_their_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    for name in ("a.gif", "a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert list_pages(tmp_path / name) == [str(tmp_path / name)]
        assert np.asarray(read_image(tmp_path / name))[0, 0].tolist() == [255, 0, 0]


def dicom(values, frames=None, **elements) -> bytes:
    """A DICOM file of 12 bits, or of 8 bits where the values are colors."""
    dataset = Dataset()
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "4711"
    is_color = values.shape[-1] == 3
    dataset.Rows, dataset.Columns = values.shape[-3:-1] if is_color else values.shape[-2:]
    dataset.SamplesPerPixel = 3 if is_color else 1
    dataset.PhotometricInterpretation = "RGB" if is_color else "MONOCHROME2"
    dataset.BitsAllocated = 8 * values.dtype.itemsize
    dataset.BitsStored = dataset.BitsAllocated if is_color or values.dtype == np.uint8 else 12
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    if is_color:
        dataset.PlanarConfiguration = 0
    if frames:
        dataset.NumberOfFrames = frames
    dataset.PixelData = values.tobytes()
    syntax = elements.pop("syntax", ExplicitVRLittleEndian)
    for name, value in elements.items():
        setattr(dataset, name, value)
    meta = dataset.file_meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPInstanceUID = syntax, generate_uid()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    if syntax == JPEGLSLossless:
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xf7"])
        dataset["PixelData"].VR = "OB"
    pydicom.dcmwrite(buffer := io.BytesIO(), dataset, enforce_file_format=True)
    return buffer.getvalue()


GRAY = DEEP[..., 0]
GRAY_8 = SCALED[..., 0]
CT = {"RescaleSlope": 1, "RescaleIntercept": -1024}
HOUNSFIELD = GRAY.astype(int) - 1024


def lut(first, entries, bits):
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(entries), first, bits], entries
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    return [item]


@pytest.mark.parametrize(
    ("elements", "window", "expected"),
    [
        ({}, None, GRAY_8),
        ({"PhotometricInterpretation": "MONOCHROME1"}, None, 255 - GRAY_8),
        ({}, (500, 2000), between(GRAY, 500, 2000)),
        (CT, None, between(HOUNSFIELD, -1024, 3071)),
        (CT, (-100, 300), between(HOUNSFIELD, -100, 300)),
        (CT | {"WindowCenter": 40, "WindowWidth": 401}, None, between(HOUNSFIELD, 39.5 - 200, 39.5 + 200)),
        (CT | {"WindowCenter": [40, 9], "WindowWidth": [400, 9], "VOILUTFunction": "LINEAR_EXACT"}, None,
         between(HOUNSFIELD, -160, 240)),
        ({"WindowCenter": 1000, "WindowWidth": 400, "VOILUTFunction": "SIGMOID"}, None,
         np.rint(255 / (1 + np.exp(-4 * (GRAY - 1000.0) / 400)))),
        ({"VOILUTSequence": lut(0, [1023 - i // 4 for i in range(4096)], 10)}, None,
         np.rint((1023 - GRAY // 4) * (255 / 1023))),
        ({"RescaleSlope": 0.5, "RescaleIntercept": 0}, None, between(GRAY / 2, 0, 4095 / 2)),
    ],
)  # fmt: skip
def test_dicom_is_shown_as_it_says(elements, window, expected):
    content = dicom(GRAY, **elements)
    read = np.asarray(load_image(content, window))
    assert np.abs(read.astype(int) - expected.astype(int)).max() <= (1 if "VOILUTFunction" in elements else 0)
    np.testing.assert_array_equal(np.asarray(read_image(io.BytesIO(content), window))[..., 0], read)


def test_slices_of_dicom_compare_and_masks_are_not_windowed():
    dark, signed = GRAY // 8, GRAY.astype(np.int16) // 8 - 100
    np.testing.assert_array_equal(np.asarray(load_image(dicom(dark))), between(dark, 0, 4095))
    inverted = np.asarray(load_image(dicom(dark, PhotometricInterpretation="MONOCHROME1")))
    np.testing.assert_array_equal(inverted, 255 - between(dark, 0, 4095))
    np.testing.assert_array_equal(np.asarray(load_image(dicom(signed))), between(signed, -2048, 2047))
    full = np.asarray(load_image(dicom(GRAY, BitsStored=16, HighBit=15)))  # says nothing of what is in use
    np.testing.assert_array_equal(full, GRAY_8)
    floats = dicom(GRAY, BitsAllocated=32, FloatPixelData=FLOATS[..., 0].tobytes())
    dataset = pydicom.dcmread(io.BytesIO(floats))
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    dataset.save_as(buffer := io.BytesIO())
    expected = between(FLOATS[..., 0], FLOATS[..., 0].min(), FLOATS[..., 0].max())
    np.testing.assert_array_equal(np.asarray(load_image(buffer.getvalue())), expected)
    ids = np.zeros((5, 6), np.uint16)
    ids[1, 2], ids[3, 3] = 1, 3000
    shown = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 2, "WindowWidth": 2}
    for elements in ({}, shown):
        np.testing.assert_array_equal(np.asarray(read_mask(dicom(ids, **elements))), (ids > 0) * 255)


def test_dicom_is_found_by_its_content(tmp_path):
    for name in ("good/IM0001", "bad/1.2.840.10008.5", "DICOMDIR", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(dicom(GRAY))
    (tmp_path / "good" / "other").write_bytes(b"something")
    found = find_images([tmp_path])
    assert [name for _, name in found.files] == ["bad/1.2.840.10008.5", "good/IM0001"]
    assert list(found.unused.values()) == [[tmp_path / "DICOMDIR", tmp_path / "good" / "other"]]
    with pytest.warns(UserWarning, match="files not used"):
        dataset = load_anomaly_dataset(tmp_path, split="all")
    assert dataset["label"] == [1, 0] and np.asarray(dataset[0]["image"])[0, 0, 0] == 255


def test_what_is_exported_of_dicom_are_its_pixels_alone(tmp_path):
    for name, elements in (("good/1.dcm", {}), ("bad/2", CT)):
        (tmp_path / "scans" / name).parent.mkdir(parents=True)
        (tmp_path / "scans" / name).write_bytes(dicom(GRAY, **elements))
    out = export_source(str(tmp_path / "scans"), tmp_path / "out")
    for path in Path(out).rglob("*"):
        assert path.is_dir() or not any(word in path.read_bytes() for word in (b"Doe", b"4711", b"DICM"))
    copies = load_anomaly_dataset(out, split="all")
    assert copies["label"] == [1, 0]
    for row in copies:
        np.testing.assert_array_equal(np.asarray(row["image"])[..., 1], GRAY_8)


def test_white_is_least_in_every_depth():
    for window in (None, (500, 2000)):
        read = np.asarray(load_image(tiff(DEEP[..., 0], photometric="miniswhite"), window))
        np.testing.assert_array_equal(read, 255 - np.asarray(load_image(tiff(DEEP[..., 0]), window)))
    plain = tiff(DEEP[..., 0].astype(np.uint8), photometric="miniswhite")
    np.testing.assert_array_equal(np.asarray(load_image(plain)), 255 - DEEP[..., 0].astype(np.uint8))


def test_frames_and_colors_of_dicom(tmp_path):
    np.testing.assert_array_equal(np.asarray(load_image(dicom(COLORS))), COLORS)
    path = tmp_path / "IMAGE.dcm"
    frames = np.stack([GRAY, GRAY[::-1]])
    shared, own = Dataset(), [Dataset(), Dataset()]
    shared.PixelValueTransformationSequence = [Dataset()]
    shared.PixelValueTransformationSequence[0].update({})
    shared.PixelValueTransformationSequence[0].RescaleSlope = 1
    shared.PixelValueTransformationSequence[0].RescaleIntercept = -1024
    for number, item in enumerate(own):
        item.FrameVOILUTSequence = [Dataset()]
        item.FrameVOILUTSequence[0].WindowCenter, item.FrameVOILUTSequence[0].WindowWidth = 100.5 * number, 401
    groups = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": own}
    path.write_bytes(dicom(frames, 2, **groups))
    assert list_pages(path) == [f"{path}#page=1", f"{path}#page=2"]
    assert [name for _, name in find_images([tmp_path]).files] == ["IMAGE.dcm#page=1", "IMAGE.dcm#page=2"]
    first, second = (np.asarray(load_image(page)) for page in list_pages(path))
    np.testing.assert_array_equal(first, between(HOUNSFIELD, -200.5, 199.5))
    np.testing.assert_array_equal(second, between(HOUNSFIELD[::-1], -100, 300))
    with pytest.raises(ImageReadError, match="it has 2 frames, but page 3 is asked for"):
        load_image(f"{path}#page=3")
    inside = (GRAY > 2000).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(read_mask(dicom(inside))), inside * 255)


def test_dicom_that_cannot_be_read_says_why_and_not_whose_it_is(tmp_path, monkeypatch):
    path = tmp_path / "a.dcm"
    content = dicom(GRAY)
    for changed, message in (
        (dicom(GRAY, syntax=JPEGLSLossless), r"'JPEG-LS Lossless.*pylibjpeg|'JPEG-LS Lossless.*jpeg_ls"),
        (content[:-9], r"a\.dcm: \w"),
        (content[:200], r"a\.dcm: \w"),
        (content.replace(b"\xe0\x7f\x10\x00OW", b"\xe1\x7f\x10\x00OW"), "it holds no image"),
        (b"\0" * 128 + b"DICM", r"a\.dcm: \w"),
    ):
        path.write_bytes(changed)
        with pytest.raises(ImageReadError, match=message) as caught:
            load_image(path)
        assert not [word for word in ("Doe", "Jane", "4711") if word in str(caught.value)]
    path.write_bytes(content)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageReadError, match=r"a\.dcm: it is a DICOM file.*pip install 'anomalyclip_hf\[dicom\]'"):
        load_image(path)


def test_the_options_reach_data_sets(tmp_path):
    for name, low in (("good/0.tif", 0), ("bad/0.tif", 500), ("good/1.tif", 100)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        content = tiff(np.moveaxis(DEEP, -1, 0) + np.uint16(low), photometric="minisblack", planarconfig="separate")
        (tmp_path / name).write_bytes(content)
    options = {"window": (500, 2000), "channels": (4, 2, 0)}
    rows = load_anomaly_dataset(tmp_path, **options)
    low = {"good/0.tif": 0, "bad/0.tif": 500, "good/1.tif": 100}
    for row in rows:
        shift = low["/".join(row["path"].split("/")[-2:])]
        np.testing.assert_array_equal(np.asarray(row["image"]), between(DEEP[..., [4, 2, 0]] + shift, 500, 2000))
    for given, number in ((options, 0), ({}, 3)):
        problems = inspect_source(tmp_path, progress=False, **given).problems
        assert [problem.kind for problem in problems].count("unreadable_image") == number
    with pytest.raises(ValueError, match="channels="):
        load_anomaly_dataset(tmp_path, channels=(1, 2))


def test_a_table_names_pages_of_images_and_masks(tmp_path):
    with tifffile.TiffWriter(tmp_path / "scan.tif") as images, tifffile.TiffWriter(tmp_path / "mask.tif") as masks:
        for page in (1, 2):
            images.write(np.full((8, 12), 10 * page, np.uint8))
            masks.write(np.arange(96, dtype=np.uint8).reshape(8, 12) // page % 2)
    pages = [f"scan.tif#page={page},mask.tif#page={page},1\n" for page in (1, 2)]
    (tmp_path / "table.csv").write_text("image,mask,label\n" + "".join(pages))
    first, second = load_anomaly_dataset(tmp_path / "table.csv")
    assert (first["path"][-15:], second["path"][-15:]) == ("scan.tif#page=1", "scan.tif#page=2")
    assert [int(np.asarray(row["image"])[0, 0, 0]) for row in (first, second)] == [10, 20]
    np.testing.assert_array_equal(np.asarray(second["mask"]), np.arange(96).reshape(8, 12) // 2 % 2 * 255)
    report = inspect_source(tmp_path / "table.csv", progress=False)
    assert (report.problems, report.paged) == ([], [])
    assert not [note for note in report.notes if "repeat" in note]
    (tmp_path / "plain.csv").write_text("image,label\nscan.tif,0\n")
    (note,) = [one for one in inspect_source(tmp_path / "plain.csv", progress=False).notes if "pages" in one]
    assert "1 files have several pages, of which the first is read" in note
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link.tif").symlink_to(tmp_path / "scan.tif")
    (tmp_path / "inside" / "table.csv").write_text("image,label\nlink.tif#page=2,0\n")
    with pytest.raises(ValueError, match="outside of its folder"):
        load_anomaly_dataset(tmp_path / "inside" / "table.csv")
