"""Describes images by histograms of oriented gradients (HOG), the features of classifiers before neural networks.

They give a baseline (floor) for the probes of image towers: what does a logistic regression reach without learned
features? The tower in this module has no weights, and takes the place of an image tower, so the tasks that probe image
towers probe it as well.

The features are those of Dalal and Triggs (CVPR 2005, "Histograms of Oriented Gradients for Human Detection") as
scikit-image computes them (`skimage.feature.hog`, with square blocks of 2 x 2 cells and the norm L2-Hys): central
differences without smoothing, and nine unsigned orientations of 20 degrees. Each pixel counts for one orientation and
one cell, without interpolation between neighbours.
"""

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, one_hot

PIXELS, CELL, BLOCK, ORIENTATIONS = 64, 8, 2, 9
CLIP = 0.2  # Largest value of a block before it is scaled again (L2-Hys).
_EPSILON = 1e-5
_LUMA = (0.2125, 0.7154, 0.0721)  # The weights of red, green and blue in scikit-image's `rgb2gray`.


class HogTower(nn.Module):
    """Implements `ImageTower` for images of 64 x 64 pixels, without weights.

    A cell has 8 x 8 pixels, and a block 2 x 2 cells. Neighbouring blocks overlap by half, so there are 7 x 7 blocks.
    The vector of a patch is the normalized histograms of one block (36 values), and the pooled vector is the vectors of
    all blocks one after another (1,764 values).
    """

    pixels = PIXELS
    patch_width = BLOCK * BLOCK * ORIENTATIONS
    width = (PIXELS // CELL - BLOCK + 1) ** 2 * patch_width

    def encode_image(
        self, images: UInt8[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch patches patch_width"]]:
        grey = torch.einsum("bchw,c->bhw", images.double() / 255, torch.tensor(_LUMA, device=images.device).double())
        cells = _cells(grey)
        rows = cells.unfold(1, BLOCK, 1).unfold(2, BLOCK, 1)  # [batch, rows, columns, orientations, BLOCK, BLOCK]
        blocks = _scaled(rows.permute(0, 1, 2, 4, 5, 3).flatten(3))
        blocks = _scaled(blocks.clamp(max=CLIP)).flatten(1, 2).float()
        return blocks.flatten(1), blocks

    def parameter_depths(self) -> dict[str, int]:
        return {}

    def checkpoint_activations(self) -> None:
        pass


def _cells(grey: Float[Tensor, "batch height width"]) -> Float[Tensor, "batch rows columns orientations"]:
    """Returns the histogram of each cell: for each orientation, a sum of the magnitudes of gradients.

    The sum is over the pixels of the cell whose gradient has this orientation, and it is divided by the number of all
    pixels of the cell. In the outermost rows the vertical, and in the outermost columns the horizontal difference is 0.
    """
    down, right = torch.zeros_like(grey), torch.zeros_like(grey)
    down[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    right[:, :, 1:-1] = grey[:, :, 2:] - grey[:, :, :-2]
    angle = torch.rad2deg(torch.atan2(down, right)) % 180
    orientation = (angle / (180 / ORIENTATIONS)).floor().long().clamp(max=ORIENTATIONS - 1)
    of_orientation = one_hot(orientation, ORIENTATIONS).double() * torch.hypot(down, right)[..., None]
    return avg_pool2d(of_orientation.permute(0, 3, 1, 2), CELL).permute(0, 2, 3, 1)


def _scaled(blocks: Float[Tensor, "... values"]) -> Float[Tensor, "... values"]:
    """Returns each block divided by its Euclidean norm. A small constant in the root keeps a block of zeros at zero."""
    return blocks / torch.sqrt(blocks.square().sum(-1, keepdim=True) + math.pow(_EPSILON, 2))
