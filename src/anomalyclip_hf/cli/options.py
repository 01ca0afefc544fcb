"""The one command-line style: a dataclass becomes a command, each of its fields an option in dashes."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
import yaml

from .running import dashed, run_until_interrupted

SETTINGS_SUFFIXES = (".json", ".yaml", ".yml")
TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


def make_command(settings: type, run: Callable[[Any], int]) -> Callable[..., None]:
    """A function for `typer.Typer.command` with a parameter for each field of a dataclass.

    Args:
        settings: a dataclass; fields made by `data.options.option`, of type `str`, `int`, `float`, `bool` or `list` of
            these, also `| None`, are options. Its docstring is the command's help.
        run: takes an instance and returns the exit status.
    """
    fields = option_fields(settings)

    def start(**given: Any) -> int:
        from .checking import check_settings

        made = settings(**given)
        check_settings(made)
        return run(made)

    def command(**values: Any) -> None:
        values.pop("config")
        # A list option without words is an empty list.
        given = {k: [word for word in v if word != ""] if isinstance(v, list) else v for k, v in values.items()}
        raise typer.Exit(run_until_interrupted(lambda: start(**given), list(fields)))

    # Lines of a paragraph are joined: a terminal may be narrower than a docstring.
    command.__doc__ = _escape(re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(settings.__doc__ or "")))
    parameters = [_parameter(field, kind) for field, kind in fields.values()]
    config = typer.Option(
        callback=_read_config({name: kind for name, (_, kind) in fields.items()}),
        is_eager=True,
        metavar="FILE",
        help="YAML or JSON file of settings; options go before it.",
    )
    annotation = Annotated[str | None, config]
    parameters.append(inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def option_fields(settings: type) -> dict[str, tuple[dataclasses.Field, Any]]:
    """Name of each option of a dataclass -> its field, and its type without `| None`."""
    hints = get_type_hints(settings)
    fields = [field for field in dataclasses.fields(settings) if field.init and "help" in field.metadata]
    return {field.name: (field, _without_none(hints[field.name])) for field in fields}


def spell(words: Sequence[str], settings: type) -> list[str]:
    """Words of a command line as typer reads them.

    Names of options may have underscores, words of a list follow their option (`--sources a b`), flags may have a
    value (`--exact false`), some options need none, and a settings file may come first in place of `--config`.

    Args:
        words (`Sequence[str]`): without the command's own name.
        settings: the command's dataclass.
    """
    fields = {dashed(name): found for name, found in option_fields(settings).items()}
    words, spelled = list(words), list[str]()
    takes_files = any(field.metadata.get("argument") for field, _ in fields.values())
    if words and words[0].endswith(SETTINGS_SUFFIXES) and not takes_files:
        words.insert(0, "--config")
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if word == "--":
            return [*spelled, word, *words]
        if name not in fields:
            spelled.append(name + equals + value if word.startswith("--") else word)
            continue
        field, kind = fields[name]
        if kind is bool:
            if not equals and words and words[0].lower() in TRUE + FALSE:
                value = words.pop(0)
            wanted = value.lower() not in FALSE
            spelled += [name] if wanted else [f"--no-{name[2:]}"] if field.default is not False else []
        elif get_origin(kind) is list and not equals:
            number = next((i for i, one in enumerate(words) if _is_option(one)), len(words))
            for one in words[:number] or [""]:
                spelled += [name, one]
            del words[:number]
        elif not equals and "bare" in field.metadata and (not words or _is_option(words[0])):
            spelled += [name, field.metadata["bare"]]
        else:
            spelled.append(name + equals + value)
    return spelled


def read_settings(path: str, known: Sequence[str]) -> dict[str, Any]:
    """Settings of a YAML or JSON file; their names may have dashes or underscores.

    Raises:
        ValueError: if it can't be read, is no mapping, or names a setting that isn't known.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        settings = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} can't be read as settings: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds a {type(settings).__name__}, expected names and values")
    settings = {str(name).replace("-", "_"): value for name, value in settings.items()}
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"{path} has the unknown settings {unknown}; known ones: {', '.join(known)}")
    return settings


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(kind for kind in get_args(hint) if kind is not type(None))
    return hint


def _is_option(word: str) -> bool:
    """Whether a word begins the next option: it has a dash and is no number below zero."""
    return word.startswith("-") and not word[1:2].isdigit() and word[1:2] != "."


def _escape(text: str) -> str:
    return re.sub(r"\[(?=[a-z#/@])", r"\\[", text)  # or else Typer takes "[x, y]" for a style


def _parameter(field: dataclasses.Field, kind: Any) -> inspect.Parameter:
    facts = field.metadata
    text = _escape(facts["help"])
    factory = field.default_factory
    default = field.default if factory is dataclasses.MISSING else factory()
    if facts.get("argument"):
        info: Any = typer.Argument(help=text, show_default=False, metavar=field.name.upper())
    else:
        flag = field.name.replace("_", "-")
        names = [f"--{flag}/--no-{flag}" if kind is bool and default is not False else f"--{flag}"]
        names += [f"-{facts['short']}"] if "short" in facts else []
        shown = default is not None and default is not False and default != []
        info = typer.Option(*names, help=text, rich_help_panel=facts.get("group"), show_default=shown)
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind | None, info]
    )


def _read_config(kinds: dict[str, Any]) -> Callable[[typer.Context, str | None], str | None]:
    def callback(context: typer.Context, value: str | None) -> str | None:
        if value is not None:
            try:
                given = read_settings(value, list(kinds))
            except ValueError as error:
                raise typer.BadParameter(str(error)) from error
            lists = {name for name in given if get_origin(kinds[name]) is list}
            single = {name: [given[name]] for name in lists if type(given[name]) in (str, int, float)}
            context.default_map = given | single
        return value

    return callback
