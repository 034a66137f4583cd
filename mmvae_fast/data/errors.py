"""What can be wrong with what a user wrote: the configuration, a manifest, a file that a manifest names."""


class ConfigError(ValueError):
    """What is wrong with a configuration, key by key."""


class ManifestError(ValueError):
    """What is wrong with a manifest, every row of it in one message."""


class CellError(ValueError):
    """A cell whose file turned out to be damaged; the message says which and why."""
