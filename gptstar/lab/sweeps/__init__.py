"""Many runs: studies, searches, and where they run."""
