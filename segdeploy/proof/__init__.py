"""Whether masks are the same, where they differ, and how right they are."""
