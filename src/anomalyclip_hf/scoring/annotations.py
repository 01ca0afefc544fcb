"""Results as other tools read them: regions as COCO JSON and as tasks of Label Studio, maps as MVTec AD 2's server.

Written while the records pass by, with constant memory; a file appears when it is whole.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ..data.files import atomic_path, json_line, safe_name

CATEGORY = "anomaly"
LOCAL_FILES = "/data/local-files/?d="  # what Label Studio serves files of its own disk under


def write_coco(records: Iterable[Mapping[str, Any]], path: str | os.PathLike) -> int:
    """Write regions as COCO JSON: an image for each record, an annotation of the one category for each region.

    Args:
        records: `path`, `width`, `height` (pixels), `score` and `regions` (as of `find_regions`) of each image; those
            with an `error` are passed over.
        path: the file.

    Returns:
        number of annotations. Each has `bbox` [x, y, width, height], `area` (pixels), `segmentation` (one polygon; a
        way of no width leads to its holes, which COCO's polygons don't have), `score` (the region's peak).

    Raises:
        ValueError: a record lacks its size or its regions.
    """
    count = 0
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8") as file,
        tempfile.TemporaryFile("w+", encoding="utf-8") as annotations,
    ):
        file.write(f'{{"categories": [{{"id": 1, "name": "{CATEGORY}"}}],\n"images": [')
        for number, record in enumerate(_complete(records), 1):
            image = {"id": number, "file_name": str(record["path"]), "score": record["score"]}
            image |= {"width": record["width"], "height": record["height"]}
            file.write(_entry(image, number))
            for region in record["regions"]:
                count += 1
                left, top, right, bottom = region["box"]
                annotation: dict[str, Any] = {"id": count, "image_id": number, "category_id": 1, "iscrowd": 0}
                annotation |= {"bbox": [left, top, right - left, bottom - top], "area": region["area"]}
                outline = join_outlines(region["polygon"])[:-1]
                annotation |= {"segmentation": [[value for point in outline for value in point]]}
                annotations.write(_entry({**annotation, "score": region["peak"]}, count))
        file.write('\n],\n"annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, file)
        file.write("\n]}\n")
    return count


def write_label_studio(records: Iterable[Mapping[str, Any]], path: str | os.PathLike) -> int:
    """Write regions as pre-annotations of Label Studio: a task for each record, a polygon for each region.

    The labelling interface needs an `Image` named "image" of `$image`, and `PolygonLabels` named "label" with the
    label "anomaly". Files of this machine are named as Label Studio serves them where its
    LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT is the file system's root.

    Args:
        records, path: as of [`write_coco`].

    Returns:
        number of polygons; their points are in percent of width and height.

    Raises:
        ValueError: a record lacks its size or its regions.
    """
    count = 0
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write("[")
        for number, record in enumerate(_complete(records), 1):
            name, width, height = str(record["path"]), record["width"], record["height"]
            if "://" not in name:
                name = LOCAL_FILES + quote(os.path.abspath(name).replace(os.sep, "/").lstrip("/"), errors="replace")
            shared = {"type": "polygonlabels", "from_name": "label", "to_name": "image", "image_rotation": 0}
            shared |= {"original_width": width, "original_height": height}
            results = []
            for region in record["regions"]:
                count += 1
                outline = join_outlines(region["polygon"])[:-1]
                value: dict[str, Any] = {"polygonlabels": [CATEGORY], "closed": True}
                value |= {"points": [[100 * x / width, 100 * y / height] for x, y in outline]}
                results.append({"id": str(count), **shared, "value": value, "score": region["peak"]})
            prediction = {"model_version": "anomalyclip", "score": record["score"], "result": results}
            file.write(_entry({"data": {"image": name}, "predictions": [prediction]}, number))
        file.write("\n]\n")
    return count


def write_submission(
    records: Iterable[Mapping[str, Any]], output_dir: str | os.PathLike, folder: str | os.PathLike
) -> int:
    """Copy maps and masks into the folders that MVTec AD 2's server takes, which hold class/split/stem of each image.

    Args:
        records: `path` (class/split/file at its end), `map` (a TIFF, as of `save_maps="tiff"`) and `mask` of each
            image.
        output_dir: folder of the prediction.
        folder: gets `anomaly_images` and `anomaly_images_thresholded`; what is there of other images stays.

    Returns:
        number of images.

    Raises:
        ValueError: a record lacks its map or its mask, they haven't the image's size, or two images have one name.
    """
    taken: dict[str, str] = {}
    for record in records:
        files = {"anomaly_images": record.get("map", ""), "anomaly_images_thresholded": record.get("mask", "")}
        if "map_size" in record or [Path(file).suffix for file in files.values()] != [".tiff", ".png"]:
            raise ValueError(
                f"{record['path']}: a map as TIFF and a mask, both at the image's size, are expected; found "
                f"{[*files.values()]}, map_size={record.get('map_size')}: predict with save_maps='tiff' and masks=True"
            )
        name = "/".join(map(safe_name, Path(record["path"]).with_suffix("").parts[-3:]))
        if name in taken:
            raise ValueError(
                f"{taken[name]} and {record['path']} are both {name} to the server, which knows images by "
                "class/split/stem: predict one of them"
            )
        taken[name] = record["path"]
        for kind, file in files.items():
            with atomic_path(Path(folder, kind, name + Path(file).suffix)) as temporary:
                shutil.copyfile(Path(output_dir, file), temporary)
    return len(taken)


def join_outlines(polygon: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """The outlines of a polygon as a single one, for formats without holes: a way of no width leads to each hole."""
    joined = [list(point) for point in polygon[0]]
    for hole in polygon[1:]:
        distances = np.linalg.norm(np.array(joined)[:, None] - np.array(hole[:-1])[None], axis=-1)
        here, there = divmod(int(distances.argmin()), distances.shape[1])
        way = [*hole[there:-1], *hole[: there + 1]]
        joined[here + 1 : here + 1] = [*map(list, way), joined[here]]
    return joined


def _complete(records: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for record in records:
        if "error" in record:
            continue
        if missing := [key for key in ("path", "width", "height", "regions") if record.get(key) is None]:
            raise ValueError(
                f"the record of {record.get('path')} has no {', '.join(missing)}: regions need a pixel threshold; "
                "calibrate the model, or give pixel_threshold=..."
            )
        yield record


def _entry(value: Mapping[str, Any], number: int) -> str:
    """An entry of a JSON list, the `number`-th from 1, without what ends it."""
    return (",\n" if number > 1 else "\n") + json_line(value).rstrip("\n")


__all__ = ["join_outlines", "write_coco", "write_label_studio"]
