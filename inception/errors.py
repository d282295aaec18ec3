"""What is wrong with a network's description or weights, in one line."""


class ModelError(ValueError):
    """`<name>: got <value>; <rule>. <what to do>.`"""
