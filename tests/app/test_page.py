"""The page in a browser, as a visitor uses it."""

import re
import shutil
import socket
import time
from pathlib import Path

import pytest
from transformers import pipeline

from anomalyclip_hf import Profile, demo_checkpoint

page_module = pytest.importorskip("anomalyclip_hf.app.page", reason="gradio isn't installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def served():
    """The page of the embedded model at a free port: the page, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = page_module.make_page()
    _, address, _ = page_module.launch(page, port=port, prevent_thread_lock=True, quiet=True)
    yield page, address
    page.close(verbose=False)


@pytest.fixture
def browser():
    """Chromium, or the reason why there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    if CHROMIUM is None:
        pytest.skip("chromium isn't installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def cells(tab, row: int) -> list[str]:
    return (
        tab.locator(f"#table [role=row]:has([role=gridcell]) >> nth={row}")
        .locator("[role=gridcell]")
        .all_inner_texts()
    )


def is_of_visitor(path: Path) -> bool:
    return path.is_file() and "examples" not in path.parts and path.stat().st_size > 0


@pytest.mark.slow
def test_a_visitor_scores_images_and_moves_the_threshold(served, browser, tmp_path):
    page, address = served
    good, odd = (Path(path) for _, path in page_module.draw_examples(tmp_path / "drawn")[1:3])
    detector = pipeline("zero-shot-anomaly-detection", model=demo_checkpoint())
    scores = {path.name: detector(str(path))["score"] for path in (good, odd)}
    assert scores[good.name] < 0.2 < 0.8 < scores[odd.name]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    asked, faults = [], []
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(60_000)
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.goto(address)
    told, share, verdict = (tab.locator(f"#{name}") for name in ("told", "share", "verdict"))
    told.get_by_text("calibrate for a promise").wait_for()  # the embedded model has no thresholds

    tab.locator("#images input[type=file]").set_input_files([good, odd, broken])
    tab.locator("#images").get_by_text("broken").wait_for()
    tab.click("#score")
    share.get_by_text("50.0% of the images scored would be called anomalous: 1 of 2.").wait_for()
    assert told.inner_text().startswith("Skipped: cannot read image broken.png: not an image")
    found = {name: (float(score), label) for name, score, label, _ in (cells(tab, row) for row in range(2))}
    labels = {good.name: "normal", odd.name: "anomalous"}
    assert found == {name: (round(score, 4), labels[name]) for name, score in scores.items()}
    assert verdict.inner_text() == f"{odd.name}: score {scores[odd.name]:.4f}, anomalous (320 × 240 pixels)"

    slider = tab.locator("#image-threshold input[type=range]")
    slider.fill("0.001")
    share.get_by_text("100.0% of the images scored would be called anomalous: 2 of 2.").wait_for()
    slider.fill("1")
    share.get_by_text("0.0% of the images scored would be called anomalous: 0 of 2.").wait_for()
    verdict.get_by_text("normal").wait_for()

    tab.locator("#table [role=columnheader]").filter(has_text="Score").click()  # the lowest first
    tab.locator("#table [role=gridcell]").filter(has_text=good.name).click()
    verdict.get_by_text(f"{good.name}: score {scores[good.name]:.4f}, normal").wait_for()
    tab.click("#pack")
    tab.locator("#download").wait_for()
    with tab.expect_download() as download:
        tab.click("#download")
    assert Path(download.value.path()).read_bytes()[:2] == b"PK"

    tab.get_by_label("Model or prompts").fill("/no/such/model")
    tab.get_by_label("Model or prompts").press("Enter")
    tab.locator("#told .told-error").filter(has_text="/no/such/model").wait_for()
    tab.set_viewport_size({"width": 400, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
    assert [url for url in asked if not re.match(rf"{re.escape(address)}|data:|blob:", url)] == []
    assert faults == []

    kept = Path(page.home.name)
    assert {path.name for path in kept.rglob("*.npy")} == {f"{name}.npy" for name in scores}
    slider.fill("0.9")  # the results before are still there
    share.get_by_text("50.0% of the images scored would be called anomalous: 1 of 2.").wait_for()
    tab.locator("#download").wait_for(state="hidden")  # it was of another threshold

    shutil.copytree(demo_checkpoint(), tmp_path / "model")
    Profile("cup", image_threshold=0.25, pixel_threshold=0.5).save(tmp_path / "model")
    tab.get_by_label("Model or prompts").fill(str(tmp_path / "model"))
    tab.get_by_label("Model or prompts").press("Enter")
    told.get_by_text("calibrate for a promise").wait_for()
    tab.get_by_label("Profile").click()
    tab.get_by_role("option", name="cup").click()
    told.get_by_text("calibrate for a promise").wait_for(state="detached")
    assert tab.locator("#image-threshold input[type=number]").input_value() == "0.25"
    tab.get_by_label("Or an example").click()
    tab.get_by_role("option", name="Scratched tray").click()
    share.get_by_text("100.0% of the images scored would be called anomalous: 1 of 1.").wait_for()
    tab.close()
    until = time.monotonic() + 10
    while (left := [path.name for path in kept.rglob("*") if is_of_visitor(path)]) and time.monotonic() < until:
        time.sleep(0.1)
    assert left == [] and len(list(kept.glob("examples/*.png"))) == 4
