"""What the service saw, beside what its model was trained on. `components/monitoring.py` puts it together."""
