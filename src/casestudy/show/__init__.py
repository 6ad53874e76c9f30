"""Looking: figures, reports, the live page. Works from stored studies, without torch."""

from casestudy.show import figures

__all__ = ["figures"]
