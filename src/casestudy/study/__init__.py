"""Running measurements together, and keeping what they gave."""
