"""Every code block of README.md and docs/ is run, in order, page by page, on a few small photographs."""

import ast
import re
import shlex
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CLIP = "openai/clip-vit-large-patch14-336"
# A fence, and the HTML comment above it, if any.
MARK, FENCE = r"(?:<!--\s*(?P<mark>[^>]*?)\s*-->\s*\n)?", r"^```(?P<kind>[\w-]*)[^\n]*\n(?P<code>.*?)^```$"
BLOCK = re.compile(MARK + FENCE, re.M | re.S)
TEXTS = ("text", "json", "bibtex", "yaml", "dockerfile")  # not code, unless marked as a file


@pytest.fixture(scope="module")
def folder(tmp_path_factory, load_golden) -> Path:
    """What the pages speak of: photographs, labelled parts, 59 good bottles, a CLIP under its name on the Hub."""
    from transformers import CLIPConfig, CLIPModel

    root = tmp_path_factory.mktemp("docs")
    cookies, boards = FIXTURES / "photos" / "cookies", FIXTURES / "photos" / "pcb"
    goods = sorted(cookies.glob("good/*.jpg"))
    small = {
        "photos": [*sorted(cookies.glob("defect/*.jpg"))[:2], goods[-1]],
        "good": goods[:4],
        "more_good": goods[4:8],
        "batch": goods[:6],
    }
    for name, files in small.items():
        (root / name).mkdir()
        for file in files:
            shutil.copy(file, root / name)
    shutil.copytree(cookies, root / "tests" / "fixtures" / "photos" / "cookies")
    shutil.copy(cookies / "defect" / "anomaly-1.jpg", root / "photo.jpg")
    shutil.copy(boards / "defect" / "00041003_test.jpg", root / "part.png")
    for name, source, count in (("parts", cookies, 5), ("boards", boards, 3), ("new_parts", boards, 2)):
        for kind in ("good", "defect", "masks"):
            (root / name / kind).mkdir(parents=True)
        images = [file for kind in ("good", "defect") for file in sorted((source / kind).glob("*.jpg"))[:count]]
        masks = [mask for file in images if (mask := source / "masks" / f"{file.stem}.png").is_file()]
        for file in [*images, *masks]:
            shutil.copy(file, root / name / file.parent.name)
    (root / "bottles").mkdir()
    shutil.copytree(root / "good", root / "normal_parts" / "good")
    for index in range(59):
        image = Image.open(goods[index % len(goods)]).resize((96, 128)).rotate(index // len(goods) - 2)
        ImageEnhance.Brightness(image).enhance(0.9 + index / 300).save(root / "bottles" / f"{index:02}.png")
    Image.fromarray(np.pad(np.full((108, 76), 255, np.uint8), 10)).save(root / "bottle_roi.png")
    golden = load_golden("native_last_layer")
    shutil.copy(golden.checkpoint, root / "epoch_15.pth")
    clip = CLIPModel(CLIPConfig(**{k: golden.clip[k] for k in ("text_config", "vision_config", "projection_dim")}))
    clip.load_state_dict(golden.backbone(), strict=False)
    clip.save_pretrained(root / CLIP)
    return root


def _run_bash(code: str, where: str) -> None:
    """Run commands of `anomalyclip` in this process; `# exit status 1` says what is expected if not 0."""
    from anomalyclip_hf.cli import main

    for line in filter(str.strip, code.replace("\\\n", " ").splitlines()):
        if not (words := shlex.split(line, comments=True)):
            continue
        assert words[0] == "anomalyclip", f"{where}: {words[0]} can't run here: mark the block <!-- not run: why -->"
        expected = re.search(r"# exit status (\d)", line)
        assert main(words[1:]) == int(expected[1] if expected else 0), f"{where}: {line}"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_blocks(page, folder, tmp_path, monkeypatch, record_property):
    monkeypatch.chdir(shutil.copytree(folder, tmp_path / "work"))
    monkeypatch.setattr("anomalyclip_hf.training.features.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "argv", ["anomalyclip"])
    text, names, left_out = page.read_text(encoding="utf-8"), {"__name__": "__main__"}, []
    for block in BLOCK.finditer(text):
        mark, kind, code = block["mark"] or "", block["kind"], block["code"]
        where = f"{page.name}:{text.count(chr(10), 0, block.start('code')) + 1}"
        if mark.startswith("not run: "):
            left_out.append(f"{where}: {mark.removeprefix('not run: ')}")
        elif mark.startswith("file: "):
            Path(mark.removeprefix("file: ")).write_text(code, encoding="utf-8")
        elif kind == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                exec(compile(code, where, "exec"), names)
        elif kind == "bash":
            _run_bash(code, where)
        else:
            assert kind in TEXTS, f"{where}: a block of kind {kind!r}, expected bash, python or {', '.join(TEXTS)}"
    assert text.count("\n```") % 2 == 0
    record_property("not run", left_out)
    print(f"{page.name}: {len(left_out)} blocks not run", *left_out, sep="\n  ")


def _messages() -> str:
    """All texts in the package's source, a … for each value put into them."""
    texts = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_messages_of_the_troubleshooting_page_are_the_packages_own():
    known = _messages()
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [" ".join(text.split()) for text in re.findall(r"\*\*`(.*?)`\*\*", page, re.S)]
    pieces = [piece.strip(" :") for text in quoted for piece in text.split("…") if len(piece) > 12]
    assert len(quoted) > 40 and not [piece for piece in pieces if piece not in known]
