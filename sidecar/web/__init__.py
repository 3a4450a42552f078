"""The doors: HTTP in, HTTP out."""
