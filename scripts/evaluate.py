"""Judge AnomalyCLIP: `python scripts/evaluate.py --help`, or `accelerate launch scripts/evaluate.py ...`."""

import sys

from anomalyclip_hf.evaluation.command import main

if __name__ == "__main__":
    sys.exit(main())
