"""The five steps of an export: prepare, convert, write exact values, verify, describe."""
