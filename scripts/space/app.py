"""The page as a Space: MODEL and PROFILE are variables of the Space; visitors can't name other models."""

import os

from anomalyclip_hf.app.page import launch, make_page

page = make_page(os.environ.get("MODEL", "demo"), os.environ.get("PROFILE"), choose_model=False)
if __name__ == "__main__":
    launch(page, host="0.0.0.0")
