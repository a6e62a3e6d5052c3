"""Artifacts: the files that stages talk through."""
