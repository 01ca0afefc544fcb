"""The embedded default: a small CLIP of our own with learned prompts, for trying things out."""

from pathlib import Path

DEMO = Path(__file__).parent / "demo"


def demo_checkpoint() -> str:
    """Folder of the embedded default, loadable by every `from_pretrained` of this package.

    It is a stand-in to try things out with: a CLIP of a few million parameters trained on drawings.
    """
    return str(DEMO)
