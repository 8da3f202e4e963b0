"""Media files: their pictures as they are shown, their sound, their names, and writing them."""
