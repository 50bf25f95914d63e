"""The error a user of the tabletop may cause; torch-free so that simulation workers start quickly."""


class TabletopError(ValueError):
    """Input or a machine the tabletop cannot work with. The message is one sentence with the mend."""
