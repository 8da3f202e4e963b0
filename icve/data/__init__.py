"""Data: manifests, videos, buckets and the two training data modules (:mod:`unpaired_clips`, :mod:`paired_edits`).

A manifest's paths are relative to its root: ``resolve_path(rows.root, row["source_path"])``.
"""
