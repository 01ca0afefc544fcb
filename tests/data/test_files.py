"""Names and temporary files of the results."""

import json
import os
import subprocess
import sys

import pytest

from anomalyclip_hf.data.files import atomic_path, check_name, json_line, one_line, remove_leftovers, safe_name


@pytest.mark.parametrize("name", ["", ".", "..", " ", "/abs/x", "../x", "a/b", "a\\b", "a\nb", "a\0b", "x" * 200])
def test_a_path_is_no_name(name):
    with pytest.raises(ValueError, match=r"the name .* can't name a folder of the results"):
        check_name(name, "the name")


def test_plain_names_stay():
    assert [check_name(name, "n") for name in ("mvtec", "my set 2", "Teile-ä", "...a")]


@pytest.mark.parametrize("name", ["x" * 240, "é" * 90, "caf\udce9", "a\nb", "..", "", "ab."])
def test_safe_names_fit_every_file_system(name):
    for also in ("-_", "-_. "):
        safe = safe_name(name, also)
        assert 0 < len(safe.encode()) <= 120 and safe.isprintable() and safe.strip(".") and "/" not in safe
        assert safe_name(name, also) == safe != safe_name(name + "!", also)


def test_records_are_one_line_of_plain_utf_8():
    for text in ("é", "a\nb", "caf\udce9", "a\u2028b\x85c"):
        line = json_line({"path": text})
        assert len(line.splitlines()) == 1 and json.loads(line.encode())["path"] == text
    assert json_line({"path": "é"}) == '{"path": "é"}\n'
    assert one_line("a\nb\udce9é") == "a\\nb\\xe9é"


def test_leftovers_of_dead_processes_are_removed_and_nothing_else(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with atomic_path(tmp_path / "maps" / "a" / "000.png") as path:
        left = path.with_name(path.name.replace(f".{os.getpid()}-", f".{ended.pid}-"))
        left.write_text("half")
        assert left != path and left.name.startswith(".000.") and left.suffix == ".png"
    others = [tmp_path / "maps" / name for name in (".hidden.png", ".a.part.png", "000.png", ".x.12-abcdefgh.png")]
    others.append(tmp_path / "data" / left.name)
    others[-1].parent.mkdir()
    for path in others:
        path.write_text("x")
    with atomic_path(tmp_path / "maps" / "new.png") as own:
        remove_leftovers(tmp_path, "maps", "overlays")
        assert own.exists() and not left.exists() and all(path.exists() for path in others)
    # A process number that was given again: the file is older than the process that has it now.
    again = tmp_path / f".b.{os.getpid()}-abcdefgh.part"
    again.write_text("x")
    os.utime(again, (0, 0))
    remove_leftovers(tmp_path)
    assert not again.exists()
