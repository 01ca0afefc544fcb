"""Convert a checkpoint of the authors' program to prompts, as `anomalyclip convert` does."""

import sys
from functools import partial

from anomalyclip_hf.cli import run_command

main = partial(run_command, "convert")

if __name__ == "__main__":
    sys.exit(main())
