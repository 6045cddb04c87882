"""What `python -m components backtest` consists of: nights, past, future, story, plot, page."""
