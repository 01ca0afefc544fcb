"""`anomalyclip app`, but for the page itself; and the folder of a Space."""

import runpy
from pathlib import Path

import pytest
import yaml

from anomalyclip_hf.cli import main

page_module = pytest.importorskip("anomalyclip_hf.app.page", reason="gradio isn't installed")
SPACE = Path(__file__).parents[2] / "scripts" / "space"


@pytest.mark.parametrize(
    ("words", "served", "may_choose"),
    [
        ([], ("127.0.0.1", 7860, False), True),
        (["--host", "0.0.0.0", "--port", "8000"], ("0.0.0.0", 8000, False), False),
        (["--share", "--profile", "bottle"], ("127.0.0.1", 7860, True), False),
    ],
)
def test_the_page_is_local_unless_asked_and_keeps_to_its_model_elsewhere(monkeypatch, words, served, may_choose):
    made = []
    monkeypatch.setattr(page_module, "make_page", lambda *args, **kwargs: made.append((args, kwargs)) or "page")
    monkeypatch.setattr(page_module, "launch", lambda *args: made.append(args))
    assert main(["app", "--model", "prompts", *words]) == 0
    profile = "bottle" if "--profile" in words else None
    assert made == [(("prompts", profile), {"choose_model": may_choose}), ("page", *served)]


def test_wrong_use_is_told_before_a_page_is_served(capfd):
    assert main(["app", "--port", "70000"]) == 2
    assert "error: --port 70000, expected a whole number in 1..65535" in capfd.readouterr().err
    assert main(["app", "--model", "/no/such/model"]) == 2
    assert "/no/such/model" in capfd.readouterr().err


def test_a_space_shows_the_page_of_its_model(monkeypatch, tiny_checkpoint):
    monkeypatch.setenv("MODEL", tiny_checkpoint)
    page = runpy.run_path(str(SPACE / "app.py"))["page"]
    fields = {one.label: one for one in page.blocks.values() if hasattr(one, "label")}
    source = fields["Model or prompts: folder or Hub name"]
    assert (source.value, source.interactive) == (tiny_checkpoint, False)
    front = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert (front["sdk"], front["app_file"], front["license"]) == ("gradio", "app.py", "apache-2.0")
