"""What a file costs, and the budgets that limit it."""
