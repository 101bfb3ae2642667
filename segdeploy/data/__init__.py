"""Pictures with their masks, and how labelled folders are laid out."""
