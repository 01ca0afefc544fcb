"""The model and the processor that options of a command name."""

from typing import Any


def load_model(command: Any) -> Any:
    """The model of a command, with what its options override.

    Args:
        command: dataclass with `model` ("demo" is the embedded one), `revision`, `preset`, `image_size` and `dtype`;
            None leaves a setting as the checkpoint has it.

    Returns:
        [`AnomalyCLIPModel`].
    """
    from .. import AnomalyCLIPModel

    names = ("revision", "preset", "image_size", "dtype")
    overrides = {name: value for name in names if (value := getattr(command, name)) is not None}
    return AnomalyCLIPModel.from_pretrained(_checkpoint(command), **overrides)


def load_processor(command: Any, image_size: int) -> Any:
    """The processor of a command, at the model's image size (pixels).

    Returns:
        [`AnomalyCLIPProcessor`].
    """
    from .. import AnomalyCLIPProcessor

    revision = {"revision": command.revision} if command.revision else {}
    size = {"height": image_size, "width": image_size}
    return AnomalyCLIPProcessor.from_pretrained(_checkpoint(command), size=size, **revision)


def _checkpoint(command: Any) -> str:
    from .. import demo_checkpoint

    return demo_checkpoint() if command.model == "demo" else command.model
