"""Tests the histograms of oriented gradients against the formula, computed pixel by pixel."""

import math

import numpy as np
import torch

from emocap_pretrain.model.hog import CELL, CLIP, ORIENTATIONS, PIXELS, HogTower
from emocap_pretrain.model.towers import ImageTower


def by_hand(image: np.ndarray) -> np.ndarray:
    """Returns the features of one image [3, PIXELS, PIXELS], computed in loops over pixels and blocks."""
    grey = (0.2125 * image[0] + 0.7154 * image[1] + 0.0721 * image[2]) / 255
    side = PIXELS // CELL
    cells = np.zeros((side, side, ORIENTATIONS))
    for row in range(PIXELS):
        for column in range(PIXELS):
            down = grey[row + 1, column] - grey[row - 1, column] if 0 < row < PIXELS - 1 else 0.0
            right = grey[row, column + 1] - grey[row, column - 1] if 0 < column < PIXELS - 1 else 0.0
            angle = math.degrees(math.atan2(down, right)) % 180
            number = min(int(angle // (180 / ORIENTATIONS)), ORIENTATIONS - 1)
            cells[row // CELL, column // CELL, number] += math.hypot(down, right) / CELL**2
    blocks = []
    for row in range(side - 1):
        for column in range(side - 1):
            block = cells[row : row + 2, column : column + 2].ravel()
            block = np.minimum(block / math.sqrt((block**2).sum() + 1e-10), CLIP)
            blocks.append(block / math.sqrt((block**2).sum() + 1e-10))
    return np.concatenate(blocks)


def test_the_features_are_those_of_the_formula() -> None:
    """The images are noise, one colour (all gradients are 0), and a chessboard whose fields have the size of a cell."""
    images = np.random.default_rng(0).integers(0, 256, (3, 3, PIXELS, PIXELS), dtype=np.uint8)
    images[1] = 77
    images[2] = np.kron(np.indices((8, 8)).sum(0) % 2 * 200, np.ones((8, 8)))
    tower = HogTower()
    assert isinstance(tower, ImageTower)
    pooled, patches = tower.encode_image(torch.from_numpy(images))
    assert (pooled.shape, patches.shape) == ((3, tower.width), (3, 49, tower.patch_width))
    wanted = np.stack([by_hand(image.astype(float)) for image in images])
    np.testing.assert_allclose(pooled.numpy(), wanted, rtol=0, atol=1e-6)
    assert torch.equal(patches.flatten(1), pooled)
