"""The report: results read back, plots, the page. `components/report.py` puts them together."""
