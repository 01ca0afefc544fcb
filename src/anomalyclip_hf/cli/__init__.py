"""The command `anomalyclip`: a small module for each subcommand, imported when it is called."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Sequence

from .. import __version__

# name -> what it does; the module of that name has `Settings` (a dataclass) and `run(settings) -> exit status`.
COMMANDS = {
    "predict": "Score images: files, folders or a data set in; records and heat maps out.",
    "evaluate": "Judge a model on labelled data sets: metrics, scores, a report.",
    "calibrate": "Choose the thresholds of a model from images like those to come.",
    "train": "Learn the two prompts on labelled images; the backbone stays as it is.",
    "inspect": "Report what a data set holds and what is wrong with it, or export it as a datasets repository.",
    "export": "Write a model for ONNX Runtime, OpenVINO or torch.export, and a certificate of what that changed.",
    "push": "Share a model on the Hub: the prompts alone, everything, or the vision-only form.",
    "app": "Open a page to score images with, in a browser.",
    "convert": "Convert a checkpoint of the authors' program (epoch_N.pth) to prompts of this package.",
}


def main(words: Sequence[str] | None = None, **given: Callable) -> int:
    """Run `anomalyclip`.

    Args:
        words (`Sequence[str]`, *optional*): the command line; that of the process if absent.
        **given: further arguments of the subcommand's `run`, which scripts of a checkout have.

    Returns:
        exit status: 0 all done, 1 some of it skipped, 2 nothing done or wrong use, 130 and 143 if interrupted.
    """
    import typer

    words = list(sys.argv[1:] if words is None else words)
    if words == ["--version"]:
        print(f"anomalyclip_hf {__version__}")
        return 0
    app = typer.Typer(
        name="anomalyclip",
        help="Find anomalies in images of objects that no model was trained on. --version says which this is.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for name, text in COMMANDS.items():
        if words[:1] == [name]:
            from .options import make_command, spell

            module = importlib.import_module(f".{name}", __name__)
            app.command(name)(make_command(module.Settings, functools.partial(module.run, **given)))
            words = [name, *spell(words[1:], module.Settings)]
        else:
            app.command(name, help=text)(lambda: None)
    try:
        app(words, prog_name="anomalyclip")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    return 0


def run_command(name: str, words: Sequence[str] | None = None, **given: Callable) -> int:
    """Run one subcommand, for a script of its name.

    Args:
        name (`str`): one of `COMMANDS`.
        words (`Sequence[str]`, *optional*): the command line after it; that of the process if absent.
        **given: as of [`main`].
    """
    return main([name, *(sys.argv[1:] if words is None else words)], **given)
