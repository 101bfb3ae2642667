"""The HTML page that says which engine to ship."""
