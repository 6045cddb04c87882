"""How a model is fitted: the loop, what it saves, how it ends. `components/training.py` puts them together."""
