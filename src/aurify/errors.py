"""What a person did wrong or the machine refuses, said with the mend.

The command line prints it as one paragraph, without a traceback.
"""

from __future__ import annotations

import errno


class UserError(ValueError):
    """The text names the key or file, the value, what was expected and the mend."""


def explain_os_error(error: Exception) -> str | None:
    """What the machine refuses, with the mend; None for any other error."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch has its own
        return (
            f"out of memory ({str(error).split('. ')[0]}); lower engine.micro_batch_tokens or sampler.max_batch, set "
            "engine.checkpointing=true, or train an adapter (lora: {rank: 16}), and go on with `aurify train --resume`"
        )
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error}); make room, and go on with `aurify train --resume last`"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error}; use a folder that you may write to, such as --runs FOLDER"
    return None
