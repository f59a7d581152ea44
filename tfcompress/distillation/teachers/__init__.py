"""Teachers: models, ensembles, files and caches of outputs."""
