"""Importing is cheap and silent, from whichever side; transformers then knows config, model, processor and task."""

import json
import subprocess
import sys
import textwrap

import pytest
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

import anomalyclip_hf
from anomalyclip_hf import AnomalyCLIPConfig, AnomalyCLIPModel, AnomalyCLIPProcessor


def run(code: str, *flags: str) -> str:
    """Output of a fresh interpreter."""
    result = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip() + result.stderr.strip()


def test_auto_classes(tiny_checkpoint):
    assert type(AutoConfig.from_pretrained(tiny_checkpoint)) is AnomalyCLIPConfig
    assert type(AutoModel.from_pretrained(tiny_checkpoint)) is AnomalyCLIPModel
    assert type(AutoProcessor.from_pretrained(tiny_checkpoint)) is AnomalyCLIPProcessor
    assert type(AutoImageProcessor.from_pretrained(tiny_checkpoint)) is AnomalyCLIPProcessor
    assert AutoImageProcessor.from_pretrained(tiny_checkpoint).size == {"height": 42, "width": 42}


def test_the_task_is_known():
    entry = PIPELINE_REGISTRY.supported_tasks["zero-shot-anomaly-detection"]
    assert entry["impl"] is anomalyclip_hf.ZeroShotAnomalyDetectionPipeline and entry["type"] == "image"
    assert entry["default"]["model"][0] == anomalyclip_hf.demo_checkpoint()


def test_every_exported_name_exists():
    assert set(anomalyclip_hf.__all__) <= set(dir(anomalyclip_hf))
    for name in anomalyclip_hf.__all__:
        assert getattr(anomalyclip_hf, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'AnomalyClip'"):
        _ = anomalyclip_hf.AnomalyClip


def test_importing_is_silent_and_loads_little():
    """Nothing printed, and nothing heavy loaded that transformers' own Auto classes and pipelines don't load."""
    code = """
        import sys
        import transformers.pipelines, transformers.models.auto.modeling_auto, transformers.models.auto.processing_auto
        before = {name.partition(".")[0] for name in sys.modules}
        import anomalyclip_hf
        heavy = {"matplotlib", "scipy", "skimage", "datasets", "evaluate", "sklearn", "pandas", "pyarrow"} - before
        print([name for name in sorted(heavy) if name in sys.modules])
    """
    assert run(code) == "[]"


@pytest.mark.slow
def test_importing_adds_little_time():
    """At most 0.5 s on top of transformers' Auto classes; the best of three, because the machine may be busy."""
    code = """
        import time
        import transformers.pipelines, transformers.models.auto.modeling_auto, transformers.models.auto.processing_auto
        start = time.perf_counter()
        import anomalyclip_hf
        print(time.perf_counter() - start)
    """
    assert any(float(run(code)) <= 0.5 for _ in range(3))


FIRST_IMPORTS = [
    "from anomalyclip_hf import AnomalyCLIPConfig",
    "from anomalyclip_hf.pipeline_anomalyclip import ZeroShotAnomalyDetectionPipeline",
    "import transformers.pipelines, anomalyclip_hf",
]


@pytest.mark.slow
@pytest.mark.parametrize("first", FIRST_IMPORTS)
def test_any_order_of_imports_registers_everything(first):
    """Whatever is imported first in a fresh interpreter, nothing is half-imported and all is known in the end."""
    code = f"""
        {first}
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor
        from transformers.pipelines import PIPELINE_REGISTRY
        from anomalyclip_hf import AnomalyCLIPConfig, AnomalyCLIPModel
        assert type(AutoConfig.for_model("anomalyclip")) is AnomalyCLIPConfig
        assert AutoModel._model_mapping[AnomalyCLIPConfig] is AnomalyCLIPModel
        assert "zero-shot-anomaly-detection" in PIPELINE_REGISTRY.get_supported_tasks()
        print("known")
    """
    flags = ("-W", "error::FutureWarning:transformers", "-W", "error:.*deprecated.*:DeprecationWarning:transformers")
    assert run(code, *flags) == "known"


def test_processors_of_older_checkpoints(tiny_processor, tmp_path):
    """They name the processor, and their own copy of its code, as older versions did."""
    tiny_processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "anomalyclip"}')
    path = tmp_path / "preprocessor_config.json"
    old = {"image_processor_type": "AnomalyCLIPProcessor"}
    for more in ({}, {"auto_map": {"AutoImageProcessor": "processing_anomalyclip.AnomalyCLIPProcessor"}}):
        path.write_text(json.dumps({**json.loads(path.read_text()), **old, **more}))
        for loader in (AutoImageProcessor, AutoProcessor, AnomalyCLIPProcessor):
            loaded = loader.from_pretrained(tmp_path)
            assert type(loaded) is anomalyclip_hf.AnomalyCLIPImageProcessor
            assert loaded.to_dict() == tiny_processor.to_dict()


def test_old_module_names():
    code = """
        import warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            from anomalyclip_hf.processing_anomalyclip import AnomalyCLIPProcessor, gaussian_smooth, load_image
        print([one.category.__name__ for one in caught if "processing_anomalyclip" in str(one.message)])
    """
    assert run(code) == "['FutureWarning']"
