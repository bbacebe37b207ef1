"""What a person did wrong, said so that they can mend it.

The command line prints it as one paragraph, without a traceback.
"""


class UserError(ValueError):
    """The text names the place, the value, what was expected and the mend."""
