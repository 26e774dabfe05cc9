"""Many runs: what a sweep's folder holds, which runs make a stack, and the processes that train them."""
