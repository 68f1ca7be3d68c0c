"""Tables, figures and an HTML page from the records of runs, with published values. This package imports no torch."""
