"""Importing is cheap and silent, from whichever side; transformers then knows config, model, processor and task."""

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
    assert set(anomalyclip_hf.__all__) == set(anomalyclip_hf._EXPORTS) <= set(dir(anomalyclip_hf))
    for name in anomalyclip_hf.__all__:
        assert getattr(anomalyclip_hf, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'AnomalyClip'"):
        _ = anomalyclip_hf.AnomalyClip


def test_importing_is_light_and_silent():
    """Nothing heavy is loaded, nothing printed."""
    code = """
        import sys
        import anomalyclip_hf
        heavy = ("torch", "numpy", "PIL", "matplotlib", "scipy", "datasets", "evaluate", "accelerate", "sklearn")
        print([name for name in heavy if name in sys.modules])
    """
    assert run(code) == "[]"


@pytest.mark.slow
def test_importing_adds_little_time():
    """At most 0.3 s on top of transformers; the best of three, because the machine may be busy."""
    code = """
        import time
        import transformers
        start = time.perf_counter()
        import anomalyclip_hf
        print(time.perf_counter() - start)
    """
    assert min(float(run(code)) for _ in range(3)) <= 0.3


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


def test_registering_twice_changes_nothing():
    from anomalyclip_hf._registration import register_with_transformers

    finders = list(sys.meta_path)
    register_with_transformers()
    assert sys.meta_path == finders
