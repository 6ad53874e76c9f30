"""The report's sections, one for each kind of measurement."""
