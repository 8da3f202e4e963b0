"""Instructions for pairs of clips: from a vision-language model, reached in one of two ways, or from measurement."""
