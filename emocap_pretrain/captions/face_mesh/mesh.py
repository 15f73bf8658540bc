"""Returns where the regions of a face lie in an image, from the 478 points of the MediaPipe face mesh.

The numbers in `OUTLINES` are indices of points of the mesh (`geometry.py`), in their order along an outline. An outline
surrounds about the same part of the face as the outline of the same region of a rendered face (`rendered/regions.py`).
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from emocap_pretrain.data.regions import Outline, outline

OUTLINES: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "eyebrows": (
        (55, 107, 66, 105, 63, 70, 156, 46, 53, 52, 65),
        (285, 336, 296, 334, 293, 300, 383, 276, 283, 282, 295),
    ),
    "eyes": (
        (244, 189, 222, 223, 224, 225, 226, 31, 228, 229, 230, 231, 232),
        (464, 413, 442, 443, 444, 445, 446, 261, 448, 449, 450, 451, 452),
    ),
    "cheeks": ((118, 117, 123, 187, 205, 36, 101), (347, 346, 352, 411, 425, 266, 330)),
    "nose": ((8, 193, 236, 198, 129, 203, 206, 216, 92, 165, 97, 2, 326, 391, 322, 436, 426, 423, 358, 420, 456, 417),),
    "mouth": ((57, 92, 165, 167, 164, 393, 391, 322, 287, 422, 424, 418, 421, 200, 201, 194, 204, 202),),
    "chin": ((200, 201, 194, 32, 140, 176, 152, 400, 369, 262, 418, 421),),
}
"""The outlines of each region: both eyebrows and so on, those on the subject's right side first."""


def areas(landmarks: Float[np.ndarray, "478 3"], *, width_px: int, height_px: int) -> dict[str, tuple[Outline, ...]]:
    """Returns the outlines of each region of a face, by the name of the region.

    A region is left out if one of its points is NaN.

    Args:
        landmarks: Positions x, y and depth of the points in pixels of the image, as `emocap landmarks` writes them.
            The depth is not used.
        width_px: Width of the image.
        height_px: Height of the image.
    """
    side = min(width_px, height_px)
    corner = np.array([(width_px - side) // 2, (height_px - side) // 2])
    flat = (landmarks[:, :2] - corner) / side
    return {
        name: tuple(outline(flat[list(points)]) for points in shapes)
        for name, shapes in OUTLINES.items()
        if np.isfinite(flat[[point for points in shapes for point in points]]).all()
    }
