"""Weight and activation quantizers beyond the uniform one: one file per method."""
