"""Models of other tools as models of this one."""
