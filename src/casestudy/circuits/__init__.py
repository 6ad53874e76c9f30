"""Which subgraph of a model carries a behaviour, and how strong is the evidence?"""
