import weakref

import numpy as np
import pytest
from PIL import Image

from anomalyclip_hf.training import SyntheticAnomalies, TrainingSamples
from anomalyclip_hf.training.samples import check_training_set, check_validation_set


def test_reads_columns_without_decoding(rows, dataset):
    for row in rows:
        open(row["path"], "wb").close()
    samples = TrainingSamples(dataset)
    assert samples.labels.tolist() == [0, 1] * 5
    assert samples.has_mask.tolist() == [False, True] * 5
    assert samples.paths[3] == rows[3]["path"]
    assert samples.uses_masks


def test_a_list_of_dicts_is_a_data_set_too(make_image):
    samples = TrainingSamples([{"image": make_image(seed=i), "label": i % 2} for i in range(4)])
    assert samples.labels.tolist() == [0, 1, 0, 1]
    assert not samples.uses_masks
    assert samples[2] == (make_image(seed=2), None)
    other = TrainingSamples([{"image": make_image(seed=i + 1), "label": i % 2} for i in range(4)])
    assert samples.fingerprint() != other.fingerprint()


class Lazy:
    """A torch-style data set that counts the rows held at a time."""

    def __init__(self, make_image, count=6):
        self.make_image, self.count, self.alive, self.most = make_image, count, 0, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = self.make_image(seed=index)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(image, self.let_go)
        return {"image": image, "label": index % 2, "class_name": "part"}

    def let_go(self):
        self.alive -= 1


def test_rows_are_read_one_by_one(make_image):
    lazy = Lazy(make_image)
    samples = TrainingSamples(lazy)
    other = TrainingSamples(Lazy(lambda seed: make_image(seed=seed + 9)))
    samples.fingerprint(), check_validation_set(samples, other, "image_auroc")
    assert samples.labels.tolist() == [0, 1] * 3 and samples.class_names == ["part"] * 6
    assert lazy.most <= 2 and lazy.alive == 0


def test_formats_and_transforms_give_pictures(dataset):
    plain = TrainingSamples(dataset)
    for format in ("torch", "numpy"):
        other = TrainingSamples(dataset.with_format(format))
        assert other.labels.tolist() == [0, 1] * 5 and other.fingerprint() == plain.fingerprint()
        assert other[1] == plain[1]
    turned = dataset.with_transform(
        lambda batch: {**batch, "image": [image.rotate(180) if image else None for image in batch["image"]]}
    )
    samples = TrainingSamples(turned)
    assert samples.labels.tolist() == [0, 1] * 5 and samples.has_mask.tolist() == [False, True] * 5
    assert samples[2][0] == plain[2][0].rotate(180)
    assert samples.paths == plain.paths and samples.fingerprint() != plain.fingerprint()


def test_a_row_that_cannot_be_read_is_named():
    class Broken(list):
        def __getitem__(self, index):
            raise OSError("the disk is gone")

    with pytest.raises(ValueError, match=r"train_dataset\[0\] can't be read: the disk is gone"):
        TrainingSamples(Broken([1]))


def test_fingerprint_follows_files_and_bytes(rows, dataset, to_dataset):
    before = TrainingSamples(dataset).fingerprint()
    assert TrainingSamples(to_dataset(rows)).fingerprint() == before
    Image.new("L", (48, 48), 255).save(rows[1]["mask"])
    assert TrainingSamples(dataset).fingerprint() != before


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="train_dataset is empty, expected at least one image"):
        TrainingSamples([])


def test_a_stream_is_refused(dataset):
    with pytest.raises(TypeError, match="load it without streaming"):
        TrainingSamples(dataset.to_iterable_dataset())


@pytest.mark.parametrize("label", [None, 2, -1])
def test_other_labels_are_refused(make_image, label):
    with pytest.raises(ValueError, match=rf"1 of 2 labels are neither 0 .* label={label} of train_dataset\[1\]"):
        TrainingSamples([{"image": make_image(), "label": 0}, {"image": make_image(), "label": label}])


def test_normal_images_alone_are_refused_unless_anomalies_are_drawn(make_image):
    samples = TrainingSamples([{"image": make_image(seed=i), "label": 0} for i in range(3)])
    with pytest.raises(ValueError, match=r"3 normal and 0 anomalous images.*synthetic_anomalies"):
        check_training_set(samples)
    assert check_training_set(SyntheticAnomalies(samples)) == []


def test_anomalous_images_alone_need_masks(rows, to_dataset):
    anomalous = [row for row in rows if row["label"]]
    (notice,) = check_training_set(TrainingSamples(to_dataset(anomalous)))
    assert "only anomalous images" in notice
    with pytest.raises(ValueError, match="0 normal and 5 anomalous images, 0 of these with a mask, so that nothing"):
        check_training_set(TrainingSamples(to_dataset([{**row, "mask": None} for row in anomalous])))


def test_what_a_loss_or_the_balance_needs_must_be_there(rows, to_dataset):
    anomalous = TrainingSamples(to_dataset([row for row in rows if row["label"]]))
    unmasked = TrainingSamples(to_dataset([{**row, "mask": None} for row in rows]))
    with pytest.raises(ValueError, match=r"0 normal and 5 anomalous images.*balanced=True"):
        check_training_set(anomalous, balanced=True)
    with pytest.raises(ValueError, match="local_loss_weight=0 leaves it out"):
        check_training_set(anomalous, loss_weights=(1, 0))
    with pytest.raises(ValueError, match=r"train_dataset has .* 0 of these with a mask.*global_loss_weight=0"):
        check_training_set(unmasked, loss_weights=(0, 1))


def test_a_normal_image_with_a_mask_is_a_contradiction(rows, to_dataset):
    rows[1]["label"] = rows[5]["label"] = 0
    with pytest.raises(ValueError, match=r"2 images have label 0.*001\.png.*005\.png.*correct the label"):
        check_training_set(TrainingSamples(to_dataset(rows)))


def test_a_normal_image_with_an_empty_mask_is_fine(rows, to_dataset, tmp_path):
    Image.new("L", (48, 48)).save(tmp_path / "empty.png")
    rows[0]["mask"] = str(tmp_path / "empty.png")
    assert check_training_set(TrainingSamples(to_dataset(rows))) == []


def test_missing_masks_are_counted(rows, to_dataset):
    rows[1]["mask"] = None
    (notice,) = check_training_set(TrainingSamples(to_dataset(rows)))
    assert "1 of 5 anomalous images of train_dataset have no mask" in notice
    (notice,) = check_training_set(TrainingSamples(to_dataset([{**row, "mask": None} for row in rows])))
    assert "the image loss alone" in notice


def test_validation_on_training_images_is_refused(rows, dataset, to_dataset, validation_dataset):
    samples = TrainingSamples(dataset)
    check_validation_set(samples, TrainingSamples(validation_dataset), "image_auroc")
    with pytest.raises(ValueError, match="2 images are in both"):
        check_validation_set(samples, TrainingSamples(to_dataset(rows[4:6])), "image_auroc")


def test_validation_on_equal_pictures_is_refused_without_paths(make_image):
    def samples(seeds):
        return TrainingSamples([{"image": make_image(seed=i), "label": i % 2, "path": "same"} for i in seeds])

    check_validation_set(samples([0, 2]), samples([1, 3]), "loss")
    with pytest.raises(ValueError, match="1 images are in both"):
        check_validation_set(samples([1]), samples([1]), "loss")


def test_metrics_that_the_validation_set_cannot_give_are_refused(dataset, make_rows, to_dataset):
    train, rows = TrainingSamples(dataset), make_rows("held", seed=3)
    samples = TrainingSamples(to_dataset([{**row, "mask": None} for row in rows]), "validation_dataset")
    check_validation_set(train, samples, "image_auroc")
    with pytest.raises(ValueError, match="metric='aupro' but no anomalous image of validation_dataset has a mask"):
        check_validation_set(train, samples, "aupro")
    with pytest.raises(ValueError, match="no class of validation_dataset has both"):
        check_validation_set(train, TrainingSamples(to_dataset(rows[:1]), "validation_dataset"), "image_auroc")


def test_drawn_anomalies_follow_the_seed_and_carry_masks(make_image):
    own = TrainingSamples([{"image": make_image(64, 56, seed=i), "label": i % 2} for i in range(4)])
    drawn = SyntheticAnomalies(own, seed=7)
    again = SyntheticAnomalies(own, seed=7)
    assert drawn.labels.tolist() == [0, 1, 0, 1, 1, 1]
    assert drawn.has_mask.tolist() == [False] * 4 + [True] * 2
    assert drawn.paths[5] == "train_dataset[2] (with a drawn anomaly)"
    assert drawn[2][0] == make_image(64, 56, seed=2)
    image, mask = drawn[5]
    changed = (np.asarray(image) != np.asarray(make_image(64, 56, seed=2))).any(axis=2)
    assert mask.size == image.size == (64, 56)
    assert 0 < (np.asarray(mask) > 0).mean() < 0.7
    assert changed[np.asarray(mask) > 0].mean() > 0.3
    assert np.array_equal(np.asarray(image), np.asarray(again[5][0]))
    assert drawn.fingerprint() == again.fingerprint()
    other = SyntheticAnomalies(own, seed=8)
    assert drawn.fingerprint() != other.fingerprint()
    assert not np.array_equal(np.asarray(image), np.asarray(other[5][0]))
