"""What the bounds of every certified screen allow for rounding; docs/certificate.md and certificate-gpu.md say why."""

ROUNDING = 2.0**-21  # of what a bound starts from, which pays for the roundings to float32
UPWARD = 1 + 2.0**-20  # of a norm or a residual, which makes it an upper bound
TINY = 2.0**-100  # the smallest unit or norm, so that products of two are normal numbers
UNDERFLOW = 2.0**-120  # more than is lost below the normal numbers
HUGE = 1e37  # a row whose terms could come to more has no bounds
