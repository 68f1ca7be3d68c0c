"""Arrays to matplotlib figures, in one look. Knows neither torch nor any other room; never uses pyplot."""
