"""How a command ends: one line and an exit status, whatever stops it."""

import _thread
import ast
import json
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..data.files import one_line

_NAMES = "anomalyclip_option_names"  # attribute of an error
FAILED, INTERRUPTED, TERMINATED = 2, 130, 143  # the last two: 128 and the number of the signal, as shells say it
AGAIN = 0.05  # seconds until a signal that was lost is sent again


class _Terminated(BaseException):
    """SIGTERM, raised where the work is, so that whatever cleans up does; never caught as an error."""


def run_until_interrupted(main: Callable[[], int], options: Collection[str] = ()) -> int:
    """Run a command: an interruption, or an error of settings and data, is one line on stderr and an exit status.

    Args:
        main: returns the exit status.
        options: names of the command's options; where an error speaks of the argument of that name (`name=value`), the
            line says `--name=value`.

    Returns:
        the status of `main`, 130 for Ctrl-C, 143 for SIGTERM, or 2 for OSError, ValueError, TypeError, RuntimeError,
        AssertionError, MemoryError, ImportError and the refusals of a configuration. Others, such as KeyError, are
        faults of ours and pass.
    """
    try:
        with _stopped_by_signals(), _plain_warnings():
            return main()
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept", file=sys.stderr)
        return INTERRUPTED
    except _Terminated:
        print("terminated: what was finished is kept", file=sys.stderr)
        return TERMINATED
    except _expected_errors() as error:
        print(f"error: {_as_one_line(error, options)}", file=sys.stderr)
        return FAILED


def _expected_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import StrictDataclassError  # of a configuration's fields

    built_in = (OSError, ValueError, TypeError, RuntimeError, AssertionError, MemoryError, ImportError)
    return (*built_in, StrictDataclassError)


def _as_one_line(error: Exception, options: Collection[str]) -> str:
    text = re.sub(r"(, expected [^;:]*?) or None\b", r"\1", one_line(" ".join(str(error).split())))
    text = text or type(error).__name__
    return name_options(text, options, getattr(error, _NAMES, {})) if options else text


def dashed(name: str) -> str:
    """An option as it is typed: `image_size` is `--image-size`."""
    return f"--{name.replace('_', '-')}"


@contextmanager
def naming(**options: str) -> Iterator[None]:
    """Errors raised in the block speak of arguments by options of other names.

    Args:
        **options: name of an argument -> the option's, as in `split="train_split"`, or `"option.key"` where the
            argument is a key of the JSON object that the option takes.
    """
    try:
        yield
    except Exception as error:
        setattr(error, _NAMES, {**options, **getattr(error, _NAMES, {})})
        raise


def name_options(message: str, names: Collection[str], others: Mapping[str, str] | None = None) -> str:
    """The message of an error with options of the command line in place of Python arguments.

    Args:
        message: such as `split='dev', but ...; give split="all"`.
        names: the options there are, without dashes.
        others (*optional*): arguments whose options have other names, as of [`naming`].
    """
    others = others or {}

    def spell(match: re.Match) -> str:
        argument, value = match.group(1), match.group(2)
        option, _, key = others.get(argument, argument).partition(".")
        name, is_long = dashed(option), "_" in argument
        if value and "|" in value:  # of a method, in a list of those there are
            return match.group()
        if value is None:  # `split` is a word as well, and what is quoted is no option
            quoted = message[match.start() - 1 : match.start()] in ("'", '"')
            return name if is_long and not quoted else match.group()
        if key:
            return f"{name} '{{\"{key}\": {_as_json(value)}}}'"
        if value == "None":
            return f"no {name}"
        is_text = value[0] in "'\""
        if value.startswith("[["):
            return f"{name} {value}"
        bare = value[1:-1] if is_text else re.sub(r"^[(\[]|[)\]]$|(?<!\w)['\"]|['\"](?!\w)", "", value)
        bare = bare if is_text else bare.replace(",", "").strip()
        return name if bare in ("", "True") else f"{name} {bare}"

    known = "|".join(map(re.escape, sorted({*names, *others}, key=len, reverse=True)))
    value = r"\[\[.*?\]\]|\([^()]*\)|\[[^\[\]]*\]|\"[^\"]*\"|'[^']*'|\.\.\.|[^\s,;:()]+"
    return re.sub(rf"(?<![\w/.-])({known})(?![\w/.-])(?:=({value}))?", spell, message)


def _as_json(value: str) -> str:
    """A value as Python writes it, in JSON; `(...)` stands for a list of names."""
    try:
        return json.dumps(ast.literal_eval(value))
    except (ValueError, SyntaxError, TypeError):
        return "[...]" if value == "(...)" else value


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings as one line each, without the line of source that warns."""

    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)

    former, warnings.showwarning = warnings.showwarning, show
    try:
        yield
    finally:
        warnings.showwarning = former


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Raise [`_Terminated`] on SIGTERM in the main thread of this process; forked children end as they used to.

    What it and Ctrl-C raise is lost where Python can't pass it on: in `__del__`, and in callbacks of weak references,
    which the garbage collector calls wherever the work is. There the signal is sent again, a moment later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own, lock, is_running = os.getpid(), threading.Lock(), True

    def end(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() == own:
            raise _Terminated
        os.kill(os.getpid(), number)

    def send_again(number: int) -> None:
        time.sleep(AGAIN)
        with lock:  # never once the command has ended
            if is_running:
                os.kill(own, number)

    def note_lost(lost: Any) -> None:
        number = {KeyboardInterrupt: signal.SIGINT, _Terminated: signal.SIGTERM}.get(lost.exc_type)
        if number is None or os.getpid() != own or threading.current_thread() is not threading.main_thread():
            former_hook(lost)
            return
        if number == signal.SIGTERM:
            signal.signal(number, end)
        # No `threading.Thread`: the work may hold the locks that starting one takes.
        _thread.start_new_thread(send_again, (number,))

    former_hook, sys.unraisablehook = sys.unraisablehook, note_lost
    former = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        try:
            with lock:
                is_running = False
        finally:  # should one come just now
            signal.signal(signal.SIGTERM, former if former is not None else signal.SIG_DFL)
            sys.unraisablehook = former_hook
