"""Interfaces of other libraries, implemented with casestudy's engine."""
