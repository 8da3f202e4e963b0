"""Wan: the in-context transformer of Wan 2.1 and 2.2, its codecs and text encoder, and the layouts of their files."""
