"""Share a model on the Hub, as `anomalyclip push` does."""

import sys
from collections.abc import Sequence

from anomalyclip_hf.cli import run_command


def main(words: Sequence[str] | None = None) -> int:
    """Push; the former option --no-code says what is the default now."""
    words = sys.argv[1:] if words is None else words
    return run_command("push", [word for word in words if word not in ("--no-code", "--no_code")])


if __name__ == "__main__":
    sys.exit(main())
