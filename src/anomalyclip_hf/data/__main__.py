"""`python -m anomalyclip_hf.data inspect|export`: the former spelling of `anomalyclip inspect`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(words: Sequence[str] | None = None) -> int:
    """Run `anomalyclip inspect`, which exports too; returns its exit status.

    Args:
        words (*optional*): `inspect SOURCE ...` or `export SOURCE OUT ...`; those of the process if absent.
    """
    from ..cli import run_command

    command, *rest = list(sys.argv[1:] if words is None else words) or ["inspect"]
    if command == "export":
        places = rest[:2]
        if len(places) < 2 or any(place.startswith("-") for place in places):
            print("error: expected export SOURCE OUT, then the options", file=sys.stderr)
            return 2
        return run_command("inspect", [places[0], "--export", *rest[1:]])
    return run_command("inspect", rest if command == "inspect" else [command, *rest])


if __name__ == "__main__":
    sys.exit(main())
