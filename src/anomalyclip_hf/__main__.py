"""`python -m anomalyclip_hf`, and `accelerate launch -m anomalyclip_hf`: the command `anomalyclip`."""

import sys

from .cli import main

sys.exit(main())
