import dataclasses
import inspect
import subprocess
import sys

import emocap_kernels
import pytest
import torch
from emocap_kernels import Mining, choose_backend, contrastive_loss, errors, region_contrastive_loss
from emocap_kernels.backend import BackendChoice
from emocap_kernels.result import Directions, LossResult

VECTORS = torch.eye(4)[:3]
PATCHES = torch.eye(4).repeat(3, 1, 1)
OWNER = torch.tensor([0, 1, 2])


def test_the_public_surface_is_six_names():
    assert sorted(emocap_kernels.__all__) == [
        "Mining",
        "choose_backend",
        "choose_region_backend",
        "contrastive_loss",
        "region_attention",
        "region_contrastive_loss",
    ]


def test_the_signatures_are_those_that_callers_rely_on():
    assert str(inspect.signature(contrastive_loss)) == (
        "(image: 'Tensor', text: 'Tensor', scale: 'Tensor | float', *, objective: 'Objective' = 'infonce', "
        "bias: 'Tensor | float | None' = None, mining: 'Mining | None' = None, guide_image: 'Tensor | None' = None, "
        "guide_text: 'Tensor | None' = None, guide_scale: 'Tensor | float | None' = None, ids: 'Tensor | None' = None, "
        "group: 'ProcessGroup | None' = None, schedule: 'Schedule' = 'auto', backend: 'Backend' = 'auto') "
        "-> 'LossResult'"
    )
    assert str(inspect.signature(region_contrastive_loss)) == (
        "(patches: 'Tensor', sentences: 'Tensor', owner: 'Tensor', scale: 'Tensor | float', *, "
        "sharpness: 'float' = 10.0, scope: 'Scope' = 'batch', patch_mask: 'Tensor | None' = None, "
        "mining: 'Mining | None' = None, group: 'ProcessGroup | None' = None, schedule: 'Schedule' = 'auto', "
        "backend: 'Backend' = 'auto') -> 'LossResult'"
    )


def test_a_result_is_frozen_and_detached_except_for_the_loss():
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


def test_the_import_needs_only_torch():
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


def test_fused_kernels_without_a_gpu_raise_an_error_with_the_reason():
    with pytest.raises(errors.NotSupportedError, match=r"the inputs are on cpu and the kernels need a CUDA.*'chunked'"):
        contrastive_loss(VECTORS, VECTORS, 5.0, backend="fused")
    with pytest.raises(errors.NotSupportedError, match="'chunked'"):
        region_contrastive_loss(PATCHES, VECTORS, OWNER, 5.0, backend="fused")


def test_the_choice_of_a_backend_has_a_reason():
    choice = choose_backend(VECTORS, VECTORS)
    assert choice.backend == "chunked"
    assert choice.reason == "fused kernels cannot run: the inputs are on cpu and the kernels need a CUDA device."
    assert choose_backend(VECTORS, VECTORS, backend="reference") == BackendChoice("reference", "it was requested.")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"objective": "triplet"}, errors.ArgumentError, "objective='triplet'"),
        ({"backend": "magic"}, errors.ArgumentError, "backend='magic'"),
        ({"bias": 1.0}, errors.ArgumentError, "bias"),
        ({"objective": "sigmoid", "bias": torch.ones(2)}, errors.ShapeError, "bias"),
        ({"guide_scale": 1.0}, errors.ArgumentError, "guide_scale"),
        ({"objective": "soft"}, errors.ArgumentError, "needs a teacher"),
        ({"objective": "soft", "guide_text": VECTORS, "mining": Mining(top_k=1)}, errors.ArgumentError, "mining=None"),
        ({"objective": "soft", "guide_text": VECTORS[:, :3]}, errors.ShapeError, "'soft'"),
        ({"scale": float("inf")}, errors.ArgumentError, "scale=inf"),
        ({"scale": torch.ones(2)}, errors.ShapeError, "scale"),
        ({"scale": torch.tensor(3)}, errors.ShapeError, "scale"),
        ({"text": VECTORS[:2]}, errors.ShapeError, "the number of rows of text is 2"),
        ({"text": VECTORS[:, :3]}, errors.ShapeError, "width of text is 3"),
        ({"image": VECTORS[0]}, errors.ShapeError, r"\[rows, width\]"),
        ({"image": VECTORS.long()}, errors.ShapeError, "int64"),
        ({"ids": torch.ones(2, dtype=torch.int64)}, errors.ShapeError, "ids"),
        ({"ids": torch.ones(3, dtype=torch.int32)}, errors.ShapeError, "int64"),
        ({"guide_text": VECTORS[:2]}, errors.ShapeError, "guide_text"),
        ({"mining": Mining("joint", 0.5), "guide_text": VECTORS[:, :3]}, errors.ShapeError, "joint"),
    ],
)
def test_an_error_of_the_global_loss_names_the_wrong_input(change, error, message):
    inputs = {"image": VECTORS, "text": VECTORS, "scale": 5.0, **change}
    with pytest.raises(error, match=message):
        contrastive_loss(**inputs)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scope": "world"}, errors.ArgumentError, "scope='world'"),
        ({"sharpness": -1.0}, errors.ArgumentError, "sharpness=-1"),
        ({"sharpness": float("inf")}, errors.ArgumentError, "sharpness=inf"),
        ({"scope": "image", "mining": Mining(top_k=1)}, errors.ArgumentError, "mining"),
        ({"owner": torch.tensor([0, 1, 3])}, errors.ArgumentError, "0 to 3"),
        ({"owner": torch.tensor([0, -1, 2])}, errors.ArgumentError, "-1 to 2"),
        ({"owner": torch.tensor([0, 1])}, errors.ShapeError, "owner is 2"),
        ({"owner": torch.ones(3)}, errors.ShapeError, "owner"),
        ({"patches": PATCHES[:, :0]}, errors.ShapeError, "at least one patch"),
        ({"patches": PATCHES[0]}, errors.ShapeError, "patches"),
        ({"sentences": VECTORS[:, :2]}, errors.ShapeError, "width"),
        ({"patch_mask": torch.ones(3, 3, dtype=torch.bool)}, errors.ShapeError, "patch_mask"),
        ({"patch_mask": torch.ones(3, 4)}, errors.ShapeError, "bool"),
    ],
)
def test_an_error_of_the_local_loss_names_the_wrong_input(change, error, message):
    inputs = {"patches": PATCHES, "sentences": VECTORS, "owner": OWNER, "scale": 5.0, **change}
    with pytest.raises(error, match=message):
        region_contrastive_loss(**inputs)


def test_the_docstring_of_errors_draws_all_its_classes():
    drawn = [line.split()[1] for line in (errors.__doc__ or "").splitlines() if line[:1] in ("├", "└")]
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert sorted(drawn) == sorted(kind.__name__ for kind in classes if kind is not errors.KernelError)
    assert all(issubclass(kind, errors.KernelError) for kind in classes)
