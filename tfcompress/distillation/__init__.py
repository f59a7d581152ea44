"""Knowledge distillation: a model wrapper and its losses."""
