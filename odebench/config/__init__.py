"""From YAML and the command line to a frozen, validated Settings object. Free of torch."""
