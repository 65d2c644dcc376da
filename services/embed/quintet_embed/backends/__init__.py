"""One file per family of models: load, tokenise, run. Only the worker process imports what is in here."""
