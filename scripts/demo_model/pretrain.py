"""Pretrain the small CLIP that the package ships as its embedded default, on drawn images alone.

python scripts/demo_model/pretrain.py --output runs/1       # two CPU cores; add --resume to take it up
python scripts/demo_model/pretrain.py --output runs/2 --start-from runs/1/clip   # on from there, four times
python scripts/demo_model/pretrain.py --output runs/2 --package src/anomalyclip_hf/assets/demo   # learn prompts
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch
from transformers import CLIPModel, CLIPTokenizer, logging

from anomalyclip_hf import AnomalyCLIPModel
from anomalyclip_hf.evaluation.metrics import aupro, image_auroc, pixel_auroc
from drawing.synthetic import DEFECTS, HELD_OUT_CLASSES, draw_arrays
from package import package_demo
from pretrain_data import PretrainSettings, save_json
from pretrainer import Pretrainer, normalize


class HeldOutJudge:
    """Figures on classes that are held out, with the plain words "object." and "damaged object." as prompts."""

    def __init__(self, count: int, size: int):
        self.drawn = draw_arrays(count, classes=HELD_OUT_CLASSES, defects=DEFECTS, size=size, seed=777, difficulty=0.5)

    @torch.no_grad()
    def __call__(self, folder: Path) -> dict[str, float]:
        clip, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
        size = clip.config.vision_config.image_size
        tokens = tokenizer(["object.", "damaged object."], padding=True, return_tensors="pt")
        text = clip.get_text_features(**tokens).pooler_output
        model = AnomalyCLIPModel.from_pretrained(folder, image_size=size, dtype=torch.float32).eval()
        text = torch.nn.functional.normalize(text, dim=-1)
        pixels = normalize(torch.from_numpy(self.drawn["images"]).permute(0, 3, 1, 2).float() / 255)
        figures = {}
        for name, layers in (("", model.config.dpam_layers), ("_without_dpam", 0)):
            model.config.dpam_layers = layers
            parts = [model(pixel_values=p, text_embeds=text) for p in pixels.split(50)]
            maps = torch.cat([part.anomaly_maps for part in parts]).numpy()
            scores = torch.cat([part.logits.softmax(-1)[:, 1] for part in parts]).numpy()
            if not name:
                figures["image_auroc"] = image_auroc(scores, self.drawn["labels"])
            figures[f"pixel_auroc{name}"] = pixel_auroc(maps, self.drawn["masks"])
            figures[f"aupro{name}"] = aupro(maps, self.drawn["masks"])
        return {name: round(100 * float(value), 1) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/pretrain"), help="folder for drawings and weights")
    parser.add_argument("--minutes", type=float, default=PretrainSettings.minutes, help="wall clock of the training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--judge-minutes", type=float, default=10.0, help="how often to judge held-out classes")
    parser.add_argument("--start-from", default="", help="folder of a model to go on from, such as the embedded one")
    parser.add_argument("--package", type=Path, help="no training: turn the weights in --output into this folder")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if options.package:
        print(json.dumps(package_demo(options.output / "clip", options.package, options.output / "package"), indent=1))
        return
    settings = PretrainSettings(minutes=options.minutes, seed=options.seed, start_from=options.start_from)
    judge = HeldOutJudge(320, settings.image_size)
    pretrainer = Pretrainer(options.output, settings, judge)
    if options.resume and not pretrainer.resume():
        parser.error(f"--resume: {options.output} holds no checkpoint.safetensors; leave --resume out to start")
    info = pretrainer.train(judge_minutes=options.judge_minutes)
    info["command"] = shlex.join(["python", *sys.argv])
    info["held_out"] = judge(options.output / "clip")
    save_json(info, options.output / "clip" / "pretraining.json")
    print(info["held_out"])


if __name__ == "__main__":
    main()
