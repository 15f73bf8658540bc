"""Defines the settings of a training on the tars of other programs, which are streamed and not packed.

Nobody has counted the samples of these tars, and no index says where they are. So settings that need an index or the
manifest of a packed dataset are refused by `DataConfig` and `Config`.
"""

from typing import Annotated

from emocap_shards.mask import masked_url
from pydantic import BeforeValidator, ConfigDict, Field

from emocap_pretrain.config.fields import Positive, Section
from emocap_pretrain.config.location import Location

Column = Annotated[str, Field(min_length=1, max_length=80)]


def _is_path_or_url(url: object) -> object:
    """Refuses a URL that no store opens, such as `pipe:COMMAND`, before it is taken for the name of a file.

    Raises:
        ValueError: If the text has such a scheme, also within braces.
    """
    for part in str(url).replace("{", ",").replace("}", ",").split(","):
        scheme, colon, rest = part.partition(":")
        if colon and scheme.replace("+", "").isalnum() and not rest.startswith("//"):
            raise ValueError(
                f"{scheme}: URLs are not opened; give a path, or a URL such as s3://bucket/{{00000..00099}}.tar."
            )
    if "::" in str(url):
        raise ValueError(
            f"{masked_url(str(url))}: name several tars with braces, such as {{a,b}}.tar, and not with ::."
        )
    return url


TarPattern = Annotated[Location, BeforeValidator(_is_path_or_url)]


class WebDatasetConfig(Section):
    """Configures the tars of other programs, such as img2dataset, from which samples are streamed without packing."""

    model_config = ConfigDict(serialize_by_alias=True)

    url: TarPattern = Field(
        description="Path or URL of the tars with {braces} and wild cards, such as s3://bucket/{00000..00099}.tar, or "
        "the folder in which they are."
    )
    samples: Positive = Field(
        description="Number of samples of an epoch, over all ranks: the number that the tars have together."
    )
    image: Column = Field(
        default="image",
        description="Extension of the member with the image; without such a member the first jpg, png or webp is it.",
    )
    global_: Column = Field(
        default="global",
        alias="global",
        description="Member or field of the json with the global part; without it a caption object, txt, or caption.",
    )
    local: Column = Field(default="local", description="Member or field of the json with the local sentences.")
    summary: Column = Field(default="summary", description="Member or field of the json with the summary.")
    flat: bool = Field(
        default=False, description="Divide captions of several sentences into parts, as `emocap pack --flat` does."
    )
    shuffle_buffer: Positive = Field(
        default=2000, description="Number of samples in the memory of each loader process, among which it shuffles."
    )
