"""Packed checkpoints as files of other engines, every weight equal.

:mod:`~potq.export.blocks` knows what a foreign block type can hold and decides by computation whether a scheme fits it;
:mod:`~potq.export.targets` lists the types of each target; a folder a target writes the files.
"""
