"""Python's garbage collector, kept away from what stays as long as the process."""

import gc


def leave_what_is_there() -> None:
    """What has been imported and built by now is never looked through again. Once a process; later calls do nothing.

    With torch these are 200,000 objects: looking through them stops every thread for a tenth of a second, and a busy
    service had that happen every few seconds.
    """
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()
