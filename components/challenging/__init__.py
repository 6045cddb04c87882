"""What `python -m components challenge` consists of: the window, the contest, the package, the rule, the words."""
