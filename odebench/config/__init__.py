"""From YAML and the command line to a frozen, validated Settings object. Imports no torch."""
