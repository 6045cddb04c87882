"""What the log must look like, and how that is judged and shown. `components/validation.py` puts them together."""
