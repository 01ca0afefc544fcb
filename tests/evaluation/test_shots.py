"""References drawn from a data set's own good images, which are then not judged."""

import json

from anomalyclip_hf.data import load_anomaly_dataset
from anomalyclip_hf.evaluation import shots
from anomalyclip_hf.evaluation.evaluator import evaluate_sources


def test_rows_tell_what_references_buy(tiny_model, tiny_processor, make_image, tmp_path, monkeypatch):
    for kind, seeds in (("good", (0, 1, 2)), ("bad", (3, 4))):
        (tmp_path / "data" / "part" / "test" / kind).mkdir(parents=True)
        for seed in seeds:
            make_image(seed=seed).save(tmp_path / "data" / "part" / "test" / kind / f"{seed}.png")
    sources = {"parts": load_anomaly_dataset(tmp_path / "data", split="test")}
    shared = {"show_progress": False, "exact": True}
    result = evaluate_sources(
        tiny_model, tiny_processor, sources, output_dir=tmp_path / "out", num_pictures=0, **shared
    )
    judged = []
    whole = shots.evaluate_model

    def note(model, processor, dataset, **settings):
        judged.append((len(dataset), model.references and model.references.num_images))
        return whole(model, processor, dataset, **settings)

    monkeypatch.setattr(shots, "evaluate_model", note)
    shots.evaluate_shots(
        tiny_model, tiny_processor, sources, result, tmp_path / "out", [0, 2, 3], 2, exact=True, show_progress=False
    )
    assert judged == [(5, None), (3, 2), (3, 2)] and tiny_model.references is None
    rows = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["shots"]
    assert [(row["shots"], row["draws"], row["too_few"]) for row in rows] == [
        (0, 1, []),
        (2, 2, []),
        (3, 2, ["part"]),
    ]
    own = result["datasets"]["parts"]["mean"]["image_auroc"]
    assert rows[0]["mean"]["image_auroc"] == own and rows[0]["spread"]["image_auroc"] == 0
    assert rows[2]["mean"]["image_auroc"] is None
    assert "| parts | 2 |" in shots.shots_table(result["shots"])


def test_a_damaged_good_image_is_no_reference(tiny_model, tiny_processor, make_image, tmp_path):
    for kind, seeds in (("good", (0, 1)), ("bad", (3,))):
        (tmp_path / "data" / "part" / "test" / kind).mkdir(parents=True)
        for seed in seeds:
            make_image(seed=seed).save(tmp_path / "data" / "part" / "test" / kind / f"{seed}.png")
    damaged = tmp_path / "data" / "part" / "test" / "good" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    make_image(seed=5).save(damaged.with_name("2.png"))
    sources = {"parts": load_anomaly_dataset(tmp_path / "data", split="test")}
    shared = {"show_progress": False, "exact": True}
    result = evaluate_sources(
        tiny_model, tiny_processor, sources, output_dir=tmp_path / "out", num_pictures=0, **shared
    )
    assert [one["path"] for one in result["datasets"]["parts"]["unreadable"]] == [str(damaged)]
    shots.evaluate_shots(tiny_model, tiny_processor, sources, result, tmp_path / "out", [1, 2], 4, **shared)
    assert [row["too_few"] for row in result["shots"]] == [[], ["part"]]
