"""The results of measurements: grids and tables with axes, units, n and intervals."""
