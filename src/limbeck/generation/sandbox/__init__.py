"""Programs that nobody has read are run here and nowhere else; see ``programs``."""
