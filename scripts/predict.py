"""Score images: files or folders in; JSON lines and heat maps out.

    python scripts/predict.py photos/ part.png --model MODEL --output_dir results
    python scripts/predict.py --source mvtec --data_dir /data/mvtec --split test --output_dir results

Folders of masks (masks, ground_truth, ...) inside the folders given are left out. With --source, the images of
anything that evaluation takes too: a data set's name, a folder, a table, a meta.json or a datasets repository.

Without --model the embedded demo is used, which is only good for trying things out. Exit status: 0 = every image was
scored, 1 = some files could not be read (they are listed in skipped.jsonl), 2 = nothing could be done.
"""

import argparse
import os
import sys

from anomalyclip_hf.data.arguments import add_source_arguments, source_arguments


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="*", help="image files, and folders to search through for images")
    parser.add_argument("--model", help="folder or Hub repository (default: the embedded demo)")
    parser.add_argument("--output_dir", default="predictions", help="folder for results (default: predictions)")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--threshold", type=float, help="score from which an image is labeled anomalous")
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: an accelerator if there is one)")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--save_maps", nargs="?", const="png", choices=["png", "npy"], help="raw maps too")
    parser.add_argument("--vmin", type=float, default=0.0, help="map value of the first color, for the whole run")
    parser.add_argument("--vmax", type=float, default=1.0, help="map value of the last color, for the whole run")
    sources = parser.add_argument_group("data sets, in place of files and folders")
    sources.add_argument("--source", help="name, folder, table, meta.json, repository or synthetic")
    sources.add_argument("--split", default="test", help="one split, or all (default: test)")
    add_source_arguments(sources)
    args = parser.parse_args(argv)
    if bool(args.inputs) == bool(args.source):
        parser.error("give files and folders, or --source: one of the two")
    if args.inputs and (args.data_dir or source_arguments(args)):
        parser.error("--data_dir and the flags of data sets belong to --source; give --source in place of the files")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    # Imported late, so that --help and wrong arguments answer at once.
    from transformers import pipeline

    import anomalyclip_hf
    from anomalyclip_hf.data import load_anomaly_dataset
    from anomalyclip_hf.evaluation.prediction import predict_dataset, predict_files

    name = args.model
    if name in (None, "demo"):
        name = anomalyclip_hf.demo_checkpoint()
        if args.model is None:
            print("No --model given: using the embedded demo.", file=sys.stderr)  # the pipeline says what it is
    settings = {name: getattr(args, name) for name in ("batch_size", "threshold", "save_maps", "vmin", "vmax")}
    try:
        images = args.inputs
        if args.source:
            images = load_anomaly_dataset(args.source, args.data_dir, args.split, **source_arguments(args))
        # Loaded here: the pipeline would try two ways and answer the tracebacks of both.
        model = anomalyclip_hf.AnomalyCLIPModel.from_pretrained(name, dtype=args.dtype)
        detector = pipeline("zero-shot-anomaly-detection", model=model, device=args.device)
        predict = predict_dataset if args.source else predict_files
        summary = predict(images, args.output_dir, detector, **settings)
    except (OSError, ValueError, RuntimeError, AssertionError) as error:  # torch's of devices and memory among them
        print(f"error: {error}", file=sys.stderr)
        return 2
    for entry in summary.skipped:
        print(f"skipped {entry['path']}: {entry['error']}", file=sys.stderr)
    where = f"; results in {os.path.join(args.output_dir, '')}" if summary.predictions else ""
    masks = f", {len(summary.left_out)} files in folders of masks left out" if summary.left_out else ""
    print(f"{len(summary.predictions)} images scored, {len(summary.skipped)} inputs skipped{masks}{where}")
    return summary.exit_status


if __name__ == "__main__":
    sys.exit(main())
