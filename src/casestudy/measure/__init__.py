"""One module per measurement of a model on a behaviour."""
