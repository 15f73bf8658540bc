"""Writes captions of faces with models of others, as a part of making a dataset from faces without captions.

A captioner implements the protocol of `protocol.py`: a face gives a caption, or a named reason why there is none. Every
answer is stored before it is used (`journal.py`), so an interrupted command asks for no stored answer again. The
command is `emocap caption faces` (docs/captioning.md, decision 48).
"""
