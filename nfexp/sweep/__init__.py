"""Many runs: which ones a sweep has, what its folder holds, and the processes that train them."""
