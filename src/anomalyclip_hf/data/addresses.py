"""Images by their address: what a pipeline is called with becomes an upright 8-bit image.

Importing this needs numpy and PIL only.
"""

import threading
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from PIL import Image

from ..options_anomalyclip import ADDRESSES, DOWNLOAD_BYTES, DOWNLOAD_TIMEOUT, check_options
from .reader import ImageReadError, Window, load_image, unreadable

URL_SAFE = "%/:=&?~#+!$,;'@()*[]"  # what has a meaning in a URL; spaces and the like are quoted


def read_image(
    image: Any,
    timeout: float | None = DOWNLOAD_TIMEOUT,
    max_bytes: int = DOWNLOAD_BYTES,
    window: Window = None,
    channels: Sequence[int] | None = None,
) -> Image.Image:
    """Read an image of any kind as an upright 8-bit PIL image.

    Args:
        image (`str`, `os.PathLike`, binary file, `bytes`, `{"bytes", "path"}`, `PIL.Image.Image`, `np.ndarray` or
            `torch.Tensor`): a `str` is a path, an address (`http://`, `https://`) or a `data:` URL.
        timeout (`float`, seconds, defaults to 30): for an address, from the request to the last byte.
        max_bytes (`int`, defaults to 100 million): largest file that an address may lead to.
        window, channels (*optional*): as of `reader.load_image`; a window is applied once, however often
            an image is read.

    Raises:
        ImageReadError: (a `ValueError`) if it is missing, empty, too large, too slow or no image; names it.
        ValueError: if a limit is no possible one.
        TypeError: if it is nothing that could be an image.
    """
    timeout = DOWNLOAD_TIMEOUT if timeout is None else timeout
    check_options({"timeout": timeout, "max_bytes": max_bytes})
    if isinstance(image, str) and image[:8].lower().startswith(ADDRESSES):
        try:
            content = _fetch(image, timeout, max_bytes)
        except Exception as error:  # of the address, the network, the server's answer
            raise unreadable(image, error) from error
        return load_image({"bytes": content, "path": image}, window, channels)
    return load_image(image, window, channels)


def _fetch(url: str, timeout: float, max_bytes: int) -> bytes:
    """Content of a URL; in a thread, since a server that sends a byte now and then keeps a socket's time limit."""
    found: list[bytes | Exception] = []

    def work() -> None:
        try:
            address = url if url[:5].lower() == "data:" else quote(url, safe=URL_SAFE)
            with urllib.request.urlopen(address, timeout=timeout) as response:
                found.append(response.read(max_bytes + 1))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work, name="anomalyclip-download", daemon=True)
    thread.start()
    thread.join(min(timeout, threading.TIMEOUT_MAX))
    result = found[0] if found else TimeoutError()
    if isinstance(result, TimeoutError):
        raise TimeoutError(f"not received within {timeout:g} s (timeout=... sets the limit)") from result
    if isinstance(result, Exception):
        raise result
    if len(result) > max_bytes:
        raise ImageReadError(f"it is larger than {max_bytes:,} bytes (max_bytes=... sets the limit)")
    return result
