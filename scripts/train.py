"""Learn AnomalyCLIP's prompts: `python scripts/train.py --help`, or `accelerate launch scripts/train.py ...`."""

import sys

from anomalyclip_hf.training.command import main

if __name__ == "__main__":
    sys.exit(main())
