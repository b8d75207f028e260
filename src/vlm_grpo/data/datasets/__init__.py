"""Importers of published data sets: their annotation files to rows of the conversations form."""
