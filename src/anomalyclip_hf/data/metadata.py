"""Metadata of image files: of all there is, the orientation alone is looked at.

Importing this needs numpy and PIL only.
"""

from PIL import Image

ORIENTATION_TAG = 274
# EXIF orientation -> what puts the stored pixels upright; the last four swap width and height.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
METADATA_KEYS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation that still is to be applied to an image, 1 to 8; 1 where there is none."""
    return stated_orientation(image) or 1


def stated_orientation(image: Image.Image) -> int | None:
    """EXIF orientation in the metadata of an image, be it 1; None where there is none."""
    try:
        value = image.getexif().get(ORIENTATION_TAG)
        return int(value) if value == 1 or value in UPRIGHT else None
    except Exception:  # broken metadata must not hide sound pixels
        return None


def tame_metadata(image: Image.Image) -> None:
    """Leave nothing of the metadata in an opened image but its orientation, so that no one trips over the rest."""
    orientation, kept = stated_orientation(image), Image.Exif()
    if orientation is not None:
        kept[ORIENTATION_TAG] = orientation
    for key in METADATA_KEYS:
        image.info.pop(key, None)
    image.getexif = lambda: kept  # type: ignore[method-assign]
