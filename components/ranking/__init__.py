"""What is ranked, how, and what is made of the ranks. `components/evaluation.py` puts them together."""
