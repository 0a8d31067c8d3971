"""One sequence over many processes: scans and convolutions whose states pass from rank to rank."""

from statescan.parallel._sequence import SequenceParallel, sequence_parallel

__all__ = ["SequenceParallel", "sequence_parallel"]
