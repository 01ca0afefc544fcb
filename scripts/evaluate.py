"""Judge AnomalyCLIP: `python scripts/evaluate.py --help`, or `accelerate launch scripts/evaluate.py ...`."""

import sys
from pathlib import Path

from anomalyclip_hf.evaluation.command import main

sys.path.append(str(Path(__file__).resolve().parent / "demo_model"))
from draw import draw  # what `synthetic` stands for

if __name__ == "__main__":
    sys.exit(main(draw=draw))
