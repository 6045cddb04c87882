"""How fast the operator and a training step are, beside what one would write without this project."""
