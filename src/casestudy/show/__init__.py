"""Looking: figures, reports, the live page. Works from stored studies, without torch."""
