import dataclasses
import inspect
import subprocess
import sys

import emocap_kernels
import pytest
import torch
from emocap_kernels import Mining, contrastive_loss, errors, region_contrastive_loss
from emocap_kernels.result import Directions, LossResult

VECTORS = torch.eye(4)[:3]
PATCHES = torch.eye(4).repeat(3, 1, 1)
OWNER = torch.tensor([0, 1, 2])


def test_the_public_surface_is_three_names():
    assert sorted(emocap_kernels.__all__) == ["Mining", "contrastive_loss", "region_contrastive_loss"]


def test_the_signatures_are_those_that_callers_rely_on():
    assert str(inspect.signature(contrastive_loss)) == (
        "(image: 'Tensor', text: 'Tensor', scale: 'Tensor | float', *, objective: 'Objective' = 'infonce', "
        "bias: 'Tensor | float | None' = None, mining: 'Mining | None' = None, guide_image: 'Tensor | None' = None, "
        "guide_text: 'Tensor | None' = None, ids: 'Tensor | None' = None, group: 'ProcessGroup | None' = None, "
        "backend: 'Backend' = 'auto') -> 'LossResult'"
    )
    assert str(inspect.signature(region_contrastive_loss)) == (
        "(patches: 'Tensor', sentences: 'Tensor', owner: 'Tensor', scale: 'Tensor | float', *, "
        "sharpness: 'float' = 10.0, scope: 'Scope' = 'batch', patch_mask: 'Tensor | None' = None, "
        "mining: 'Mining | None' = None, group: 'ProcessGroup | None' = None, backend: 'Backend' = 'auto') "
        "-> 'LossResult'"
    )


def test_a_result_is_frozen_and_detached_but_for_the_loss():
    image = VECTORS.clone().requires_grad_()
    result = contrastive_loss(image, VECTORS, 5.0)
    assert [field.name for field in dataclasses.fields(LossResult)] == [
        "loss",
        "image_to_text",
        "text_to_image",
        "positives",
        "recall_at_1",
    ]
    assert isinstance(result.recall_at_1, Directions)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.loss = image  # pyright: ignore[reportAttributeAccessIssue]
    for tensor in (result.image_to_text, result.text_to_image, result.positives, *result.recall_at_1):
        assert tensor.shape == ()
        assert not tensor.requires_grad
    assert result.loss.requires_grad


def test_importing_needs_torch_and_nothing_else():
    code = (
        "import sys\n"
        "class Wall:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('numpy', 'jaxtyping', 'triton', 'beartype', 'transformers', 'deepspeed'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Wall())\n"
        "import emocap_kernels as k, torch\n"
        "x = torch.eye(3).requires_grad_()\n"
        "k.contrastive_loss(x, x, 5.0, mining=k.Mining(top_k=1)).loss.backward()\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.parametrize("objective", ["mil_nce", "sigmoid", "soft"])
def test_an_objective_that_is_not_built_is_refused_by_name(objective):
    with pytest.raises(errors.NotSupportedError, match=f"objective='{objective}' is not built yet; 'infonce' is"):
        contrastive_loss(VECTORS, VECTORS, 5.0, objective=objective)


def test_the_fused_backend_is_refused_by_name():
    for call in (
        lambda: contrastive_loss(VECTORS, VECTORS, 5.0, backend="fused"),
        lambda: region_contrastive_loss(PATCHES, VECTORS, OWNER, 5.0, backend="fused"),
    ):
        with pytest.raises(errors.NotSupportedError, match="'chunked'"):
            call()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"objective": "triplet"}, errors.ArgumentError, "objective='triplet'"),
        ({"backend": "magic"}, errors.ArgumentError, "backend='magic'"),
        ({"bias": 1.0}, errors.ArgumentError, "bias"),
        ({"scale": float("inf")}, errors.ArgumentError, "scale=inf"),
        ({"scale": torch.ones(1)}, errors.ShapeError, "scale"),
        ({"scale": torch.tensor(3)}, errors.ShapeError, "scale"),
        ({"text": VECTORS[:2]}, errors.ShapeError, "that of text is 2"),
        ({"text": VECTORS[:, :3]}, errors.ShapeError, "width of text is 3"),
        ({"image": VECTORS[0]}, errors.ShapeError, r"\[rows, width\]"),
        ({"image": VECTORS.long()}, errors.ShapeError, "int64"),
        ({"ids": torch.ones(2, dtype=torch.int64)}, errors.ShapeError, "ids"),
        ({"ids": torch.ones(3, dtype=torch.int32)}, errors.ShapeError, "int64"),
        ({"guide_text": VECTORS[:2]}, errors.ShapeError, "guide_text"),
        ({"mining": Mining("joint", 0.5), "guide_text": VECTORS[:, :3]}, errors.ShapeError, "joint"),
    ],
)
def test_wrong_inputs_of_the_global_loss_are_refused_by_name(change, error, said):
    inputs = {"image": VECTORS, "text": VECTORS, "scale": 5.0, **change}
    with pytest.raises(error, match=said):
        contrastive_loss(**inputs)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"scope": "world"}, errors.ArgumentError, "scope='world'"),
        ({"sharpness": -1.0}, errors.ArgumentError, "sharpness=-1"),
        ({"sharpness": float("inf")}, errors.ArgumentError, "sharpness=inf"),
        ({"scope": "image", "mining": Mining(top_k=1)}, errors.ArgumentError, "mining"),
        ({"owner": torch.tensor([0, 1, 3])}, errors.ArgumentError, "0 to 3"),
        ({"owner": torch.tensor([0, -1, 2])}, errors.ArgumentError, "-1 to 2"),
        ({"owner": torch.tensor([0, 1])}, errors.ShapeError, "owners is 2"),
        ({"owner": torch.ones(3)}, errors.ShapeError, "owner"),
        ({"patches": PATCHES[:, :0]}, errors.ShapeError, "at least one patch"),
        ({"patches": PATCHES[0]}, errors.ShapeError, "patches"),
        ({"sentences": VECTORS[:, :2]}, errors.ShapeError, "width"),
        ({"patch_mask": torch.ones(3, 3, dtype=torch.bool)}, errors.ShapeError, "patch_mask"),
        ({"patch_mask": torch.ones(3, 4)}, errors.ShapeError, "bool"),
    ],
)
def test_wrong_inputs_of_the_local_loss_are_refused_by_name(change, error, said):
    inputs = {"patches": PATCHES, "sentences": VECTORS, "owner": OWNER, "scale": 5.0, **change}
    with pytest.raises(error, match=said):
        region_contrastive_loss(**inputs)


def test_the_tree_of_errors_is_the_one_that_its_docstring_draws():
    drawn = [line.split()[1] for line in (errors.__doc__ or "").splitlines() if line[:1] in ("├", "└")]
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert sorted(drawn) == sorted(kind.__name__ for kind in classes if kind is not errors.KernelError)
    assert all(issubclass(kind, errors.KernelError) for kind in classes)
