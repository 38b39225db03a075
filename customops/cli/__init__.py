"""The command line, ``customops``: a module for each subcommand, which returns a Result to show."""
