"""A folder of images becomes a folder of masks."""
