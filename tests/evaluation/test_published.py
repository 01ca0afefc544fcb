import numpy as np
import pytest

from anomalyclip_hf.data import LAYOUTS
from anomalyclip_hf.evaluation.published import MVTEC_LOG, MVTEC_LOG_MEAN, PUBLISHED, add_paper, paper_results

PAPER = {
    "mvtec": (15, 91.5, 96.2, 91.1, 81.4),
    "visa": (12, 82.1, 85.4, 95.5, 87.0),
    "mpdd": (6, 77.0, 82.0, 96.5, 88.7),
    "btad": (3, 88.3, 87.3, 94.2, 74.8),
    "sdd": (1, 84.7, 80.0, 90.6, 67.8),
    "dagm": (10, 97.5, 92.3, 95.6, 91.0),
    "dtd_synthetic": (12, 93.5, 97.0, 97.9, 92.3),
    "headct": (1, 93.4, 91.6, None, None),
    "brainmri": (1, 90.3, 92.2, None, None),
    "br35h": (1, 94.6, 94.7, None, None),
    "covid19": (1, 80.1, 58.7, None, None),
    "isic": (1, None, None, 89.7, 78.4),
    "colondb": (1, None, None, 81.9, 71.3),
    "clinicdb": (1, None, None, 82.9, 67.8),
    "kvasir": (1, None, None, 78.9, 45.6),
    "endo": (1, None, None, 84.1, 63.6),
    "tn3k": (1, None, None, 81.5, 50.4),
}


def test_table_states_the_paper():
    stated = {
        name: (len(LAYOUTS[name].classes), r.image_auroc, r.image_ap, r.pixel_auroc, r.aupro_authors)
        for name, r in PUBLISHED.items()
    }
    assert stated == PAPER
    assert [name for name in PUBLISHED if paper_results(name)["trained_on"] == "visa"] == ["mvtec"]


def test_released_log_of_mvtec():
    assert set(MVTEC_LOG) == set(LAYOUTS["mvtec"].classes)
    cable = MVTEC_LOG["cable"]
    assert (cable.pixel_auroc, cable.aupro_authors, cable.image_auroc, cable.image_ap) == (78.9, 64.0, 70.3, 81.7)
    for name in ("image_auroc", "image_ap", "pixel_auroc", "aupro_authors"):
        mean = np.mean([getattr(result, name) for result in MVTEC_LOG.values()])
        assert mean == pytest.approx(getattr(MVTEC_LOG_MEAN, name), abs=0.06)


@pytest.mark.parametrize("name", ["dagm", "mvtec"])
def test_a_part_of_the_classes_is_not_compared_with_the_mean(name):
    classes = LAYOUTS[name].classes
    for judged in (classes, classes[:2]):
        entry = {"classes": dict.fromkeys(judged), "mean": {"image_auroc": 0.5}, "notes": []}
        add_paper(entry, name)
        assert bool(entry["paper"]["difference"]) == (not entry["notes"]) == (judged == classes)
