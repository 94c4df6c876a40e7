"""Studies: plan, search, queue, executors, estimate. Imports none of them: a plan's mistakes are told before torch."""
