"""Export a model, as `anomalyclip export` does; the source `synthetic` are the drawings of scripts/demo_model."""

import sys
from functools import partial
from pathlib import Path

from anomalyclip_hf.cli import run_command

sys.path.append(str(Path(__file__).resolve().parent / "demo_model"))
from draw import draw

main = partial(run_command, "export", draw=draw)

if __name__ == "__main__":
    sys.exit(main())
