"""Recipes: stages of compression as a file that can be run again."""
