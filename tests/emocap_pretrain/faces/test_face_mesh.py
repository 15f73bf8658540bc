"""Finds landmarks in rendered faces with the real face mesh, in the environment that the command makes."""

import numpy as np
import pytest
from cli_calls import called
from emocap_shards.library import Library

from emocap_pretrain.captions.face_mesh import mesh
from emocap_pretrain.captions.rendered import regions
from emocap_pretrain.captions.rendered.dataset import sample_face
from emocap_pretrain.data.landmarks import read_landmarks

pytestmark = pytest.mark.slow

PIXELS = 224


def middle(outlines):
    """Returns the middle of all points of the outlines of a region, in shares of the image."""
    return np.concatenate([np.reshape(each, (-1, 2)) for each in outlines]).mean(0) / 1000


def test_the_mesh_finds_the_regions_where_they_were_drawn(tmp_path):
    called("synth", tmp_path, "--train", 1, "--test", 12, "--pixels", PIXELS)
    done = called("landmarks", tmp_path / "test", "--out", tmp_path / "faces.npz")
    assert done.exit_code == 0, done.output
    assert "A face was found in 12 images." in done.output
    found = read_landmarks(tmp_path / "faces.npz")
    samples = Library.open(str(tmp_path / "test")).fetch(np.arange(12), direct=True)
    assert list(found.names) == [sample.key for sample in samples]
    distances = []
    for name, points in zip(found.names, found.points, strict=True):
        drawn = regions.areas(sample_face(*map(int, name.split("-"))))
        meshed = mesh.areas(points, width_px=PIXELS, height_px=PIXELS)
        distances += [np.hypot(*(middle(drawn[each]) - middle(meshed[each]))) for each in ("eyes", "mouth", "nose")]
    # A tenth of the distance between the eyes is about 0.03 of the image.
    assert np.median(distances) < 0.02
    assert max(distances) < 0.05
