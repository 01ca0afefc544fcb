"""What `anomalyclip predict` does with videos and cameras."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..data.files import one_line


def predict_videos(
    videos: Sequence[str], camera: str | None, output_dir: str, detector: Callable[..., Any], **settings: Any
) -> int:
    """Score videos, each into a folder of its name, and a camera; one that can't be read does not end the others.

    Args:
        videos: files.
        camera: number or device of a camera, or the address of a stream; read after the files, until Ctrl-C.
        output_dir: where the folders of results go.
        detector, **settings: as of `scoring.video.predict_video`.

    Returns:
        exit status: 0 every frame was scored, 1 something was skipped, 2 nothing was scored.
    """
    from ..scoring.inputs import unique_name
    from ..scoring.video import VideoError, predict_video

    taken: set[str] = set()
    states = []
    sources = [(one, False) for one in videos]
    if camera is not None:
        sources.append((camera, "://" not in camera))
    for source, is_camera in sources:
        name = unique_name("camera" if source == camera else Path(source).name, taken)
        try:
            summary = predict_video(source, Path(output_dir, name), detector, camera=is_camera, **settings)
        except VideoError as error:
            print(f"skipped {one_line(source)}: {one_line(error)}", file=sys.stderr)
            states.append(2)
            continue
        for entry in summary.skipped:
            print(f"skipped {one_line(entry['path'])}: {one_line(entry['error'])}", file=sys.stderr)
        peak = f", highest score {summary.peak[1]:.3f} at {summary.peak[0]:.2f} s" if summary.peak else ""
        where = os.path.join(output_dir, name, "")
        print(one_line(f"{source}: {summary.num_scored} frames scored{peak}; results in {where}"))
        states.append(summary.exit_status)
    return join_states(states)


def join_states(states: Sequence[int]) -> int:
    """The exit status of several: 0 or 2 where all of them are, otherwise 1."""
    return states[0] if len(set(states)) == 1 else 1
