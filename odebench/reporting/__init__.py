"""Tables, figures and an HTML page from the records of runs, with published values. Does not import torch."""
