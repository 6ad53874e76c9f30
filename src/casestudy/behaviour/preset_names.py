"""Which presets are there, by name? No torch here, for those who read stored studies."""

from __future__ import annotations

PRESETS = ("full-stop-capitals", "decimal-point", "ioi", "greater-than", "agreement")
"""Behaviours whose prompts, corrupted ones included, come with casestudy, not from the reader."""
