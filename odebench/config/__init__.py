"""Turn YAML files and the command line into a frozen, validated Settings object. Imports no torch."""
