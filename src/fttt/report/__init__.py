"""Statistics, tables and plots of stored runs."""
