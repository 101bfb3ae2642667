"""A float32 graph becomes one of low precision inside an accuracy budget."""
