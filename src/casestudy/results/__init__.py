"""What a measurement gives: grids and tables with axes, units, n and intervals."""
