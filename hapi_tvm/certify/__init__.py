"""What may be promised of a design on images that nobody has seen: tests, certificates and the gap.

The promise is about the accuracy drop against the backbone, at most epsilon with confidence 1 - delta. It assumes
that the images of the certification split are independent draws from what the design will meet (exchangeable with
it), and that neither training nor search has read them. A shift of the data voids it, and so does asking again
and again: delta is the risk of one run of one sequence, not of a series of builds on the same images.
"""

from hapi_tvm.certify.gap import Gap, gap_between
from hapi_tvm.certify.holdout import hold_out
from hapi_tvm.certify.sequence import certify

__all__ = ["Gap", "certify", "gap_between", "hold_out"]
