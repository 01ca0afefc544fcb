"""Share a model on the Hub: the prompts alone, everything, or the vision-only form.

python scripts/push_to_hub.py outputs/prompts me/anomalyclip-prompts --dry-run
python scripts/push_to_hub.py outputs/prompts me/anomalyclip-prompts --results outputs/eval/results.json --license mit
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from anomalyclip_hf import AnomalyCLIPImageProcessor, AnomalyCLIPModel


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )

    def option(name: str, **settings: Any) -> None:
        parser.add_argument(f"--{name.replace('_', '-')}", *([f"--{name}"] if "_" in name else []), **settings)

    parser.add_argument("model", help="folder or Hub repository: prompts alone or a full AnomalyCLIP")
    parser.add_argument("repo_id", help="where to push, such as me/anomalyclip-prompts; made if absent")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--prompts-only", "--prompts_only", action="store_true", help="the prompts alone (default)")
    form.add_argument("--full", action="store_true", help="everything, the backbone too")
    form.add_argument("--vision-only", "--vision_only", action="store_true", help="no text tower; can't be trained")
    option("dry_run", action="store_true", help="list what would be sent, and send nothing")
    option("private", action="store_true", help="make the new repository private")
    option("base_model", help="name of the base model on the Hub, where the prompts name another place")
    option("base_revision", help="its revision")
    option("results", help="results.json of scripts/evaluate.py, for the card")
    option("training", help="JSON file: what the card says of the training; by default the folder's")
    option("license", help="license of what is pushed, such as mit, for the card")
    option("with_code", action="store_true", help="add the code that trust_remote_code=True runs")
    option("no_code", action="store_true", help=argparse.SUPPRESS)  # the default now
    option("revision", help="branch to push to; made if absent")
    option("commit_message", default="Upload AnomalyCLIP")
    option("create_pr", action="store_true", help="propose the change instead of making it")
    option("token", help="the one kept by `hf auth login` if absent")
    return parser.parse_args(arguments)


PASSED_ON = ("base_model", "base_revision", "results", "training", "license")
PASSED_ON += ("token", "revision", "commit_message", "create_pr", "dry_run")


def push(
    source: str,
    repo_id: str,
    *,
    form: str = "prompts_only",
    base_model: str | None = None,
    base_revision: str | None = None,
    results: str | None = None,
    training: str | None = None,
    license: str | None = None,
    **options: Any,
) -> Any:
    """Load a model with its processor and share it.

    Args:
        source (`str`): folder or Hub repository.
        repo_id (`str`): where to push.
        form (`str`): `"prompts_only"`, `"full"` or `"vision_only"`.
        base_model, base_revision (`str`, *optional*): of prompts alone.
        results, training, license (`str`, *optional*): for the card; what the training left in the folder if absent.
        **options: of `push_to_hub`.

    Returns:
        `huggingface_hub.CommitInfo`; with `dry_run=True`, what would be sent: `{path: bytes}`.
    """
    if form != "prompts_only" and (base_model or base_revision):
        given, value = ("base_model", base_model) if base_model else ("base_revision", base_revision)
        raise ValueError(f"{given}={value!r} is for prompts alone, but --{form} sends the backbone; leave one out")
    model = AnomalyCLIPModel.from_pretrained(source)
    summary, facts = Path(source) / "training_summary.json", training
    if training is None and summary.is_file():
        facts = json.loads(summary.read_text(encoding="utf-8")).get("card")
    options["card"] = {"results": results, "training": facts, "license": license}
    options["processor"] = AnomalyCLIPImageProcessor.from_pretrained(source)
    if form == "prompts_only":
        base = {"base_model_name_or_path": base_model, "base_model_revision": base_revision}
        return model.push_prompts_to_hub(repo_id, **base, **options)
    return (model.to_vision_only() if form == "vision_only" else model).push_to_hub(repo_id, **options)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        done = push(
            args.model,
            args.repo_id,
            form="full" if args.full else "vision_only" if args.vision_only else "prompts_only",
            save_code=args.with_code,
            private=args.private or None,
            **{name: getattr(args, name) for name in PASSED_ON},
        )
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
