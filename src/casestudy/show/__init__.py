"""Looking: figures, reports, the live page. Works from stored studies, without torch."""

from casestudy.show import plotly_figures as figures

__all__ = ["figures"]
