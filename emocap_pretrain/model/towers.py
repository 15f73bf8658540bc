"""Defines the interfaces of the image tower and the text tower of a `TowerPair`.

`TimmImageTower` and `TransformersTextTower` implement them. docs/extend/tower.md shows how to add another tower.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, UInt8
from torch import Tensor

from emocap_pretrain.data.batch import Texts


@runtime_checkable
class ImageTower(Protocol):
    """The interface of an image encoder. At run time every such encoder is also a `torch.nn.Module`.

    The encoder normalizes the 8-bit values of the images itself.

    Attributes:
        pixels: Side of the square images.
        width: Size of the pooled vector.
        patch_width: Size of the vector of a patch.
        notes: Remarks for the user on the pretrained weights that were loaded, one line each.
    """

    pixels: int
    width: int
    patch_width: int
    notes: tuple[str, ...]

    def encode_image(
        self, images: UInt8[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch patches patch_width"]]:
        """Returns one pooled vector for each image, and one vector for each of its patches.

        The patches of an image are in row-major order: from left to right, and from top to bottom.

        If there are no images, every parameter must still take part in the computation, because every rank needs a
        gradient for every parameter. An encoder can, for example, encode one black image and drop the result.
        """
        ...

    def parameter_depths(self) -> dict[str, int]:
        """Returns the depth of every parameter by its name: 0 next to the pixels, ascending towards the output."""
        ...

    def checkpoint_activations(self) -> None:
        """Makes the tower recompute its activations in the backward pass, to save memory."""
        ...


@runtime_checkable
class TextTower(Protocol):
    """The interface of a text encoder. At run time every such encoder is also a `torch.nn.Module`.

    Attributes:
        width: Size of a text's vector.
        notes: Remarks for the user on the pretrained weights that were loaded, one line each.
    """

    width: int
    notes: tuple[str, ...]

    def encode_text(self, texts: Texts) -> Float[Tensor, "texts width"]:
        """Returns one vector for each text.

        If there are no texts, every parameter must still take part in the computation, as in `ImageTower`.
        """
        ...

    def parameter_depths(self) -> dict[str, int]:
        """Returns the depth of every parameter by its name: 0 next to the tokens, ascending towards the output."""
        ...

    def checkpoint_activations(self) -> None:
        """Makes the tower recompute its activations in the backward pass, to save memory."""
        ...

    def recorded(self) -> Mapping[str, Any] | None:
        """Returns a JSON value from which the tower can be built without its pretrained source.

        A checkpoint stores the value. It is None if the settings alone suffice to build the tower.
        """
        ...
