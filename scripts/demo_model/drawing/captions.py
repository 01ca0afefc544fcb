"""Captions of drawn images, in matching pairs: the same sentence for the flawless and the damaged picture."""

from __future__ import annotations

import numpy as np

from .defects import DEFECT_TABLE

GOOD = ("flawless", "perfect", "intact", "undamaged", "unblemished", "good", "normal")
GOOD_ENDS = ("without defect", "without damage", "without flaw", "in perfect condition")
BAD = ("damaged", "defective", "flawed", "broken")
PHOTOS = (
    "a photo of {}",
    "a close-up photo of {}",
    "a picture of {}",
    "a photo of {} for inspection",
    "a blurry photo of {}",
    "a bright photo of {}",
    "{}",
)
SCANS = ("a {scan} of {}", "a medical {scan} of {}", "{}", "a photo of {}")
HEALTHY, ILL = ("healthy", "normal", "intact", "flawless"), ("damaged", "diseased", "abnormal", "unhealthy")


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def caption_pair(rng: np.random.Generator, noun: str, color: str, scan: str, defect: str) -> tuple[str, str]:
    """Caption of the flawless and of the damaged picture."""
    _, adjectives, findings = DEFECT_TABLE[defect]
    thing = f"{color} {noun}" if color and rng.random() < 0.6 else noun
    generic = rng.random()
    if generic < 0.2:  # the words the learned prompts end in
        thing = "object"
    elif generic < 0.3:
        thing = f"{thing} object"
    form, style = int(rng.integers(0, len(PHOTOS) if not scan else len(SCANS))), rng.random()
    good = str(rng.choice(HEALTHY if scan else GOOD))
    bad = (
        str(rng.choice(adjectives))
        if rng.random() < 0.6 and thing != "object"
        else str(rng.choice(ILL if scan else BAD))
    )
    if thing == "object" and rng.random() < 0.5:
        bad = "damaged"
    if style < 0.45:
        pair = _article(f"{good} {thing}"), _article(f"{bad} {thing}")
    elif style < 0.65:  # as the prompts have it: the flawless one is plainly named
        pair = _article(thing), _article(f"{bad} {thing}")
    elif style < 0.85:
        pair = f"{_article(thing)} {rng.choice(GOOD_ENDS)}", f"{_article(thing)} with {rng.choice(findings)}"
    else:
        pair = _article(f"{good} {thing}"), f"{_article(f'{bad} {thing}')} with {rng.choice(findings)}"
    template = (SCANS if scan else PHOTOS)[form].replace("{scan}", scan).replace("a ultra", "an ultra")
    template = template.replace("a image", "an image").replace("a x-", "an x-").replace("a endo", "an endo")
    return template.format(pair[0]), template.format(pair[1])
