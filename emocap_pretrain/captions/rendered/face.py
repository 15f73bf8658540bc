"""Defines one synthetic face, the only input of both the picture and the words."""

from dataclasses import dataclass

from emocap_pretrain.captions.rendered.action_units import Actions
from emocap_pretrain.captions.rendered.identity import Identity
from emocap_pretrain.captions.rendered.scene import Scene


@dataclass(frozen=True, slots=True)
class Face:
    """A person in a scene with an emotion.

    Attributes:
        identity: Everything that an expression does not change.
        scene: Pose, light and background.
        actions: The action units that act; the picture and the local sentences depend on these alone.
        emotion: One of `emotion.EMOTIONS`.
        shade: Name of the prototype within the emotion.
        intensity: Intensity of the emotion, in [0, 1].
        valence: In [-1, 1].
        arousal: In [-1, 1].
        wording: Seed of the choice of words.
    """

    identity: Identity
    scene: Scene
    actions: Actions
    emotion: str
    shade: str
    intensity: float
    valence: float
    arousal: float
    wording: int
