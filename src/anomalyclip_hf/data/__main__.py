"""`python -m anomalyclip_hf.data`: look at a data set, or export it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ..cli.running import run_until_interrupted
from .arguments import add_source_arguments, source_arguments

FINE, PROBLEMS_FOUND = 0, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 fine, 1 problems under --strict, 2 unusable source."""
    parsed = _parser().parse_args(arguments)
    return run_until_interrupted(lambda _: parsed.run(parsed), options=list(vars(parsed)))


def _source(parsed: argparse.Namespace) -> dict[str, Any]:
    from .loading import make_options

    given = source_arguments(parsed)
    kind = given.pop("kind", None)
    return {"kind": kind, "options": make_options(**given)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m anomalyclip_hf.data", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    look = commands.add_parser("inspect", help="report what a source holds and what is wrong with it")
    look.add_argument("source", help="name, folder, table, meta.json or repository")
    look.add_argument("--split", default="all", help="one split, or all (default)")
    look.add_argument("--strict", action="store_true", help="end with status 1 where there is any problem")
    look.add_argument("--contact_sheet", metavar="PATH", help="write a sheet with masks outlined there")
    look.add_argument("--limit", type=int, default=10, help="examples shown of each problem (default 10)")
    look.add_argument("--num_workers", type=int, help="reading threads")
    look.add_argument("--no_progress", action="store_true", help="show no bar")
    add_source_arguments(look)
    look.set_defaults(run=_inspect)
    export = commands.add_parser("export", help="save or push a source as a datasets repository")
    export.add_argument("source", help="as for inspect")
    export.add_argument("out", help="folder to write, or owner/name with --push")
    export.add_argument("--push", action="store_true", help="upload to the Hub instead of writing a folder")
    export.add_argument("--public", action="store_true", help="with --push: make the repository public")
    export.add_argument("--license", help="licence id, where you know it; never guessed")
    export.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    add_source_arguments(export)
    export.set_defaults(run=_export)
    return parser


def _inspect(parsed: argparse.Namespace) -> int:
    from .inspect import inspect_source

    if parsed.limit < 0:
        raise ValueError(f"limit={parsed.limit}, expected 0 or more")
    report = inspect_source(
        parsed.source,
        parsed.data_dir,
        parsed.split,
        contact_sheet=parsed.contact_sheet,
        progress=not parsed.no_progress,
        num_workers=parsed.num_workers,
        **_source(parsed),
    )
    print(report.to_text(parsed.limit))
    if parsed.contact_sheet:
        print(f"contact sheet: {parsed.contact_sheet}")
    return PROBLEMS_FOUND if parsed.strict and report.problems else FINE


def _export(parsed: argparse.Namespace) -> int:
    from .export import export_source

    where = export_source(
        parsed.source,
        parsed.out,
        parsed.data_dir,
        push=parsed.push,
        private=not parsed.public,
        license=parsed.license,
        overwrite=parsed.overwrite,
        **_source(parsed),
    )
    print(where)
    return FINE


if __name__ == "__main__":
    sys.exit(main())
