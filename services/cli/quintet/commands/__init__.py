"""One file per command. Each has ``add_arguments(parser)`` and ``run(options)``, which returns the exit status."""
