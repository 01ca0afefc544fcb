"""What is wrong with a command line is told in one line, before a model is loaded."""

import pytest
from PIL import Image

from anomalyclip_hf import AnomalyCLIPModel
from anomalyclip_hf.cli import main


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder `parts` with an image and a file `notes.txt`, and no model that could be loaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "parts" / "1.png")
    (tmp_path / "notes.txt").write_text("hello")
    monkeypatch.setattr(AnomalyCLIPModel, "from_pretrained", lambda *args, **kwargs: pytest.fail("a model is loaded"))
    return tmp_path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("predict nofolder", "'nofolder': no such file or folder"),
        ("predict parts --threshold 2", "--threshold 2.0, expected a score in [0, 1]"),
        ("predict parts --pixel-threshold -1", "--pixel-threshold -1.0, expected a score in [0, 1]"),
        ("predict parts --overlap 2 --resize tile", "--overlap 2.0, expected a number in 0..0.9"),
        ("predict parts --roi mask.png", "--roi mask.png: no such file or folder"),
        ("predict parts --references good", "--references good: no such file or folder"),
        ("predict parts -o notes.txt", "--output-dir notes.txt, expected a folder, but notes.txt is a file"),
        ("predict parts -o notes.txt/x", "--output-dir notes.txt/x, expected a folder, but "),
        ("predict --source nowhere", "there is no 'nowhere'"),
        ("calibrate nowhere", "there is no 'nowhere'"),
        ("calibrate parts --confidence 1", "--confidence 1.0, expected a number in 1e-06..0.999999"),
        ("calibrate parts --batch-size 0", "--batch-size 0, expected a whole number in 1..65536"),
        ("calibrate parts --method recall", "no --recall with --method recall"),
        ("evaluate --sources a=parts b=/nowhere", "there is no '/nowhere'"),
        ("evaluate --source parts --calibrate f1 --calibration-source nowhere", "there is no 'nowhere'"),
        ("evaluate --source parts --sigma -1", "--sigma -1.0, expected a number in 0..16384"),
        ("train --source nowhere", "there is no 'nowhere'"),
        ("train --source parts --validation-source nowhere", "there is no 'nowhere'"),
        ("export --images nowhere", "--images nowhere: no such file or folder"),
        ("inspect parts --contact-sheet parts/1.png", "--contact-sheet parts/1.png is another file, which would be"),
        ("predict parts --coco parts/1.png", "--coco parts/1.png is another file, which would be replaced"),
        ("predict parts --label-studio parts", "--label-studio parts is a folder but a file is to be written there"),
        ("predict parts --submission x --save-maps npy", "--save-maps npy but --submission ... sends maps as tiff"),
        ("inspect parts --data-dir nowhere", "--data-dir nowhere: no such file or folder"),
        ("convert epoch_15.pth -o prompts", "'epoch_15.pth': no such file or folder"),
    ],
)
def test_paths_and_ranges_are_checked_first(place, line, message, capsys):
    assert main(line.split()) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {message}") and told.count("\n") == 1 and "or None" not in told
    assert sorted(path.name for path in place.iterdir()) == ["notes.txt", "parts"]
