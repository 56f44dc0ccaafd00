"""Cameras: lenses, rectification, and intrinsics from the files of other programs."""
