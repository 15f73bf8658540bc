"""Embeds or scores many images and frames of videos, for `emocap embed` and `emocap predict`.

`inputs` lists the items of a dataset, a folder, a table or a video. `parts` divides the list into parts. `compute`
writes a file for each part, with the vectors or scores that `scorers` computes. `part_folder` keeps these files until
the output is complete, and refuses to mix files of different commands. `joining` joins them into the output. A command
that was interrupted computes only the parts that have no file yet, and its output is the same in every bit.
"""
