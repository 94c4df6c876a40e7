"""Recipe, records, errors, cache, provenance: frozen values and files. No torch."""
