"""The one contact sheet."""

import numpy as np
import pytest
from PIL import Image

from anomalyclip_hf.data.contact_sheet import (
    GAP,
    OUTLINE,
    SheetRow,
    contact_sheet,
    fit_text,
    outline_mask,
    sheet_width,
)


def test_pictures_stand_in_their_columns_with_their_texts(tmp_path):
    red, green = Image.new("RGB", (80, 40), (255, 0, 0)), Image.new("RGB", (40, 80), (0, 255, 0))
    rows = [SheetRow([red, green], "first", ["a\nb", "c"]), SheetRow([green])]
    footer = Image.new("RGB", (sheet_width(2, 80) - 2 * GAP, 10), (0, 0, 255))
    contact_sheet(rows, tmp_path / "s.png", columns=("x", "y"), cell_size=80, title="Sheet", footer=footer)
    pixels = np.asarray(Image.open(tmp_path / "s.png"))
    assert pixels.shape[1] == sheet_width(2, 80) == GAP + 2 * (80 + GAP)

    def place(color):
        found = np.argwhere((pixels == color).all(-1))
        return found.min(0).tolist(), found.max(0).tolist()

    (top, left), (bottom, right) = place((255, 0, 0))
    assert (left, right) == (GAP, GAP + 79) and bottom - top == 39
    assert (pixels == (0, 255, 0)).all(-1).sum() == 2 * 40 * 80
    assert place((0, 0, 255))[1] == [pixels.shape[0] - GAP - 1, pixels.shape[1] - GAP - 1]
    assert (pixels[bottom + 41 : bottom + 60, GAP:88] < 200).any()  # the second line below the first picture
    assert [path.name for path in tmp_path.iterdir()] == ["s.png"]


def test_what_makes_no_sheet_is_refused(tmp_path):
    row = SheetRow([Image.new("RGB", (8, 8))])
    with pytest.raises(ValueError, match="rows is empty"):
        contact_sheet([], tmp_path / "s.png")
    with pytest.raises(ValueError, match="cell_size=3"):
        contact_sheet([row], tmp_path / "s.png", cell_size=3)
    with pytest.raises(ValueError, match="extension"):
        contact_sheet([row], tmp_path / "s.picture")
    with pytest.raises(IsADirectoryError):
        contact_sheet([row], tmp_path)
    assert not list(tmp_path.iterdir())


def test_texts_are_cut_in_their_middle():
    assert fit_text("short", 200, 12) == "short"
    shown = fit_text("the beginning of it\n" + "x" * 200 + " and the end", 120, 12)
    assert shown.startswith("the") and shown.endswith("end") and " ... " in shown


def test_outline_lies_around_the_defect():
    mask = np.zeros((9, 9), np.uint8)
    mask[4, 4] = 255
    drawn = np.asarray(outline_mask(Image.new("RGB", (9, 9), (90, 90, 90)), Image.fromarray(mask), width=1))
    ring = (drawn == OUTLINE).all(-1)
    assert ring.sum() == 8 and ring[3:6, 3:6].sum() == 8
    assert (drawn == 30).all(-1).sum() == 16 + 1 and (drawn == 90).all(-1).sum() == 81 - 25  # a dark rim on both sides
