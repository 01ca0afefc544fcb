"""Regions as COCO JSON and as tasks of Label Studio, read back."""

import json
import tracemalloc

import numpy as np
import pytest
from pycocotools.coco import COCO

from anomalyclip_hf.scoring.annotations import write_coco, write_label_studio, write_submission
from anomalyclip_hf.scoring.regions import mark_regions


@pytest.fixture
def values() -> np.ndarray:
    """30 x 40: a frame of 3 pixels around a hole (0.8), a diagonal (0.7), a pixel in the corner (0.9)."""
    values = np.zeros((30, 40), np.float32)
    values[4:16, 5:19], values[7:13, 8:16] = 0.8, 0.0
    values[np.arange(18, 28), np.arange(24, 34)] = 0.7
    values[29, 39] = 0.9
    return values


@pytest.fixture
def records(values) -> list[dict]:
    size = {"width": 40, "height": 30}
    return [
        {"path": "parts/a b.png", "score": 0.25, "regions": [], **size},
        {"path": "broken.png", "error": "no image"},
        {"path": "/parts/ü.png", "score": 0.75, "regions": mark_regions(values, 0.5)[1], **size},
        {"path": "https://host/c.png", "score": 0.5, "regions": mark_regions(values, 0.85)[1], **size},
    ]


def test_coco_is_read_back_with_its_own_tools(records, values, tmp_path, capsys):
    assert write_coco(iter(records), tmp_path / "out.json") == 4
    coco = COCO(tmp_path / "out.json")
    assert [one["file_name"] for one in coco.loadImgs(coco.getImgIds())] == [
        record["path"] for record in records if "error" not in record
    ]
    assert coco.loadCats(coco.getCatIds()) == [{"id": 1, "name": "anomaly"}]
    assert coco.getAnnIds(imgIds=[1]) == [] and len(coco.getAnnIds(imgIds=[3])) == 1
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[2]))
    assert [one["bbox"] for one in annotations] == [[39, 29, 1, 1], [5, 4, 14, 12], [24, 18, 10, 10]]
    assert [one["area"] for one in annotations] == [1, 120, 10]
    assert [one["score"] for one in annotations] == pytest.approx([0.9, 0.8, 0.7])
    frame = coco.annToMask(annotations[1])
    np.testing.assert_array_equal(frame, values == np.float32(0.8))  # its hole too
    assert coco.annToMask(annotations[0])[29, 39] == 1


def test_tasks_of_label_studio(records, tmp_path):
    assert write_label_studio(iter(records), tmp_path / "out.json") == 4
    first, second, third = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert first["data"]["image"].startswith("/data/local-files/?d=") and first["data"]["image"].endswith("/a%20b.png")
    assert first["predictions"] == [{"model_version": "anomalyclip", "score": 0.25, "result": []}]
    assert second["data"]["image"] == "/data/local-files/?d=parts/%C3%BC.png"
    assert third["data"]["image"] == "https://host/c.png"
    (corner,) = third["predictions"][0]["result"]
    assert (corner["type"], corner["from_name"], corner["to_name"]) == ("polygonlabels", "label", "image")
    assert (corner["original_width"], corner["original_height"], corner["image_rotation"]) == (40, 30, 0)
    assert corner["value"]["polygonlabels"] == ["anomaly"] and corner["score"] == pytest.approx(0.9)
    points = np.array(corner["value"]["points"]) / 100 * (40, 30)
    assert {tuple(point) for point in points.round(6)} == {(39.5, 29.0), (40.0, 29.5), (39.5, 30.0), (39.0, 29.5)}
    ids = [result["id"] for task in (second, third) for result in task["predictions"][0]["result"]]
    assert len(ids) == len(set(ids)) == 4


@pytest.mark.parametrize("write", [write_coco, write_label_studio])
def test_no_records_are_an_empty_list_and_bad_ones_write_nothing(write, records, tmp_path):
    path = tmp_path / "out.json"
    assert write([], path) == 0
    empty = json.loads(path.read_text())
    assert empty == [] or (empty["images"], empty["annotations"]) == ([], [])
    before = path.read_bytes()
    del records[2]["regions"]
    with pytest.raises(ValueError, match=r"record of /parts/ü.png has no regions: regions need a pixel threshold"):
        write(records, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("write", [write_coco, write_label_studio])
def test_memory_does_not_grow_with_the_records(write, records, tmp_path):
    def peak(number: int) -> int:
        tracemalloc.start()
        write((records[2] for _ in range(number)), tmp_path / "out.json")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(5)
    assert peak(900) < 1.2 * peak(300) + 20_000


def test_a_submission_to_mvtec_ad2_has_only_whole_images(tmp_path):
    record = {"path": "d/can/test_private/000.png", "map": "maps/000.png.tiff", "mask": "predicted_masks/000.png.png"}
    for wrong in ({"mask": ""}, {"map": "maps/000.png.npy"}, {"map_size": [40, 50]}):
        with pytest.raises(ValueError, match=r"000\.png: a map as TIFF and a mask, .*save_maps='tiff' and masks=True"):
            write_submission([record | wrong], tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for file in (record["map"], record["mask"]):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_bytes(b"of d")
    other = record | {"path": "e/can/test_private/000.jpg"}
    with pytest.raises(
        ValueError, match=r"d/can/\S+\.png and e/can/\S+\.jpg are both can/test_private/000 to the server"
    ):
        write_submission([record, other], tmp_path, tmp_path / "out")
