"""Convert a checkpoint of the authors' program (epoch_N.pth) to prompts of this package.

    python scripts/convert_checkpoint.py epoch_15.pth --output_dir prompts

Only the tensors are read. The backbone's weights are not needed, unless --base_model is a local folder, which is then
checked against the word embeddings in the file.
"""

import argparse
import sys

from anomalyclip_hf.conversion import AUTHORS_BACKBONE, convert_checkpoint


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="the authors' file, such as epoch_15.pth")
    parser.add_argument("--output_dir", required=True, help="folder for the prompts (about 172 KB for ViT-L)")
    parser.add_argument(
        "--base_model", default=AUTHORS_BACKBONE, help="CLIP that they were learned on: folder or name"
    )
    parser.add_argument("--base_config", help="folder with that CLIP's config.json, where its weights are not at hand")
    parser.add_argument("--preset", choices=["released", "paper"], default="released", help="feature layers")
    parser.add_argument("--image_size", type=int, help="input size in pixels (default: 518)")
    args = parser.parse_args(argv)
    settings = {"image_size": args.image_size} if args.image_size is not None else {}
    try:
        convert_checkpoint(
            args.checkpoint,
            args.base_model,
            args.output_dir,
            preset=args.preset,
            base_config=args.base_config,
            **settings,
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"Prompts written to {args.output_dir}. Load them with AnomalyCLIPModel.from_pretrained({args.output_dir!r})."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
