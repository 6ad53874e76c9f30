"""Which parts of a model carry a behaviour, and how good the evidence for that is."""
