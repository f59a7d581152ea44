"""Where codes are rounded: the plan of a model and the graph that follows from it."""
