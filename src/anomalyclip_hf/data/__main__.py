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

    words = list(sys.argv[1:] if words is None else words)
    if words[:1] == ["export"]:
        return run_command("inspect", [*words[1:2], "--export", *words[2:]])
    return run_command("inspect", words[1:] if words[:1] == ["inspect"] else words)


if __name__ == "__main__":
    sys.exit(main())
