"""Many runs to tables, figures and a page, beside the published values. Reads files only; knows no torch."""
