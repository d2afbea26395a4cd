"""What a user can do wrong: one exception, one line, exit code 2."""


class SagaError(ValueError):
    """A mistake that the user can mend: a wrong path, key, table or file.

    The message is one line that names the offending value and the mend. The command line prints it without a
    traceback and exits with code 2; Python callers can catch it as the ``ValueError`` that it is.
    """
