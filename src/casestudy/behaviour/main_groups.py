"""Which prompts count for the headline means? No torch here, for those who read stored studies."""

from __future__ import annotations

from collections.abc import Collection


def in_main_groups(groups: Collection[str], main: Collection[str]) -> bool:
    """Whether a prompt of these groups counts for the headline means; all do if none is main."""
    return not main or any(name in main for name in groups)
