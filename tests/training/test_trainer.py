import copy
import json
import math
import random

import numpy as np
import pytest
import torch
from accelerate.utils.other import load as accelerate_load  # as `load_state` does, with weights_only
from PIL import Image
from safetensors.torch import load_file

from anomalyclip_hf import AnomalyCLIPModel, AnomalyCLIPProcessor
from anomalyclip_hf.training import NonFiniteLossError, PromptTrainingArguments, train_prompts
from anomalyclip_hf.training import trainer as module
from anomalyclip_hf.training.history import read_log


@pytest.fixture(autouse=True)
def _undrawn(request, monkeypatch):
    """Curves take longer than a run; one test looks at them."""
    if "curves" not in request.node.name:
        monkeypatch.setattr(module, "plot_training", lambda folder: None)


@pytest.fixture
def run(tiny_model, tiny_processor, dataset, make_args):
    """Function `(**fields of PromptTrainingArguments)` -> result and the trained copy of the tiny model."""

    def go(data=None, validation=None, model=None, **fields):
        model = copy.deepcopy(model or tiny_model)
        result = train_prompts(
            model, tiny_processor, dataset if data is None else data, make_args(**fields), validation
        )
        return result, model

    return go


def losses(result):
    rows = [row for row in read_log(result.output_dir) if row["kind"] == "step"]
    return np.array([[row["global_loss"], row["local_loss"]] for row in rows])


def prompts(model):
    return torch.cat([p.detach().flatten() for p in model.prompt_learner.parameters()])


def test_the_default_is_the_authors_recipe():
    args = PromptTrainingArguments()
    assert (args.epochs, args.batch_size, args.learning_rate, args.seed) == (15, 8, 1e-3, 111)
    assert (args.adam_beta1, args.adam_beta2, args.max_grad_norm, args.balanced) == (0.5, 0.999, None, False)
    with pytest.raises(ValueError, match="recipe='mine', expected one of authors"):
        PromptTrainingArguments(recipe="mine")


@pytest.mark.parametrize(
    "field",
    [
        {"batch_size": 0},
        {"epochs": None},
        {"learning_rate": -1.0},
        {"adam_beta1": 1.0},
        {"cache_dtype": "int8"},
        {"metric": "f1"},
        {"global_loss_weight": -1.0},
        {"local_loss_weight": math.nan},
    ],
)
def test_settings_out_of_range_are_named(field):
    (name,) = field
    with pytest.raises(ValueError, match=f"{name}="):
        PromptTrainingArguments(**field)


def test_a_loss_is_left_out_by_its_weight(run, validation_dataset, tmp_path):
    both, _ = run(validation=validation_dataset, output_dir=str(tmp_path / "both"), max_steps=1)
    alone, _ = run(validation=validation_dataset, output_dir=str(tmp_path / "alone"), global_loss_weight=0.0)
    assert losses(alone)[:, 0].tolist() == [0] * 6 and losses(alone)[0, 1] == losses(both)[0, 1]
    found = alone.history[-1]["validation"]
    assert found["global_loss"] == 0 and found["loss"] == found["local_loss"] > 0
    with pytest.raises(ValueError, match="global_loss_weight=0 and local_loss_weight=0 leave nothing"):
        run(global_loss_weight=0.0, local_loss_weight=0.0)
    with pytest.raises(ValueError, match=r"global_loss_weight was 0\.0 and is 1\.0"):
        run(validation=validation_dataset, output_dir=str(tmp_path / "alone"), resume=True)


@pytest.mark.parametrize(("label", "counts"), [(0, "0 normal and 5"), (1, "5 normal and 0")])
def test_a_kind_without_a_readable_image_is_refused(run, rows, to_dataset, label, counts):
    for row in rows:
        if row["label"] == label:
            with open(row["path"], "wb") as file:
                file.write(b"no picture")
    with pytest.raises(ValueError, match=f"{counts} anomalous readable images"):
        run(data=to_dataset(rows), balanced=True)


def test_a_model_that_returns_tuples_is_trained_and_validated(run, validation_dataset, tiny_model):
    tiny_model.config.return_dict = False
    result, _ = run(validation=validation_dataset, epochs=1)
    assert 0 <= result.history[0]["validation"]["image_auroc"] <= 1


def test_the_card_tells_of_the_training(run, dataset):
    dataset.info.description, dataset.info.homepage, dataset.info.license = "Plates", "https://x.org", "cc-by-4.0"
    result, _ = run(data=dataset, epochs=1, local_loss_weight=0.5)
    card = (result.output_dir / "README.md").read_text()
    section = card.split("## Training\n")[1].split("\n## ")[0]
    for line in ("dataset:** Plates", "dataset license:** cc-by-4.0", "classes:** plate", "images:** 10"):
        assert f"- **{line}\n" in section
    for line in ("recipe:** authors", "epochs:** 1", "seed:** 111", "weight of the local loss:** 0.5"):
        assert f"- **{line}\n" in section
    assert "best epoch" not in section and "global" not in section


def test_cached_and_uncached_losses_agree_over_20_steps(run, tmp_path):
    kept, first = run(output_dir=str(tmp_path / "a"), epochs=10, max_steps=20)
    seen, second = run(output_dir=str(tmp_path / "b"), epochs=10, max_steps=20, no_cache=True)
    assert losses(kept).shape == (20, 2)
    np.testing.assert_allclose(losses(kept), losses(seen), atol=1e-4)
    torch.testing.assert_close(prompts(first), prompts(second), atol=1e-4, rtol=1e-3)


def test_learns_and_leaves_the_backbone_alone(run, tiny_model):
    result, model = run(epochs=25, learning_rate=3e-3)
    course = losses(result).sum(axis=1)
    assert course[-3:].mean() < 0.8 * course[:3].mean()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tiny_model.state_dict()[name]) != name.startswith("prompt_learner.")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        "prompt_learner.context",
        "prompt_learner.deep_prompts",
    }


def test_the_output_holds_prompts_log_curves_and_settings(run, dataset, tiny_clip_dir):
    result, model = run()
    names = {path.name for path in result.output_dir.iterdir()}
    assert {"training_log.jsonl", "training_summary.json", "training_arguments.json", "training_curves.png"} <= names
    assert "model.safetensors" not in names
    loaded = AnomalyCLIPModel.from_pretrained(str(result.output_dir))
    assert torch.equal(prompts(loaded), prompts(model))
    assert AnomalyCLIPProcessor.from_pretrained(str(result.output_dir)).size["height"] == 42
    summary = json.loads((result.output_dir / "training_summary.json").read_text())
    assert (summary["steps"], summary["images"], summary["epochs"]) == (6, 20, 2)
    assert summary["images_per_second"] > 0 and summary["peak_memory_gb"] > 0
    assert Image.open(result.output_dir / "training_curves.png").size[0] > 300
    assert (
        PromptTrainingArguments(**json.loads((result.output_dir / "training_arguments.json").read_text())).epochs == 2
    )


def test_checkpoints_leave_out_the_backbone_and_old_ones_go(run):
    result, _ = run(epochs=4, save_steps=1, keep_last=3)
    kept = sorted(path.name for path in (result.output_dir / "checkpoints").iterdir())
    assert kept == ["step-00000010", "step-00000011", "step-00000012"]
    folder = result.output_dir / "checkpoints" / kept[-1]
    assert set(load_file(folder / "prompts.safetensors")) == {"context", "deep_prompts"}
    # What accelerate pickles is numbers alone.
    for path in folder.iterdir():
        assert path.suffix in (".safetensors", ".json") or accelerate_load(path) is not None


@pytest.mark.parametrize("stop", [1, 5])
def test_a_run_cut_off_goes_on_bit_for_bit(run, tmp_path, monkeypatch, stop):
    whole, expected = run(output_dir=str(tmp_path / "whole"), balanced=True)
    original = module.training_step
    steps = []

    def cut(*args, **kwargs):
        if len(steps) == stop:
            raise KeyboardInterrupt
        steps.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "training_step", cut)
    with pytest.raises(KeyboardInterrupt):
        run(save_steps=2, balanced=True)
    monkeypatch.setattr(module, "training_step", original)
    result, model = run(save_steps=2, balanced=True, resume=True)
    assert torch.equal(prompts(model), prompts(expected))
    assert losses(result).tolist() == losses(whole).tolist()


def test_free_prompts_learn_and_go_on_bit_for_bit(run, tiny_model, validation_dataset, tmp_path):
    free = tiny_model.to_free_prompts()
    whole, expected = run(model=free, validation=validation_dataset, output_dir=str(tmp_path / "whole"), epochs=3)
    run(model=free, validation=validation_dataset, epochs=3, max_steps=4)
    with pytest.raises(ValueError, match="prompt_type was 'free' and is 'text'"):
        run(validation=validation_dataset, epochs=3, resume=True)
    result, model = run(model=free, validation=validation_dataset, epochs=3, resume=True)
    assert torch.equal(prompts(model), prompts(expected)) and not torch.equal(prompts(model), prompts(free))
    assert losses(result).tolist() == losses(whole).tolist()
    assert whole.history[-1]["loss"] < whole.history[0]["loss"]
    stored = load_file(result.output_dir / "prompts.safetensors")
    assert torch.equal(stored["prompt_learner.image_vectors"], model.prompt_learner.image_vectors)
    fresh = [prompts(run(model=free, initial_prompts="fresh", seed=1, overwrite=True)[1]) for _ in range(2)]
    assert torch.equal(*fresh)


def test_max_steps_can_be_extended(run, tmp_path):
    _, expected = run(output_dir=str(tmp_path / "whole"), epochs=3)
    short, _ = run(epochs=3, max_steps=4)
    assert short.summary["steps"] == 4
    longer, model = run(epochs=3, resume=True)
    assert longer.summary["steps"] == 9
    assert torch.equal(prompts(model), prompts(expected))
    assert [row["epoch"] for row in longer.history] == [1, 2, 3]


@pytest.mark.parametrize("damaged", ["state.json", "prompts.safetensors", "optimizer.bin"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, tmp_path, damaged):
    _, expected = run(output_dir=str(tmp_path / "whole"))
    result, _ = run(save_steps=1)
    last = result.output_dir / "checkpoints" / "step-00000006"
    (last / damaged).write_bytes(b"")
    _, model = run(resume=True)
    assert torch.equal(prompts(model), prompts(expected))
    for folder in (result.output_dir / "checkpoints").iterdir():
        (folder / "state.json").write_text("{")
    with pytest.raises(ValueError, match="none of the checkpoints"):
        run(resume=True)


def test_earlier_runs_are_not_overwritten_unasked(run):
    run(epochs=1)
    with pytest.raises(FileExistsError, match="set resume=True to go on from there, overwrite=True to discard"):
        run(epochs=1)
    result, _ = run(epochs=1, overwrite=True)
    assert result.summary["steps"] == 3


def test_going_on_with_other_settings_is_refused(run, rows, to_dataset):
    run(epochs=1)
    with pytest.raises(ValueError, match=r"learning_rate was 0.001 and is 0.01"):
        run(resume=True, learning_rate=0.01)
    with pytest.raises(ValueError, match="training images was"):
        run(data=to_dataset(rows[:8]), resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model, processor: setattr(model.config, "temperature", 0.1), r"temperature was 0.07 and is 0.1"),
        (lambda model, processor: model.to(torch.bfloat16), r"dtype was 'float32' and is 'bfloat16'"),
        (lambda model, processor: setattr(model.config, "base_model_revision", "abc"), r"was None and is 'abc'"),
        (lambda model, processor: setattr(processor, "image_mean", [0.5] * 3), r"_mean was \[0.48.* is \[0.5, 0.5"),
        (lambda model, processor: setattr(processor, "image_std", [0.5] * 3), r"_std was \[0.26.* is \[0.5, 0.5"),
        (lambda model, processor: setattr(processor, "sigma", 2.0), r"sigma was 4.0 and is 2.0"),
        (lambda model, processor: setattr(processor, "resample", 2), r"resample was 3 and is 2"),
        (lambda model, processor: model.text_projection.weight.data.mul_(2), r"backbone was '\w+' and is '\w+'"),
    ],
)
def test_going_on_with_another_model_or_processor_is_refused(run, tiny_model, tiny_processor, change, message):
    run(max_steps=1)
    change(tiny_model, tiny_processor)
    before = prompts(tiny_model)
    with pytest.raises(ValueError, match=message):
        run(resume=True)
    assert torch.equal(prompts(tiny_model), before)


def test_going_on_with_other_pictures_of_the_same_names_is_refused(run, make_rows, to_dataset):
    run(max_steps=1)
    with pytest.raises(ValueError, match=r"training images was '10 with contents \w+' and is '10 with contents"):
        run(data=to_dataset(make_rows("others/images", seed=5)), resume=True)
    run(data=to_dataset(make_rows("copies/images")), resume=True, max_steps=2)  # the same ones, elsewhere


@pytest.mark.parametrize("fields", [{}, {"initial_prompts": "fresh"}])
def test_thresholds_of_the_prompts_before_are_removed_and_that_is_said(run, tiny_model, monkeypatch, fields):
    said = []
    monkeypatch.setattr(module.logger, "warning", said.append)
    tiny_model.config.image_threshold, tiny_model.config.pixel_threshold = 0.25, 0.5
    result, model = run(max_steps=1, **fields)
    assert (model.config.image_threshold, model.config.pixel_threshold) == (None, None)
    stored = json.loads((result.output_dir / "config.json").read_text())
    assert stored.get("image_threshold") is None and stored.get("pixel_threshold") is None
    (line,) = [line for line in said if "threshold" in line]
    assert line.startswith("image_threshold=0.25 and pixel_threshold=0.5 belong to the prompts before training")


def test_the_summary_names_model_and_prompts(run, tiny_model, tiny_clip_dir, tmp_path):
    from anomalyclip_hf.evaluation.model_card import prompts_checksum

    result, model = run(max_steps=1)
    summary = json.loads((result.output_dir / "training_summary.json").read_text())
    assert summary["base_model"] == tiny_clip_dir
    assert summary["initial_prompts"] == prompts_checksum(tiny_model)
    assert summary["prompts_sha256"] == prompts_checksum(model) != prompts_checksum(tiny_model)
    fresh, _ = run(max_steps=1, initial_prompts="fresh", output_dir=str(tmp_path / "fresh"))
    assert fresh.summary["initial_prompts"] == "fresh"


def test_an_epoch_that_is_better_by_rounding_is_as_good(run, validation_dataset, monkeypatch):
    values = iter([0.9, 0.9 + 1e-9, 0.9 - 1e-9])
    monkeypatch.setattr(module, "validate", lambda *args, **kwargs: {"image_auroc": next(values)})
    result, _ = run(validation=validation_dataset, epochs=3)
    assert result.best_epoch == 1


def test_what_a_killed_run_was_writing_is_removed_by_the_next(run, tmp_path):
    half = tmp_path / "out" / "checkpoints" / ".unfinished"
    half.mkdir(parents=True)
    (half / "prompts.safetensors").write_bytes(b"")
    gone = tmp_path / "out" / ".training_log.999999999-abcdefgh.part.jsonl"
    gone.write_text("")
    run(max_steps=1)
    assert not half.exists() and not gone.exists()


def test_the_best_epoch_is_kept(run, validation_dataset, tiny_model, monkeypatch):
    values, seen = iter([0.5, 0.9, 0.9, 0.7]), []
    original = module.validate

    def scripted(model, *args, **kwargs):
        seen.append(prompts(model))
        return {**original(model, *args, **kwargs), "pixel_auroc": next(values)}

    monkeypatch.setattr(module, "validate", scripted)
    result, model = run(validation=validation_dataset, epochs=4, metric="pixel_auroc")
    assert (result.best_epoch, result.best_metric) == (2, 0.9)
    assert torch.equal(prompts(model), seen[1])
    assert torch.equal(prompts(AnomalyCLIPModel.from_pretrained(str(result.output_dir))), seen[1])
    kept = list((result.output_dir / "checkpoints").glob("step-*/best_prompts.safetensors"))
    assert len(kept) == 2  # each checkpoint carries them


@pytest.mark.parametrize(("metric", "values", "epochs"), [("image_auroc", [0.8, 0.7, 0.8], 3), ("loss", [3, 4, 5], 3)])
def test_patience_stops_early(run, validation_dataset, monkeypatch, metric, values, epochs):
    found = iter(values)
    monkeypatch.setattr(module, "validate", lambda *args, **kwargs: {metric: float(next(found))})
    result, _ = run(validation=validation_dataset, epochs=9, metric=metric, patience=2)
    assert len(result.history) == epochs and result.best_epoch == 1
    assert "no better" in result.summary["stopped"]


def test_resuming_a_run_that_stopped_early_changes_nothing(run, validation_dataset, monkeypatch):
    found = iter([0.8, 0.7, 0.9, 0.95])
    monkeypatch.setattr(module, "validate", lambda *args, **kwargs: {"image_auroc": next(found)})
    _, expected = run(validation=validation_dataset, epochs=4, patience=1)
    again, model = run(validation=validation_dataset, epochs=4, patience=1, resume=True)
    assert (len(again.history), again.best_epoch, again.summary["stopped"]) == (
        2,
        1,
        "no better image_auroc in 1 epochs",
    )
    assert torch.equal(prompts(model), prompts(expected))
    # With more patience, it goes on where it stopped.
    longer, _ = run(validation=validation_dataset, epochs=4, patience=2, resume=True)
    assert (len(longer.history), longer.best_epoch, "stopped" in longer.summary) == (4, 4, False)


def test_patience_needs_a_validation_set(run):
    with pytest.raises(ValueError, match="patience=2 but there is no validation set"):
        run(patience=2)


def test_validation_agrees_with_metrics_of_the_model(run, validation_dataset, tiny_processor):
    from anomalyclip_hf.evaluation.metrics import image_auroc, pixel_auroc

    result, model = run(validation=validation_dataset, epochs=1)
    samples = list(validation_dataset)
    inputs = tiny_processor([s["image"] for s in samples], masks=[s["mask"] for s in samples], return_tensors="pt")
    labels = [s["label"] for s in samples]
    with torch.no_grad():
        output = model(**inputs, labels=torch.tensor(labels))
    found = result.history[0]["validation"]
    maps = [r["anomaly_map"] for r in tiny_processor.post_process_anomaly_detection(output)]
    assert found["image_auroc"] == pytest.approx(image_auroc(output.logits.softmax(-1)[:, 1].numpy(), labels))
    assert found["pixel_auroc"] == pytest.approx(pixel_auroc(maps, list(inputs["masks"].clamp(min=0))), abs=1e-4)
    assert found["loss"] == pytest.approx(output.loss.item(), abs=1e-4)
    assert found["classes"].keys() == {"nut"}


def test_without_masks_the_image_loss_trains_alone(run, rows, to_dataset):
    result, _ = run(data=to_dataset([{**row, "mask": None} for row in rows]), epochs=1)
    assert losses(result)[:, 1].tolist() == [0, 0, 0] and (losses(result)[:, 0] > 0).all()


def test_some_masks_missing_cached_and_uncached_agree(run, rows, to_dataset, tmp_path):
    rows[1]["mask"] = rows[7]["mask"] = None
    data = to_dataset(rows)
    kept, _ = run(data=data, output_dir=str(tmp_path / "a"))
    seen, _ = run(
        data=data, output_dir=str(tmp_path / "b"), no_cache=True, gradient_accumulation_steps=2, num_workers=1
    )
    np.testing.assert_allclose(losses(kept), losses(seen), atol=1e-4)


def test_normal_images_alone_train_with_drawn_anomalies(run, rows, to_dataset):
    result, _ = run(data=to_dataset([row for row in rows if not row["label"]]), synthetic_anomalies=True)
    assert result.summary["training_images"] == 10 and (losses(result)[:, 1] > 0).all()
    # Nothing is drawn again: the features were kept.
    again, _ = run(
        data=to_dataset([row for row in rows if not row["label"]]), synthetic_anomalies=True, overwrite=True
    )
    assert losses(again).tolist() == losses(result).tolist()


def test_fresh_prompts_come_from_the_seed(run, tmp_path):
    runs = [
        run(output_dir=str(tmp_path / str(i)), initial_prompts="fresh", max_steps=1, seed=seed)[1]
        for i, seed in enumerate((1, 1, 2))
    ]
    assert torch.equal(prompts(runs[0]), prompts(runs[1]))
    assert not torch.equal(prompts(runs[0]), prompts(runs[2]))
    assert prompts(runs[0]).std().item() == pytest.approx(0.02, rel=0.15)


def test_nan_names_the_batch_and_keeps_the_last_good_prompts(run, tmp_path, monkeypatch, tiny_model):
    original = module.FeatureCache.read
    calls = []

    def poisoned(self, indices):
        calls.append(indices)
        batch = original(self, indices)
        if len(calls) == 3:
            batch["image_embeds"][0, 0] = float("nan")
        return batch

    monkeypatch.setattr(module.FeatureCache, "read", poisoned)
    with pytest.raises(NonFiniteLossError) as caught:
        run()
    text = str(caught.value)
    assert "step 3 (epoch 1): global_loss=nan" in text and "features of the batch are not finite" in text
    assert all(f"{index:03d}.png" in text for index in calls[2])
    monkeypatch.setattr(module.FeatureCache, "read", original)
    _, good = run(output_dir=str(tmp_path / "good"), max_steps=2)
    kept = load_file(tmp_path / "out" / "checkpoints" / "step-00000002" / "prompts.safetensors")
    assert torch.equal(kept["context"], good.prompt_learner.context)


def test_too_high_a_learning_rate_is_said(run):
    with pytest.raises(NonFiniteLossError, match="Try a lower learning_rate"):
        run(learning_rate=1e30)


def test_unreadable_images_are_counted(run, rows, to_dataset):
    with open(rows[2]["path"], "wb") as file:
        file.write(b"no picture")
    result, _ = run(data=to_dataset(rows), epochs=1)
    assert (result.summary["training_images"], result.summary["unreadable_images"]) == (9, 1)
    with pytest.raises(ValueError, match=r"002\.png can't be read"):
        run(data=to_dataset(rows), epochs=1, no_cache=True, overwrite=True)


def test_bfloat16_autocast_follows_float32(run, tmp_path):
    from accelerate.state import AcceleratorState

    exact, _ = run(output_dir=str(tmp_path / "exact"), epochs=1)
    AcceleratorState._reset_state()
    try:
        rough, model = run(epochs=1, mixed_precision="bf16")
    finally:
        AcceleratorState._reset_state()
    assert losses(rough).tolist() != losses(exact).tolist()
    np.testing.assert_allclose(losses(rough), losses(exact), rtol=0.05)
    assert model.prompt_learner.context.dtype == torch.float32
    # accelerate's wrapper is off again.
    with torch.no_grad():
        assert not hasattr(model, "_original_forward")


def test_a_depth_of_one_has_no_deep_prompts_to_train(tiny_clip_dir, tiny_processor, dataset, make_args):
    model = AnomalyCLIPModel.from_pretrained(tiny_clip_dir, image_size=42, deep_prompt_depth=1)
    before = model.prompt_learner.context.detach().clone()
    train_prompts(model, tiny_processor, dataset, make_args(epochs=1))
    assert model.prompt_learner.deep_prompts.numel() == 0
    assert not torch.equal(model.prompt_learner.context, before)


def test_deterministic_is_undone_afterwards(run):
    result, _ = run(deterministic=True, epochs=1)
    assert math.isfinite(result.history[0]["loss"])
    assert not torch.are_deterministic_algorithms_enabled()


def test_tensorboard(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result, _ = run(report_to="tensorboard", epochs=1)
    (folder,) = {
        path.parent for path in result.output_dir.rglob("events.out*") if path.parent.name == "anomalyclip_hf"
    }
    events = EventAccumulator(str(folder)).Reload()
    logged = [event.value for event in events.Scalars("train/local_loss")]
    np.testing.assert_allclose(logged, losses(result)[:, 1], rtol=1e-5)


def test_an_unknown_tracker_is_refused(run):
    with pytest.raises(ValueError, match="Unsupported logging capability: nothing"):
        run(report_to="nothing")


def test_a_processor_of_another_size_is_refused(tiny_model, dataset, make_args):
    with pytest.raises(ValueError, match="56x56 pixels but the model's image_size is 42"):
        train_prompts(tiny_model, AnomalyCLIPProcessor(size={"height": 56, "width": 56}), dataset, make_args())


def test_random_numbers_go_on(run, tmp_path, monkeypatch):
    """What is drawn at random while training is the same after a run was cut off."""
    original = module.TrainingSamples._load

    def augment(self, index):
        image, mask = original(self, index)
        return image.rotate(60 * (np.random.rand() + random.random() + torch.rand(1).item())), mask

    monkeypatch.setattr(module.TrainingSamples, "_load", augment)
    _, expected = run(no_cache=True, output_dir=str(tmp_path / "whole"))
    run(no_cache=True, max_steps=4)
    _, model = run(no_cache=True, resume=True)
    assert torch.equal(prompts(model), prompts(expected))


def test_an_accelerator_of_ones_own_serves_run_after_run(
    run, tiny_model, tiny_processor, dataset, make_args, tmp_path
):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)  # which is ours to say
    for name, seed in (("a", 1), ("b", 2)):
        args = make_args(output_dir=str(tmp_path / name), seed=seed, max_steps=4)
        train_prompts(copy.deepcopy(tiny_model), tiny_processor, dataset, args, accelerator=accelerator)
    _, model = run(output_dir=str(tmp_path / "b"), seed=2, resume=True)
    _, expected = run(output_dir=str(tmp_path / "c"), seed=2)
    assert torch.equal(prompts(model), prompts(expected))


def test_former_names_warn(recwarn):
    import anomalyclip_hf.training as training

    with pytest.warns(FutureWarning, match="TrainingArguments is now PromptTrainingArguments"):
        assert training.TrainingArguments is PromptTrainingArguments
