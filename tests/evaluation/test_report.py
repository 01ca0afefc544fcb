import html.parser
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from anomalyclip_hf.evaluation import metrics, plots, report
from anomalyclip_hf.evaluation.report import write_report
from anomalyclip_hf.evaluation.tables import percent
from anomalyclip_hf.evaluation.visualization import Sample

HISTORY = [{"epoch": 1, "loss": 2.0, "lr": 1e-3}, {"epoch": 2, "loss": 1.0, "image_auroc": 0.8, "lr": 1e-3}]


class Checker(html.parser.HTMLParser):
    """Collects rows of tables and addresses, and fails on tags that do not close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.rows, self.sources, self.texts = [], [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("br", "img", "input", "meta"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag == "img":
            assert dict(attributes).get("alt") or "dialog" in self.open

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.rows and self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def make_result():
    rng = np.random.default_rng(0)
    masks = np.zeros((2, 12, 15), bool)
    masks[0, 2:6, 3:9] = True
    pixels = metrics.pixel_metrics(rng.random(masks.shape) + masks, masks, with_curves=True)
    curves = pixels.pop("curves")
    classes = {
        "bolt": {"image_auroc": 0.912345, **pixels},
        "nut<b>": {"image_auroc": math.nan, "aupro": 0.5, "reasons": {"image_auroc": "no normal image: all 3"}},
    }
    scores = {"label": [0, 1, 1, None], "class_name": ["bolt", "bolt", "nut<b>", "bolt"]}
    scores["scores"] = {"ours": [0.1, 0.9, 0.4, 0.5]}
    mean = {"image_auroc": 0.912345, "aupro": 0.5}
    paper = {"trained_on": "visa", "mean": {"image_auroc": 0.9}, "difference": {"image_auroc": 0.012345}}
    entry = {"classes": classes, "mean": mean, "paper": paper}
    entry |= {"methods": {"ours": {"title": "Ours", "mean": mean}}}
    entry["methods"]["clip"] = {"title": "CLIP", "mean": {"image_auroc": 0.75}}
    entry |= {"curves": {"bolt": curves, "nut<b>": {}}, "scores": scores}
    return {"settings": {"model": "a & b", "layers": [24]}, "datasets": {"tiny": entry}}


def test_report_is_whole_and_needs_no_network(tmp_path):
    path = tmp_path / "report.html"
    sample = Sample(Image.new("RGB", (40, 30)), np.zeros((5, 5)), label=1, score=0.25, title="nut/<i>.png")
    samples = {"Worst misses": [sample], "Worst false alarms": []}
    write_report(make_result(), path, samples=samples, pixel_threshold=0.5)
    text = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert len(checker.sources) == 2 + 5 + 1  # two plots, one row of pictures, the color bar
    assert all(source.startswith("data:image/") for source in checker.sources)
    assert not re.search(r"https?://", re.sub(r'"data:[^"]*"', "", text)) and "<script" not in text
    assert len(text) < 400_000
    cells = {row[0]: row for row in checker.rows if row}
    assert cells["bolt"][1] == "91.2"
    assert cells["nut<b>"][1] == "–" and "no normal image: all 3" in text  # escaped, with its reason
    assert cells["mean"][1] == cells["Ours"][1] == "91.2" and cells["paper (trained on visa)"][1] == "90.0"
    assert cells["difference"][1] == "+1.2" and cells["CLIP"][1] == "75.0" and cells["CLIP"][-1] == "–"
    assert cells["model"] == ["model", "a & b"]
    assert any("nut/<i>.png" in part and "score 0.250" in part for part in checker.texts)


def test_report_of_the_least_result(tmp_path):
    write_report({"datasets": {"d": {"classes": {"c": {"image_auroc": 0.5}}}}}, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "50.0" in text and "image AUROC" in text and "AUPRO" not in text
    with pytest.raises(ValueError, match="no entry in 'datasets'"):
        write_report({"settings": {}}, tmp_path / "r.html")


def test_percent():
    assert [percent(v) for v in (0.9125, 1, None, math.nan, np.float32(0.5))] == [
        "91.2",
        "100.0",
        "–",
        "–",
        "50.0",
    ]


def test_plots_are_written_whole(tmp_path):
    result = make_result()
    curves = result["datasets"]["tiny"]["curves"]
    plots.plot_metric_curves(curves, tmp_path / "curves.svg")
    svg = (tmp_path / "curves.svg").read_text()
    assert all(word in svg for word in ("ROC", "recall", "Per-region overlap", "bolt"))
    plots.plot_score_histograms([0.1, 0.2, 0.9], [0, 0, 1], tmp_path / "scores.svg", ["all images"] * 3)
    svg = (tmp_path / "scores.svg").read_text()
    assert all(word in svg for word in ("all images", "normal", "anomalous"))
    plots.plot_curves(HISTORY, tmp_path / "training.png")
    with Image.open(tmp_path / "training.png") as image:
        assert image.size[0] > 800 and len(image.convert("L").getcolors()) > 5
    plots.plot_curves(HISTORY, tmp_path / "training.svg")
    svg = (tmp_path / "training.svg").read_text()
    assert "validation" in svg and "image_auroc" in svg and ">lr<" not in svg
    assert len(list(tmp_path.iterdir())) == 4


def test_plots_refuse_bad_input(tmp_path):
    for call, message in [
        (lambda: plots.plot_metric_curves({"a": {}}, tmp_path / "a.png"), "none of roc, pr, pro"),
        (lambda: plots.plot_score_histograms([], [], tmp_path / "a.png", []), "N > 0"),
        (
            lambda: plots.plot_score_histograms([0.1], [1], tmp_path / "a.png", classes=[]),
            r"\(1,\) and \(0,\)",
        ),
        (lambda: plots.plot_curves([], tmp_path / "a.png"), "none of the 0 entries"),
        (lambda: plots.plot_curves([{"epoch": 1, "note": "x"}], tmp_path / "a.png"), "none of the 1 entries"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    assert list(tmp_path.iterdir()) == []


def test_metrics_load_nothing_heavy():
    code = (
        "import sys, anomalyclip_hf; loaded = set(sys.modules);"  # transformers takes scipy where it is installed
        "import anomalyclip_hf.evaluation.metrics, anomalyclip_hf.evaluation.streaming,"
        "anomalyclip_hf.evaluation.visualization, anomalyclip_hf.evaluation.report;"
        "heavy = {'matplotlib', 'scipy', 'sklearn', 'datasets', 'evaluate', 'jinja2'};"
        "print(sorted(heavy & (set(sys.modules) - loaded)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def write_prediction(out, scores, skipped=()):
    """Results of a prediction in which every second image has an overlay, and whose threshold is 0.5."""
    (out / "overlays" / "été").mkdir(parents=True)
    Image.new("RGB", (300, 150), "red").save(out.parent / "plain.png")
    records = []
    for number, score in enumerate(scores):
        record = {"path": str(out.parent / "plain.png"), "score": score, "regions": [{}] * (number % 3)}
        record["label"] = "anomalous" if score >= 0.5 else "normal"
        if number % 2 == 0:
            record |= {"path": f"/in/<b> #{number}.png", "overlay": f"overlays/été/a #{number}.png"}
            Image.new("RGB", (40, 30)).save(out / record["overlay"])
        records.append(record)
    for name, entries in (("predictions", records), ("skipped", skipped)):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in entries))
    facts = {"image_threshold": 0.5, "vmin": 0.0, "vmax": 0.75, "window": None}
    (out / "predict_settings.json").write_text(json.dumps(facts))


def test_a_prediction_is_shown_worst_first_with_its_share_by_score(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "NUM_WORST", 3)
    monkeypatch.setattr(report, "NUM_SKIPPED", 1)
    skipped = [{"path": f"{name}<i>.png", "error": "no image"} for name in "xyz"]
    scores = [0.1, 0.7, 0.9, 0.3, 0.5, 0.2, 0.05]
    write_prediction(tmp_path / "out", scores, skipped)
    report.write_prediction_report(tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    shown = [float(one) for one in re.findall(r'data-score="([^"]*)"', text)]
    assert shown == [0.9, 0.7, 0.5]
    links = [one for one in checker.sources if not one.startswith("data:image/")]
    assert links[:3] == ["overlays/%C3%A9t%C3%A9/a%20%232.png", "../plain.png", "overlays/%C3%A9t%C3%A9/a%20%234.png"]
    assert not re.search(r"https?://", re.sub(r'"data:[^"]*"', "", text))
    assert "<b> #" not in text and "<i>" not in text  # escaped
    assert 'width="224" height="112"' in text and "The 3 highest scores, worst first" in text
    cells = {row[0]: row[1] for row in checker.rows if len(row) == 2}
    assert cells["images scored"] == "7" and cells["anomalous (0.5 or more)"] == "3 (42.9%)"
    assert cells["regions"] == "6" and cells["inputs skipped"] == "3" and cells["vmax"] == "0.75"
    assert "and 2 more, all in" in text and "1 region<" in text
    steps, at_least = (json.loads(re.search(rf"{name} = (\[.*?\])", text)[1]) for name in ("steps", "atLeast"))
    assert (steps[0], steps[-1], at_least[0], at_least[-1]) == (0.05, 0.9, 7, 1)
    assert at_least == [sum(score >= step for score in scores) for step in steps]
    assert at_least[steps.index(0.5)] == 3


def test_a_prediction_of_one_score_and_of_pictures_that_are_gone(tmp_path):
    write_prediction(tmp_path / "out", [0.25, 0.25])
    (tmp_path / "out" / "overlays" / "été" / "a #0.png").write_text("damaged")
    report.write_prediction_report(tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert text.count("no picture") == 1 and "All images, worst first" in text
    (tmp_path / "out" / "predictions.jsonl").write_text("")
    with pytest.raises(ValueError, match="no scored image"):
        report.write_prediction_report(tmp_path / "out")
