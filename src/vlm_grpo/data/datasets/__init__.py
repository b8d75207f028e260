"""Importers of published data sets, which convert annotation files to rows in the conversations format."""
