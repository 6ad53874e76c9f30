"""One module per question asked of a model over a behaviour."""
