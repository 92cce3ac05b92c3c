"""Seeds to images on disk."""
