"""What are results and their terms called, where several rooms have to agree? No torch here."""

from __future__ import annotations

B_U = "final norm bias (b_U)"
"""The ledger's term of the final norm's bias through the unembedding, which a projection of the
residual stream leaves out."""
