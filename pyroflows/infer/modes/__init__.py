"""The modes of a density: found, made a base, missed by a flow."""
