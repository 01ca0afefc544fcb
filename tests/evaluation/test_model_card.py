"""Model cards: metadata that huggingface_hub takes, numbers from the evaluator, code that runs."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard, ModelCardData

import anomalyclip_hf
from anomalyclip_hf.evaluation.model_card import PIPELINE_TAG, TEMPLATE, make_model_card, prompts_checksum

ROOT = Path(__file__).parent.parent.parent

RESULTS = {
    "datasets": {
        "mvtec": {"title": "MVTec AD", "mean": {"image_auroc": 0.9151, "image_ap": None, "aupro": 0.814}},
        "My parts": {
            "mean": {"image_auroc": 0.5, "pixel_auroc": 0.955, "aupro": 0.25},
            "methods": {"clip": {"mean": {"image_auroc": 0.1}}},
        },
    }
}
TRAINING = {
    "dataset": "MVTec AD, test split",
    "dataset_license": "CC BY-NC-SA 4.0",
    "dataset_id": "someone/mvtec",
    "epochs": 15,
    "seed": 111,
    "max_steps": None,
}


def code_blocks(card) -> list[str]:
    return re.findall(r"```python\n(.*?)```", str(card), flags=re.S)


def test_template_is_the_one_at_the_root():
    assert TEMPLATE.read_bytes() == (ROOT / "model_card.md").read_bytes()
    assert TEMPLATE.is_relative_to(Path(anomalyclip_hf.__file__).parent)


def test_metadata_survives_huggingface_hub(tiny_model, tmp_path):
    tiny_model.config.base_model_name_or_path = "openai/tiny"
    results, training = tmp_path / "results.json", tmp_path / "training.json"
    results.write_text(json.dumps(RESULTS))
    training.write_text(json.dumps(TRAINING))
    card = make_model_card(tiny_model, results, training, repo_id="me/anomalyclip-parts", license="mit")
    card.save(tmp_path / "README.md")

    data = ModelCard.load(tmp_path / "README.md").data
    assert isinstance(data, ModelCardData) and data.model_name == "anomalyclip-parts"
    assert {"anomaly-detection", "zero-shot", "clip"} <= set(data.tags)
    assert (data.license, data.base_model, data.base_model_relation) == ("mit", "openai/tiny", "finetune")
    assert data.datasets == "someone/mvtec" and data.library_name == "transformers"
    found = {(one.dataset_name, one.dataset_type, one.metric_name): one.metric_value for one in data.eval_results}
    assert found == {
        ("MVTec AD", "mvtec", "image AUROC"): 0.9151,
        ("MVTec AD", "mvtec", "pixel AUPRO"): 0.814,
        ("My parts", "my-parts", "image AUROC"): 0.5,
        ("My parts", "my-parts", "pixel AUROC"): 0.955,
        ("My parts", "my-parts", "pixel AUPRO"): 0.25,
    }
    assert {one.task_type for one in data.eval_results} == {PIPELINE_TAG} == {data.pipeline_tag}


def test_text(tiny_model):
    tiny_model.config.image_threshold = 0.437
    text = str(make_model_card(tiny_model, RESULTS, TRAINING, repo_id="me/parts"))
    assert "| data set | image AUROC | pixel AUROC | pixel AUPRO |" in text
    assert "| MVTec AD | 91.5 | – | 81.4 |" in text and "| My parts | 50.0 | 95.5 | 25.0 |" in text
    assert "- **dataset license:** CC BY-NC-SA 4.0\n- **epochs:** 15\n- **seed:** 111\n" in text
    assert "max_steps" not in text and "dataset_id" not in text
    assert "called anomalous from a score of 0.437" in text and "called anomalous from a map value" not in text
    assert "2310.18961" in text and "## Limits" in text and prompts_checksum(tiny_model) in text
    assert "{{" not in text.replace("{{AnomalyCLIP}", "") and "{%" not in text
    empty = str(make_model_card(tiny_model.to_vision_only()))
    assert "Not measured." in empty and "Not recorded." in empty and "vision-only form" in empty


def test_local_paths_stay_at_home(tiny_model, tmp_path):
    tiny_model.save_prompts(tmp_path / "prompts", card={"repo_id": "me/prompts"})
    text = (tmp_path / "prompts" / "README.md").read_text()
    assert str(tmp_path) not in text and tiny_model.config.base_model_name_or_path not in text
    assert ModelCard(text).data.base_model is None


def test_checksums(tiny_model, tmp_path):
    tiny_model.save_prompts(tmp_path)
    learner = tiny_model.prompt_learner
    values = np.concatenate([learner.context.detach().numpy().ravel(), learner.deep_prompts.detach().numpy().ravel()])
    assert prompts_checksum(tiny_model) == hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()
    file = hashlib.sha256((tmp_path / "prompts.safetensors").read_bytes()).hexdigest()
    text = (tmp_path / "README.md").read_text()
    assert f"SHA-256 of prompts.safetensors:** `{file}`" in text and prompts_checksum(tiny_model) in text


@pytest.mark.parametrize(("base", "blocks"), [("user/clip", 3), ("anomalyclip_hf/demo", 2)])
def test_a_card_promises_only_what_loads(tiny_model, base, blocks):
    facts = {"repo_id": "me/prompts", "prompts_file": __file__, "base": base}
    assert "trust_remote_code" not in str(make_model_card(tiny_model, **facts))  # no code beside it
    card = str(make_model_card(tiny_model, **facts, with_code=True))
    assert len(code_blocks(card)) == blocks
    assert ("trust_remote_code" in card) == (base == "user/clip")
    assert ("without the package, these prompts can't be loaded" in card) == (base != "user/clip")


def test_code_runs(tiny_model, tiny_processor, make_image, tmp_path, monkeypatch, capsys):
    tiny_model.save_prompts(tmp_path / "prompts", tiny_processor)
    make_image(50, 40).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    base = tiny_model.config.base_model_name_or_path
    (block,) = code_blocks((tmp_path / "prompts" / "README.md").read_text())  # the base is a folder of this machine
    scope: dict = {}
    exec(block.replace("path/to/the/base/model", base), scope)
    assert 0 <= scope["result"]["score"] <= 1 and scope["result"]["anomaly_map"].shape == (40, 50)
    assert capsys.readouterr().out.count("(40, 50)") == 1 and scope["model"].config.prompt_length == 5


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ("missing.json", "results='missing.json' can't be read"),
        ({"datasets": [1]}, r"results\['datasets'\] is a list"),
        ({"datasets": {"mvtec": 3}}, r"results\['datasets'\]\['mvtec'\] is a int"),
    ],
)
def test_wrong_results(tiny_model, results, message):
    with pytest.raises(ValueError, match=message):
        make_model_card(tiny_model, results)


def test_results_are_those_of_these_prompts(tiny_model):
    results = {"datasets": {"mvtec": {"mean": {"aupro": 0.5}}}, "settings": {"fpr_limit": 0.05}}
    results["model"] = {"prompts_sha256": prompts_checksum(tiny_model)}
    assert "up to a false positive rate of 0.05." in str(make_model_card(tiny_model, results))
    results["model"] = {"prompts_sha256": "0" * 64}
    with pytest.raises(ValueError, match="results are of other prompts, of SHA-256 0000"):
        make_model_card(tiny_model, results)
