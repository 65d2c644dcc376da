"""One module per family of models: how it is loaded, how it is run."""
