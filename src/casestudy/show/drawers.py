"""Which function draws which result?

Imported when the first result is drawn: it tells `casestudy.drawing` what `.plot()`, `.report()`
and a notebook get.
"""

from __future__ import annotations

from casestudy import drawing
from casestudy.show import notebook, plotly_figures, report

drawing.register("grid.plot", plotly_figures.plot_grid)
drawing.register("grid.html", notebook.grid_html)
drawing.register("table.plot", plotly_figures.plot_table)
drawing.register("table.html", notebook.table_html)
drawing.register("trace.plot", plotly_figures.plot_activation)
drawing.register("trace.html", notebook.trace_html)
drawing.register("study.html", notebook.study_html)
drawing.register("study.report", report.write_report)
