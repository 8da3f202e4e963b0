"""Edit pairs: a thing in a clip is masked and changed, and the two versions make a pair (ICVE, paired data).

With models: `label`, `masks`, `area`, `dilate`, `caption`, `inpaint`, `additions`, `judge`; without weights:
`offline_*`. Both: `write_clips` before, `silhouette`, `styles` and `balance` after.
"""
