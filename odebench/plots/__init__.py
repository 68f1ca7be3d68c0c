"""Draw arrays as matplotlib figures in one style. Imports neither torch nor pyplot."""
