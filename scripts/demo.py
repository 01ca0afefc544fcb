"""Compare photographs with a good one; learn prompts on drawings, judge them, draw maps: three minutes on two cores.

    python scripts/demo.py --output_dir outputs/demo

The embedded model is a stand-in of a few million parameters, made from drawings: good for trying things out only.
"""

import argparse
import contextlib
import io
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from anomalyclip_hf.cli.running import run_until_interrupted

sys.path.append(str(Path(__file__).resolve().parent / "demo_model"))
from draw import draw  # the drawings that the demo is judged on

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT / "tests" / "fixtures" / "photos"  # small photographs, with their licences beside them


def show_reference(path: Path) -> None:
    """Draw photographs of two broken cookies and a good one: truth, map of the model alone, map with one reference."""
    from transformers import pipeline

    from anomalyclip_hf import load_anomaly_dataset
    from anomalyclip_hf.data.contact_sheet import SheetRow, contact_sheet
    from anomalyclip_hf.evaluation.visualization import Sample, fit_scale, picture_row

    photographs = load_anomaly_dataset(str(REAL / "cookies"))
    labels = photographs["label"]
    reference = photographs[labels.index(0)]["image"]
    shown = [photographs[place] for place in (labels.index(1), labels.index(1) + 1, len(labels) - 1)]
    detector = pipeline("zero-shot-anomaly-detection")
    images = [row["image"] for row in shown]
    runs = [detector(images), detector(images, references=[reference])]
    first = picture_row(Sample(reference, runs[0][0]["anomaly_map"]))[0]
    scales = [fit_scale((found["anomaly_map"] for found in results), lower=0.5) for results in runs]
    rows = []
    for row, *pair in zip(shown, *runs, strict=True):
        pictures = [
            picture_row(Sample(row["image"], found["anomaly_map"], row["mask"], row["label"]), 192, *scale)
            for found, scale in zip(pair, scales, strict=True)
        ]
        scores = [f"score {found['score']:.2f}" for found in pair]
        name = f"{row['defect_type']}: {Path(row['path']).name}"
        rows.append(SheetRow([first, *pictures[0][:3], pictures[1][2]], name, ["", "", "", *scores]))
    columns = ("reference: a good one", "image", "truth", "zero-shot", "with the reference")
    contact_sheet(rows, path, columns=columns, title="Embedded model on photographs: maps of a column share a scale")


def learn_prompts(output_dir: Path, num_images: int, epochs: int, seed: int) -> int:
    """What `anomalyclip train` does: training classes only, kept features. Returns its exit status."""
    from anomalyclip_hf.cli import run_command

    options = f'{{"num_images": {num_images}, "size": 128, "seed": 7, "difficulty": 0.5}}'
    command = ["--source", "synthetic", "--source-options", options, "--initial-prompts", "fresh"]
    command += ["--epochs", str(epochs), "--output-dir", str(output_dir), "--overwrite", "--disable-tqdm"]
    command += ["--seed", str(seed), "--cache-dir", str(output_dir.parent / "cache")]
    with contextlib.redirect_stdout(io.StringIO()):
        return run_command("train", command, draw=draw)


def judge(prompts: Path, num_images: int):
    """Evaluate the learned prompts on held-out drawings and on the photographs of the repository."""
    from anomalyclip_hf import AnomalyCLIPModel, AnomalyCLIPProcessor, load_anomaly_dataset
    from anomalyclip_hf.evaluation import evaluate_model

    model = AnomalyCLIPModel.from_pretrained(prompts)
    processor = AnomalyCLIPProcessor.from_pretrained(prompts)
    sets = {"held-out drawings": draw("test", num_images=num_images)}
    for folder in sorted(path for path in REAL.iterdir() if path.is_dir()):
        sets[f"photographs: {folder.name}"] = load_anomaly_dataset(str(folder))
    results = {}
    for name, dataset in sets.items():
        print(f"judging on {name} ({len(dataset)} images)", flush=True)
        methods = ["anomalyclip", "references=4"] if name.startswith("photographs") else ["anomalyclip"]
        results[name] = evaluate_model(model, processor, dataset, name=name, batch_size=16, methods=methods, draws=1)
    return model, processor, sets, results


def print_table(sets: dict, runs: list[dict]) -> None:
    """One line per data set, in percent; mean and standard deviation where there are several seeds."""
    metrics = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}
    print(f"\n{'':24} {'images':>6} " + " ".join(f"{title:>12}" for title in metrics.values()))
    for name, dataset in sets.items():
        for method in runs[0][name]["methods"]:
            cells = []
            for metric in metrics:
                values = [100 * results[name]["methods"][method]["mean"][metric] for results in runs]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{f'{statistics.mean(values):.1f}{spread}':>12}")
            title = name if method == "anomalyclip" else "  with 4 references"
            print(f"{title:24} {len(dataset):6} {' '.join(cells)}")


def choose_samples(detector, name: str, dataset, count: int) -> list:
    """Score `count` anomalous images and a normal one, taken at even distances, whatever the model makes of them."""
    from anomalyclip_hf.evaluation.visualization import Sample

    samples = []
    for label, wanted in ((1, count), (0, 1)):
        places = [i for i, found in enumerate(dataset["label"]) if found == label]
        for index in places[:: max(1, len(places) // wanted)][:wanted]:
            row = dataset[index]
            found = detector(row["image"])
            title = f"{name}, {row['class_name']} ({row['defect_type']})"
            samples.append(Sample(row["image"], found["anomaly_map"], row["mask"], label, found["score"], title))
    return samples


def draw_pictures(model, processor, sets: dict, output_dir: Path, rows: int) -> list[Path]:
    """Images, truth and heat maps side by side: drawings in one picture, photographs in another, each on one scale."""
    from transformers import pipeline

    from anomalyclip_hf.evaluation.visualization import contact_sheet, fit_scale

    detector = pipeline("zero-shot-anomaly-detection", model=model, image_processor=processor)
    drawings, *photographs = sets  # in the order of `judge`
    paths = []
    for stem, count, names in (("heatmaps", rows, [drawings]), ("photographs", max(1, rows // 2), photographs)):
        samples = [sample for name in names for sample in choose_samples(detector, name, sets[name], count)]
        vmin, vmax = fit_scale(sample.anomaly_map for sample in samples)
        paths.append(output_dir / f"{stem}.png")
        contact_sheet(samples, paths[-1], vmin, vmax, title="Embedded demo: image, truth, map, overlay")
    return paths


def main(argv: list[str] | None = None) -> int:
    return run_until_interrupted(lambda: show(argv))


def show(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--train_images", type=int, default=800)
    parser.add_argument("--test_images", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[111], help="several give mean and spread")
    parser.add_argument("--rows", type=int, default=7, help="anomalous drawings in the picture")
    args = parser.parse_args(argv)

    start = time.perf_counter()
    print("The embedded model is a small stand-in made from drawings: for trying things out, not for production.")
    show_reference(args.output_dir / "photograph_with_reference.png")
    print(f"photographs with one reference: {args.output_dir / 'photograph_with_reference.png'}", flush=True)
    print(f"learning prompts on {args.train_images} drawings of classes that are not judged", flush=True)
    runs = []
    for seed in args.seeds:
        prompts = args.output_dir / f"prompts-{seed}"
        status = learn_prompts(prompts, args.train_images, args.epochs, seed)
        if status:
            return status
        model, processor, sets, results = judge(prompts, args.test_images)
        runs.append(results)
    print_table(sets, runs)
    pictures = draw_pictures(model, processor, sets, args.output_dir, args.rows)
    print(f"\npictures: {', '.join(map(str, pictures))}\nprompts: {prompts}")
    print(f"{time.perf_counter() - start:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
