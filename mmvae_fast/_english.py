"""For messages."""


def with_article(noun: str) -> str:
    """An Autoencoder, a GAN."""
    return f"{'an' if noun[:1].lower() in 'aeio' else 'a'} {noun}"
