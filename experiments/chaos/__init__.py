"""Real faults on a real stack: what was acknowledged must be there afterwards, once, and finished."""
