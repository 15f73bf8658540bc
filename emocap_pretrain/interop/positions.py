"""Resizes position embeddings, for images of another size or longer texts than in the training of the weights."""

from jaxtyping import Float
from torch import Tensor, arange, cat
from torch.nn import functional

KEPT = 20
"""Number of text positions that do not change when the others are stretched. Few captions of CLIP's data were longer,
so only these are well trained (Long-CLIP, arXiv 2403.15378)."""


def resized_grid(
    embeddings: Float[Tensor, "1 tokens width"], tokens: int, *, prefix_tokens: int
) -> Float[Tensor, "1 new width"]:
    """Returns the embeddings of a square grid of patches, resized to another square grid.

    The grid is resized as an image, with an antialiased bicubic filter, as timm and open_clip do. The embeddings of the
    first `prefix_tokens` tokens, such as the class token, are kept. If the old or the new number of patches is not a
    square, the embeddings are returned unchanged.
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

    If fewer positions are needed, the first ones are returned. If more are needed, they are interpolated linearly:

    - "interpolate" spreads the old positions over all new ones. The first and the last one keep their embeddings.
    - "stretch" keeps the first `KEPT` positions, and spreads only the later ones, as Long-CLIP does: the new position
      `KEPT + i` is the old one `KEPT + i * ratio`, where the ratio is the old number of later positions divided by the
      new one. Beyond the last old position, the line through the last two is continued. From 77 to 248 positions each
      later position becomes four, and the result equals that of Long-CLIP. With fewer than two later positions,
      "interpolate" is used.
    """
    if positions <= len(embeddings):
        return embeddings[:positions]
    if how == "stretch" and len(embeddings) > KEPT + 1:
        return cat([embeddings[:KEPT], _stretched(embeddings[KEPT:], positions - KEPT)])
    longer = functional.interpolate(embeddings.T[None], size=positions, mode="linear", align_corners=True)
    return longer[0].T


def _stretched(embeddings: Float[Tensor, "positions width"], positions: int) -> Float[Tensor, "new width"]:
    places = arange(positions, dtype=embeddings.dtype, device=embeddings.device) * (len(embeddings) / positions)
    before = places.long().clamp(max=len(embeddings) - 2)
    first, second = embeddings[before], embeddings[before + 1]
    return first + (places - before)[:, None] * (second - first)
