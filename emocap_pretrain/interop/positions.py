"""Resizes position embeddings, for images of another size and for longer texts than those of the pretraining."""

from jaxtyping import Float
from torch import Tensor, cat
from torch.nn import functional

KEPT = 20
"""The text positions that are kept as they are when the others are stretched. Few captions of CLIP's data were longer,
so these positions are trained well (Long-CLIP, arXiv 2403.15378)."""


def resized_grid(
    embeddings: Float[Tensor, "1 tokens width"], tokens: int, *, prefix_tokens: int
) -> Float[Tensor, "1 new width"]:
    """Returns the embeddings of a square grid of patches, resized to another square grid.

    The grid is resized as an image, with an antialiased bicubic filter, as timm and open_clip do. The embeddings of the
    first `prefix_tokens` tokens, such as the class token, are kept. If `tokens` or the present number of tokens does
    not belong to a square grid, the result is the unchanged embeddings.
    """
    prefix, grid = embeddings[:, :prefix_tokens], embeddings[:, prefix_tokens:]
    old, new = round(grid.shape[1] ** 0.5), round((tokens - prefix_tokens) ** 0.5)
    if old * old != grid.shape[1] or new * new != tokens - prefix_tokens:
        return embeddings
    square = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    made = functional.interpolate(square, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    return cat([prefix, made.permute(0, 2, 3, 1).reshape(1, new * new, -1)], dim=1)


def resized_positions(
    embeddings: Float[Tensor, "positions width"], positions: int, *, how: str
) -> Float[Tensor, "new width"]:
    """Returns the embeddings of text positions for another number of positions.

    Fewer positions are the first ones. More positions are interpolated linearly, either from all positions
    ("interpolate"), or from those after the first `KEPT`, which stay as they are ("stretch").
    """
    if positions <= len(embeddings):
        return embeddings[:positions]
    kept = min(KEPT, len(embeddings) - 1) if how == "stretch" else 0
    rest = embeddings[kept:].T[None]
    longer = functional.interpolate(rest, size=positions - kept, mode="linear", align_corners=True)
    return cat([embeddings[:kept], longer[0].T])
