"""Defines the interfaces of the image tower and the text tower of a `TowerPair`.

`TimmImageTower` and `TransformersTextTower` implement the interfaces, and `TowerPair` uses no member of a tower that is
not in them. docs/extend/tower.md shows how to add another tower. Two rules hold for every tower, because several ranks
train one model:

- Every parameter takes part in every forward pass, also if the rank has no rows. DeepSpeed reduces the gradients of all
  ranks together, and at ZeRO stage 3 each forward pass runs collectives.
- The vector of a row does not depend on the other rows. Otherwise the loss would depend on how the rows of the global
  batch are split over the ranks. Batch norm with the statistics of the batch is refused for this reason.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, UInt8
from torch import Tensor

from emocap_pretrain.data.batch import Texts


@runtime_checkable
class ImageTower(Protocol):
    """Defines the interface of an image encoder. At run time every such encoder is also a `torch.nn.Module`.

    The encoder normalizes the 8-bit values of the images itself, because each model has its own mean and standard
    deviation. So the images are copied to the device as 8-bit values, which are a quarter of the bytes of float32.

    Attributes:
        pixels: Side of the square images.
        width: Size of the pooled vector.
        patch_width: Size of the vector of a patch, which may differ from `width`.
    """

    pixels: int
    width: int
    patch_width: int

    def encode_image(
        self, images: UInt8[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch patches patch_width"]]:
        """Returns one pooled vector for each image, and one vector for each of its patches.

        The vectors are neither projected nor normalized to unit length: `TowerPair` projects and normalizes them. The
        patches of an image are in row-major order: from left to right in a row, and the rows from top to bottom. The
        setting `objective.patch_mask` relies on this order. With patch dropout, only some of the patches are returned
        in training.

        If there are no images, every parameter must still take part in the computation, because every rank needs a
        gradient for every parameter. An encoder can, for example, encode one black image and drop the result.
        """
        ...

    def parameter_depths(self) -> dict[str, int]:
        """Returns the depth of every parameter by its name: 0 at the input, larger values towards the output.

        The setting `optimizer.layer_decay` uses the depths: a parameter that is further from the output gets a lower
        learning rate. So do the settings `freeze` of the towers, by which the parameters next to the input are not
        trained. The names are those of the tower's method `named_parameters`.
        """
        ...

    def checkpoint_activations(self) -> None:
        """Makes the tower recompute its activations in the backward pass, to save memory.

        The gradients do not change. The method is called at most once, before the model is given to DeepSpeed.
        """
        ...


@runtime_checkable
class TextTower(Protocol):
    """Defines the interface of a text encoder. At run time every such encoder is also a `torch.nn.Module`.

    Attributes:
        width: Size of a text's vector.
        notes: Remarks for the user on the pretrained weights that were loaded, one line each.
    """

    width: int
    notes: tuple[str, ...]

    def encode_text(self, texts: Texts) -> Float[Tensor, "texts width"]:
        """Returns one vector for each text, before projection and normalization.

        The token ids of the padding (where `texts.mask` is False) must have no effect on the vectors, because the
        length of the padding depends on the other texts of the rank. If there are no texts, every parameter must still
        take part in the computation, as in `ImageTower`.
        """
        ...

    def parameter_depths(self) -> dict[str, int]:
        """Returns the depth of every parameter by its name: 0 at the input, larger values towards the output."""
        ...

    def checkpoint_activations(self) -> None:
        """Makes the tower recompute its activations in the backward pass, to save memory, as in `ImageTower`."""
        ...

    def recorded(self) -> Mapping[str, Any] | None:
        """Returns a JSON value from which the tower can be built without its pretrained source.

        A checkpoint stores the value, so that an evaluation on another host opens neither the folder nor the hub from
        which the run took its weights. The value is None if the settings alone suffice to build the tower.
        """
        ...
