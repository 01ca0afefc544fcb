"""The one loop over images: order, batches, faults, shares of several processes, and what it needs."""

import subprocess
import sys
from pathlib import Path

import pytest

from anomalyclip_hf.scoring.engine import Record, own_share, score_images

PHOTO = Path(__file__).parents[1] / "fixtures" / "photos" / "cookies" / "good"


def halve(row):
    if row == 5:
        raise OSError("torn")
    return row / 2


def run(score, **settings):
    return list(score_images(list(range(8)), halve, score, batch_size=3, **settings))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_records_come_in_order_and_say_what_failed(num_workers):
    seen = []

    def score(items):
        seen.append(items)
        if 1.0 in items:
            raise ValueError("no ones")
        return [item * 10 for item in items]

    records = run(score, num_workers=num_workers)
    assert [record.index for record in records] == list(range(8))
    assert [record.result for record in records] == [0, 5, None, 15, 20, None, 30, 35]
    assert records[2] == Record(2, 1.0, None, "no ones") and records[5] == Record(5, error="OSError: torn")
    # The failing batch is taken apart, what can't be read is in no batch.
    assert seen == [[0, 0.5, 1.0], [0], [0.5], [1.0], [1.5, 2.0], [3.0, 3.5]]


def test_a_part_can_be_scored_and_interruptions_pass():
    assert [record.index for record in run(lambda items: items, indices=[6, 2])] == [6, 2]
    assert run(lambda items: items, indices=[]) == []

    def stop(items):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stop)
    with pytest.raises(ValueError, match="batch_size=0"):
        next(score_images([1], halve, stop, batch_size=0))


def test_processes_share_whole_batches():
    shares = [own_share(range(10, 21), 2, process, 3) for process in range(3)]
    assert shares == [[10, 11, 16, 17], [12, 13, 18, 19], [14, 15, 20]]
    assert own_share([4, 2], 8) == [4, 2]


@pytest.mark.slow
def test_scoring_needs_no_library_of_evaluation(tmp_path):
    code = (
        "import sys\n"
        "absent = ('datasets', 'evaluate', 'scipy', 'matplotlib', 'pyarrow', 'sklearn')\n"
        "sys.modules.update(dict.fromkeys(absent))\n"  # as if they were not installed
        "from anomalyclip_hf.cli import main\n"
        "status = main(['predict', sys.argv[1], '--output-dir', sys.argv[2], '--save-maps'])\n"
        "import anomalyclip_hf\n"
        "from transformers import pipeline\n"
        "detector = pipeline('zero-shot-anomaly-detection', model=anomalyclip_hf.demo_checkpoint())\n"
        "print(detector(sys.argv[1] + '/' + sys.argv[3])['score'] > 0)\n"
        "sys.exit(status)"
    )
    name = sorted(path.name for path in PHOTO.iterdir())[0]
    words = [sys.executable, "-c", code, str(PHOTO), str(tmp_path / "out"), name]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("True\n"), done.stderr[-2000:]
