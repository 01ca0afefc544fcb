"""Learn AnomalyCLIP's prompts: `python scripts/train.py --help`, or `accelerate launch scripts/train.py ...`."""

import sys
from pathlib import Path

from anomalyclip_hf.training.command import main

sys.path.append(str(Path(__file__).resolve().parent / "demo_model"))
from draw import draw  # what `synthetic` stands for

if __name__ == "__main__":
    sys.exit(main(draw=draw))
