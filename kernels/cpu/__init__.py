"""The C++ operators: their sources, and what compiles, loads and calls them."""
