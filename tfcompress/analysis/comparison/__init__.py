"""What compression lost: comparisons, errors by layer, explanations, and their pages."""
