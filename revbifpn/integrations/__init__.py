"""Adapters to other libraries; each is importable only with its own dependency."""
