"""What `python -m components compare` consists of: names, what may be judged, other catalogues, the answer in words."""
