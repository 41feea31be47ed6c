"""The one error that a user can cause."""


class UserError(ValueError):
    """A mistake of the user's, told in one line: found, expected, where, remedy.

    The command line prints the message to stderr and exits with status 2, without a traceback. Everything else
    that escapes a recipe is a fault of ours: status 1, with its traceback.
    """
