"""Images that judge one another: the definition on few patches, blocks, and the wish for company."""

import numpy as np
import pytest
import torch
from torch import nn

from anomalyclip_hf.scoring.mutual import MutualJudge, blocks_of, judge_block, score_mutually


def random_features(count, sets=2, patches=3, width=8):
    values = torch.randn(count, sets, patches, width, generator=torch.Generator().manual_seed(count))
    return nn.functional.normalize(values, dim=-1)


def by_definition(features):
    count, sets, patches, _ = features.shape
    kept = int(0.3 * (count - 1))
    values = torch.zeros(count, patches)
    for i in range(count):
        for p in range(patches):
            for s in range(sets):
                known = sorted(
                    float((features[i, s, p] - features[j, s]).norm(dim=-1).min()) / 2 for j in range(count) if j != i
                )
                values[i, p] += sum(known[:kept]) / kept / sets
    return values


def test_scores_are_those_of_the_definition_in_each_block(monkeypatch):
    features = random_features(12)
    torch.testing.assert_close(score_mutually(features), by_definition(features), atol=1e-5, rtol=0)
    monkeypatch.setattr("anomalyclip_hf.scoring.mutual.SIMILARITIES", 1)
    for positions in ([*range(6)], [*range(6, 12)]):
        found = judge_block(list(features), lambda row: row, torch.stack, positions)
        assert [record.index for record in found] == positions
        values = torch.stack([record.result for record in found])
        torch.testing.assert_close(values, by_definition(features[positions]), atol=1e-5, rtol=0)


def test_blocks_are_about_equal():
    assert blocks_of(range(1, 402), 200) == [
        [*range(1, 135)],
        [*range(135, 269)],
        [*range(269, 402)],
    ]
    assert blocks_of(range(200)) == [[*range(200)]]


def test_an_odd_image_stands_out_and_few_images_are_refused(tiny_model, tiny_processor):
    pixels = torch.randn(1, 3, 42, 42, generator=torch.Generator().manual_seed(0)).repeat(8, 1, 1, 1)
    pixels[5, :, :21, :21] = 2.0
    features = MutualJudge(tiny_model, tiny_processor).describe([*pixels])
    values = score_mutually(features)
    assert int(values.amax(dim=1).argmax()) == 5 and values[0].max() < 0.02 < values[5].max() <= 1
    with pytest.raises(ValueError, match=r"4 images in a block.*at least 5"):
        score_mutually(features[:4])


def test_predict_mutual_names_its_method_and_skips_what_it_cannot_read(
    tiny_model, tiny_processor, make_image, tmp_path
):
    from anomalyclip_hf import ZeroShotAnomalyDetectionPipeline
    from anomalyclip_hf.scoring.prediction import predict_files

    (tmp_path / "in").mkdir()
    for seed in range(6):
        make_image(seed=seed % 2).save(tmp_path / "in" / f"{seed}.png")
    make_image(seed=7).save(tmp_path / "in" / "odd.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")
    tiny_model.config.image_threshold = 0.0  # of another score: not used
    detector = ZeroShotAnomalyDetectionPipeline(model=tiny_model, image_processor=tiny_processor, device="cpu")
    shared = {"detector": detector, "mutual": True, "batch_size": 2, "progress": False}
    found = predict_files([tmp_path / "in"], tmp_path / "out", save_maps="npy", **shared)
    scores = {record["path"][-7:]: record["score"] for record in found.predictions}
    assert len(scores) == 7 and max(scores, key=scores.__getitem__) == "odd.png"
    assert all(record["method"] == "mutual" and "label" not in record for record in found.predictions)
    assert np.load(tmp_path / "out" / "maps" / "odd.png.npy").shape == (40, 50)
    assert [one["path"][-7:] for one in found.skipped] == ["bad.png"]
    with pytest.raises(ValueError, match="3 images in a block"):
        predict_files([tmp_path / "in" / f"{seed}.png" for seed in range(3)], tmp_path / "few", **shared)
