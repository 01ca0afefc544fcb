"""What helps AnomalyCLIP, beside it in one table: rules of scores, references, images that judge one another."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from anomalyclip_hf.data import load_anomaly_dataset
from anomalyclip_hf.evaluation import evaluate_model, evaluate_sources, metrics
from anomalyclip_hf.scoring.mutual import MutualJudge, score_mutually

METHODS = ["anomalyclip", "score=max", "references=1", "references=2", "references=9", "mutual"]
SHARED = {"show_progress": False, "batch_size": 2}


@pytest.fixture
def dataset(make_image, tmp_path):
    for kind, seeds in (("good", (0, 1, 2)), ("bad", (3, 4)), ("few", (5,))):
        folder = (
            tmp_path / "data" / ("part" if kind != "few" else "rare") / "test" / ("good" if kind == "few" else kind)
        )
        folder.mkdir(parents=True)
        for seed in seeds:
            make_image(seed=seed).save(folder / f"{seed}.png")
    return load_anomaly_dataset(tmp_path / "data", split="test")


def plain(model, processor, dataset, indices, **settings):
    """Scores image by image."""
    found = {}
    for index in indices:
        inputs = processor([dataset[index]["image"]], return_tensors="pt")
        found[index] = processor.post_process_anomaly_detection(model(**inputs), **settings)[0]["score"]
    return found


@pytest.mark.parametrize("exact", [True, False])
def test_one_table_tells_what_each_buys(tiny_model, tiny_processor, dataset, tmp_path, exact, monkeypatch):
    shared = {**SHARED, "num_pictures": 1, "exact": exact, "draws": 2}
    result = evaluate_sources(
        tiny_model, tiny_processor, {"mine": dataset}, methods=METHODS, output_dir=tmp_path / "out", **shared
    )
    entry = result["datasets"]["mine"]
    labels, part = dataset["label"], [i for i, name in enumerate(dataset["class_name"]) if name == "part"]
    good = [index for index in part if labels[index] == 0]
    assert len(part) == 5 and len(good) == 3 and tiny_model.references is None

    def of(name):
        return dict(zip(entry["scores"]["index"], entry["scores"]["scores"][name], strict=True))

    own = plain(tiny_model, tiny_processor, dataset, range(6))
    assert of("anomalyclip") == pytest.approx(own, abs=1e-6)
    assert of("score=max") == pytest.approx(
        plain(tiny_model, tiny_processor, dataset, range(6), score_rule="max"), abs=1e-6
    )
    aurocs = []
    for number in (1, 2):
        for draw in range(2):
            chosen = np.random.default_rng([draw]).permutation(good)[:number].tolist()
            judged = [index for index in part if index not in chosen]
            tiny_model.set_references([dataset[index]["image"] for index in chosen], processor=tiny_processor)
            expected = plain(tiny_model, tiny_processor, dataset, judged)
            found = of(f"references={number}, draw {draw + 1}")
            assert {i: score for i, score in found.items() if score is not None} == pytest.approx(expected, abs=1e-5)
            if number == 1:
                aurocs.append(metrics.image_metrics([*expected.values()], [labels[i] for i in judged])["image_auroc"])
    tiny_model.set_references(None)
    one = entry["methods"]["references=1"]
    assert one["mean"]["image_auroc"] == pytest.approx(np.mean(aurocs))
    assert one["spread"]["image_auroc"] == pytest.approx(np.std(aurocs))
    assert (one["classes"]["part"]["num_images"], one["classes"]["part"]["num_judged_maps"]) == (4, 2)
    judge = MutualJudge(tiny_model, tiny_processor)
    pixels = [tiny_processor([dataset[index]["image"]], return_tensors="pt")["pixel_values"][0] for index in part]
    assert [of("mutual")[index] for index in part] == pytest.approx(
        score_mutually(judge.describe(pixels)).amax(dim=1).tolist(), abs=1e-4
    )
    assert of("mutual")[next(index for index in range(6) if index not in part)] is None

    notes = "\n".join(entry["notes"])
    assert "9 references, not judged, 2 draws: too few images of part, rare" in notes
    assert "drawn 2 times and not judged then" in notes and "mutual: images of a class judge one another" in notes
    stored = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert list(stored["datasets"]["mine"]["methods"]) == METHODS
    table = (tmp_path / "out" / "results.md").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    titles = ["AnomalyCLIP", "score max", *(f"{n}, not judged, 2 draws" for n in ("1 reference", "2 references"))]
    titles += ["9 references, not judged, 2 draws", "mutual, transductive"]
    assert [row.split("|")[2].strip() for row in table[2:]] == titles
    cells = [cell.strip() for cell in table[4].split("|")[3:-1]]
    assert len(cells) == table[0].count("|") - 3 and all(("±" in cell) != (cell == "–") for cell in cells)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert all(title in page for title in titles) and "no zero-shot figures" in page
    assert pq.read_table(tmp_path / "out" / "scores.parquet").num_rows == 6 * 9

    def fail(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr("anomalyclip_hf.evaluation.evaluator.score_images", fail)  # all is on disk
    shared |= {"output_dir": tmp_path / "out", "resume": True, "methods": METHODS}
    again = evaluate_model(
        tiny_model, tiny_processor, dataset, name="mine", **{k: v for k, v in shared.items() if k != "num_pictures"}
    )
    assert json.dumps(again["methods"]) == json.dumps(entry["methods"])


def test_one_vision_pass_serves_scores_and_references(tiny_model, tiny_processor, dataset, monkeypatch):
    passes = []
    encode = type(tiny_model.vision_model).encode
    monkeypatch.setattr(
        type(tiny_model.vision_model),
        "encode",
        lambda self, tokens, *args, **kwargs: passes.append(len(tokens)) or encode(self, tokens, *args, **kwargs),
    )
    methods = ["anomalyclip", "score=max", "score=mean", "references=2"]
    evaluate_model(tiny_model, tiny_processor, dataset, methods=methods, draws=2, **SHARED)
    assert sum(passes) == 6 + 2 * 2  # images, and references


@pytest.mark.parametrize("resize", ["fit", "tile"])
def test_images_of_any_size_are_judged_by_all_but_mutual(tiny_model, tiny_processor, dataset, resize):
    tiny_processor.resize, tiny_processor.patch_size = resize, 7
    tiny_processor.tile_size = 30
    methods = ["anomalyclip", "score=max", "references=2"]
    found = evaluate_model(tiny_model, tiny_processor, dataset, methods=methods, draws=1, **SHARED)
    highest = found["scores"]["scores"]
    assert found["methods"]["references=2"]["classes"]["part"]["num_images"] == 3
    assert "spread" not in found["methods"]["references=2"] and highest["score=max"] != highest["anomalyclip"]
    with pytest.raises(ValueError, match="resize='square'"):
        evaluate_model(tiny_model, tiny_processor, dataset, methods=["anomalyclip", "mutual"], **SHARED)


def test_tiles_stand_beside_squares_at_the_size_of_the_judged_maps(tiny_model, tiny_processor, dataset):
    tiny_processor.tile_size = 30
    methods = ["anomalyclip", "resize=tile", "resize=fit"]
    found = evaluate_model(tiny_model, tiny_processor, dataset, methods=methods, **SHARED)
    assert tiny_processor.resize == "square"
    assert [one["title"] for one in found["methods"].values()] == ["AnomalyCLIP", "tiles", "ratio of sides kept"]
    for resize in ("tile", "fit"):
        tiny_processor.resize, tiny_processor.patch_size = resize, 7
        alone = evaluate_model(tiny_model, tiny_processor, dataset, map_size=42, **SHARED)
        expected = alone["scores"]["scores"]["anomalyclip"]
        assert found["scores"]["scores"][f"resize={resize}"] == pytest.approx(expected, abs=1e-6)
        tiled = found["methods"][f"resize={resize}"]["classes"]["part"]
        assert tiled["num_judged_maps"] == alone["classes"]["part"]["num_judged_maps"] == 3
