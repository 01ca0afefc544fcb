"""The layout of the page, and what belongs to each of its sessions."""

import functools
import html
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageDraw

from ..data.files import one_line
from ..data.synthetic import draw_anomaly_on
from . import judging

STYLE = """
.told {font-size: 1rem; padding: .6rem .8rem; border-radius: .4rem; overflow-wrap: anywhere}
.picture .image-frame {padding-top: 2.2rem}
.told-error {background: #fee2e2; color: #7f1d1d}
.told-note {background: #e0f2fe; color: #0c4a6e}
"""
KEEP, PROGRESS = gr.skip(), gr.Progress(track_tqdm=True)
PROMISE = "59 good images promise at most 5% false alarms with 95% confidence; what fewer allow is told here."
SHOWN = 8  # latest pictures kept, which the browser may still ask for
NONE = ("None", "")  # of the choices of a list: what is shown, and what it stands for


def make_page(model: str = "demo", profile: str | None = None, choose_model: bool = True) -> gr.Blocks:
    """The page, ready for [`launch`].

    Args:
        model: folder or Hub repository that it begins with; "demo" is the embedded model.
        profile: that it begins with.
        choose_model: whether visitors may name another model, which lets them read folders of this machine.

    Raises:
        OSError, ValueError: there is no such model or profile.
    """
    home = tempfile.TemporaryDirectory(prefix="anomalyclip-page-")  # of uploads and results; ends with this process
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": home.name}
    with judging.using(judging.Setting(model, profile)) as detector:
        notice = getattr(detector.model.config, "notice", None) or ""
        profiles = [NONE, *detector.model.profile_names]
    examples = draw_examples(Path(home.name, "examples"))
    sessions = Sessions(Path(home.name, "sessions"), {path for _, path in examples})
    page = gr.Blocks(title="AnomalyCLIP", analytics_enabled=False, fill_width=True)
    page.home = home  # type: ignore[attr-defined]
    upload = functools.partial(gr.File, file_count="multiple", height=150)
    list_of = functools.partial(gr.Dataframe, interactive=False, wrap=True)
    kind: dict[str, Any] = {"type": "filepath", "format": "png", "buttons": ["download", "fullscreen"]}
    picture = functools.partial(gr.Image, interactive=False, min_width=220, elem_classes="picture", **kind)
    threshold = functools.partial(gr.Slider, 0, 1, 0.5, step=0.001, min_width=260)
    with page:
        gr.Markdown(f"# Find anomalies in images\n{notice}")
        scored, name = gr.State(), gr.State()
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                files = upload(label="Images to score", elem_id="images")
                example = gr.Dropdown(examples, value="", label="Or an example", elem_id="example")
                source = gr.Textbox(model, label="Model or prompts: folder or Hub name", interactive=choose_model)
                product = gr.Dropdown(profiles, value=profile or "", label="Profile")
                references = upload(label="1 to 32 good images to compare with", elem_id="references")
                go = gr.Button("Score", variant="primary", elem_id="score")
                with gr.Accordion("Calibrate on good images", open=False):
                    good = upload(label="Good images, others than above", elem_id="good")
                    folder = gr.UploadButton("Choose a folder of them", file_count="directory", size="sm")
                    rate = gr.Slider(1, 50, 5, step=1, label="False alarms allowed, % of good images")
                    calibrate = gr.Button("Calibrate", elem_id="calibrate")
                    promise = gr.HTML(tell(PROMISE, "note"), elem_id="promise")
            with gr.Column(scale=5, min_width=300):
                told = gr.HTML(elem_id="told")
                with gr.Row():
                    thresholds = [
                        threshold(label="Image threshold, for the label", elem_id="image-threshold"),
                        threshold(label="Pixel threshold, for mask and regions", elem_id="pixel-threshold"),
                    ]
                share = gr.HTML(elem_id="share")
                label = "All images: click a row to see it, a heading to sort"
                table = list_of(
                    headers=["Image", "Score", "Label", "Regions"],
                    datatype=["str", "number", "str", "number"],
                    column_widths=["33%", "19%", "29%", "19%"],
                    label=label,
                    max_height=260,
                    elem_id="table",
                )
                verdict = gr.HTML(elem_id="verdict")
                with gr.Row():
                    pictures = [
                        picture(label="Heat map: dark 0, bright 1"),
                        picture(label="Mask"),
                        picture(label="Regions"),
                    ]
                headers = ["No.", "Box: x0, y0, x1, y1", "Area", "Peak"]
                regions = list_of(headers=headers, label="Regions, in pixels of the image", max_height=260)
                pack = gr.Button("Prepare results for download", elem_id="pack")
                download = gr.DownloadButton("Download results.zip", visible=False, elem_id="download")
        # What a browser sends can be anything, what a state holds stays here.
        chosen = [source if choose_model else gr.State(model), product, references]
        shown = [verdict, *pictures, regions]
        scoring: dict[str, Any] = {
            "fn": plainly(sessions.score, told),
            "inputs": [files, *chosen, *thresholds],
            "outputs": [told, scored, name, download, share, table, *shown],
            "show_progress_on": [told],
        }
        go.click(**scoring)
        example.input(lambda path: [path] if path else None, example, files).then(**scoring)
        choosing: dict[str, Any] = {
            "fn": plainly(choose, told),
            "inputs": chosen,
            "outputs": [told, product, *thresholds],
        }
        gr.on([page.load, source.submit, product.input, references.upload, references.clear], **choosing)
        folder.upload(list, folder, good)
        calibrate.click(plainly(calibrated, told), [good, *chosen, rate], [told, promise, *thresholds])
        for slider in thresholds:
            live: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden"}
            slider.change(plainly(relabel, told), [scored, *thresholds], [told, download, share, table], **live)
            slider.change(plainly(show, told), [scored, name, *thresholds], [told, *shown], **live)
        table.select(select, None, name).then(plainly(show, told), [scored, name, *thresholds], [told, *shown])
        pack.click(plainly(packed, told), [scored, *thresholds], [told, download])
        for given in (files, references, good):
            given.change(sessions.remember, given, show_progress="hidden")
        page.unload(sessions.forget)
    return page


def launch(page: gr.Blocks, host: str = "127.0.0.1", port: int = 7860, share: bool = False, **options: Any) -> Any:
    """Serve a page, with its style and without what asks the network; returns what `gradio.Blocks.launch` does."""
    theme = gr.themes.Default(font=(family := ["system-ui", "sans-serif"]), font_mono=family)
    look: dict[str, Any] = {"theme": theme, "css": STYLE, "footer_links": [], "ssr_mode": False}
    return page.launch(server_name=host, server_port=port, share=share, **look, **options)


class Sessions:
    """What the sessions have uploaded and scored; none of it outlives its session.

    Args:
        root: folder for the results of each.
        examples: files that are chosen like uploads, and stay.
    """

    def __init__(self, root: Path, examples: set[str]):
        self.root, self.uploads = root, {"examples": examples}
        self.scoring: dict[str, bool] = {}  # session that is scored for -> whether it ended meanwhile

    def remember(self, files: list[str] | None, request: gr.Request) -> None:
        """Note the uploads of a session."""
        self.uploads.setdefault(str(request.session_hash), set()).update(files or ())

    def forget(self, request: gr.Request) -> None:
        """Remove all of a session that has ended."""
        session = str(request.session_hash)
        for path in self.uploads.pop(session, set()).difference(*self.uploads.values()):  # equal files are shared
            Path(path).unlink(missing_ok=True)
        if session in self.scoring:  # which writes on
            self.scoring[session] = True
        shutil.rmtree(self.root / session, ignore_errors=True)

    def score(
        self, files, model, profile, references, image, pixel, request: gr.Request, progress=PROGRESS
    ) -> list[Any]:
        """Score the files of a session and show the one of the highest score."""
        session = str(request.session_hash)
        own = self.root / session
        place = own / secrets.token_hex(4)
        self.scoring[session] = False
        try:
            scored = judging.score_images(files or [], place, judging.Setting(model, profile, references or ()))
            for former in own.iterdir():  # only now: what can't be scored leaves the results before
                if former != place:
                    shutil.rmtree(former, ignore_errors=True)
        finally:
            if self.scoring.pop(session, False):
                shutil.rmtree(own, ignore_errors=True)
        name = max(scored.records, key=lambda one: scored.records[one]["score"])
        notice = tell(judging.tell_skipped(scored.skipped), "error")
        table, shown = relabel(scored, image, pixel)[1:], show(scored, name, image, pixel)[1:]
        return [notice, scored, name, *table, *shown]


def choose(model: str, profile: str, references: list[str] | None) -> list[Any]:
    """The profiles of a model, and the thresholds that it or its profile has for such scores."""
    with judging.using(judging.Setting(model)) as detector:
        names = detector.model.profile_names
    profile = profile if profile in names else ""
    with judging.using(judging.Setting(model, profile)) as detector:
        compares = bool(references) or detector.model.references is not None
        found = detector.model.fitting_thresholds(with_references=compares)
    lacking = " and ".join(name.partition("_")[0] for name, value in found.items() if value is None)
    notice = f"No {lacking} threshold is stored for such scores: 0.5 is a start; calibrate for a promise."
    values = (0.5 if value is None else value for value in found.values())
    return [tell(notice if lacking else "", "note"), gr.update(choices=[NONE, *names], value=profile), *values]


def relabel(scored: judging.Scored | None, image_threshold: float, pixel_threshold: float) -> list[Any]:
    """The share and the table at other thresholds, for which no zip is prepared."""
    if scored is None:
        return [KEEP] * 4
    share = judging.share_above([one["score"] for one in scored.records.values()], image_threshold)
    rows = judging.table_rows(scored, image_threshold, pixel_threshold)
    text = f"{share:.1%} of the images scored would be called anomalous: {round(share * len(rows))} of {len(rows)}."
    return [KEEP, gr.update(visible=False), tell(text, "note"), rows]


def show(scored: judging.Scored | None, name: str, image_threshold: float, pixel_threshold: float) -> list[Any]:
    """One image at these thresholds: its verdict, pictures and regions."""
    if scored is None or name not in scored.records:
        return [KEEP] * 6
    record, mask = judging.judge(scored, name, image_threshold, pixel_threshold)
    # Other pictures need another address, and two sliders that move at once a folder each.
    place = scored.folder / "shown" / f"{time.time_ns()}-{secrets.token_hex(4)}"
    drawn = {"mask": Image.fromarray(mask).convert("L"), "regions": judging.draw_regions(scored, record)}
    paths = [place / kind / f"{name}.png" for kind in drawn]
    for path, picture in zip(paths, drawn.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, compress_level=1)
    for former in sorted(scored.folder.glob("shown/*"))[:-SHOWN]:
        shutil.rmtree(former, ignore_errors=True)
    rows = [
        [number, ", ".join(map(str, one["box"])), one["area"], round(one["peak"], 3)]
        for number, one in enumerate(record["regions"], 1)
    ]
    text = f"{name}: score {record['score']:.4f}, {record['label']} ({record['width']} × {record['height']} pixels)"
    pictures = [scored.folder / record["overlay"], *paths]
    return [KEEP, tell(text, "note"), *map(str, pictures), rows]


def calibrated(files, model, profile, references, rate, progress=PROGRESS) -> list[Any]:
    """Thresholds by good images, and what they promise."""
    setting = judging.Setting(model, profile, references or ())
    *thresholds, text = judging.calibrate_page(files or [], setting, rate / 100)
    return ["", tell(text, "note"), *thresholds]


def packed(scored: judging.Scored | None, image_threshold: float, pixel_threshold: float) -> list[Any]:
    """The zip of a session's results, to be downloaded."""
    if scored is None:
        raise ValueError("There are no results yet: score some images.")
    path = judging.results_zip(scored, image_threshold, pixel_threshold, scored.folder / "results.zip")
    return [KEEP, gr.update(value=str(path), visible=True)]


def select(event: gr.SelectData) -> str:
    """The name in the row that was clicked, whatever the table is sorted by."""
    return event.row_value[0]


def plainly(handler: Callable[..., list[Any]], told: gr.HTML) -> Callable[..., Any]:
    """A handler whose errors are told on the page; all else there stays as it is."""

    @functools.wraps(handler)
    def run(*args: Any) -> Any:
        try:
            return handler(*args)
        except Exception as error:  # of libraries too, whatever a name or a file makes them raise
            logging.getLogger(__name__).info("told on the page", exc_info=True)
            return {told: tell(one_line(" ".join(str(error).split())) or type(error).__name__, "error")}

    return run


def tell(text: str, kind: str) -> str:
    """A line of the page, "note" or "error"; nothing where the text is empty."""
    return f'<div class="told told-{kind}" role="status">{html.escape(text)}</div>' if text else ""


def draw_examples(folder: Path) -> list[tuple[str, str]]:
    """Drawings of a tray, a good one and three others: name and file of each, after that of none."""
    tray = Image.new("RGB", (320, 240), (232, 228, 220))
    for x in range(20, 320, 50):
        for y in range(20, 240, 50):
            box = (x, y, x + 30, y + 30)
            ImageDraw.Draw(tray).ellipse(box, fill=(70, 110, 150), outline=(30, 50, 80), width=3)
    pictures = {"Good tray": tray}
    for name, kind in (
        ("Tray with a strange piece", "cut_paste"),
        ("Scratched tray", "scar"),
        ("Stained tray", "noise"),
    ):
        pictures[name] = Image.fromarray(draw_anomaly_on(tray, seed=1, defect=kind)[0])
    folder.mkdir(parents=True)
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
    return [NONE, *((name, str(folder / f"{name}.png")) for name in pictures)]
