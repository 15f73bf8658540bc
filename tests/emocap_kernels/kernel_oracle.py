"""The equations of docs/method.md in the simplest form: loops over anchors and Python sets, in float64.

Nothing is shared with the package except the setting `Mining`. Autograd through the loops gives the gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from emocap_kernels import Mining
from torch import Tensor

Table = list[list[float]]


@dataclass
class Expected:
    """The expected fields of a `LossResult`; `loss` keeps its graph."""

    loss: Tensor
    image_to_text: float
    text_to_image: float
    positives: float
    recall: tuple[float, float]


def cosines(left: Tensor, right: Tensor) -> Table:
    """Returns products that are added in a fixed order, so that equal vectors have equal cosines to the bit."""
    lefts, rights = left.double().tolist(), right.double().tolist()
    return [[sum(a * b for a, b in zip(x, y, strict=True)) for y in rights] for x in lefts]


def mined(rule: Mining, similar: Table, anchor: int) -> set[int]:
    """Returns the candidates that the rule mines for this anchor, which is no candidate of its own."""
    row = similar[anchor]
    others = [c for c in range(len(row)) if c != anchor]
    found = set(others)
    if rule.threshold is not None:
        found = {c for c in found if row[c] >= rule.threshold}
    if rule.top_k is not None:
        found &= set(sorted(others, key=lambda c: (-row[c], c))[: rule.top_k])
    return found


def contrastive(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    mining: Mining | None = None,
    guide_image: Tensor | None = None,
    guide_text: Tensor | None = None,
    ids: Tensor | None = None,
    objective: str = "infonce",
    bias: Tensor | float = 0.0,
    guide_scale: Tensor | float | None = None,
) -> Expected:
    """Returns the global loss; the arguments are those of `contrastive_loss`."""
    batch = range(len(image))
    score = scale * image @ text.T + bias
    known = [{c for c in batch if c == a or (ids is not None and int(ids[c]) == int(ids[a]))} for a in batch]
    by_image: list[set[int]] = [set() for _ in batch]
    by_text: list[set[int]] = [set() for _ in batch]
    if mining is not None:
        v = image.detach() if guide_image is None else guide_image
        u = text.detach() if guide_text is None else guide_text
        for_image, for_text = _guides(mining.guide, v, u)
        by_image = [mined(mining, for_image, a) for a in batch]
        by_text = [mined(mining, for_text, a) for a in batch]
    attract = mining is None or mining.treatment == "attract"
    teacher = None
    if objective == "soft":
        v, u = (x if g is None else g for x, g in ((image.detach(), guide_image), (text.detach(), guide_text)))
        teacher = ((scale if guide_scale is None else guide_scale) * v @ u.T).detach()
    to_text = _mean_loss(list(score), known, by_image, attract, objective, teacher)
    to_image = _mean_loss(list(score.T), known, by_text, attract, objective, None if teacher is None else teacher.T)
    sizes = [len(known[a] | (mine[a] if attract else set())) for mine in (by_image, by_text) for a in batch]
    hits = [
        sum(_best(lines[a].tolist()) in known[a] for a in batch) / len(batch)
        for lines in (score.detach(), score.detach().T)
    ]
    return Expected(
        (to_text + to_image) / 2, to_text.item(), to_image.item(), sum(sizes) / len(sizes), (hits[0], hits[1])
    )


def _guides(guide: str, v: Tensor, u: Tensor) -> tuple[Table, Table]:
    """Returns the similarities by which image anchors mine, and those by which text anchors mine.

    v are the features of the images, and u those of the texts.
    """
    if guide == "joint":
        return cosines(v, u), cosines(u, v)
    vv, uu = cosines(v, v), cosines(u, u)
    both = [[min(a, b) for a, b in zip(x, y, strict=True)] for x, y in zip(vv, uu, strict=True)]
    return {"counterpart": (uu, vv), "text": (uu, uu), "image": (vv, vv), "consensus": (both, both)}[guide]


def _mean_loss(
    lines: list[Tensor],
    known: list[set[int]],
    mine: list[set[int]],
    attract: bool,
    objective: str = "infonce",
    teacher: Tensor | None = None,
) -> Tensor:
    """Returns the mean loss of the anchors. Each row of `lines` has the scores of an anchor with all candidates.

    `known` holds the known positives of each anchor, and `mine` the candidates that are mined for it.
    """
    losses: list[Tensor] = []
    for anchor, line in enumerate(lines):
        positive = sorted(known[anchor] | mine[anchor] if attract else known[anchor])
        dropped = set() if attract else mine[anchor] - known[anchor]
        present = [c for c in range(len(line)) if c not in dropped]
        if objective == "infonce":
            losses.append(line[present].logsumexp(0) - line[positive].mean())
        elif objective == "mil_nce":
            losses.append(-(line[positive].exp().sum() / line[present].exp().sum()).log())
        elif objective == "sigmoid":
            chances = [1 / (1 + (-line[c] if c in positive else line[c]).exp()) for c in present]
            losses.append(-torch.stack(chances).log().sum())
        else:
            assert teacher is not None
            target, guess = (x.exp() / x.exp().sum() for x in (teacher[anchor], line))
            losses.append((target * (target / guess).log()).sum())
    return torch.stack(losses).mean()


def _best(line: list[float]) -> int:
    return max(range(len(line)), key=lambda c: (line[c], -c))


def region(
    patches: Tensor,
    sentences: Tensor,
    owner: Tensor,
    scale: Tensor | float,
    sharpness: float = 10.0,
    patch_mask: Tensor | None = None,
    mining: Mining | None = None,
) -> Expected:
    """Returns the local loss of scope `batch`; the arguments are those of `region_contrastive_loss`."""
    images, lines, owners = range(len(patches)), range(len(sentences)), owner.tolist()
    score = torch.stack(
        [
            torch.stack([_pooled_score(_kept(patches, patch_mask, i), sentences[n], sharpness) for n in lines])
            for i in images
        ]
    )
    score = scale * score
    close: list[set[int]] = [{n} for n in lines]
    if mining is not None:
        similar = cosines(sentences.detach(), sentences.detach())
        close = [{n} | mined(mining, similar, n) for n in lines]
    own = [{n for n in lines if owners[n] == i} for i in images]
    by_image = [set().union(*[close[n] for n in own[i]]) for i in images]
    by_line = [{owners[m] for m in close[n]} for n in lines]
    attract = mining is None or mining.treatment == "attract"
    anchors = [i for i in images if own[i]]
    to_text = _mean_loss(
        [score[i] for i in anchors], [own[i] for i in anchors], [by_image[i] for i in anchors], attract
    )
    to_image = _mean_loss([score[:, n] for n in lines], [{owners[n]} for n in lines], by_line, attract)
    plain = score.detach()
    sizes = (
        sum(len(own[i] | by_image[i] if attract else own[i]) for i in anchors) / len(anchors),
        sum(len(by_line[n]) if attract else 1 for n in lines) / len(lines),
    )
    hits = (
        sum(_best(plain[i].tolist()) in own[i] for i in anchors) / len(anchors),
        sum(_best(plain[:, n].tolist()) == owners[n] for n in lines) / len(lines),
    )
    return Expected((to_text + to_image) / 2, to_text.item(), to_image.item(), sum(sizes) / 2, hits)


def _kept(patches: Tensor, patch_mask: Tensor | None, image: int) -> Tensor:
    return patches[image] if patch_mask is None else patches[image][patch_mask[image]]


def _pooled_score(patches: Tensor, sentence: Tensor, sharpness: float) -> Tensor:
    if len(patches) == 0:
        return sentence.new_zeros(())
    similar = patches @ sentence
    return ((sharpness * similar).softmax(0) * similar).sum()


def within(
    patches: Tensor, sentences: Tensor, owner: Tensor, scale: Tensor | float, patch_mask: Tensor | None = None
) -> Expected:
    """Returns the local loss of scope `image`, without recall."""
    to_text: list[Tensor] = []
    to_image: list[Tensor] = []
    for image in sorted(set(owner.tolist())):
        here = [n for n, of in enumerate(owner.tolist()) if of == image]
        kept = _kept(patches, patch_mask, image)
        vectors = [_sparc(kept, sentences[n]) for n in here]
        score = torch.stack([torch.stack([scale * (vector @ sentences[n]) for n in here]) for vector in vectors])
        to_text.append(torch.stack([score[k].logsumexp(0) - score[k, k] for k in range(len(here))]).mean())
        to_image.append(torch.stack([score[:, k].logsumexp(0) - score[k, k] for k in range(len(here))]).mean())
    first, second = torch.stack(to_text).mean(), torch.stack(to_image).mean()
    return Expected((first + second) / 2, first.item(), second.item(), 1.0, (0.0, 0.0))


def _sparc(patches: Tensor, sentence: Tensor) -> Tensor:
    """Returns the unit vector that a sentence pools from the patches of its image."""
    similar = patches @ sentence
    low, high = similar.min(), similar.max()
    if low == high:
        vector = patches.mean(0)
    else:
        share = (similar - low) / (high - low)
        share = torch.where(share < 1.0 / len(patches), torch.zeros_like(share), share)
        vector = (share / share.sum()) @ patches
    return vector / vector.norm()
