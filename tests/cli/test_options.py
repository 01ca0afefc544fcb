"""Dataclasses as commands: spelling, settings files, help and exit codes."""

import json
from dataclasses import dataclass

import pytest
import typer

import anomalyclip_hf
from anomalyclip_hf.cli import main
from anomalyclip_hf.cli.options import make_command, read_settings, spell
from anomalyclip_hf.data.options import option


@dataclass
class Settings:
    """Judge parts."""

    source: str = option("demo", "Where from.", short="s")
    class_names: list[str] | None = option(None, "Which.", group="Data")
    shots: list[int] | None = option(None, "How many.")
    sigma: float | None = option(None, "How smooth.")
    exact: bool | None = option(None, "Whether exactly.")
    resume: bool = option(False, "Go on.")
    save_maps: str | None = option(None, "Format.", bare="png")

    def __post_init__(self):
        if self.sigma is not None and self.sigma < 0:
            raise ValueError(f"sigma={self.sigma}, expected 0 or more; see class_names")


def call(*words):
    seen = []
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(make_command(Settings, lambda settings: seen.append(settings) or 1))
    with pytest.raises(SystemExit) as end:
        app(spell(words, Settings))
    return end.value.code, seen[0] if seen else None


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("", {}),
        ("--class_names a b --resume", {"class_names": ["a", "b"], "resume": True}),
        ("--class-names=a --class-names b -s x", {"class_names": ["a", "b"], "source": "x"}),
        ("--class-names --shots 0 1 -2", {"class_names": [], "shots": [0, 1, -2]}),
        ("--exact false --sigma 2", {"exact": False, "sigma": 2.0}),
        ("--exact --resume true", {"exact": True, "resume": True}),
        ("--exact=no --save_maps", {"exact": False, "save_maps": "png"}),
        ("--save-maps npy --resume false", {"save_maps": "npy", "resume": False}),
    ],
)
def test_options_are_spelled_as_people_do(words, given):
    assert call(*words.split()) == (1, Settings(**given))


def test_settings_files(tmp_path):
    yaml, text = tmp_path / "run.yaml", tmp_path / "run.json"
    yaml.write_text("class-names: [a, b]\nsigma: 3\n")
    text.write_text(json.dumps({"class_names": ["a", "b"], "sigma": 3}))
    for words in (["--config", str(yaml)], [str(text)]):
        assert call(*words)[1] == Settings(class_names=["a", "b"], sigma=3.0)
        assert call(*words, "--sigma", "1")[1] == Settings(class_names=["a", "b"], sigma=1.0)
    yaml.write_text("class-names: a\nsigma: 3\n")  # a list of one
    assert call("--config", str(yaml))[1] == Settings(class_names=["a"], sigma=3.0)
    yaml.write_text("color: red")
    with pytest.raises(ValueError, match=r"unknown settings \['color'\]; known ones: source"):
        read_settings(str(yaml), ["source"])
    for content in ("- 1", "{a", "\x00"):
        yaml.write_text(content)
        assert call("--config", str(yaml)) == (2, None)


def test_wrong_use_is_status_2(capsys):
    for words in (["--sigma", "x"], ["--colour", "red"], ["--source"], ["word"]):
        assert call(*words) == (2, None)
    assert call("--sigma", "-1") == (2, None)
    assert capsys.readouterr().err.splitlines()[-1] == "error: --sigma -1.0, expected 0 or more; see --class-names"


def test_the_command_lists_its_subcommands(capsys):
    assert main(["--help"]) == 0
    assert "predict" in capsys.readouterr().out
    assert main(["nonsense"]) == 2
    assert main([]) in (0, 2) and main(["predict", "--help"]) == 0
    assert "--output-dir" in capsys.readouterr().out


def test_help_shows_brackets_zeros_and_whole_paragraphs(capsys, monkeypatch):
    @dataclass
    class Region:
        """Find parts in
        images.

        One way is this, and
        another one is that [extra].
        """

        roi: str | None = option(None, "A path or '[[x, y], ...]'.")
        vmin: float = option(0.0, "Lowest.")
        exact: bool = option(False, "Exactly.")

    monkeypatch.setenv("COLUMNS", "100")
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(make_command(Region, lambda settings: 0))
    with pytest.raises(SystemExit):
        app(["--help"])
    text = capsys.readouterr().out
    assert "A path or '[[x, y], ...]'." in text and "Lowest. [default: 0.0]" in text
    assert "Find parts in images." in text and "One way is this, and another one is that [extra]." in text
    assert "default: False" not in text


def test_the_version_is_told(capsys):
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"anomalyclip_hf {anomalyclip_hf.__version__}\n"
