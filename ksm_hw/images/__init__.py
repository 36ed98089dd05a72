"""Image files: which files are images, and from a file to pixels, one or many."""
