"""Data sets that are made or converted, and checks of those that are given."""
