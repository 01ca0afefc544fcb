"""DICOM files, by pydicom: a frame becomes an 8-bit PIL image as a viewer shows it.

No more than the elements that describe pixels are ever read: what says whose image it is reaches neither records nor
messages. Importing this needs numpy and PIL only.
"""

from typing import Any

import numpy as np
from PIL import Image

from .pixels import WINDOWED, ImageReadError, Window, to_uint8
from .tiff import image_of_values

_PER_FRAME, _SHARED = 0x52009230, 0x52009229  # functional groups of enhanced multi-frame images


def count_frames(source: Any) -> int:
    """Number of frames of a DICOM file; 1 without pydicom, whose reader says so."""
    try:
        import pydicom
    except ImportError:
        return 1
    if hasattr(source, "seek"):
        source.seek(0)
    header = pydicom.dcmread(source, specific_tags=["NumberOfFrames"], stop_before_pixels=True)
    return int(header.get("NumberOfFrames") or 1)


def read_dicom(source: Any, page: int = 1, window: Window = None, as_stored: bool = False) -> Image.Image:
    """A frame of a DICOM file, in gray or RGB.

    Its modality LUT is applied, then the window: `(low, high)` in values after that LUT (of CT: Hounsfield units),
    "percentile", or by default its own first VOI LUT or window. Without one, from the least to the highest value that
    its bits can hold, so that slices of a series compare; where 16 are stored, by the bits in use, and from its own
    least to its highest value where they are not whole or below 0. MONOCHROME1 is inverted. PALETTE COLOR and YBR
    become RGB.

    Args:
        source: path or binary file.
        page (`int`): number of the frame, from 1.
        window: as of `load_image`.
        as_stored: gray as it is stored, for masks, which are no pictures to be shown.

    Raises:
        ImageReadError: pydicom or the plugin that decodes its transfer syntax is not installed, or there is no image.
    """
    try:
        from pydicom import pixels
        from pydicom.dataset import Dataset
    except ImportError as error:
        raise ImageReadError("it is a DICOM file, which pydicom reads: pip install 'anomalyclip_hf[dicom]'") from error
    frames = count_frames(source)
    if not 1 <= page <= frames:
        raise ImageReadError(f"it has {frames} frames, but page {page} is asked for")
    header, is_given = Dataset(), window is not None
    try:
        values = pixels.pixel_array(source, ds_out=header, specific_tags=[_PER_FRAME, _SHARED], index=page - 1)
    except AttributeError as error:
        raise ImageReadError("it holds no image, one without what describes its pixels, or is deflated") from error
    except RuntimeError as error:  # of a compressed one: names the packages that would decode it
        raise ImageReadError(" ".join(str(error).split())) from error
    for groups, index in ((header.get(_SHARED), 0), (header.get(_PER_FRAME), page - 1)):
        if groups is not None and index < len(groups.value):
            for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for item in groups.value[index].get(name) or ():
                    header.update(item)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        values = pixels.apply_color_lut(values, header)
    if as_stored and values.ndim == 2:
        return image_of_values(values, None)
    if header.SamplesPerPixel == 1 and header.PhotometricInterpretation != "PALETTE COLOR":
        values = _whole(pixels.apply_modality_lut(values, header))
        if window is None:
            values, window = _shown(values, header, pixels)
    gray = to_uint8(values, "it", window)
    image = Image.fromarray(255 - gray if header.PhotometricInterpretation == "MONOCHROME1" else gray)
    image.format = "DICOM"
    if header.get("BitsStored", 8) > 8:
        image.info["bit_depth"] = int(header.BitsStored)
    if is_given:
        image.info[WINDOWED] = True
    return image


def _shown(values: np.ndarray, header: Any, pixels: Any) -> tuple[np.ndarray, Window]:
    """Values as the file asks to show them, and those that are black and white; by the module pydicom.pixels."""
    if header.get("VOILUTSequence"):
        values = pixels.apply_voi(np.rint(values).astype(np.int64), header)
        return values, (0, (1 << int(header.VOILUTSequence[0].LUTDescriptor[2])) - 1)
    if header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        with np.errstate(over="ignore"):  # of a sigmoid
            low, high = pixels.apply_windowing(np.array([-1e12, 1e12]), header)  # what is below and above all windows
            return pixels.apply_windowing(values, header), (low, high)
    bits = int(header.get("BitsStored") or 16)
    if bits < 16 and not header.get("ModalityLUTSequence"):
        least = -(1 << bits - 1) if header.get("PixelRepresentation") else 0
        ends = pixels.apply_modality_lut(np.array([least, least + (1 << bits) - 1]), header)
        return values, (ends.min(), ends.max())
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        return values, (values.min(), values.max())
    return values, None


def _whole(values: np.ndarray) -> np.ndarray:
    """Values as integers where all of them are whole numbers."""
    if values.dtype.kind != "f" or not np.isfinite(values).all() or (values != np.rint(values)).any():
        return values
    return values.astype(np.int32)
