"""Registration with transformers' Auto classes and pipelines, put off until transformers loads those modules."""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable

TASK = "zero-shot-anomaly-detection"


def _register_config() -> None:
    from transformers import AutoConfig

    from .configuration_anomalyclip import AnomalyCLIPConfig

    AutoConfig.register("anomalyclip", AnomalyCLIPConfig, exist_ok=True)


def _register_model() -> None:
    from transformers import AutoModel

    from .configuration_anomalyclip import AnomalyCLIPConfig
    from .modeling_anomalyclip import AnomalyCLIPModel

    AutoModel.register(AnomalyCLIPConfig, AnomalyCLIPModel, exist_ok=True)


def _register_processor() -> None:
    from transformers import AutoProcessor

    from .configuration_anomalyclip import AnomalyCLIPConfig
    from .processing_anomalyclip import AnomalyCLIPProcessor

    AutoProcessor.register(AnomalyCLIPConfig, AnomalyCLIPProcessor, exist_ok=True)


def _register_image_processor() -> None:
    from transformers import AutoImageProcessor

    from .configuration_anomalyclip import AnomalyCLIPConfig
    from .processing_anomalyclip import AnomalyCLIPProcessor

    AutoImageProcessor.register(
        AnomalyCLIPConfig, image_processor_classes={"pil": AnomalyCLIPProcessor}, exist_ok=True
    )


def _register_pipeline() -> None:
    from transformers.pipelines import PIPELINE_REGISTRY

    from .assets import demo_checkpoint
    from .modeling_anomalyclip import AnomalyCLIPModel
    from .pipeline_anomalyclip import ZeroShotAnomalyDetectionPipeline

    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=ZeroShotAnomalyDetectionPipeline,
            pt_model=AnomalyCLIPModel,
            default={"model": (demo_checkpoint(), "main")},
            type="image",
        )


# (transformers' module, our module that the action imports) -> what to do once the first is loaded.
RULES: dict[tuple[str, str], Callable[[], None]] = {
    ("transformers.models.auto.configuration_auto", "configuration_anomalyclip"): _register_config,
    ("transformers.models.auto.modeling_auto", "modeling_anomalyclip"): _register_model,
    ("transformers.models.auto.processing_auto", "processing_anomalyclip"): _register_processor,
    ("transformers.models.auto.image_processing_auto", "processing_anomalyclip"): _register_image_processor,
    ("transformers.pipelines", "pipeline_anomalyclip"): _register_pipeline,
}
_PACKAGE = __name__.rpartition(".")[0]
_WATCHED = {name for theirs, ours in RULES for name in (theirs, f"{_PACKAGE}.{ours}")}


class _AfterImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Runs registrations after a watched module has been executed; otherwise leaves importing as it is."""

    def __init__(self) -> None:
        self._loaders: dict[str, importlib.abc.Loader] = {}
        self._finding: set[str] = set()
        self._done = {name for name in _WATCHED if name in sys.modules}

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in _WATCHED or fullname in self._finding:
            return None
        self._finding.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._finding.discard(fullname)
        if spec is None or spec.loader is None:
            return None
        self._loaders[fullname] = spec.loader
        spec.loader = self
        return spec

    def create_module(self, spec):
        return self._loaders[spec.name].create_module(spec)

    def exec_module(self, module):
        name = module.__spec__.name
        loader = self._loaders.pop(name)
        module.__spec__.loader = module.__loader__ = loader
        loader.exec_module(module)
        self._done.add(name)
        self.apply(name)

    def apply(self, changed: str | None = None) -> None:
        """Run the rules that `changed` takes part in and whose modules are not in the midst of being imported."""
        for (theirs, ours), action in RULES.items():
            own = f"{_PACKAGE}.{ours}"
            if changed in (None, theirs, own) and theirs in self._done:
                # Importing our module may be what loaded theirs: then the rule runs when ours is done.
                if own not in sys.modules or own in self._done:
                    action()


def register_with_transformers() -> None:
    """Register config, model, processor and pipeline: at once where transformers' part is loaded, else when it is.

    Importing all of transformers' Auto modules here would double the time that `import anomalyclip_hf` takes.
    """
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        finder = _AfterImport()
        sys.meta_path.insert(0, finder)
        finder.apply()
