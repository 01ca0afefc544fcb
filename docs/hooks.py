"""For the API page: docstrings in Hugging Face's style, such as [`Name`] and (`int`, *optional*)."""

import re


def on_page_content(html: str, page, **kwargs) -> str:
    """Drop the marks of Markdown that are left within code."""
    if page.file.src_path != "api.md":
        return html
    html = re.sub(r"\[~?(<code>)[~.]?(.*?</code>)\]", r"\1\2", html)
    return re.sub(r"<code>[^<]*[`*][^<]*</code>", lambda found: re.sub(r"[`*]", "", found[0]), html)
