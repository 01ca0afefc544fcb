"""Share a model on the Hub: the prompts alone, everything, or the vision-only form.

python scripts/push_to_hub.py outputs/prompts me/anomalyclip-prompts --dry_run
python scripts/push_to_hub.py outputs/prompts me/anomalyclip-prompts --results outputs/eval/results.json --license mit
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from anomalyclip_hf import AnomalyCLIPModel, AnomalyCLIPProcessor


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", help="folder or Hub repository: prompts alone or a full AnomalyCLIP")
    parser.add_argument("repo_id", help="where to push, such as me/anomalyclip-prompts; made if absent")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--prompts_only", action="store_true", help="the prompts and their base model's name (default)")
    form.add_argument("--full", action="store_true", help="everything, the backbone too")
    form.add_argument("--vision_only", action="store_true", help="no text tower; smaller, can't be trained")
    parser.add_argument("--dry_run", action="store_true", help="list what would be sent, and send nothing")
    parser.add_argument("--private", action="store_true", help="make the new repository private")
    parser.add_argument("--base_model", help="name of the base model on the Hub, where the prompts name another place")
    parser.add_argument("--base_revision", help="its revision")
    parser.add_argument("--results", help="results.json of scripts/evaluate.py, for the card")
    parser.add_argument("--training", help="JSON file: what the card says of the training; by default the folder's")
    parser.add_argument("--license", help="license of what is pushed, such as mit, for the card")
    parser.add_argument("--no_code", action="store_true", help="leave out the code that trust_remote_code=True runs")
    parser.add_argument("--revision", help="branch to push to; made if absent")
    parser.add_argument("--commit_message", default="Upload AnomalyCLIP")
    parser.add_argument("--create_pr", action="store_true", help="propose the change instead of making it")
    parser.add_argument("--token", help="the one kept by `hf auth login` if absent")
    return parser.parse_args(arguments)


def training_facts(args: argparse.Namespace) -> dict[str, Any] | str | None:
    """What the card says of the training: the user's file, or what the training left beside the prompts."""
    summary = Path(args.model) / "training_summary.json"
    if args.training or not summary.is_file():
        return args.training
    return json.loads(summary.read_text(encoding="utf-8")).get("card")


def push(args: argparse.Namespace) -> Any:
    if (args.full or args.vision_only) and (args.base_model or args.base_revision):
        given = "base_model" if args.base_model else "base_revision"
        value, form = getattr(args, given), "full" if args.full else "vision_only"
        raise ValueError(f"{given}={value!r} is for prompts alone, but --{form} sends the backbone; leave one out")
    model = AnomalyCLIPModel.from_pretrained(args.model)
    processor = AnomalyCLIPProcessor.from_pretrained(args.model)
    card = {"results": args.results, "training": training_facts(args), "license": args.license}
    options = {name: getattr(args, name) for name in ("token", "revision", "commit_message", "create_pr", "dry_run")}
    options |= {"processor": processor, "card": card, "save_code": not args.no_code, "private": args.private or None}
    if args.full or args.vision_only:
        return (model.to_vision_only() if args.vision_only else model).push_to_hub(args.repo_id, **options)
    base = {"base_model_name_or_path": args.base_model, "base_model_revision": args.base_revision}
    return model.push_prompts_to_hub(args.repo_id, **base, **options)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        done = push(args)
    except (ValueError, OSError) as error:  # the Hub's own errors among them
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.dry_run:
        for path, size in done.items():
            print(f"{size:>13,}  {path}")
        print(f"{sum(done.values()):>13,}  bytes, {len(done)} files would be sent to {args.repo_id}; nothing was sent")
    else:
        print(f"Pushed: {done.commit_url}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
