import pytest
from emocap_shards.sample import Caption

from emocap_pretrain.data.mirror import mirrored


def mirror(text: str) -> str | None:
    caption = mirrored(Caption(text, (), ""))
    return caption and caption.global_


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The left brow is raised.", "The right brow is raised."),
        ("Left eyebrow up, RIGHT EYE shut.", "Right eyebrow up, LEFT EYE shut."),
        ("Left upper eyelid, right outer mouth corner.", "Right upper eyelid, left outer mouth corner."),
        ("The right lip corner is pulled back.", "The left lip corner is pulled back."),
        ("The gaze goes to the left.", "The gaze goes to the right."),
        ("He looks right, away from the camera.", "He looks left, away from the camera."),
        ("The head is tilted slightly left and down.", "The head is tilted slightly right and down."),
        ("Left and right brows are lowered.", "Right and left brows are lowered."),
        ("A leftward glance, the left-hand side in shadow.", "A rightward glance, the right-hand side in shadow."),
        ("On the viewer's right, the cheek is raised.", "On the viewer's left, the cheek is raised."),
        ("The eyes look leftwards.", "The eyes look rightwards."),
    ],
)
def test_the_words_for_sides_are_exchanged_and_mirroring_twice_restores_them(text, expected):
    assert mirror(text) == expected
    assert mirror(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        "The mouth is left open.",
        "The left brow is raised and the mouth is left open.",
        "Just the right expression.",
        "Right away the eyes widen.",
        "The mouth is left half open.",
        "The face on the right looks angry.",
        "The shock left raised eyebrows.",
        "AU12L at marked intensity.",
        "Unilateral dimpling (R14B).",
        "The head is turned clockwise.",
        "A left-over smile.",
    ],
)
def test_a_caption_whose_sides_are_uncertain_has_no_mirror_image(text):
    assert mirror(text) is None


@pytest.mark.parametrize(
    "text", ["An upright posture with bright eyes.", "Both lip corners (AU12) are pulled up.", "Rightly so.", ""]
)
def test_a_caption_without_sides_is_its_own_mirror_image(text):
    caption = Caption("A face.", (text,) if text else (), text)
    assert mirrored(caption) == caption


def test_one_uncertain_part_keeps_the_whole_caption_from_being_mirrored():
    local = ("The left brow is raised.", "The right cheek is lifted.")
    assert mirrored(Caption("Doubt.", local, "Doubt, told by the left brow.")) == Caption(
        "Doubt.", ("The right brow is raised.", "The left cheek is lifted."), "Doubt, told by the right brow."
    )
    assert mirrored(Caption("Doubt.", (*local, "It is left open."), "")) is None
