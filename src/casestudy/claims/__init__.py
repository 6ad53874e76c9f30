"""Claims about studies: comparisons, checks of findings, behaviours over checkpoints."""
