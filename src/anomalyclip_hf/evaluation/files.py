"""Writing files whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

MAP_FORMATS = ("png", "npy")


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside `path`, with its suffix, and put it in place if the block succeeds.

    Raises:
        IsADirectoryError: `path` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"path={str(target)!r} is a folder but a file is to be written there: name the file")
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files for the owner alone; give the file the rights that open() would.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def save_map(anomaly_map: np.ndarray, path: str | os.PathLike) -> None:
    """Write a map in [0, 1] as 16-bit PNG (65535 is 1.0) or as float32 `.npy`, by the path's suffix."""
    with atomic_path(path) as temporary:
        if temporary.suffix == ".npy":
            np.save(temporary, anomaly_map.astype(np.float32), allow_pickle=False)
        else:
            levels = np.rint(np.clip(anomaly_map, 0.0, 1.0) * 65535.0).astype(np.uint16)
            Image.fromarray(levels).save(temporary)
