"""Edit pairs: a thing in a clip is masked and changed, and the two versions make a pair (ICVE, paired data).

With models: `label`, `tracked_masks`, `area`, `dilate`, `caption`, `inpaint`, `additions`, `judge`; without weights:
`offline_*`. Both: `write_clips` before, `silhouette`, `merge_styles` and `balance` after.
"""
