"""What a user is told at each step of training, and stops it by."""

from collections.abc import Callable

Callback = Callable[[int, float, float], object]


class Listener:
    """Tells a user's function where training stands.

    What it raises does not break training off in the middle of anything: training stops, ends in good order, and then
    the error is passed on. Ctrl-C is not kept back.

    Args:
        caller: whose option it is, for the message.
        callback: called as ``callback(step, value, rate)``; training stops where it returns True. None says nothing.

    Raises:
        TypeError: if it cannot be called.

    Example:
        >>> listener = Listener("fit", lambda step, elbo, rate: step == 2)
        >>> listener(1, -3.0, 0.1), listener(2, -2.5, 0.1), listener.stopped
        (False, True, 'the callback stopped it')
    """

    def __init__(self, caller: str, callback: Callback | None) -> None:
        if not (callback is None or callable(callback)):
            raise TypeError(
                f"{caller} expected callback to be None or a function of step, value and rate, got {callback!r}"
            )
        self.callback, self.stopped = callback, ""
        self._error: BaseException | None = None

    def __call__(self, step: int, value: float, rate: float) -> bool:
        """Tells it and returns whether to stop."""
        if self.callback is not None:
            try:
                self.stopped = "the callback stopped it" if self.callback(step, value, rate) else ""
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self.stopped, self._error = f"the callback raised {type(error).__name__}", error
        return bool(self.stopped)

    @property
    def failed(self) -> bool:
        """Whether the callback raised."""
        return self._error is not None

    def pass_on(self) -> None:
        """Raises what the callback raised."""
        if self._error is not None:
            raise self._error
