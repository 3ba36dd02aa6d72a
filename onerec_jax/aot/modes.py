"""What can be compiled ahead of time; the command line reads it without JAX."""

from typing import Literal
from typing import get_args

# A step of pretrain, align or reinforce; beam search.
Mode = Literal['train', 'dpo', 'ecpo', 'decode']
MODES: tuple[Mode, ...] = get_args(Mode)
