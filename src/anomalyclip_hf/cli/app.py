"""`anomalyclip app`: the page in a browser."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.options import option

LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass
class Settings:
    """Open a page to score images with: heat maps, regions, thresholds, references and calibration in a browser.

    anomalyclip app --model MODEL

    The page is for this machine alone unless --host or --share is given; it then keeps to --model, since whoever names
    a model reads folders of this machine. Uploads and results last as long as the visit. Ctrl-C ends it.
    """

    model: str = option("demo", "Folder or Hub repository that the page begins with; 'demo': embedded.", short="m")
    profile: str | None = option(None, "Profile of the model that it begins with.")
    host: str = option("127.0.0.1", "Address to listen at; 0.0.0.0 lets other machines in.")
    port: int = option(7860, "Port to listen at.", rule=range(1, 65536))
    share: bool = option(False, "Make a public address too, by a tunnel of gradio's, for 72 hours.")


def run(settings: Settings) -> int:
    """Serve the page until it is interrupted."""
    try:
        from ..app.page import launch, make_page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise RuntimeError("the page needs gradio: pip install gradio, or '.[app]' in a checkout") from error

    is_local = settings.host in LOCAL and not settings.share
    page = make_page(settings.model, settings.profile, choose_model=is_local)
    launch(page, settings.host, settings.port, settings.share)
    return 0
