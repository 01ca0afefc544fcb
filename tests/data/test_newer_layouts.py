"""Data sets after the paper's seventeen, as trees written out by hand: labels, masks, classes and splits."""

import json

import numpy as np
import pyarrow as pa
import pytest
from picture_trees import HEIGHT, WIDTH, area_of, summary, write_mask, write_tree
from PIL import Image

from anomalyclip_hf.data.features import AnomalyMask
from anomalyclip_hf.data.images import ImageReadError, read_mask
from anomalyclip_hf.data.inspect import inspect_source
from anomalyclip_hf.data.loading import load_anomaly_dataset

pytestmark = pytest.mark.filterwarnings("error::UserWarning")  # no file of a tree goes unused


def check(name, root, **splits):
    """Each split holds what is expected of it, and there is no other."""
    for split, expected in splits.items():
        assert summary(load_anomaly_dataset(name, data_dir=root, split=split)) == expected, split
    together = summary(load_anomaly_dataset(name, data_dir=root, split="all"))
    assert together == {number: row for expected in splits.values() for number, row in expected.items()}


def write_pieces(folder, *boxes):
    """Several masks of one image, each with a rectangle (left, top, right, bottom)."""
    folder.mkdir(parents=True)
    for number, (left, top, right, bottom) in enumerate(boxes):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[top:bottom, left:right] = 255 - number  # values tell kinds of defects apart
        Image.fromarray(mask).save(folder / f"{number:03d}.png")


def test_mvtec_ad2(tmp_path):
    images = {
        "can/train/good/000_regular.png": 1,
        "can/validation/good/000_regular.png": 2,
        "can/test_public/good/000_regular.png": 3,
        "can/test_public/bad/000_regular.png": 4,
        "can/test_public/bad/001_overexposed.png": 5,
        "can/test_private/000.png": 6,
        "can/test_private_mixed/000.png": 7,
        "walnuts/test_private/000.png": 8,
    }
    masks = {
        "can/test_public/ground_truth/bad/000_regular_mask.png": 4,
        "can/test_public/ground_truth/bad/001_overexposed_mask.png": 5,
    }
    write_tree(tmp_path / "mvtec_ad_2", images, masks)
    parts = {
        "train": {1: ("can", 0, "good", None)},
        "validation": {2: ("can", 0, "good", None)},
        "test": {3: ("can", 0, "good", None), 4: ("can", 1, "bad", 4), 5: ("can", 1, "bad", 5)},
        "test_private": {6: ("can", None, "", None), 8: ("walnuts", None, "", None)},
        "test_private_mixed": {7: ("can", None, "", None)},
    }
    check("mvtec_ad2", tmp_path, **parts)
    assert summary(load_anomaly_dataset("mvtec_ad2", data_dir=tmp_path / "mvtec_ad_2" / "can")) == parts["test"]


def test_the_private_images_of_mvtec_ad2_alone(tmp_path):
    write_tree(tmp_path, {"rice/test_private/000.png": 1})
    check("mvtec_ad2", tmp_path, test_private={1: ("rice", None, "", None)})


@pytest.mark.parametrize(("name", "class_name"), [("mvtec_loco", "juice_bottle"), ("autovi", "tank_screw")])
def test_several_masks_of_one_image(name, class_name, tmp_path):
    root = tmp_path / class_name
    images = {"train/good/000.png": 1, "test/good/000.png": 2, "test/logical/000.png": 3, "test/logical/1.png": 4}
    write_tree(root, images | {"validation/good/000.png": 5, "test/scratch/000.png": 6})
    write_pieces(root / "ground_truth/logical/000", (0, 0, 4, 2), (2, 0, 6, 2), (0, 5, 1, 8))  # 8 + 8 - 4 + 3 pixels
    write_pieces(root / "ground_truth/scratch/000", (0, 0, 3, 3))
    tests = {
        2: (class_name, 0, "good", None),
        3: (class_name, 1, "logical", 15),
        4: (class_name, 1, "logical", None),
        6: (class_name, 1, "scratch", 9),
    }
    train, validation = {1: (class_name, 0, "good", None)}, {5: (class_name, 0, "good", None)}
    check(name, tmp_path, train=train, validation=validation, test=tests)
    check(name, root, train=train, validation=validation, test=tests)
    problems = [problem.kind for problem in inspect_source(name, data_dir=root, split="all").problems]
    assert problems == ["missing_mask"]


def test_united_masks_travel_as_one(tmp_path):
    write_pieces(tmp_path / "ground_truth", (0, 0, 4, 2), (2, 0, 6, 2))
    feature = AnomalyMask()
    cells = [{"bytes": None, "path": str(tmp_path / "ground_truth"), "turn": None}, None]
    storage = feature.cast_storage(pa.array(cells, feature.pa_type))
    packed = feature.embed_storage(storage).to_pylist()
    assert packed[1] is None
    assert area_of(feature.decode_example(packed[0])) == 12


def test_masks_of_one_image_that_differ_in_size(tmp_path):
    write_mask(tmp_path / "0.png", 3)
    Image.new("L", (5, 5)).save(tmp_path / "1.png")
    with pytest.raises(ImageReadError, match=r"masks of one size expected, found 16x12, 5x5"):
        read_mask(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageReadError, match="empty"):
        read_mask(tmp_path / "empty")


def realiad_entry(stem, kind, masked=False):
    folder = f"{kind}/S0001"
    mask = f"{folder}/{stem}.png" if masked else None
    return {"category": "mint", "anomaly_class": kind, "image_path": f"{folder}/{stem}.jpg", "mask_path": mask}


@pytest.mark.parametrize(("folder", "size"), [("realiad_jsons", 1024), ("realiad_jsons_sv", 256)])
def test_realiad(folder, size, tmp_path):
    index = {
        "meta": {"normal_class": "OK", "prefix": "mint/"},
        "train": [realiad_entry("mint_0001_OK_C1", "OK")],
        "test": [
            realiad_entry("mint_0001_OK_C5", "OK"),
            realiad_entry("mint_0002_NG_QS_C1", "QS", True),
            realiad_entry("mint_0002_NG_QS_C2", "QS"),
        ],
    }
    other = {"train": [], "test": [realiad_entry("toy_0001_OK_C1", "OK")]}
    tree = f"realiad_{size}/mint"
    images = {
        f"{tree}/OK/S0001/mint_0001_OK_C1.jpg": 1,
        f"{tree}/OK/S0001/mint_0001_OK_C5.jpg": 2,
        f"{tree}/QS/S0001/mint_0002_NG_QS_C1.jpg": 3,
        f"{tree}/QS/S0001/mint_0002_NG_QS_C2.jpg": 4,
        f"realiad_{size}/toy/OK/S0001/toy_0001_OK_C1.jpg": 5,
    }
    texts = {f"realiad_jsons/{folder}/{name}.json": json.dumps(one) for name, one in (("mint", index), ("toy", other))}
    write_tree(tmp_path, images, {f"{tree}/QS/S0001/mint_0002_NG_QS_C1.png": 3}, texts)
    tests = {
        2: ("mint", 0, "good", None),
        3: ("mint", 1, "QS", 3),
        4: ("mint", 1, "QS", None),
        5: ("toy", 0, "good", None),
    }
    check("realiad", tmp_path, train={1: ("mint", 0, "good", None)}, test=tests)


def test_classes_of_realiad_that_were_not_unpacked_are_told(tmp_path):
    texts = {name: json.dumps({"test": [realiad_entry(f"{name}_0001_OK_C1", "OK")]}) for name in ("mint", "usb")}
    texts = {f"realiad_jsons/realiad_jsons/{name}.json": text for name, text in texts.items()}
    write_tree(tmp_path, {"realiad_512/usb/OK/S0001/usb_0001_OK_C1.jpg": 1}, text=texts)
    with pytest.warns(UserWarning, match=r"1 classes of the index have no folder \(.*mint\.json\)"):
        assert summary(load_anomaly_dataset("realiad", data_dir=tmp_path)) == {1: ("usb", 0, "good", None)}


@pytest.mark.parametrize("text", ["[1, 2]", '{"test": [3]}', "{"])
def test_a_broken_index_of_realiad_is_named(text, tmp_path):
    write_tree(tmp_path, {"a.png": 1}, text={"realiad_jsons/realiad_jsons/mint.json": text})
    with pytest.raises(ValueError, match=r"mint\.json is not an index \{split: \[rows\]\}"):
        load_anomaly_dataset("realiad", data_dir=tmp_path)


def test_bmad(tmp_path):
    images = {
        "Brain_AD/train/good/1.png": 1,
        "Brain_AD/valid/good/img/2.png": 2,
        "Brain_AD/valid/Ungood/img/3.png": 3,
        "Brain_AD/test/good/img/2.png": 4,
        "Brain_AD/test/Ungood/img/2.png": 5,
        "Chest_AD/test/good/7.png": 6,
        "Chest_AD/test/Ungood/7.png": 7,
    }
    masks = {"Brain_AD/valid/Ungood/label/3.png": 3, "Brain_AD/test/Ungood/label/2.png": 5}
    write_tree(tmp_path, images, masks | {"Brain_AD/test/good/label/2.png": 0})
    tests = {
        4: ("Brain_AD", 0, "good", 0),
        5: ("Brain_AD", 1, "Ungood", 5),
        6: ("Chest_AD", 0, "good", None),
        7: ("Chest_AD", 1, "Ungood", None),
    }
    validation = {2: ("Brain_AD", 0, "good", None), 3: ("Brain_AD", 1, "Ungood", 3)}
    check("bmad", tmp_path, train={1: ("Brain_AD", 0, "good", None)}, validation=validation, test=tests)


def test_vad(tmp_path):
    images = {"train/good/1.png": 1, "train/bad/2.png": 2, "test/good/3.png": 3, "test/bad/4.png": 4}
    write_tree(tmp_path / "vad", images, {"ground_truth/bad/4.png": 4})
    train = {1: ("vad", 0, "good", None), 2: ("vad", 1, "bad", None)}
    check("vad", tmp_path, train=train, test={3: ("vad", 0, "good", None), 4: ("vad", 1, "bad", 4)})


def test_ksdd2(tmp_path):
    images = {"train/10001.png": 1, "test/20000.png": 2, "test/20001.png": 3}
    write_tree(tmp_path, images, {"train/10001_GT.png": 1, "test/20000_GT.png": 0, "test/20001_GT.png": 3})
    tests = {2: ("surface", 0, "good", None), 3: ("surface", 1, "anomaly", 3)}
    check("ksdd2", tmp_path, train={1: ("surface", 1, "anomaly", 1)}, test=tests)


def test_aebad_s(tmp_path):
    images = {
        "AeBAD_S/train/good/background/1.png": 1,
        "AeBAD_S/test/good/view/1.png": 2,
        "AeBAD_S/test/groove/view/1.png": 3,
        "AeBAD_S/test/groove/same/1.png": 4,
    }
    masks = {"AeBAD_S/ground_truth/groove/view/1.png": 3, "AeBAD_S/ground_truth/groove/same/1.png": 4}
    write_tree(tmp_path, images, masks)
    tests = {2: ("AeBAD_S", 0, "good", None), **{n: ("AeBAD_S", 1, "groove", n) for n in (3, 4)}}
    check("aebad_s", tmp_path, train={1: ("AeBAD_S", 0, "good", None)}, test=tests)
    check("aebad_s", tmp_path / "AeBAD_S", train={1: ("AeBAD_S", 0, "good", None)}, test=tests)


def test_goodsad(tmp_path):
    images = {"food_box/train/good/001001.jpg": 1, "food_box/test/good/001002.jpg": 2}
    images |= {"food_box/test/opened/001003.jpg": 3, "drink_can/test/deformation/002001.jpg": 4}
    masks = {"food_box/ground_truth/opened/001003.png": 3, "drink_can/ground_truth/deformation/002001.png": 4}
    write_tree(tmp_path, images, masks)
    box = {2: ("food_box", 0, "good", None), 3: ("food_box", 1, "opened", 3)}
    tests = {**box, 4: ("drink_can", 1, "deformation", 4)}
    check("goodsad", tmp_path, train={1: ("food_box", 0, "good", None)}, test=tests)
