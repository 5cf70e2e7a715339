"""Many runs: planned, started one after the other, resumed, gathered."""
