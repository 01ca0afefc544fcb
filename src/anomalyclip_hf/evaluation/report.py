"""A self-contained HTML report of a run: one file, pictures inlined, nothing fetched from a network."""

from __future__ import annotations

import base64
import heapq
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from ..data.files import one_line, write_text
from ..data.paint import binary_mask
from ..data.reader import load_image
from ..options_anomalyclip import READING
from ..scoring.engine import score_images
from ..scoring.inputs import relative_names
from ..scoring.pictures import colorize, scale_labels, to_rgb
from ..scoring.rows import PreparedRow, prepare_row
from ..scoring.writing import SETTINGS, SKIPPED, read_records
from .baselines import MethodScorer, score_methods
from .metrics import Curve, thin
from .plots import plot_metric_curves, plot_score_histograms
from .tables import class_table, method_table, reasons_of
from .visualization import COLUMNS, Sample, caption, fit_scale, picture_row

if TYPE_CHECKING:
    import datasets

    from .. import AnomalyCLIPProcessor

TEMPLATE = Path(__file__).parent.parent / "assets" / "report.html"
MAX_SHOWN = 1024  # pixels of the longer side of samples: all are kept until the report is written
MAX_POINTS = 120  # of a curve
NUM_WORST, NUM_SKIPPED = 200, 50  # pictures, and lines, of a prediction's report: a few megabytes
THUMBNAIL = 224  # pixels of their longer side
STEPS = 100  # of the filter by score
SHOWN_BY_BROWSERS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


def write_report(
    result: Mapping[str, Any],
    path: str | os.PathLike,
    samples: Mapping[str, Sequence[Sample]] | None = None,
    pixel_threshold: float | None = None,
) -> None:
    """Write the report of a run, all its maps on one scale.

    Args:
        result: of `evaluate_sources`; the `classes` of each of its `datasets` will do, what is missing is left out.
        path: HTML file to write.
        samples: heading to samples, such as `{"Worst misses": [...], "Worst false alarms": [...]}`.
        pixel_threshold: adds the predicted masks.

    Raises:
        ValueError: `result` has no data set.
    """
    if not result.get("datasets"):
        raise ValueError(f"result has no entry in 'datasets' (its keys: {sorted(result)}): give an evaluator's result")
    maps = [sample.anomaly_map for group in (samples or {}).values() for sample in group]
    vmin, vmax = fit_scale(maps) if maps else (0.0, 1.0)
    columns = COLUMNS if pixel_threshold is not None else COLUMNS[:-1]
    groups = {
        heading: [
            (caption(sample), [_inline(one) for one in picture_row(sample, 176, vmin, vmax, pixel_threshold)])
            for sample in chosen
        ]
        for heading, chosen in (samples or {}).items()
    }
    facts = {**result.get("model", {}), **result.get("settings", {}), **result.get("versions", {})}
    _write_page(
        path,
        title="AnomalyCLIP evaluation",
        facts=facts,
        vmin=vmin,
        vmax=vmax,
        datasets=[_section(name, entry, facts.get("fpr_limit", 0.3)) for name, entry in result["datasets"].items()],
        columns=columns,
        groups=groups,
        threshold=None if pixel_threshold is None else f"{pixel_threshold:.3g}",
    )


def write_prediction_report(output_dir: str | os.PathLike) -> None:
    """Write `report.html` of a prediction that has ended: pictures with the highest scores first, a filter by score.

    It holds small pictures of the `NUM_WORST` highest scores; a click opens the overlay, or the image where there is
    none. Records are read one by one.

    Args:
        output_dir: of `predict_files` or `predict_dataset`.

    Raises:
        ValueError: nothing was scored.
        OSError: there are no results of a prediction.
    """
    output = Path(output_dir)
    facts = json.loads((output / SETTINGS).read_text(encoding="utf-8"))
    counts, found = Counter[str](), []
    for record in read_records(output):
        counts.update(["images scored", str(record.get("label"))], regions=len(record.get("regions", ())))
        found.append(record["score"])
    if not found:
        raise ValueError(f"{output} holds no scored image to report")
    scores, threshold = np.sort(found), facts.get("image_threshold")
    low, high = scores[[0, -1]].tolist()
    steps = np.linspace(low, high, STEPS + 1).tolist() if low < high else [low]
    if threshold is not None and low < threshold < high:
        steps = sorted({*steps, threshold})
    at_least = len(scores) - np.searchsorted(scores, steps)
    bars = np.log1p(at_least - np.append(at_least[1:], 0))
    worst = heapq.nlargest(NUM_WORST, read_records(output), key=lambda record: record["score"])
    summary: dict[str, int | str] = {"images scored": counts["images scored"]}
    if threshold is not None:
        share = f"{counts['anomalous']:,} ({counts['anomalous'] / counts['images scored']:.1%})"
        summary[f"anomalous ({threshold:.4g} or more)"] = share
    skipped = _first_skipped(output, counts)
    summary |= {name: counts[name] for name in ("regions", "inputs skipped") if counts[name]}
    reading = {name: facts[name] for name in READING if facts.get(name) is not None}
    names = relative_names([one["path"] for one in worst])
    is_all = len(worst) == counts["images scored"]
    heading = "All images, worst first" if is_all else f"The {len(worst)} highest scores, worst first"
    _write_page(
        output / "report.html",
        title="Anomalies found",
        facts=facts,
        vmin=facts.get("vmin", 0.0),
        vmax=facts.get("vmax", 1.0),
        gallery={
            "summary": {name: f"{one:,}" if isinstance(one, int) else one for name, one in summary.items()},
            "steps": steps,
            "at_least": at_least.tolist(),
            "bars": (100 * bars / bars.max()).round(1).tolist(),
            "threshold": steps.index(threshold) if threshold in steps else None,
            "groups": {heading: [_card(output, *pair, reading) for pair in zip(worst, names, strict=True)]},
            "skipped": skipped,
            "num_skipped": counts["inputs skipped"],
        },
    )


def make_samples(
    scorer: MethodScorer,
    processor: AnomalyCLIPProcessor,
    sources: Mapping[str, datasets.Dataset],
    result: Mapping[str, Any],
    count: int = 6,
    sigma: float | None = None,
) -> tuple[dict[str, list[Sample]], list[str]]:
    """Pictures for a report: of each data set the worst misses, the worst false alarms, a few more anomalous images.

    They are scored once more, by the scorer's one method, since maps are not kept.

    Args:
        result: of `evaluate_sources`.
        count: pictures of each kind and data set.

    Returns:
        heading to samples, and what failed and why, a line each.
    """
    (method,) = scorer.methods
    score = partial(score_methods, scorer, processor, sigma=sigma)
    groups: dict[str, list[Sample]] = {}
    failed: list[str] = []
    for name, dataset in sources.items():
        scores = result["datasets"][name]["scores"]
        for heading, places in choose_images(scores["scores"][method], scores["label"], count).items():
            records = score_images(
                dataset,
                partial(_prepare_sample, processor=processor),
                lambda items: score([item[0] for item in items]),
                indices=[scores["index"][place] for place in places],
            )
            for place, record in zip(places, records, strict=True):
                if record.error is not None:
                    failed.append(f"{scores['path'][place]} ({record.error})")
                    continue
                found, maps = record.result
                sample = replace(record.item[1], anomaly_map=maps[method], score=found[method])
                groups.setdefault(f"{name}: {heading}", []).append(sample)
    return groups, failed


def choose_images(scores: Sequence[float], labels: Sequence[int | None], count: int) -> dict[str, list[int]]:
    """Heading to positions of the images shown below it, worst first."""
    rising = [(place, labels[place]) for place in np.argsort(scores, kind="stable").tolist()]
    anomalous = [place for place, label in rising if label == 1]
    normal = [place for place, label in reversed(rising) if label == 0]
    others = sorted(anomalous[count:])
    return {
        "worst misses": anomalous[:count],
        "worst false alarms": normal[:count],
        "other anomalous images": others[:: max(1, len(others) // count)][:count] if count else [],
    }


def _prepare_sample(row: Mapping[str, Any], processor: AnomalyCLIPProcessor) -> tuple[PreparedRow, Sample]:
    """A row as the model takes it, and as a report shows it."""
    parts = (row["class_name"], row["defect_type"], Path(str(row["path"])).name)
    image = row["image"]
    if max(image.size) > MAX_SHOWN:
        image = to_rgb(image)
        image.thumbnail((MAX_SHOWN, MAX_SHOWN))
    mask = (
        None if row["mask"] is None else binary_mask(row["mask"], "mask").resize(image.size, Image.Resampling.NEAREST)
    )
    title = " / ".join(str(part) for part in parts if part)
    return prepare_row(row, processor), Sample(image, np.zeros((1, 1)), mask, row["label"], title=title)


def _first_skipped(output: Path, counts: Counter[str]) -> list[str]:
    """The first `NUM_SKIPPED` inputs that were not scored, and why; all are counted."""
    first: list[str] = []
    if (output / SKIPPED).is_file():
        for entry in read_records(output, SKIPPED):
            counts["inputs skipped"] += 1
            if len(first) < NUM_SKIPPED:
                first.append(f"{one_line(entry['path'])}: {one_line(entry['error'])}")
    return first


def _card(output: Path, record: Mapping[str, Any], name: str, reading: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of a record: a small picture of its overlay, or of the image itself, and where it is."""
    path = str(record["path"])
    file, options = (output / record["overlay"], {}) if "overlay" in record else (Path(path), reading)
    try:
        picture = to_rgb(load_image(file, **options))
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        source: str | None = _inline(picture)
    except Exception:  # it has gone, or lies on another machine
        source = None
    link = os.path.relpath(file, output).replace(os.sep, "/") if source else ""
    return {
        "name": one_line(name),
        "path": one_line(path),
        "score": record["score"],
        "label": record.get("label"),
        "regions": len(record["regions"]) if "regions" in record else None,
        "source": source,
        "size": picture.size if source else None,
        "link": quote(os.fsencode(link)) if link.lower().endswith(SHOWN_BY_BROWSERS) else None,
    }


def _write_page(path: str | os.PathLike, facts: Mapping[str, Any], vmin: float, vmax: float, **parts: Any) -> None:
    """Fill the template."""
    import jinja2

    bar = colorize(np.linspace(0.0, 1.0, 256)[None].repeat(2, 0))
    low, _, high = scale_labels(vmin, vmax)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        settings={name: f"{fact:.6g}" if isinstance(fact, float) else fact for name, fact in facts.items()},
        scale={"vmin": low, "vmax": high, "bar": _inline(bar, "png")},
        **parts,
    )
    write_text(path, page)


def _section(name: str, entry: Mapping[str, Any], fpr_limit: float) -> dict[str, Any]:
    """What the template shows of a data set."""
    plots = {}
    if scores := entry.get("scores"):
        values = next(iter(scores["scores"].values()))
        columns = zip(values, scores["label"], scores["class_name"], strict=True)
        if known := [row for row in columns if row[1] is not None]:
            values, labels, names = zip(*known, strict=True)
            plots["Scores of normal and anomalous images"] = _draw(
                plot_score_histograms, values, labels, classes=names
            )
    curves = {
        one: {kind: thin(Curve(*map(np.asarray, points)), MAX_POINTS) for kind, points in kinds.items()}
        for one, kinds in (entry.get("curves") or {}).items()
    }
    if any(curves.values()):
        plots["Curves over all pixels"] = _draw(plot_metric_curves, curves, fpr_limit=fpr_limit)
    return {
        "name": name,
        "classes": class_table(entry),
        "methods": method_table({name: entry}),
        "notes": entry.get("notes", []),
        "reasons": reasons_of(entry),
        "plots": plots,
    }


def _draw(plot: Callable[..., None], *data: Any, **options: Any) -> str:
    """A plot as an address that holds it."""
    buffer = io.BytesIO()
    plot(*data, buffer, **options)
    return _address(buffer.getvalue(), "svg+xml")


def _inline(image: Image.Image, kind: str = "webp") -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, quality=80)
    return _address(buffer.getvalue(), kind)


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
