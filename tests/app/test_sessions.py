"""What belongs to the sessions of the page, without a browser."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from anomalyclip_hf import demo_checkpoint

page_module = pytest.importorskip("anomalyclip_hf.app.page", reason="gradio isn't installed")
judging = page_module.judging
VISITOR = SimpleNamespace(session_hash="visitor")


@pytest.fixture
def photo(tmp_path, make_image):
    make_image(60, 50, seed=1).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_sliders_that_move_at_once_do_not_share_pictures(photo, tmp_path):
    scored = judging.score_images([photo], tmp_path / "out", judging.Setting(demo_checkpoint()))
    levels = [0.2, 0.2, 0.4, 0.6]
    with ThreadPoolExecutor(4) as threads:
        shown = list(threads.map(lambda level: page_module.show(scored, "photo.png", 0.5, level), levels))
    masks = [Path(one[3]) for one in shown]
    assert len(set(masks)) == len(levels)
    for level, mask in zip(levels, masks, strict=True):
        expected = judging.judge(scored, "photo.png", 0.5, level)[1]
        assert Image.open(mask).convert("1").tobytes() == Image.fromarray(expected).convert("1").tobytes()
    for _ in range(2 * page_module.SHOWN):
        last = page_module.show(scored, "photo.png", 0.5, 0.3)
    kept = list((tmp_path / "out" / "shown").iterdir())
    assert len(kept) == page_module.SHOWN and Path(last[3]).is_file()


def test_nothing_is_left_of_a_tab_that_is_closed_while_it_scores(photo, tmp_path, monkeypatch):
    sessions = page_module.Sessions(tmp_path / "sessions", set())
    score = judging.score_images

    def score_and_close(*args):
        found = score(*args)
        sessions.forget(VISITOR)
        (found.folder / "maps").mkdir(parents=True)  # what is written after the end
        return found

    arguments = ([photo], demo_checkpoint(), "", None, 0.5, 0.5, VISITOR)
    sessions.score(*arguments)
    assert len(list((tmp_path / "sessions" / "visitor").iterdir())) == 1
    monkeypatch.setattr(judging, "score_images", score_and_close)
    with pytest.raises(OSError):
        sessions.score(*arguments)
    assert list((tmp_path / "sessions").iterdir()) == [] and sessions.scoring == {}
