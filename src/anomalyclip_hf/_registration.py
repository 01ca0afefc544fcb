"""Registration with transformers' Auto classes and pipelines, put off until transformers loads those modules."""

import contextlib
import importlib.abc
import importlib.machinery
import sys
import threading
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


# transformers' module -> what to do once it has been loaded.
ACTIONS: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_model,
    "transformers.models.auto.processing_auto": _register_processor,
    "transformers.models.auto.image_processing_auto": _register_image_processor,
    "transformers.pipelines": _register_pipeline,
}
_WATCHED = ("transformers.", f"{__name__.rpartition('.')[0]}.")


class _Watched:
    """A module's own loader, which reports when the module's execution begins and ends."""

    def __init__(self, loader, finder: "_AfterImport") -> None:
        self._loader, self._finder = loader, finder

    def __getattr__(self, name: str):  # get_code for `python -m`, get_source for tracebacks, ...
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        with self._finder.importing():
            self._loader.exec_module(module)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Runs actions once the outermost import of transformers' or our modules is over.

    transformers' modules import one another in circles: an action taken in their midst would meet half of them.
    """

    def __init__(self) -> None:
        self._pending = dict(ACTIONS)
        self._depth = threading.local()

    def find_spec(self, fullname, path=None, target=None):
        if not self._pending or not fullname.startswith(_WATCHED):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Watched(spec.loader, self)  # type: ignore[assignment]
        return spec

    @contextlib.contextmanager
    def importing(self):
        """Around the execution of a module; after the outermost, pending actions are taken."""
        self._depth.value = getattr(self._depth, "value", 0) + 1
        try:
            yield
        finally:
            self._depth.value -= 1
        if self._depth.value == 0:
            self.run_pending()

    def run_pending(self) -> None:
        """Take the actions whose module is loaded, each once."""
        for name in [name for name in self._pending if name in sys.modules]:
            if (action := self._pending.pop(name, None)) is not None:
                action()


def register_with_transformers() -> None:
    """Register config, model, processor and pipeline: at once where transformers' part is loaded, else when it is.

    Importing all of transformers' Auto modules here would take longer than importing transformers itself.
    """
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        finder = _AfterImport()
        sys.meta_path.insert(0, finder)
        finder.run_pending()
