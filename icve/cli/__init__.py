"""The commands: `icve VERB`, a thin module each."""
