"""Describes how a copy of a benchmark lies on a disk, as data.

Every layout has `codes`: what the files write for a class (a number, a folder's name, two letters), and the name of the
class. A code that is neither in `codes` nor in `left_out` is an error, because a wrong class order would otherwise pass
unseen. Paths are relative to the folder that the user gives. `{split}`, `{fold}` and the names of columns or of groups
of a pattern may occur in them, and `{stem}` is a file's name without its suffix. `{name:05d}` writes a whole number
with at least five digits.

Two codes are equal if they differ only in case, in underscores, hyphens and blanks between words, or in the way in
which a whole number is written ("7", "07", "7.0000000e+00"). Hidden files, whose names begin with a dot, belong to no
layout. The names of files and folders are compared with patterns without regard to case.
"""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from emocap_pretrain.benchmarks.sources import CardSection, FactSource, Text

Code = Annotated[str, Field(min_length=1, max_length=80)]
Column = Annotated[int, Field(ge=0)] | Text
"""The number of a column, counted from 0, or its name in the header."""


VoteRule = Literal["majority", "most"]
"""The rule by which the votes for an image become one class.

`majority` ignores a class with a single vote, and the winner needs more than half of the votes that remain. `most`
takes the class with the largest number of votes, and the first of several classes with this number. With both rules,
the image is left out if a code of `left_out` wins, such as "unknown" or "not a face".
"""


class _Layout(CardSection):
    """Base class of the layouts, with the attributes that all layouts have.

    Attributes:
        about: The layout in a few words, for messages.
        source: Where the layout was read.
        codes: The names of classes by their codes in the files. Empty if the files hold no classes.
        codes_source: Where the codes were read; None if they were read where the layout was read.
        left_out: Codes of items that do not belong to the benchmark, such as "8" for "no face", each with the reason.
            For action units, the codes of the units that are not scored.
        frames: The frames of a video that is a folder: a pattern of their names, such as "*.jpg". None if an item is
            one file.
        faces: Whether the images are faces that the authors have aligned, or whole photographs; None if no source says
            which.
    """

    about: Text
    source: FactSource
    codes: dict[Code, Text] = Field(default={})
    codes_source: FactSource | None = None
    left_out: dict[Code, Text] = Field(default={})
    frames: Text | None = None
    faces: Literal["aligned", "whole"] | None = None


class ClassFolders(_Layout):
    """The class is the name of a folder: `folders[split]/CLASS/FILE`.

    Attributes:
        folders: The folder of each split. `{split}` and `{fold}` may occur in the path.
        files: The pattern of the names of files, such as "*.png"; of folders if `frames` is set.
    """

    kind: Literal["class_folders"] = "class_folders"
    folders: Annotated[dict[Text, Text], Field(min_length=1)]
    files: Text = "*"


class Table(_Layout):
    """The items of a split are the rows of a text file.

    Attributes:
        files: The file of each split. Several splits may share a file if `split_column` is set.
        separator: The text between columns; a single space matches any number of spaces and tabs. Cells of a table
            with commas may be quoted.
        header: Whether the first row has the names of the columns.
        encoding: Encoding of the file.
        columns: The columns by the names under which `media` and the label use them. `class` is the column of a class,
            `caption` that of a caption, and the column of a number has the name of the number.
        media: Path of the image or video, made of columns, such as "Image/aligned/{stem}_aligned.jpg". `{stem}` is
            column `file` without its suffix, and `{folder}` is the folder of the table.
        after: A folder in the paths of column `file`, such as "faces/". Only what comes after its last occurrence is
            used as `file`. The beginning of the path is dropped: it is a place on somebody else's disk.
        box: How columns give the rectangle of a face, in pixels; None if the item is the whole image. `corners` uses
            the columns `left`, `top`, `right` and `bottom`, and `size` uses `left`, `top`, `width` and `height`.
        votes: The names of columns with the numbers of votes for each class, which take the place of `class`. These
            names are codes of classes.
        rule: How votes become a class (`VoteRule`).
        split_column: The name of the column that says to which split a row belongs (`split_values`); None if a file has
            the rows of one split only.
        split_values: For each split, the beginning of the values in `split_column` of its rows.
        group: The name of the column that says the person or the clip, for folds and intervals.
    """

    kind: Literal["table"] = "table"
    files: Annotated[dict[Text, Text], Field(min_length=1)]
    separator: Annotated[str, Field(min_length=1, max_length=4)] = ","
    header: bool = False
    encoding: Literal["utf-8", "gb18030"] = "utf-8"
    columns: Annotated[dict[Text, Column], Field(min_length=1)]
    media: Text
    after: Text | None = None
    box: Literal["corners", "size"] | None = None
    votes: tuple[Text, ...] = ()
    rule: VoteRule | None = None
    split_column: Text | None = None
    split_values: dict[Text, Text] = Field(default={})
    group: Text | None = None


class FileNames(_Layout):
    """The label is a part of the path of each file.

    Attributes:
        files: Pattern of the paths, such as "Actor_*/*.mp4".
        pattern: Regular expression of the path below the folder, with the groups `class` and, if there are folds,
            `person`.
        folds: The persons of the test split of each fold, by number; empty if there are no folds.
    """

    kind: Literal["file_names"] = "file_names"
    files: Text
    pattern: Text
    folds: tuple[tuple[Text, ...], ...] = ()

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        re.compile(pattern)
        return pattern


class FrameLabels(_Layout):
    """Every frame of a video has a label, in one file of labels for each video.

    Attributes:
        files: Pattern of the files of labels of each split.
        form: `rows` has one row of comma-separated values for each frame. `afew_va` is a JSON document whose object
            `frames` has the labels by the name of the frame.
        header: The first row, or None if there is none. A file with another first row is an error, because its labels
            may have another order.
        names: The names of the values of a frame: the names of numbers, `class`, or action units such as "AU12".
        invalid: What the files write for a frame without a label, such as "-1". If one value of a frame is of this
            kind, the frame is left out.
        first: Number of the frame of the first row.
        media: Path of a frame, made of `{video}` (the name of the file of labels without its suffix), `{frame}` and, in
            the form `afew_va`, `{folder}` (the folder of the file of labels), such as
            "cropped_aligned/{video}/{frame:05d}.jpg".
        folds: Number of folds, over which the videos are distributed in turn, in the order of their names; None if
            there are none. It is set for a benchmark whose publications do not say the folds.
    """

    kind: Literal["frame_labels"] = "frame_labels"
    files: Annotated[dict[Text, Text], Field(min_length=1)]
    form: Literal["rows", "afew_va"] = "rows"
    header: Text | None = None
    names: Annotated[tuple[Text, ...], Field(min_length=1)]
    invalid: tuple[Code, ...] = ()
    first: Annotated[int, Field(ge=0)] = 1
    media: Text
    folds: Annotated[int, Field(ge=2)] | None = None


class Arrays(_Layout):
    """Each image has its labels in `.npy` files of one value each.

    Attributes:
        folders: The folder of each split.
        media: Path of an image in the split's folder, made of `{stem}`, such as "images/{stem}.jpg".
        arrays: Path of the array of each label in the split's folder, made of `{stem}`, by `class` or a number's name.
    """

    kind: Literal["arrays"] = "arrays"
    folders: Annotated[dict[Text, Text], Field(min_length=1)]
    media: Annotated[Text, Field(pattern=r"\{stem\}")]
    arrays: Annotated[dict[Text, Annotated[Text, Field(pattern=r"\{stem\}")]], Field(min_length=1)]


class Records(_Layout):
    """The items of a split are the records of JSON files.

    Attributes:
        files: The files of each split.
        under: The key of the document under which the records lie; None if the document itself is the records. The
            records are a list of objects, or the values of an object.
        media: Path of the image, made of keys of a record, such as "{image.path}".
        prefix: The beginning of the paths in the records that the user's folder already contains.
        keys: The keys of a record by what they hold: `class`, `units`, `caption`, `question`, `options`, `answer`.
            A dot enters an object, and a number is a position in a list.
        one_of: The key of a list of images. A record with several images is left out. None if there is no such list.
    """

    kind: Literal["records"] = "records"
    files: Annotated[dict[Text, Annotated[tuple[Text, ...], Field(min_length=1)]], Field(min_length=1)]
    under: Text | None = None
    media: Text
    prefix: str = ""
    one_of: Text | None = None
    keys: Annotated[dict[Text, Text], Field(min_length=1)]


class PixelTable(_Layout):
    """The pixels of each image are a column of a CSV file, as in FER2013, with the votes of FER+ in a second file.

    Attributes:
        file: The CSV file with the columns `pixels` and `Usage`.
        usages: The value of `Usage` by split.
        votes: The CSV file with the votes, row by row in the same order; None takes the column `emotion` as the class.
            The names of its columns are codes of classes.
        rule: How votes become a class (`VoteRule`).
        side: Side of the images in pixels.
    """

    kind: Literal["pixel_table"] = "pixel_table"
    file: Text
    usages: Annotated[dict[Text, Text], Field(min_length=1)]
    votes: Text | None = None
    rule: VoteRule | None = None
    side: Annotated[int, Field(ge=8)] = 48


class Sequences(_Layout):
    """Sequences of frames whose last frames show the expression, as in CK+: one annotation file for each sequence.

    Attributes:
        files: Pattern of the annotation files, each with one number.
        media: Folder of the frames, made of the groups of `pattern`.
        pattern: Regular expression of the path of an annotation file, with the groups that `media` uses, and `person`.
        last: Number of frames at the end of a sequence that are items. `frames` is the pattern of their names. There
            is no official split, so each split of the card has all these frames.
    """

    kind: Literal["sequences"] = "sequences"
    files: Text
    pattern: Text
    media: Text
    last: Annotated[int, Field(ge=1)] = 1


Layout = Annotated[
    ClassFolders | Table | FileNames | FrameLabels | Arrays | Records | PixelTable | Sequences,
    Field(discriminator="kind"),
]
