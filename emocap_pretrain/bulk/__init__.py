"""Embeds or scores many images and frames of videos, for `emocap embed` and `emocap predict`.

`inputs` lists what is read: a dataset, a folder, a table or a video. `parts` cuts this list into parts. `compute` makes
one file for each part, with the vectors or scores of a `scorers` object, and skips a part whose file exists.
`part_folder` records what belongs to an unfinished output, and `joining` makes the output of the files of all parts.
So an interrupted command loses at most the parts that it was computing, and its output is the same in every bit.
"""
